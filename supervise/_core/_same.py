"""Whether code that was loaded twice is the same (R38).

A module that is loaded anew makes all its functions and classes anew. A function that does the same as before can go on in its old
form. One that reaches a class made anew cannot, since an object of the new class is not an instance of the old one; nor can one that
reaches an object made anew, such as a channel: its other end may be used by code that changes. So what cannot be compared counts as
another.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sized
from functools import partial
from types import CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, cast

import attrs

from ._brief import MOST, brief, class_of, shortened
from ._code import Code

_Pair = tuple[str, Any, Any]
_CONSTANTS = frozenset({type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range})
_EXACT = frozenset({bool, int, str, bytes})
"""The classes whose constants are equal exactly if their texts are. Of floats, 0.0 equals -0.0, and NaN does not equal itself."""


class _Stand:
    """Takes the place of a value in a comparison, and equals nothing else."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


_MISSING = _Stand("missing")
_ANEW = _Stand("made anew")


def why_other(name: str, old: object, new: object, *, classes: bool = True) -> str | None:
    """Why `new` does not do what `old` does, in words that begin with what differs; None if it does.

    Args:
        name: what the reader calls the two.
        old: the value that is in use.
        new: the one that is to replace it.
        classes: whether a class that was made anew differs from the earlier one; otherwise its module and its name are compared.
    """
    waiting: list[_Pair] = [(name, old, new)]
    # It keeps the objects, so that no other one gets the id of one of them.
    seen: dict[tuple[int, int], tuple[Any, Any]] = {}
    while waiting:
        what, one, other = waiting.pop()
        if one is other or (id(one), id(other)) in seen:
            continue
        seen[id(one), id(other)] = one, other
        try:
            # The path to a value that lies a hundred thousand levels deep would be as long, and so would be each on the way to it.
            found = _compared(shortened(what, MOST), one, other, classes=classes)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # noqa: BLE001 - A user's object may raise anything when it is compared; then it counts as another.
            return f"{what} cannot be compared: {brief(problem)}"
        if isinstance(found, str):
            return found
        waiting += reversed(found)
    return None


def _compared(what: str, old: Any, new: Any, *, classes: bool) -> str | list[_Pair]:
    """What makes the two differ, or the pairs on which it depends."""
    kind = class_of(old)
    same: bool | list[_Pair]
    if kind is not class_of(new):
        if _name(kind) == _name(class_of(new)):
            return f"{what} is of the class {kind.__qualname__}, which was made anew"
        same = False
    elif issubclass(kind, type):
        same = not classes and _name(old) == _name(new)
    elif kind is FunctionType:
        same = _functions(old, new)
    elif kind in _CONSTANTS:
        same = _is_same_constant(old, new)
    elif kind in _PARTS:
        same = _fits(old, new) and list(_PARTS[kind](what, old, new))
    else:
        names = _fields(kind)
        if names is None:
            return f"{what} was made anew, and cannot be compared: {brief(new)}"
        same = (
            bool(old == new)
            if names == _WHOLE
            else [(f"{what}.{each}", getattr(old, each), getattr(new, each)) for each in names]
        )
    if isinstance(same, list):
        return same
    return [] if same else _difference(what, old, new)


def _difference(what: str, old: Any, new: Any) -> str:
    if class_of(old) is class_of(new) and isinstance(old, type):
        return f"the class {old.__qualname__} was made anew"
    if class_of(old) is class_of(new) is FunctionType:
        return f"the code of {old.__qualname__} is another"
    return f"{what} was {brief(old)}, and is {brief(new)}"


_WHOLE = ["=="]


def _fields(kind: Any) -> list[str] | None:
    """The attributes on which two values of a class are compared; `_WHOLE`: by `==`; None: they have an identity of their own."""
    if issubclass(kind, Code):
        return [each.name for each in attrs.fields(kind) if each.init and each.repr]
    has_equality = cast("object", kind.__eq__) is not object.__eq__
    if attrs.has(kind) and (has_equality or not attrs.fields(kind)):
        return [each.name for each in attrs.fields(kind) if each.eq]
    if has_equality and dataclasses.is_dataclass(kind):
        return [each.name for each in dataclasses.fields(kind) if each.compare]
    return _WHOLE if has_equality else None


def _name(cls: type[Any]) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _fits(old: Any, new: Any) -> bool:
    return not isinstance(old, Sized) or len(old) == len(new)


def _items(what: str, old: Any, new: Any) -> Iterator[_Pair]:
    for number, (one, other) in enumerate(zip(old, new, strict=True)):
        if not _is_same_constant(one, other):
            yield f"{what}[{number}]", one, other


def _entries(what: str, old: Mapping[Any, Any], new: Mapping[Any, Any]) -> Iterator[_Pair]:
    """Entry by entry, in their order: keys may be classes that were made anew."""
    for (key, one), (key_anew, other) in zip(old.items(), new.items(), strict=True):
        if not _is_same_constant(key, key_anew):
            yield f"a key of {what}", key, key_anew
        if not _is_same_constant(one, other):
            yield f"{what}[{brief(key)}]", one, other


def _is_same_constant(old: object, new: object) -> bool:
    """Whether both are the same constant: a table of the program may have a million, and a pair for each would block the loop."""
    kind = class_of(old)
    if kind not in _CONSTANTS or kind is not class_of(new):
        return False
    # A text takes seconds for a hundred megabytes, and Python makes none of an integer of some thousand digits.
    return old == new if kind in _EXACT else repr(old) == repr(new)


def _sets(what: str, old: Any, new: Any) -> Iterator[_Pair]:
    yield from ((f"an item of {what}", item, _MISSING) for item in old - new)


def _partials(what: str, old: partial[Any], new: partial[Any]) -> Iterator[_Pair]:
    yield what, old.func, new.func
    yield f"the arguments of {what}", old.args, new.args
    yield f"the arguments of {what}", old.keywords, new.keywords


def _methods(what: str, old: MethodType, new: MethodType) -> Iterator[_Pair]:
    yield what, old.__func__, new.__func__
    yield what, old.__self__, new.__self__


def _cells(what: str, old: CellType, new: CellType) -> Iterator[_Pair]:
    yield what, _content(old), unless_shared(_content(old), _content(new))


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty so far
        return _MISSING


_PARTS: dict[type[Any], Any] = {
    tuple: _items,
    list: _items,
    dict: _entries,
    MappingProxyType: _entries,
    set: _sets,
    frozenset: _sets,
    partial: _partials,
    MethodType: _methods,
    CellType: _cells,
}


def _functions(old: FunctionType, new: FunctionType) -> bool | list[_Pair]:
    """Two functions are the same if their code is, and all that it refers to."""
    what = old.__qualname__
    names: dict[str, None] = {}
    if not _same_code(old.__code__, new.__code__, names):
        return False
    pairs: list[_Pair] = [
        (f"a default of {what}", old.__defaults__, new.__defaults__),
        (f"a default of {what}", old.__kwdefaults__, new.__kwdefaults__),
        (what, vars(old), vars(new)),
    ]
    for name, one, other in zip(
        old.__code__.co_freevars, old.__closure__ or (), new.__closure__ or (), strict=True
    ):
        pairs.append((name, one, other))
    if old.__globals__ is not new.__globals__:
        for name in names:
            pairs += _globals(name, old.__globals__, new.__globals__, names)
    return pairs


def _globals(name: str, old: dict[str, Any], new: dict[str, Any], names: dict[str, None]) -> Iterator[_Pair]:
    """What a name stands for in both modules; of a module that was loaded anew, the attributes that the function may use."""
    one, other = old.get(name, _MISSING), new.get(name, _MISSING)
    if isinstance(one, ModuleType) and isinstance(other, ModuleType) and one is not other:
        for attribute in names:
            its, anew = vars(one).get(attribute, _MISSING), vars(other).get(attribute, _MISSING)
            yield f"{name}.{attribute}", its, unless_shared(its, anew)
    else:
        yield name, one, unless_shared(one, other)


def unless_shared(old: object, new: object) -> object:
    """`new`, or a stand-in that equals nothing if both are empty containers made apart.

    An empty container is there to be filled, so that those who use it share it: it has an identity of its own.
    """
    if old is new or class_of(old) is not class_of(new) or not issubclass(class_of(old), _FILLED):
        return new
    return new if old or new else _ANEW


_FILLED = (list, dict, set, bytearray, deque)


def _same_code(old: CodeType, new: CodeType, names: dict[str, None]) -> bool:
    """Whether two code objects are the same but for their place in the file; adds the names that they use to `names`."""
    waiting = [(old, new)]
    while waiting:
        one, other = waiting.pop()
        if any(getattr(one, part) != getattr(other, part) for part in _CODE):
            return False
        names.update(dict.fromkeys(one.co_names))
        if len(one.co_consts) != len(other.co_consts):
            return False
        for constant, its in zip(one.co_consts, other.co_consts, strict=True):
            if isinstance(constant, CodeType) and isinstance(its, CodeType):
                waiting.append((constant, its))
            elif constant != its or _texts(constant) != _texts(its):
                return False  # 1, True and 1.0 are equal, and so are 0.0 and -0.0: only their texts differ
    return True


def _texts(constant: object) -> list[str]:
    """The text of a constant; of a set those of its items, since two equal sets may have another order."""
    if isinstance(constant, frozenset):
        return sorted(map(repr, cast("frozenset[object]", constant)))
    return [repr(constant)]


_CODE = (
    "co_code", "co_flags", "co_argcount", "co_posonlyargcount", "co_kwonlyargcount",
    "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_exceptiontable",
)  # fmt: skip
