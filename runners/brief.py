"""Safe inspection of foreign objects, mostly exceptions of a runner.

An exception of a runner is judged, printed and sent to another process, and its request may be one of many in a context. So an
exception in the object's own code leaves none of these functions (a `KeyboardInterrupt` does), its `__class__` is not believed,
and every text is bounded. Code of the object that blocks also blocks the caller; only a deadline for a process helps against
that (D9).

`supervise` has similar functions, but a context process imports nothing of `supervise`.
"""

from __future__ import annotations

import traceback
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from itertools import chain, islice
from reprlib import Repr
from typing import Any, cast

MOST = 500
"""The longest text that `brief` gives, in characters."""
MAX_TEXT = 16_384
"""The longest text of an exception."""
MAX_LINKS = 1000
"""How many links of a chain of causes, and how many members of a group, are looked at."""

_FRAMES = 20
_SHOWN_LINKS = 8


class _Brief(Repr):
    """Bounded at every level, so that a list of a million items or one that contains itself costs little."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = MOST
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxarray = 20

    def repr1(self, x: Any, level: int) -> str:
        """As in `Repr`, but no exception of the object leaves it."""
        try:
            if is_a(x, BaseException) and type(x).__repr__ in _PLAIN_REPRS:
                return self._exception(x, level)
            return exact(super().repr1(x, level))
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # noqa: BLE001 - a `__repr__` may raise anything, and only a text is lost
            it: object = x
            return f"<{name_of(type(it))} whose repr raised {name_of(type(problem))}>"

    def repr_instance(self, x: Any, level: int) -> str:
        """Its own `repr`, with the middle left out if it is long; the first items of a long `Counter`, say."""
        it: object = x
        kind = type(it)
        if kind.__repr__ in _PRINT_EACH_ITEM and len(x) > MOST:
            base = next(base for base in _COLLECTIONS if base in kind.__mro__)
            shown = getattr(self, f"repr_{base.__name__}")
            return f"{name_of(kind)}({shown(x, level)})"
        return shortened(exact(repr(x)), self.maxother)

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
        """Prints only the two ends of long bytes: to print a hundred megabytes takes a second."""
        return shortened(repr(x[:MOST] + x[-MOST:] if len(x) > 2 * MOST else x), self.maxstring)

    repr_bytearray = repr_bytes

    def _exception(self, error: BaseException, level: int) -> str:
        """Prints each argument shortened: to print a hundred megabytes and cut them takes half a second."""
        if level <= 0:
            return f"{name_of(type(error))}(...)"
        args = args_of(error)
        shown = [self.repr1(arg, level - 1) for arg in args[: self.maxtuple]]
        return (
            f"{name_of(type(error))}({', '.join([*shown, *(['...'] if len(args) > self.maxtuple else [])])})"
        )


_PLAIN_REPRS: tuple[Any, ...] = (BaseException.__repr__, BaseExceptionGroup.__repr__)
_COLLECTIONS = cast("list[type[Any]]", [tuple, list, set, frozenset, dict])
_PRINT_EACH_ITEM: list[Any] = [
    kind.__repr__ for kind in [*_COLLECTIONS, *cast("list[type[Any]]", [Counter, OrderedDict, defaultdict])]
]
_CONTAINERS = (bytes, bytearray, *_COLLECTIONS)
_BRIEF = _Brief()


def brief(value: object) -> str:
    """`repr(value)` in at most `MOST` characters; never raises."""
    return shortened(_BRIEF.repr(value), MOST)


def shortened(text: str, most: int) -> str:
    """A text, with its middle left out if it is longer."""
    if len(text) <= most:
        return text
    half = (most - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def one_line(text: str, most: int = MOST) -> str:
    """A text as one line that UTF-8 can encode, with its middle left out if it is longer."""
    return " ".join(sendable(shortened(text, most)).split())


def sendable(text: str) -> str:
    """A text with escapes in place of the characters that UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()


def name_of(kind: type[Any]) -> str:
    """The name of a class, read without the code of its metaclass."""
    name: str = type.__dict__["__name__"].__get__(kind)
    return shortened(name, MOST)


def is_builtin(kind: type[Any]) -> bool:
    """Whether a class belongs to the module `builtins`."""
    module: object = type.__dict__["__module__"].__get__(kind)
    return type(module) is str and module == "builtins"


def is_a(value: object, *kinds: type[Any]) -> bool:
    """As `isinstance`, but by the real type of the value; its `__class__` is ignored."""
    return issubclass(type(value), kinds)


def attribute(value: object, name: str) -> Any:
    """The attribute of this name; None if there is none, or if reading it raises."""
    try:
        return getattr(value, name, None)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a property, `__getattr__` or a module that is loaded when looked at
        return None


def text_of(error: BaseException) -> str:
    """The text of an exception, in at most `MAX_TEXT` characters; never raises."""
    try:
        text = exact(_text(error))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a `__str__` may raise anything, and the error must still be judged
        return "(its text cannot be shown)"
    return shortened(text, MAX_TEXT)


def _text(error: BaseException) -> str:
    """As `str`, but a large container among the arguments is not printed in full first."""
    args = args_of(error)
    if type(error).__str__ is BaseException.__str__ and (
        len(args) > 1 or (args and type(args[0]) in _CONTAINERS)
    ):
        return brief(args if len(args) > 1 else args[0])
    return str(error)


def args_of(error: BaseException) -> tuple[Any, ...]:
    """The arguments that an exception was made with, even if its class redefines `args`."""
    args: tuple[Any, ...] = BaseException.__dict__["args"].__get__(error)
    return args


def quoted(error: BaseException) -> str:
    """The name of its class, and its text."""
    return shortened(f"{name_of(type(error))}: {text_of(error)}", MAX_TEXT)


def tag_of(error: BaseException) -> str | None:
    """The tag that an exception carries, in at most `MOST` characters; None if it has none that is a text."""
    tag = attribute(error, "tag")
    return exact(tag)[:MOST] if is_a(tag, str) else None


def cause_of(error: BaseException) -> BaseException | None:
    """The cause of an exception, even if its class redefines `__cause__`."""
    cause: BaseException | None = BaseException.__dict__["__cause__"].__get__(error)
    return cause


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and its chain of causes; each exception once, and at most `MAX_LINKS`."""
    seen = set[int]()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and len(seen) < MAX_LINKS:
        seen.add(id(link))
        yield link
        link = cause_of(link)


def members(group: BaseException) -> list[BaseException]:
    """The exceptions at any depth of a group that are no groups: at most `MAX_LINKS`, from at most as many groups."""
    found: list[BaseException] = []
    rest: list[BaseException] = [group]
    looked_at = 0
    while rest and len(found) < MAX_LINKS and looked_at < MAX_LINKS:
        first = rest.pop()
        if issubclass(type(first), BaseExceptionGroup):
            looked_at += 1
            rest += reversed(_members(first)[:MAX_LINKS])
        else:
            found.append(first)
    return found


def trace_of(error: BaseException) -> str:
    """The tracebacks of an exception and its causes, about as Python prints them: the newest is last, and each is bounded.

    Python's own printing is not bounded: it takes longer with longer texts and chains.
    """
    parts = [f"{_frames(link)}{quoted(link)}\n" for link in islice(_shown(error), _SHOWN_LINKS)]
    return shortened("\nwhich was raised from this, or on the way:\n".join(reversed(parts)), MAX_TEXT)


def _shown(error: BaseException) -> Iterator[BaseException]:
    """An exception, its causes and contexts, and the members of each group."""
    seen = set[int]()
    rest = [error]
    while rest:
        link = rest.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        behind = cause_of(link)
        if behind is None and not _suppresses(link):
            behind = _context_of(link)
        inside = _members(link)[:_SHOWN_LINKS] if issubclass(type(link), BaseExceptionGroup) else ()
        rest += chain(inside, () if behind is None else (behind,))


def _context_of(error: BaseException) -> BaseException | None:
    context: BaseException | None = BaseException.__dict__["__context__"].__get__(error)
    return context


def _suppresses(error: BaseException) -> bool:
    suppresses: bool = BaseException.__dict__["__suppress_context__"].__get__(error)
    return suppresses


def _members(group: BaseException) -> tuple[BaseException, ...]:
    found: tuple[BaseException, ...] = BaseExceptionGroup.__dict__["exceptions"].__get__(group)
    return found


def _frames(error: BaseException) -> str:
    """The innermost frames of the traceback."""
    where = BaseException.__dict__["__traceback__"].__get__(error)
    try:
        lines = traceback.format_tb(where, limit=-_FRAMES)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - the loader of a user's module is called for its lines
        return ""
    return f"Traceback (the innermost {_FRAMES}):\n{''.join(lines)}" if lines else ""


def exact(text: str) -> str:
    """A `str` of any subclass as a plain `str`, made without the code of its class."""
    return text if type(text) is str else str.__str__(text)
