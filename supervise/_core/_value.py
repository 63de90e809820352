"""Equality, hash and `repr` of frozen values, written once."""

from __future__ import annotations

from operator import eq
from reprlib import recursive_repr
from typing import Any

from attrs import fields

from ._brief import brief


class Value:
    """A base for classes with `@frozen(repr=False, eq=False)`: the methods that attrs would compile for each of them.

    Compiling those is more than half of the import time of such a class.
    """

    __slots__ = ()

    @recursive_repr("...")
    def __repr__(self) -> str:
        cls: type[Any] = self.__class__
        shown = [f"{field.name}={brief(getattr(self, field.name))}" for field in fields(cls) if field.repr]
        return f"{cls.__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return all(map(eq, _values(self), _values(other)))

    def __hash__(self) -> int:
        return hash((self.__class__, *_values(self)))


def _values(value: Any) -> list[Any]:
    return [getattr(value, field.name) for field in fields(value.__class__)]
