"""Values that print as the code that makes them: what a test reports can be pasted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from math import inf
from typing import Any

import attrs


class Code:
    """A frozen value whose `repr` makes it again, defaults left out; Hypothesis prints it over several lines."""

    __slots__ = ()

    def __repr__(self) -> str:
        return as_code(self)

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(as_code(self, width=100))


def as_code(value: object, *, width: float = inf, indent: int = 0) -> str:
    """The expression that makes `value`; broken into lines where it is longer than `width`."""
    parts = _parts(value)
    if parts is None:
        return _atom(value)
    opening, closing, items = parts
    line = f"{opening}{', '.join(name + as_code(item) for name, item in items)}{closing}"
    if indent + len(line) <= width or not items:
        return line
    inner = indent + 4
    lines = [f"{' ' * inner}{name}{as_code(item, width=width, indent=inner)},\n" for name, item in items]
    return f"{opening}\n{''.join(lines)}{' ' * indent}{closing[-1]}"


_Parts = tuple[str, str, list[tuple[str, Any]]]


def _parts(value: Any) -> _Parts | None:
    """The brackets around what it is made of, and each part with what stands before it; None: it is in one piece."""
    kind: type[Any] = value.__class__
    parts: _Parts | None = None
    if issubclass(kind, Code):
        parts = f"{kind.__name__}(", ")", list(_arguments(value))
    elif issubclass(kind, Mapping):
        parts = "{", "}", [(f"{as_code(key)}: ", item) for key, item in value.items()]
    elif issubclass(kind, list):
        parts = "[", "]", [("", item) for item in value]
    elif kind is tuple:
        parts = "(", ",)" if len(value) == 1 else ")", [("", item) for item in value]
    elif issubclass(kind, partial):
        named = [(f"{name}=", item) for name, item in value.keywords.items()]
        parts = "partial(", ")", [("", value.func), *(("", item) for item in value.args), *named]
    return parts


def _atom(value: Any) -> str:
    if isinstance(value, float) and value == inf:
        return "float('inf')"
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return repr(value)


def _arguments(value: Any) -> Iterator[tuple[str, Any]]:
    """What its constructor needs: what has no default, or another value than that."""
    named = False
    for field in sorted(attrs.fields(value.__class__), key=lambda field: field.kw_only):
        item = getattr(value, field.name)
        if not field.init or not field.repr or item == _default(field):
            named = True
            continue
        named = named or field.kw_only
        yield f"{field.alias}=" if named else "", _as_given(field, item)


def _default(field: Any) -> Any:
    return field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]


def _as_given(field: Any, item: Any) -> Any:
    """What was converted to a tuple reads best as a list."""
    makes_tuple = getattr(field.converter, "__origin__", field.converter) is tuple
    return list(item) if makes_tuple else item
