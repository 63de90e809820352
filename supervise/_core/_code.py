"""Values that print as the code that makes them, so that a test's report can be pasted into a program.

Trees may be deep, so nothing here recurses. An exception that a user's object raises when it is printed or compared does
not escape from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from math import inf
from typing import Any

import attrs

from ._brief import brief, class_of


class Code:
    """A frozen value whose `repr` is the code that makes it, without its defaults; Hypothesis prints it over several lines."""

    __slots__ = ()

    def __repr__(self) -> str:
        return as_code(self)

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(as_code(self, width=100))


class _Piece:
    """A piece of an expression: the text before it, its brackets, and the pieces between them."""

    __slots__ = ("before", "closing", "length", "opening", "parts")

    def __init__(self, before: str, opening: str, closing: str = "") -> None:
        self.before = before
        self.opening = opening
        self.closing = closing
        self.parts: list[_Piece] = []
        self.length = 0
        """That of the whole piece in one line, without `before`."""


def as_code(value: object, *, width: float = inf, indent: int = 0) -> str:
    """The expression that makes `value`, broken into lines where it is longer than `width`."""
    return "".join(_written(_taken_apart(value), width, indent))


def _taken_apart(value: object) -> _Piece:
    """The pieces of a value, found depth first over a stack; a value that contains itself ends in three dots."""
    root = _Piece("", "")
    order: list[_Piece] = []
    inside: set[int] = set()
    waiting: list[tuple[_Piece | None, Any]] = [(root, value)]
    while waiting:
        piece, its = waiting.pop()
        if piece is None:  # all of it has been taken apart
            inside.discard(id(its))
            continue
        order.append(piece)
        parts = None if id(its) in inside else _parts(its)
        if parts is None:
            piece.opening = "..." if id(its) in inside else _atom(its)
            continue
        piece.opening, piece.closing, items = parts
        inside.add(id(its))
        waiting.append((None, its))
        for before, item in items:
            piece.parts.append(_Piece(before, ""))
            waiting.append((piece.parts[-1], item))
    for piece in reversed(order):
        between = 2 * max(0, len(piece.parts) - 1)
        inner = sum(len(part.before) + part.length for part in piece.parts)
        piece.length = len(piece.opening) + inner + between + len(piece.closing)
    return root


def _written(root: _Piece, width: float, indent: int) -> Iterator[str]:
    waiting: list[tuple[_Piece, int, bool] | str] = [(root, indent, False)]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
            continue
        piece, here, flat = one
        yield piece.opening
        flat = flat or here + piece.length <= width or here >= width or not piece.parts
        after: list[tuple[_Piece, int, bool] | str] = []
        for number, part in enumerate(piece.parts):
            if flat:
                after += [", " if number else "", part.before, (part, here, True)]
            else:
                lead = "\n" if number == 0 else ",\n"
                after += [f"{lead}{' ' * (here + 4)}{part.before}", (part, here + 4, False)]
        after.append(piece.closing if flat else f",\n{' ' * here}{piece.closing[-1]}")
        waiting += reversed(after)


_Parts = tuple[str, str, list[tuple[str, Any]]]


def _parts(value: Any) -> _Parts | None:
    """The brackets of a value, and its items with the text before each; None if it has no items."""
    kind = class_of(value)
    parts: _Parts | None = None
    if issubclass(kind, Code):
        parts = f"{kind.__name__}(", ")", list(_arguments(value))
    elif issubclass(kind, Mapping):
        parts = _items(value)
    elif issubclass(kind, list):
        parts = "[", "]", [("", item) for item in _listed(value)]
    elif kind is tuple:
        parts = "(", ",)" if len(value) == 1 else ")", [("", item) for item in value]
    elif issubclass(kind, partial):
        named = [(f"{name}=", item) for name, item in value.keywords.items()]
        parts = "partial(", ")", [("", value.func), *(("", item) for item in value.args), *named]
    return parts


def _listed(value: list[Any]) -> list[Any]:
    """The items of a list, even if its class overrides how they are read."""
    return [list[Any].__getitem__(value, number) for number in range(list[Any].__len__(value))]


def _items(value: Mapping[Any, Any]) -> _Parts | None:
    try:
        return "{", "}", [(f"{as_code(key)}: ", item) for key, item in value.items()]
    except Exception:  # noqa: BLE001 - a user's mapping
        return None


def _atom(value: Any) -> str:
    try:
        if type(value) is float and value == inf:
            return "float('inf')"
        if isinstance(value, Enum) and repr(value).startswith("<"):
            return f"{class_of(value).__name__}.{value.name}"
        if callable(value) and hasattr(value, "__qualname__"):
            return str(value.__qualname__)
        return repr(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - the rest is printed even if one value raises
        return brief(value)


def _arguments(value: Any) -> Iterator[tuple[str, Any]]:
    """The arguments that the constructor needs: those without a default, or with another value."""
    named = False
    for field in sorted(attrs.fields(class_of(value)), key=lambda field: field.kw_only):
        item = getattr(value, field.name)
        if not field.init or not field.repr or _is_default(field, item):
            named = True
            continue
        named = named or field.kw_only
        yield f"{field.alias}=" if named else "", _as_given(field, item)


def _is_default(field: Any, item: Any) -> bool:
    default = field.default
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # it is a class; its stub declares a function
        default = default.factory()
    if item is default:
        return True
    try:
        return default is not attrs.NOTHING and bool(item == default)
    except Exception:  # noqa: BLE001 - a value that cannot be compared is no default of ours
        return False


def _as_given(field: Any, item: Any) -> Any:
    """A value that was converted to a tuple reads best as a list."""
    makes_tuple = (
        getattr(field.converter, "__origin__", field.converter) is tuple or "as list" in field.metadata
    )
    return list[Any](item) if makes_tuple and class_of(item) is tuple else item
