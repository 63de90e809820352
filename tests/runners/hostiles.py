"""Objects that do harm when they are looked at, and runners that raise, yield and declare them. Importable by a context."""

import sys

import attrs

from runners.errors import BadRequest, ContextPoisoned, OutOfMemory, RateLimited
from runners.types import FinishReason, Price, RateLimits, RunnerInfo, TokenChunk, TokenUsage

HUGE = 100_000_000
DEEP = 50_000


class Wrath(Exception):
    """What hostile code raises."""


def _rage(*args, **kwargs):
    raise Wrath("looked at")


def _exit(*args, **kwargs):
    sys.exit("looked at")


HOOKS = (
    "__repr__",
    "__str__",
    "__eq__",
    "__hash__",
    "__bool__",
    "__len__",
    "__getattr__",
    "__getattribute__",
    "__setattr__",
    "__reduce_ex__",
    "__format__",
    "__iter__",
)
ATTRIBUTES = (
    "__class__",
    "__cause__",
    "__context__",
    "__traceback__",
    "__notes__",
    "__dict__",
    "__module__",
    "args",
    "tag",
    "code",
    "retry_after",
    "request_ids",
    "error_code",
    "exceptions",
    "is_retryable",
)


class Meta(type):
    """A class that lies about itself."""

    __name__ = property(_rage)
    __module__ = property(_rage)

    __instancecheck__ = __subclasscheck__ = __eq__ = _rage
    __hash__ = type.__hash__


class Text(str):
    """A text that raises at everything that a text can do."""

    __slots__ = ()
    __str__ = __repr__ = __eq__ = __len__ = __getitem__ = __contains__ = __iter__ = _rage
    split = rpartition = encode = strip = startswith = endswith = _rage
    __hash__ = _rage


class Number(int):
    __repr__ = __str__ = __eq__ = __lt__ = __gt__ = __ge__ = __le__ = __add__ = __bool__ = __index__ = _rage
    __int__ = __float__ = _rage
    __hash__ = _rage


def _class(base, **members):
    return type("Odd", (base,), members)


def _raised(base, raises):
    """An exception class for each place at which it can raise."""
    for name in HOOKS:
        yield f"{base.__name__}.{name}", lambda name=name: _class(base, **{name: raises})("odd")
    for name in ATTRIBUTES:
        yield f"{base.__name__}.{name}", lambda name=name: _class(base, **{name: property(raises)})("odd")


def _lies():
    values = {
        "none": None,
        "class": int,
        "text": Text("device.poisoned"),
        "number": Number(700),
        "huge": "x" * 1000,
        "negative": -1,
        "nan": float("nan"),
        "itself": Wrath,
        "list": [],
    }
    for name in ATTRIBUTES:
        if name in ("__traceback__", "__cause__", "__context__", "__dict__", "__notes__"):
            continue
        for what, value in values.items():
            if (name, what) != ("tag", "text"):  # a text is a valid tag
                yield (
                    f"{name}={what}",
                    lambda n=name, v=value: _class(Exception, **{n: property(lambda _: v)})(),
                )


def _chain(link):
    error = ValueError("the end")
    for number in range(DEEP):
        above = ValueError(str(number))
        setattr(above, link, error)
        error = above
    return error


def _cycle():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def _nested():
    error = ExceptionGroup("inmost", [ValueError("the end")])
    for _ in range(DEEP):
        error = ExceptionGroup("around", [error])
    return error


def _deep():
    deep = []
    for _ in range(DEEP):
        deep = [deep]
    return deep


def _cyclic():
    cyclic = []
    cyclic.append(cyclic)
    return cyclic


def _noted():
    error = ValueError("noted")
    error.__notes__ = ["x" * HUGE, 3]
    return error


class Mute(Exception):
    def __str__(self):
        return Text("says it in a text of its own")

    __repr__ = __str__


class Number3(Exception):
    __str__ = staticmethod(lambda: 3)


class Metal(Exception, metaclass=Meta):
    pass


class NeedsMore(RateLimited):
    def __init__(self, one, *, two):
        super().__init__(one)
        self.two = two


class Sealed(BadRequest):
    __slots__ = ()
    request_ids = code = property(_rage)


EXCEPTIONS = {
    **dict(_raised(Exception, _rage)),
    **{f"exit {name}": make for name, make in _raised(Exception, _exit)},
    **{
        f"group {name}": lambda n=name: _group_class(n)
        for name in ("exceptions", "split", "derive", "__str__")
    },
    **dict(_lies()),
    "a text of 100 MB": lambda: ValueError("CUDA error: " + "x" * HUGE),
    "a text of 100 MB of lines": lambda: RuntimeError("\n" * HUGE),
    "100 MB of bytes": lambda: ValueError(b"x" * HUGE),
    "a tag of dots": _class(Exception, tag="." * 1_000_000),
    "a code of many digits": _class(Exception, code=10**5000),
    "digits in brackets": lambda: RuntimeError("(" + "9" * 5000 + ")"),
    "notes of 100 MB": _noted,
    "50,000 causes": lambda: _chain("__cause__"),
    "50,000 contexts": lambda: _chain("__context__"),
    "a cycle of causes": _cycle,
    "50,000 groups in each other": _nested,
    "a group of 50,000": lambda: ExceptionGroup("many", [ValueError(str(n)) for n in range(DEEP)]),
    "an argument 50,000 deep": lambda: ValueError(_deep()),
    "an argument in itself": lambda: ValueError(_cyclic()),
    "surrogates": lambda: ValueError("\ud800"),
    "a text of its own": Mute,
    "no text": Number3,
    "a hostile metaclass": Metal,
    "a name of 100 MB": lambda: type("x" * HUGE, (Exception,), {})("odd"),
    "no module": _class(Exception, __module__=None),
}
"""Each is its request's own error."""


def _group_class(name):
    kind = type("OddGroup", (ExceptionGroup,), {name: property(_rage)})
    return kind("odd", [ValueError("in it")])


OURS = {
    **{
        f"{base.__name__}.{name}": (
            base,
            lambda base=base, n=name: _class(base, **{n: property(_rage)})("odd"),
        )
        for base in (BadRequest, OutOfMemory)
        for name in ("__class__", "__str__", "__repr__", "__eq__", "tag", "code", "request_ids", "args")
        if (base, name) != (OutOfMemory, "tag")
    },
    "it needs more": (RateLimited, lambda: NeedsMore("odd", two=2)),
    "it is sealed": (BadRequest, lambda: Sealed("odd")),
}
"""Subclasses of our errors that misbehave: what each is all the same."""

POISONS = {
    f"ContextPoisoned.{name}": lambda n=name: _class(ContextPoisoned, **{n: property(_rage)})("odd")
    for name in ("__class__", "__str__", "__repr__", "__eq__", "code", "request_ids", "args", "__setattr__")
}


class _Runner:
    info = RunnerInfo(streams=4, can_continue=True)

    def __init__(self, spec):
        self.spec = spec

    def execute(self, batch):
        return self.continue_from(batch, ())

    def continue_from(self, batch, accepted):
        for index in range(len(accepted), 6):
            if index == 3 and batch.request_id == "odd":
                yield from self.odd(batch)
            last = FinishReason.STOP if index == 5 else None
            yield TokenChunk(
                request_id=batch.request_id, index=index, token_ids=(index,), text="x", finish_reason=last
            )

    def odd(self, batch):
        yield from ()

    def rebuild(self, cause):
        pass

    def close(self):
        pass


@attrs.frozen
class RaisesIt:
    """Raises one of the exceptions above; a table names it, or, where none is given, the request's model.

    `at`: where; behind three chunks of its stream "odd", or as that is begun or closed, or for all, in `load` (the first),
    `rebuild` or `end`.
    """

    table: str
    name: str = ""
    at: str = "token"

    def build(self, start):
        if self.at == "load" and start.incarnation == 1:
            raise self.error()
        return _RaisesIt(self)

    def error(self, name=""):
        found = globals()[self.table][self.name or name]
        return (found[1] if isinstance(found, tuple) else found)()


class _RaisesIt(_Runner):
    def execute(self, batch):
        if self.spec.at == "execute" and batch.request_id == "odd":
            raise self.spec.error(batch.model)
        return super().execute(batch)

    def odd(self, batch):
        if self.spec.at == "token":
            raise self.spec.error(batch.model)
        if self.spec.at == "closed":
            return _Closing(batch, self.spec.error(batch.model))
        return ()

    def rebuild(self, cause):
        if self.spec.at == "rebuild":
            raise self.spec.error()

    def close(self):
        if self.spec.at == "end":
            raise self.spec.error()


class _Closing:
    """A last chunk, behind which closing raises."""

    def __init__(self, batch, error):
        self.batch, self.error = batch, error

    def __iter__(self):
        try:
            yield _chunk(finish_reason=FinishReason.STOP)
        finally:
            raise self.error


class Sub(TokenChunk):
    pass


class Liar:
    """Says that it is a chunk."""

    __class__ = TokenChunk
    index, token_ids, text, finish_reason, usage, incarnation = 3, (3,), "x", None, None, 1


class Rager:
    __class__ = property(_rage)
    __getattribute__ = _rage


def _usage(**fields):
    made = TokenUsage()
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def _chunk(**fields):
    return TokenChunk(**{"request_id": "odd", "index": 3, "token_ids": (3,), "text": "x", **fields})


def _last(usage):
    return _chunk(finish_reason=FinishReason.STOP, usage=usage)


CHUNKS = {
    "a liar": Liar,
    "one that raises": Rager,
    "a class": lambda: TokenChunk,
    "None": lambda: None,
    "a subclass": lambda: Sub(request_id="odd", index=3, token_ids=(3,)),
    "one without fields": lambda: TokenChunk.__new__(TokenChunk),
    "a text of a class of its own": lambda: _chunk(text=Text("x")),
    "no text": lambda: _chunk(text=Rager()),
    "an index of its own": lambda: _chunk(index=Number(3)),
    "an index that lies": lambda: _chunk(index=Rager()),
    "a huge index": lambda: _chunk(index=10**5000),
    "ids in a list": lambda: _chunk(token_ids=[3]),
    "ids that raise": lambda: _chunk(token_ids=(Rager(),)),
    "an id of its own": lambda: _chunk(token_ids=(Number(3),)),
    "50,000 deep ids": lambda: _chunk(token_ids=(_deep(),)),
    "ids that raise as a whole": lambda: _chunk(token_ids=Rager()),
    "too many ids": lambda: _chunk(token_ids=(3,) * 1_000_000),
    "no ids": lambda: _chunk(token_ids=()),
    "a reason that raises": lambda: _chunk(finish_reason=Rager()),
    "a reason of its own": lambda: _chunk(finish_reason=Text("stop")),
    "a usage that raises": lambda: _chunk(usage=Rager()),
    "a usage without fields": lambda: _chunk(usage=TokenUsage.__new__(TokenUsage)),
    "a usage of a text": lambda: _chunk(usage=_usage(input="x")),
    "a usage below nothing": lambda: _chunk(usage=_usage(input=-1)),
    "a last usage without fields": lambda: _last(TokenUsage.__new__(TokenUsage)),
    "a last usage of no number": lambda: _last(_usage(output=float("nan"))),
    "a last usage that raises": lambda: _last(_usage(cached=Rager())),
    "the index before": lambda: _chunk(index=2),
    "the index behind": lambda: _chunk(index=4),
}
"""What a stream yields that is no next chunk."""


@attrs.frozen
class YieldsIt:
    """Its stream "odd" yields the one of the chunks above that the request's model names."""

    def build(self, start):
        return _YieldsIt(self)


class _YieldsIt(_Runner):
    def odd(self, batch):
        yield CHUNKS[batch.model]()


def _forged(value, **fields):
    """Behind its back."""
    for name, told in fields.items():
        object.__setattr__(value, name, told)
    return value


INFOS = {
    "nothing": lambda: None,
    "one that raises": Rager,
    "a class": lambda: RunnerInfo,
    "100 MB": lambda: "x" * HUGE,
    "a deep one": _deep,
    "one without fields": lambda: object.__new__(RunnerInfo),
    "many streams": lambda: _forged(RunnerInfo(), streams="many"),
    "a price without fields": lambda: _forged(RunnerInfo(), price=object.__new__(Price)),
    "a limit of a word": lambda: _forged(RunnerInfo(), limits=_forged(RateLimits(), tokens="none")),
}


@attrs.frozen
class DeclaresIt:
    """What it declares is no RunnerInfo, in its first incarnation."""

    name: str

    def build(self, start):
        runner = _Runner(self)
        if start.incarnation == 1:
            runner.info = INFOS[self.name]()
        return runner
