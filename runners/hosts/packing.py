"""How a runner spec travels to another process: by import name, with plain-data fields (D2)."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from functools import reduce
from typing import Any
from weakref import WeakKeyDictionary

import attrs

from ..brief import brief
from . import CheckingHost, Host

_PLAIN = (type(None), bool, int, float, str)
_ALLOWED = (
    "None, bool, int (64 bits), float, str, a tuple, list or dict of these, or an importable attrs value"
)
_INT64 = range(-(2**63), 2**64)
_DEEP = 64
"""The most levels of nesting. `pack`, `unpack` and msgpack at both ends recurse once for each."""

_NUMBERS: WeakKeyDictionary[type, int] = WeakKeyDictionary()
"""The classes that could be imported by their names when they were packed first, each with the number of those before it that had
its name. A reload makes classes anew (R38), and a spec of an earlier one is still used by what has not been restarted."""
_MADE: Counter[str] = Counter()


def check_runner(runner: object) -> None:
    """Refuse a runner spec that cannot be sent to another process (D2).

    Raises:
        TypeError: it has no `build` method, is a class or no attrs value, or a field is not plain data.
        ValueError: its class, or the class of a field, cannot be imported by name; or it is nested more than 64 deep.
    """
    if issubclass(class_of(runner), type) or not _can_build(runner):
        raise TypeError(f"a runner must be a value with a build method, got {brief(runner)}")
    pack(runner)


def check_for(host: Host, runner: object) -> None:
    """Refuse a runner spec that this host cannot run (D2).

    Raises:
        TypeError, ValueError: as `check_runner`, or as the host's own check.
    """
    check = host.check if isinstance(host, CheckingHost) else check_runner
    check(runner)


def _can_build(runner: object) -> bool:
    try:
        return callable(getattr(runner, "build", None))
    except Exception:  # noqa: BLE001 - an object whose attribute raises is no spec
        return False


def spec_name(cls: type) -> str:
    """`module:Class`, the name by which another process imports the class.

    Raises:
        ValueError: the class stands in the main program, or its module has no such name.
    """
    name = f"{cls.__module__}:{cls.__qualname__}"
    if cls in _NUMBERS:
        return name
    if cls.__module__ == "__main__":
        raise ValueError(
            f"a runner must live in an importable module, got {name}: move it out of the main program, "
            "or have `supervise run` import that"
        )
    if _found(cls.__module__, cls.__qualname__) is not cls:
        raise ValueError(f"a runner must be importable by name, got {name}")
    _NUMBERS[cls] = _MADE[name]
    _MADE[name] += 1
    return name


def pack(spec: object) -> Any:
    """The spec as nested lists of plain data; those of equal specs differ if a class was made anew, since its code may be another.

    Raises:
        TypeError: not an attrs value, or a field is not plain data.
        ValueError: a class cannot be imported by name.
    """
    if not attrs.has(type(spec)):
        raise TypeError(f"a runner must be a frozen attrs value, got {brief(spec)}")
    return _pack(spec, type(spec).__name__, 0)


def unpack(packed: Any) -> Any:
    """The value that was packed; imports the modules of its classes."""
    match packed:
        case ["spec", name, _, fields]:
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
    """One value, packed. `where` names the value in an error."""
    kind, deeper = class_of(value), depth + 1
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
        name = spec_name(kind)
        return ["spec", name, _NUMBERS[kind], [list(pair) for pair in _fields(value, where, deeper)]]
    raise TypeError(f"{where} must be {_ALLOWED}, got {brief(value)}")


def _plain(value: Any, where: str) -> Any:
    """A scalar, if it fits into msgpack. Text that UTF-8 cannot encode, such as a path that is not UTF-8, becomes bytes."""
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
    """The arguments of the constructor, each packed."""
    cls = class_of(value)
    for field in attrs.fields(cls):
        if field.init:
            yield field.alias, _pack(getattr(value, field.name), f"{where}.{field.name}", depth)


def class_of(value: object) -> type[Any]:
    """Its class, for `attrs.fields`, which takes no `type[object]`."""
    return type(value)


def _found(module: str, qualname: str) -> object:
    """The object with this name in a loaded module; None if there is none."""
    return reduce(lambda at, name: getattr(at, name, None), qualname.split("."), sys.modules.get(module))


def _class(name: str) -> Any:
    module, _, qualname = name.partition(":")
    importlib.import_module(module)
    return _found(module, qualname)
