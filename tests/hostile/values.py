"""Objects that raise, lie, are huge, cyclic or deep whenever any of their methods is called."""

from __future__ import annotations

import os
import time

ALL = os.environ.get("HOSTILE") == "all"
"""`HOSTILE=all` in the environment: every kind of object, at its full size."""
MUCH = 100_000_000 if ALL else 5_000_000
DEEP = 50_000


class Refuses(RuntimeError):
    """What a hostile object raises when it is looked at."""


def refuse(self, *_):
    raise Refuses("do not look at me")


def _exception(name, **members):
    return type(name, (Exception,), members)


def deep_list():
    inner = []
    for _ in range(DEEP):
        inner = [inner]
    return inner


def cyclic():
    inner = []
    inner.append(inner)
    return inner


def chained():
    """An exception with a chain of causes and contexts that is very long."""
    exc = ValueError("the first")
    for _ in range(DEEP):
        later = ValueError("a later one")
        later.__cause__ = exc
        exc = later
    return exc


def deep_group():
    exc = ValueError("inside")
    for _ in range(DEEP):
        exc = ExceptionGroup("outside", [exc])
    return exc


class HasItself(ExceptionGroup):
    """A group that gives itself as its members."""

    exceptions = property(lambda self: (self, self))


class NotCompared(type):
    """A class of such classes as cannot be compared."""

    __eq__ = refuse
    __hash__ = type.__hash__


class Derives(ExceptionGroup):
    """A group that cannot be taken apart."""

    def derive(self, _):
        raise Refuses("do not split me")


EXCEPTIONS = {
    "repr raises": lambda: _exception("ReprRaises", __repr__=refuse)(1),
    "str raises": lambda: _exception("StrRaises", __str__=refuse)(1),
    "both raise": lambda: _exception("BothRaise", __repr__=refuse, __str__=refuse)(1),
    "repr leaves": lambda: _exception("ReprLeaves", __repr__=lambda self: exit_now())(1),
    "repr is no string": lambda: _exception("ReprIsNone", __repr__=lambda self: None)(1),
    "repr is slow": lambda: _exception("ReprIsSlow", __repr__=lambda self: time.sleep(0.01) or "slow")(1),
    "arguments raise": lambda: ValueError(BAD["repr raises"]()),
    "eq raises": lambda: _exception("EqRaises", __eq__=refuse, __hash__=refuse)(1),
    "is false": lambda: _exception("IsFalse", __bool__=lambda self: False, __len__=lambda self: 0)(1),
    "bool raises": lambda: _exception("BoolRaises", __bool__=refuse)(1),
    "class raises": lambda: _exception("ClassRaises", __class__=property(refuse))(1),
    "class lies": lambda: _exception("ClassLies", __class__=property(lambda self: KeyboardInterrupt))(1),
    "getattr raises": lambda: _exception("GetattrRaises", __getattr__=refuse)(1),
    "tag raises": lambda: _exception("TagRaises", tag=property(refuse))(1),
    "tag is odd": lambda: _exception("TagIsOdd", tag=type("Odd", (str,), {"__hash__": None, "__eq__": refuse})("a"))(1),
    "huge": lambda: ValueError("x" * MUCH),
    "huge bytes": lambda: ValueError(b"x" * MUCH),
    "many arguments": lambda: ValueError(*range(1_000_000)),
    "deep arguments": lambda: ValueError(deep_list()),
    "cyclic arguments": lambda: ValueError(cyclic()),
    "long chain": chained,
    "deep group": deep_group,
    "class that is not compared": lambda: NotCompared("Odd", (Exception,), {})(1),
    "group that has itself": lambda: HasItself("g", [ValueError(1)]),
    "group that does not split": lambda: Derives("g", [ValueError(1), KeyError(2)]),
    "no dict": lambda: type("Slotted", (Exception,), {"__slots__": (), "__setattr__": refuse})(1),
}  # fmt: skip
"""Each makes an exception that is hostile in one way."""

JUDGED_OTHERWISE = {"getattr raises", "tag raises", "tag is odd", "no dict"}
"""A decider asks an exception for its tag: if that raises it is a decider that raises (R5). And a context manager of the
standard library sets the traceback of what passes through it: if that cannot be set, its exit raises."""


def exit_now():
    raise SystemExit(3)


def _value(name, **members):
    return type(name, (), members)()


BAD = {
    "repr raises": lambda: _value("ReprRaises", __repr__=refuse),
    "repr leaves": lambda: _value("ReprLeaves", __repr__=lambda self: exit_now()),
    "eq raises": lambda: _value("EqRaises", __eq__=refuse, __ne__=refuse, __hash__=refuse),
    "eq is true": lambda: _value("EqIsTrue", __eq__=lambda self, _: True, __hash__=lambda self: 0),
    "bool raises": lambda: _value("BoolRaises", __bool__=refuse, __len__=refuse),
    "getattr raises": lambda: _value("GetattrRaises", __getattr__=refuse),
    "class raises": lambda: _value("ClassRaises", __class__=property(refuse)),
    "class lies": lambda: _value("ClassLies", __class__=property(lambda self: type(None))),
    "await raises": lambda: _value("AwaitRaises", __await__=refuse, __iter__=refuse, __aiter__=refuse),
    "huge": lambda: "x" * MUCH,
    "deep": deep_list,
    "cyclic": cyclic,
}  # fmt: skip
"""Each makes a value that is hostile in one way."""
