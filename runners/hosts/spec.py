"""How a runner spec travels to another process: by import name, with plain-data fields (D2)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import reduce
from typing import Any

import attrs

from ..brief import brief

_PLAIN = (type(None), bool, int, float, str)
_ALLOWED = (
    "None, bool, int (64 bits), float, str, a tuple, list or dict of these, or an importable attrs value"
)
_INT64 = range(-(2**63), 2**64)
_DEEP = 64
"""Levels; what packs and unpacks them calls itself for each, and so does msgpack at both ends."""


def check_runner(runner: object) -> None:
    """Refuse what cannot be handed to another process.

    Raises:
        TypeError: it is no runner spec, or a field is not plain data.
        ValueError: its class, or a field's class, cannot be imported by name; or it is nested too deeply.
    """
    if issubclass(_class_of(runner), type) or not _can_build(runner):
        raise TypeError(f"a runner must be a value with a build method, got {brief(runner)}")
    pack(runner)


def _can_build(runner: object) -> bool:
    try:
        return callable(getattr(runner, "build", None))
    except Exception:  # noqa: BLE001 - whatever its attributes raise, it is no spec
        return False


def spec_name(cls: type) -> str:
    """`module:Class`, by which another process can import it.

    Raises:
        ValueError: no import would find it.
    """
    name = f"{cls.__module__}:{cls.__qualname__}"
    if cls.__module__ == "__main__":
        raise ValueError(
            f"a runner must live in an importable module, got {name}: move it out of the main program, "
            "or have `supervise run` import that"
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
        raise TypeError(f"a runner must be a frozen attrs value, got {brief(spec)}")
    return _pack(spec, type(spec).__name__, 0)


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
        case ["text", data]:
            return data.decode("utf-8", "surrogatepass")
        case _:
            return packed


def _pack(value: Any, where: str, depth: int) -> Any:
    """One value; `where` names it in an error."""
    kind, deeper = _class_of(value), depth + 1
    if depth > _DEEP:
        raise ValueError(f"{where[:200]} must be nested at most {_DEEP} deep; it may contain itself")
    if kind in _PLAIN:
        return _plain(value, where)
    if kind in (tuple, list):
        return [kind.__name__, [_pack(item, f"{where}[{i}]", deeper) for i, item in enumerate(value)]]
    if kind is dict:
        pairs = [
            [_pack(k, f"{where} key", deeper), _pack(v, f"{where}[{brief(k)}]", deeper)]
            for k, v in value.items()
        ]
        return ["dict", pairs]
    if attrs.has(kind):
        return ["spec", spec_name(kind), [list(pair) for pair in _fields(value, where, deeper)]]
    raise TypeError(f"{where} must be {_ALLOWED}, got {brief(value)}")


def _plain(value: Any, where: str) -> Any:
    """A scalar, if it fits. Text that is not Unicode, such as a path that is not UTF-8, travels as bytes."""
    if type(value) is int and value not in _INT64:
        raise TypeError(f"{where} must be {_ALLOWED}, got {brief(value)}")
    if type(value) is str and not _is_unicode(value):
        return ["text", value.encode("utf-8", "surrogatepass")]
    return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fields(value: Any, where: str, depth: int) -> Iterator[tuple[str, Any]]:
    """What the constructor takes, packed."""
    cls = _class_of(value)
    for field in attrs.fields(cls):
        if field.init:
            yield field.alias, _pack(getattr(value, field.name), f"{where}.{field.name}", depth)


def _class_of(value: object) -> type[Any]:
    return type(value)


def _found(module: str, qualname: str) -> object:
    """What stands under this name in a loaded module; None if nothing does."""
    return reduce(lambda at, name: getattr(at, name, None), qualname.split("."), sys.modules.get(module))


def _class(name: str) -> Any:
    module, _, qualname = name.partition(":")
    importlib.import_module(module)
    return _found(module, qualname)
