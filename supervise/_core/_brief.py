"""A value in a few words: what a message, a reason or an error text says of somebody else's object.

A user's object may raise when it is looked at, or print without end. Nothing that we do with one may depend on that:
`brief` never raises, and what it gives is short.
"""

from __future__ import annotations

from reprlib import Repr
from typing import Any

MOST = 500
"""The longest text that `brief` gives, in characters."""


class _Brief(Repr):
    """Bounded at every level, so that a list of a million items or one that contains itself costs little."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = MOST
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxarray = 20

    def repr1(self, x: Any, level: int) -> str:
        """As `Repr` does, but exceptions by their arguments, and nothing that an object does can escape."""
        try:
            if isinstance(x, BaseException) and _prints_plainly(type(x)):
                return self._exception(x, level)
            return super().repr1(x, level)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # noqa: BLE001 - whatever a user's `__repr__` raises, it is only a text
            return f"<{class_name(class_of(x))} whose repr raised {class_name(type(problem))}>"

    def repr_instance(self, x: Any, level: int) -> str:  # noqa: ARG002 - as `Repr` calls it
        """Its own `repr`, with the middle left out if it is long."""
        return shortened(repr(x), self.maxother)

    def repr_bytes(self, x: bytes, level: int) -> str:  # noqa: ARG002 - as `Repr` calls it
        """Both ends of it: to print all of a hundred megabytes takes a second."""
        return shortened(repr(x[:MOST] + x[-MOST:] if len(x) > 2 * MOST else x), self.maxstring)

    repr_bytearray = repr_bytes

    def _exception(self, exc: BaseException, level: int) -> str:
        name = class_name(type(exc))
        if level <= 0:
            return f"{name}(...)"
        arguments: tuple[Any, ...] = exc.args
        shown = [self.repr1(argument, level - 1) for argument in arguments[: self.maxtuple]]
        if len(arguments) > self.maxtuple:
            shown.append("...")
        return f"{name}({', '.join(shown)})"


def class_of(value: object) -> type[Any]:
    """Its class, whatever it says of that itself."""
    return type(value)


def class_name(kind: type[Any]) -> str:
    """The name of a class, whatever its metaclass says."""
    name: str = type.__dict__["__name__"].__get__(kind)
    return name


def _prints_plainly(kind: type[BaseException]) -> bool:
    """Whether its `repr` is the one of all exceptions: its name and its arguments."""
    return kind.__repr__ in (BaseException.__repr__, BaseExceptionGroup.__repr__)


def shortened(text: str, most: int) -> str:
    """A text with its middle left out if it is longer than that."""
    if len(text) <= most:
        return text
    half = (most - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


_BRIEF = _Brief()


def brief(value: object) -> str:
    """`repr(value)`, bounded to `MOST` characters; it never raises, whatever the value's own code does."""
    return shortened(_BRIEF.repr(value), MOST)


def brief_text(exc: BaseException) -> str:
    """`str(exc)`, bounded to `MOST` characters; likewise."""
    try:
        return shortened(str(exc), MOST)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - as above
        return brief(exc)


def printable(text: str) -> str:
    """A text as one line that leaves a terminal alone, whatever is in it."""
    return (
        text
        if text.isprintable()
        else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    )
