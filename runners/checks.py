"""What the fields of declarations and requests take.

The converters make a plain value of one of another class, such as a number of numpy, which can neither be sent to another process nor
written into every message. What they cannot make plain they leave to the validators, each of whose errors names the field, what is
allowed, and what came. A bool is never a number: `timeout=True` is a mistake, and JSON would make `true` of it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from decimal import Decimal
from numbers import Real
from typing import Any, TypeAlias

from attrs import Attribute

from .brief import brief, exact, is_a
from .plain import is_encodable

Validator: TypeAlias = "Callable[[object, Attribute[Any], Any], None]"


def plain_text(value: str) -> str:
    """A converter: the text as a plain one, whatever its class makes of `==`, `hash` and `repr`."""
    return exact(value) if is_a(value, str) else value


def plain_integer(value: int) -> int:
    """A converter: an integer of a class of its own, an `IntEnum` say, as a plain one."""
    if type(value) in (int, bool) or not is_a(value, int):
        return value
    return int.__int__(value)


def plain_number(value: float) -> float:
    """A converter: a number of any class as a float, unless it is too large for one."""
    if not _is_number(value):
        return value
    try:
        return float(value)
    except OverflowError:
        return value


def is_text(_: object, attribute: Attribute[Any], value: object) -> None:
    """A validator of a plain text that UTF-8 can encode."""
    if type(value) is not str:
        raise TypeError(f"{attribute.name} must be a str, got {brief(value)}")
    if not is_encodable(value):
        raise ValueError(f"{attribute.name} must be a text that UTF-8 can encode, got {brief(value)}")


def integer(least: int, most: int | None = None) -> Validator:
    """A validator of a plain integer, with both bounds allowed."""

    def check(_: object, attribute: Attribute[Any], value: object) -> None:
        if type(value) is not int:
            raise TypeError(f"{attribute.name} must be an integer, got {brief(value)}")
        if value < least:
            raise ValueError(f"{attribute.name} must be >= {least}, got {brief(value)}")
        if most is not None and value > most:
            raise ValueError(f"{attribute.name} must be <= {most}, got {brief(value)}")

    return check


def above(bound: float, *, finite: bool = False) -> Validator:
    """A validator of a number above the bound."""
    return _number(f"> {bound:g}", lambda value: value > bound, finite=finite)


def at_least(bound: float, *, finite: bool = False) -> Validator:
    """A validator of a number of the bound or more."""
    return _number(f">= {bound:g}", lambda value: value >= bound, finite=finite)


def _number(bounds: str, is_allowed: Callable[[Any], bool], *, finite: bool) -> Validator:
    allowed = f"must be a {'finite ' if finite else ''}number {bounds}"

    def check(_: object, attribute: Attribute[Any], value: Any) -> None:
        text = f"{attribute.name} {allowed}"
        if not _is_number(value):
            raise TypeError(f"{text}, got {brief(value)}")
        if not is_allowed(value) or (finite and value == math.inf):
            raise ValueError(f"{text}, got {brief(value)}")
        if value != math.inf and value > sys.float_info.max:
            raise ValueError(f"{text} and <= {sys.float_info.max:g}, got {brief(value)}")

    return check


def is_float(value: Any) -> bool:
    """Whether it is an int or a float that fits into a float; infinity does, NaN and bools do not."""
    number: Any = plain_number(value) if is_a(value, int, float) else None
    return type(number) is float and not math.isnan(number)


def _is_number(value: object) -> bool:
    return is_a(value, Real, Decimal) and not is_a(value, bool)
