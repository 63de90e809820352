"""Validators for attrs, each of whose errors names the field, what is allowed, and what came."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, TypeAlias

from attrs import Attribute

from .brief import brief

Validator: TypeAlias = "Callable[[object, Attribute[Any], Any], None]"


def above(bound: float) -> Validator:
    """A number above the bound. No bool is a number here: `timeout=True` is a mistake."""
    return _number(f"> {bound:g}", lambda value: value > bound)


def at_least(bound: float) -> Validator:
    """A number of the bound or more. No bool is a number here."""
    return _number(f">= {bound:g}", lambda value: value >= bound)


def _number(allowed: str, is_allowed: Callable[[Any], bool]) -> Validator:
    def check(_owner: object, attribute: Attribute[Any], value: Any) -> None:
        text = f"{attribute.name} must be a number {allowed}, got {brief(value)}"
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(text)
        if not is_allowed(value):
            raise ValueError(text)

    return check
