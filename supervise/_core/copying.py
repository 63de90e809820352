"""A copy of a tree's machines, on which inputs can be tried: what a machine changes is copied, everything else is shared.

Containers are copied, and the instances of the classes beside this file, except values that never change. Objects of the program are
shared: exceptions, arguments, and the tokens of callers that wait. Nothing here knows what a machine is made of: how a class is
copied is found out once, from its slots or its dictionary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import copy as shallow
from functools import partial
from typing import Any, TypeVar

from .decide import Decider
from .directive import Directive
from .effect import Request
from .limit import Backoff, Limit
from .spec import Child, Pool, Supervisor

T = TypeVar("T")
Made = dict[int, Any]
_Copier = Callable[[Any, Made], Any]

_HOME = __name__.rpartition(".")[0]
_NEVER_CHANGE = (Child, Supervisor, Pool, Decider, Limit, Backoff, Directive)
_SHARED: set[type] = set()


def copies(cls: type) -> Callable[[_Copier], _Copier]:
    """For a class that defines itself how it is copied."""

    def learn(copier: _Copier) -> _Copier:
        _COPIERS[cls] = copier
        return copier

    return learn


def copied(thing: T) -> T:
    """`thing`, and all that hangs on it; what was one thing is one thing again."""
    copy: T = _copy(thing, {})
    return copy


def copied_among(thing: T, made: Made) -> T:
    """The copy of one of several things that hang together; `made` has those made so far."""
    copy: T = _copy(thing, made)
    return copy


def _copy(thing: Any, made: Made) -> Any:
    cls: type[Any] = type(thing)  # pyright: ignore[reportUnknownVariableType] - `thing` may be anything
    if cls in _SHARED:
        return thing
    found = made.get(id(thing))
    if found is not None:
        return found
    return (_COPIERS.get(cls) or _learn(cls))(thing, made)


def _learn(cls: type[Any]) -> _Copier:
    if not str(cls.__module__).startswith(_HOME) or issubclass(cls, _NEVER_CHANGE):
        _SHARED.add(cls)
        return lambda thing, _: thing
    slots = _slots(cls)
    copier = partial(_copy_dictionary, cls) if slots is None else partial(_copy_slots, cls, slots)
    _COPIERS[cls] = copier
    return copier


def _slots(cls: type[Any]) -> list[str] | None:
    """The slots of a class; None: it has a dictionary."""
    parts = [vars(part) for part in cls.__mro__[:-1]]
    if not all("__slots__" in part for part in parts):
        return None
    named = [part["__slots__"] for part in parts]
    slots = [name for names in named for name in ((names,) if isinstance(names, str) else names)]
    return [name for name in slots if name != "__weakref__"]


def _copy_dictionary(cls: type[Any], thing: Any, made: Made) -> Any:
    made[id(thing)] = copy = object.__new__(cls)
    _fill(copy.__dict__, thing.__dict__, made)
    return copy


def _fill(copy: dict[Any, Any], thing: dict[Any, Any], made: Made) -> None:
    copy.update(thing)
    if not _SHARED.issuperset(map(type, thing.values())):
        for name, value in thing.items():
            if type(value) not in _SHARED:
                copy[name] = _copy(value, made)


def _copy_slots(cls: type[Any], slots: list[str], thing: Any, made: Made) -> Any:
    made[id(thing)] = copy = object.__new__(cls)
    for name in slots:
        value = getattr(thing, name)
        setattr(copy, name, value if type(value) in _SHARED else _copy(value, made))
    return copy


def _copy_list(thing: list[Any], made: Made) -> list[Any]:
    copy: list[Any] = []
    made[id(thing)] = copy
    if thing:
        copy += [item if type(item) in _SHARED else _copy(item, made) for item in thing]
    return copy


def _copy_deque(thing: deque[Any], made: Made) -> deque[Any]:
    copy: deque[Any] = deque(maxlen=thing.maxlen)
    made[id(thing)] = copy
    if thing:
        copy += [item if type(item) in _SHARED else _copy(item, made) for item in thing]
    return copy


def _copy_dict(thing: dict[Any, Any], made: Made) -> dict[Any, Any]:
    copy: dict[Any, Any] = {}
    made[id(thing)] = copy
    if not thing:
        return copy
    if _SHARED.issuperset(map(type, thing)):
        _fill(copy, thing, made)
    else:
        copy |= {_copy(name, made): _copy(item, made) for name, item in thing.items()}
    return copy


def _copy_set(thing: set[Any], made: Made) -> set[Any]:
    shared = _SHARED.issuperset(map(type, thing))
    made[id(thing)] = copy = thing.copy() if shared else {_copy(item, made) for item in thing}
    return copy


def _copy_tuple(thing: tuple[Any, ...], made: Made) -> tuple[Any, ...]:
    return tuple([item if type(item) in _SHARED else _copy(item, made) for item in thing])


def _copy_request(thing: Request, made: Made) -> Request:
    """Its token and its arguments are the caller's; only its mark changes."""
    made[id(thing)] = copy = shallow(thing)
    return copy


_COPIERS: dict[type, _Copier] = {
    Request: _copy_request,
    list: _copy_list,
    deque: _copy_deque,
    dict: _copy_dict,
    set: _copy_set,
    tuple: _copy_tuple,
}
