"""Validators for attrs, each of whose errors names the field, what is allowed, and what came."""

from __future__ import annotations

import sys
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeAlias

from attrs import Attribute

from .brief import brief, is_a

Validator: TypeAlias = "Callable[[object, Attribute[Any], Any], None]"
_BITS = 63
"""Of the largest integer that msgpack takes, with either sign."""


def above(bound: float) -> Validator:
    """A number above the bound, which is kept as a plain one. No bool is a number here: `timeout=True` is a mistake."""
    return _number(f"> {bound:g}", lambda value: value > bound)


def at_least(bound: float) -> Validator:
    """A number of the bound or more, which is kept as a plain one. No bool is a number here."""
    return _number(f">= {bound:g}", lambda value: value >= bound)


def _number(allowed: str, is_allowed: Callable[[Any], bool]) -> Validator:
    def check(owner: object, attribute: Attribute[Any], value: Any) -> None:
        text = f"{attribute.name} must be a number {allowed}"
        if not is_a(value, Real) or is_a(value, bool):
            raise TypeError(f"{text}, got {brief(value)}")
        if not is_allowed(value):
            raise ValueError(f"{text}, got {brief(value)}")
        if type(value) is float or (type(value) is int and value.bit_length() <= _BITS):
            return
        # Another kind, such as one of numpy, can neither be sent to another process nor written into every message.
        try:
            object.__setattr__(owner, attribute.name, float(value))
        except OverflowError:
            raise ValueError(f"{text} and <= {sys.float_info.max:g}, got {brief(value)}") from None

    return check
