"""Looking at somebody else's object, an exception mostly, without coming to harm by it.

What a runner raises is judged, shown and sent on, and its request may be one of many in a context. So nothing here runs
into what the object's own code raises, nothing believes what it says of its class, and every text is bounded. An object
that blocks its reader blocks us too: a process of its own is what helps then (D9).

It repeats a little of what `supervise` does for its own messages: a context process imports nothing of `supervise`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from itertools import chain, islice
from reprlib import Repr
from typing import Any

MOST = 500
"""The longest text that `brief` gives, in characters."""
MAX_TEXT = 16_384
"""The longest text of an exception."""
MAX_LINKS = 1000
"""So far a chain of causes is followed, and so many members of a group are looked at."""

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
        """As `Repr` does, but nothing that an object does can escape."""
        try:
            if is_a(x, BaseException) and type(x).__repr__ in _PLAIN_REPRS:
                return self._exception(x, level)
            return exact(super().repr1(x, level))
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # noqa: BLE001 - whatever a `__repr__` raises, it is only a text
            it: object = x
            return f"<{name_of(type(it))} whose repr raised {name_of(type(problem))}>"

    def repr_instance(self, x: Any, level: int) -> str:  # noqa: ARG002 - as `Repr` calls it
        """Its own `repr`, with the middle left out if it is long."""
        return shortened(exact(repr(x)), self.maxother)

    def repr_bytes(self, x: bytes, level: int) -> str:  # noqa: ARG002 - as `Repr` calls it
        """Both ends of it: to print all of a hundred megabytes takes a second."""
        return shortened(repr(x[:MOST] + x[-MOST:] if len(x) > 2 * MOST else x), self.maxstring)

    repr_bytearray = repr_bytes

    def _exception(self, error: BaseException, level: int) -> str:
        """By its arguments: printed first and cut then, one of a hundred megabytes takes half a second."""
        if level <= 0:
            return f"{name_of(type(error))}(...)"
        args = args_of(error)
        shown = [self.repr1(arg, level - 1) for arg in args[: self.maxtuple]]
        return (
            f"{name_of(type(error))}({', '.join([*shown, *(['...'] if len(args) > self.maxtuple else [])])})"
        )


_PLAIN_REPRS: tuple[Any, ...] = (BaseException.__repr__, BaseExceptionGroup.__repr__)
_CONTAINERS = (bytes, bytearray, tuple, list, set, frozenset, dict)
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
    """A text as one line that UTF-8 can say, with its middle left out if it is longer."""
    return " ".join(sendable(shortened(text, most)).split())


def sendable(text: str) -> str:
    """Without what UTF-8 cannot say."""
    return text.encode("utf-8", "backslashreplace").decode()


def name_of(kind: type[Any]) -> str:
    """The name of a class, whatever its metaclass says of it."""
    name: str = type.__dict__["__name__"].__get__(kind)
    return shortened(name, MOST)


def is_builtin(kind: type[Any]) -> bool:
    """Whether it is one of Python's own exceptions, which stand in no other module."""
    module: object = type.__dict__["__module__"].__get__(kind)
    return type(module) is str and module == "builtins"


def is_a(value: object, *kinds: type[Any]) -> bool:
    """`isinstance`, but of the type that the value has, not of the one that its `__class__` claims."""
    return issubclass(type(value), kinds)


def attribute(value: object, name: str) -> Any:
    """What it has by this name; None if it has nothing, or raises."""
    try:
        return getattr(value, name, None)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a property, `__getattr__` or a module that is loaded when looked at
        return None


def text_of(error: BaseException) -> str:
    """Its text, in at most `MAX_TEXT` characters; never raises."""
    try:
        text = exact(_text(error))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a runner's `__str__` may do anything, and its error must be judged all the same
        return "(its text cannot be shown)"
    return shortened(text, MAX_TEXT)


def _text(error: BaseException) -> str:
    """Its `str`, but that a large container in it is not printed first and cut then."""
    args = args_of(error)
    if type(error).__str__ is BaseException.__str__ and (
        len(args) > 1 or (args and type(args[0]) in _CONTAINERS)
    ):
        return brief(args if len(args) > 1 else args[0])
    return str(error)


def args_of(error: BaseException) -> tuple[Any, ...]:
    """What it was made with; a class may have an attribute of the same name."""
    args: tuple[Any, ...] = BaseException.__dict__["args"].__get__(error)
    return args


def quoted(error: BaseException) -> str:
    """The name of its class, and its text."""
    return shortened(f"{name_of(type(error))}: {text_of(error)}", MAX_TEXT)


def tag_of(error: BaseException) -> str | None:
    """The tag that it carries, if it is a text. What stands behind some hundred characters decides nothing."""
    tag = attribute(error, "tag")
    return exact(tag)[:MOST] if is_a(tag, str) else None


def cause_of(error: BaseException) -> BaseException | None:
    """From what it was raised; a class may have an attribute of the same name."""
    cause: BaseException | None = BaseException.__dict__["__cause__"].__get__(error)
    return cause


def causes(error: BaseException) -> Iterator[BaseException]:
    """It, what it was raised from, and so on; each once, and at most `MAX_LINKS`."""
    seen = set[int]()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and len(seen) < MAX_LINKS:
        seen.add(id(link))
        yield link
        link = cause_of(link)


def members(group: BaseException) -> list[BaseException]:
    """The exceptions in it that are no groups, however deep; at most `MAX_LINKS`, and as many groups."""
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
    """Its traceback and those behind it, about as Python prints them: the newest last, and each bounded.

    Python's own printing takes as long as the texts and chains are.
    """
    parts = [f"{_frames(link)}{quoted(link)}\n" for link in islice(_shown(error), _SHOWN_LINKS)]
    return shortened("\nwhich was raised from this, or on the way:\n".join(reversed(parts)), MAX_TEXT)


def _shown(error: BaseException) -> Iterator[BaseException]:
    """It, what it was raised from or while, and the members of what is a group."""
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
    """The innermost of them."""
    where = BaseException.__dict__["__traceback__"].__get__(error)
    try:
        lines = traceback.format_tb(where, limit=-_FRAMES)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a module's own loader is asked for its lines
        return ""
    return f"Traceback (the innermost {_FRAMES}):\n{''.join(lines)}" if lines else ""


def exact(text: str) -> str:
    """A text of a class of its own as a plain one; its own code is not asked."""
    return text if type(text) is str else str.__str__(text)
