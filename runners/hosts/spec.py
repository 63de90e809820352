"""How a runner spec travels to another process: by import name, with plain-data fields (D2)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import reduce
from typing import Any

import attrs

_PLAIN = (type(None), bool, int, float, str)
_ALLOWED = (
    "None, bool, int (64 bits), float, str, a tuple, list or dict of these, or an importable attrs value"
)
_INT64 = range(-(2**63), 2**64)


def check_runner(runner: object) -> None:
    """Refuse what cannot be handed to another process.

    Raises:
        TypeError: it is no runner spec, or a field is not plain data.
        ValueError: its class, or a field's class, cannot be imported by name.
    """
    if isinstance(runner, type) or not callable(getattr(runner, "build", None)):
        raise TypeError(f"a runner must be a value with a build method, got {runner!r}")
    pack(runner)


def spec_name(cls: type) -> str:
    """`module:Class`, by which another process can import it.

    Raises:
        ValueError: no import would find it.
    """
    name = f"{cls.__module__}:{cls.__qualname__}"
    if cls.__module__ == "__main__":
        raise ValueError(
            f"a runner must live in an importable module, got {name}: move it out of the main program"
        )
    if _found(cls.__module__, cls.__qualname__) is not cls:
        raise ValueError(f"a runner must be importable by name, got {name}")
    return name


def pack(spec: object) -> Any:
    """The spec as nested lists of plain data.

    Raises:
        TypeError: not an attrs value, or a field is not plain data.
        ValueError: a class cannot be imported by name.
    """
    if not attrs.has(type(spec)):
        raise TypeError(f"a runner must be a frozen attrs value, got {spec!r}")
    return _pack(spec, type(spec).__name__)


def unpack(packed: Any) -> Any:
    """The value that `pack` was given; imports what it names."""
    match packed:
        case ["spec", name, fields]:
            return _class(name)(**{key: unpack(value) for key, value in fields})
        case ["dict", pairs]:
            return {unpack(key): unpack(value) for key, value in pairs}
        case ["tuple", items]:
            return tuple(unpack(item) for item in items)
        case ["list", items]:
            return [unpack(item) for item in items]
        case _:
            return packed


def _pack(value: Any, where: str) -> Any:
    """One value; `where` names it in an error."""
    kind = _class_of(value)
    if kind in _PLAIN:
        return _plain(value, where)
    if kind in (tuple, list):
        return [kind.__name__, [_pack(item, f"{where}[{i}]") for i, item in enumerate(value)]]
    if kind is dict:
        return ["dict", [[_pack(k, f"{where} key"), _pack(v, f"{where}[{k!r}]")] for k, v in value.items()]]
    if attrs.has(kind):
        return ["spec", spec_name(kind), [list(pair) for pair in _fields(value, where)]]
    raise TypeError(f"{where} must be {_ALLOWED}, got {value!r}")


def _plain(value: Any, where: str) -> Any:
    """A scalar, if it fits."""
    if type(value) is int and value not in _INT64:
        raise TypeError(f"{where} must be {_ALLOWED}, got {value!r}")
    return value


def _fields(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """What the constructor takes, packed."""
    cls = _class_of(value)
    for field in attrs.fields(cls):
        if field.init:
            yield field.alias, _pack(getattr(value, field.name), f"{where}.{field.name}")


def _class_of(value: object) -> type[Any]:
    return type(value)


def _found(module: str, qualname: str) -> object:
    """What stands under this name in a loaded module; None if nothing does."""
    return reduce(lambda at, name: getattr(at, name, None), qualname.split("."), sys.modules.get(module))


def _class(name: str) -> Any:
    module, _, qualname = name.partition(":")
    importlib.import_module(module)
    return _found(module, qualname)
