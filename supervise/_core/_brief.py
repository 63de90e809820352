"""A short text for a user's object, in a message, a reason or an error.

A user's object may raise when it is inspected, or print without end. `brief` lets out no exception
but a `KeyboardInterrupt`, and its text is short. `as_group` and `members` look into a group of exceptions in the same way.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from itertools import islice
from reprlib import Repr
from typing import Any, cast

MOST = 500
"""The longest text that `brief` gives, in characters."""
_SHOWN = 3
"""The number of members of a group that a line about it shows."""
_LOOKS = 100
"""The number of exceptions and groups, in a group and in the groups in it, among which they are sought."""
_COLLECTIONS = cast("list[type[Any]]", [dict, list, tuple, set, frozenset])
_PRINT_EACH_ITEM = [
    kind.__repr__ for kind in [*_COLLECTIONS, *cast("list[type[Any]]", [Counter, OrderedDict, defaultdict])]
]


class _Brief(Repr):
    """A `Repr` that is bounded at every level: a list of a million items, or one that contains itself, costs little."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = MOST
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxarray = 20

    def repr1(self, x: Any, level: int) -> str:
        """As `Repr.repr1`, but prints an exception by its arguments, and lets nothing out that an object raises."""
        try:
            if isinstance(x, BaseException) and _prints_plainly(type(x)):
                return self._exception(x, level)
            return super().repr1(x, level)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # noqa: BLE001 - a user's `__repr__` may raise anything; only a text is lost
            return f"<{class_name(class_of(x))} whose repr raised {class_name(type(problem))}>"

    def repr_instance(self, x: Any, level: int) -> str:
        """The object's own `repr`, without its middle if it is long; the first items of a long `Counter`, say."""
        kind = class_of(x)
        if kind.__repr__ in _PRINT_EACH_ITEM and len(x) > MOST:
            base = next(base for base in _COLLECTIONS if base in kind.__mro__)
            shown = getattr(self, f"repr_{base.__name__}")
            return f"{class_name(kind)}({shown(x, level)})"
        return shortened(repr(x), self.maxother)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """The first entries: `Repr` sorts all of them, and that takes a second for a million."""
        return super().repr_dict(dict(islice(x.items(), self.maxdict + 1)), level)

    def repr_set(self, x: set[Any], level: int) -> str:
        """Some items, as `repr_dict`."""
        return super().repr_set(set(islice(x, self.maxset + 1)), level)

    def repr_frozenset(self, x: frozenset[Any], level: int) -> str:
        """As `repr_set`."""
        return super().repr_frozenset(frozenset(islice(x, self.maxfrozenset + 1)), level)

    def repr_bytes(self, x: bytes, level: int) -> str:  # noqa: ARG002 - as `Repr` calls it
        """Both ends of the bytes: printing a hundred megabytes whole takes a second."""
        return shortened(repr(x[:MOST] + x[-MOST:] if len(x) > 2 * MOST else x), self.maxstring)

    repr_bytearray = repr_bytes

    def _exception(self, exc: BaseException, level: int) -> str:
        name = class_name(type(exc))
        if level <= 0:
            return f"{name}(...)"
        arguments: tuple[Any, ...] = exc.args
        # A group's members are in a list, which is a level of its own: the cause of a failure is often two or three groups down.
        inner = level - 1 if as_group(exc) is None else level
        shown = [self.repr1(argument, inner) for argument in arguments[: self.maxtuple]]
        if len(arguments) > self.maxtuple:
            shown.append("...")
        return f"{name}({', '.join(shown)})"


def class_of(value: object) -> type[Any]:
    """The class of `value`, even if its `__class__` names another."""
    return type(value)


def class_name(kind: type[Any]) -> str:
    """The name of a class, even if its metaclass overrides `__name__`."""
    name: str = type.__dict__["__name__"].__get__(kind)
    return name


def _prints_plainly(kind: type[BaseException]) -> bool:
    """Whether this class has the `repr` that all exceptions inherit: the name and the arguments."""
    return kind.__repr__ in (BaseException.__repr__, BaseExceptionGroup.__repr__)


def shortened(text: str, most: int) -> str:
    """The text, without its middle if it is longer than `most` characters; always a plain `str`.

    A user's `__str__` may return an instance of a subclass, whose methods may raise.
    """
    text = str.__str__(text)
    if len(text) <= most:
        return text
    half = (most - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


_BRIEF = _Brief()


def brief(value: object) -> str:
    """`repr(value)`, bounded to `MOST` characters; never raises but for a `KeyboardInterrupt`."""
    return shortened(_BRIEF.repr(value), MOST)


def brief_text(exc: BaseException) -> str:
    """`str(exc)`, bounded to `MOST` characters; never raises but for a `KeyboardInterrupt`."""
    try:
        return shortened(str(exc), MOST)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - as above
        return brief(exc)


def failure_line(exc: BaseException) -> str:
    """An exception in one line that can be printed: its class and its text, and those of the first members of a group.

    The text of a group, such as `Exceptions from Trio nursery (1 sub-exception)`, does not say what has failed.
    """
    line = _class_and_text(exc)
    if as_group(exc) is not None:
        inside = [_class_and_text(one) for one in islice(_inside(exc), _SHOWN + 1)]
        inside[_SHOWN:] = ["..."] * len(inside[_SHOWN:])
        line = ": ".join([line, "; ".join(inside)] if inside else [line])
    return printable(line)


def _class_and_text(exc: BaseException) -> str:
    return f"{class_name(type(exc))}: {brief_text(exc)}".removesuffix(": ")


def as_group(exc: BaseException) -> BaseExceptionGroup[BaseException] | None:
    """`exc` if it is a group, else None."""
    if not issubclass(type(exc), BaseExceptionGroup):
        return None
    return cast("BaseExceptionGroup[BaseException]", exc)


def members(group: BaseExceptionGroup[BaseException]) -> tuple[BaseException, ...]:
    """The members with which the group was made, even if its class overrides `exceptions`."""
    its: tuple[BaseException, ...] = BaseExceptionGroup.exceptions.__get__(group)
    return its


def _inside(group: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, at any depth, that are not groups. It looks at no more than `_LOOKS` exceptions and groups."""
    waiting = [group]
    for _ in range(_LOOKS):
        if not waiting:
            return
        one = waiting.pop()
        inner = as_group(one)
        if inner is None:
            yield one
        else:  # each member gives at least one text, so the first ones are enough
            waiting += reversed(members(inner)[: _SHOWN + 1])


WITHOUT_QUOTES = re.compile(r"[^'\\]+")
"""The parts of a text in which `repr` escapes just those characters that are not printable."""


def printable(text: str) -> str:
    """The text in one line, with each character escaped that is not printable, so that it cannot control a terminal.

    A call for each character would hold up the loop when a program writes binary data.
    """
    return text if text.isprintable() else WITHOUT_QUOTES.sub(lambda run: repr(run[0])[1:-1], text)
