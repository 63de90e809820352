"""The fields of `OpenAIModel` and their checks. They have no `build`, so that what it imports can import them."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from attrs import Attribute, field, frozen
from attrs.validators import and_, in_, instance_of, matches_re, optional

from runners.brief import brief, is_a
from runners.checks import above, integer, plain_integer, plain_number
from runners.plain import plain_data
from runners.types import Price, RateLimits

LengthField: TypeAlias = Literal["max_tokens", "max_completion_tokens"]


def _is_url(_: object, __: Attribute[Any], value: object) -> None:
    """A validator. The message quotes no URL with a password in it."""
    if type(value) is not str:
        raise TypeError(f"url must be a str, got {brief(value)}")
    parts = urlsplit(value)
    if parts.username is not None or parts.password is not None:
        raise ValueError("url must have no user and no password: name the variable of the key with key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"url must be like https://example.org/v1, got {brief(value)}")


def _fields(value: object) -> Any:
    """A converter."""
    if not is_a(value, dict):
        raise TypeError(f"extra must be a dict, got {brief(value)}")
    return plain_data("extra", value)


def _headers(value: object) -> Any:
    """A converter. The message does not quote the value of a header."""
    made: Any = dict(value) if is_a(value, dict) else None  # type: ignore[call-overload]  # it is a dict
    if made is None or not all(
        type(each) is str and each.isascii() and each.isprintable() for pair in made.items() for each in pair
    ):
        raise TypeError("headers must be a dict of names and values in printable ASCII")
    return {name.lower(): value for name, value in made.items()}  # ours then replace those of the same name


_flag = instance_of(bool)


@frozen
class Settings:
    """See `OpenAIModel`."""

    url: str = field(validator=_is_url)
    model: str | None = field(default=None, validator=optional(instance_of(str)))
    key_env: str | None = field(
        default=None, kw_only=True, validator=optional(and_(instance_of(str), matches_re(r"[A-Za-z_]\w*")))
    )
    chat: bool = field(default=False, kw_only=True, validator=_flag)
    token_ids: bool = field(default=False, kw_only=True, validator=_flag)
    streams: int = field(default=64, kw_only=True, converter=plain_integer, validator=integer(1))
    connect_timeout: float = field(
        default=10.0, kw_only=True, converter=plain_number, validator=above(0, finite=True)
    )
    first_chunk_timeout: float = field(
        default=60.0, kw_only=True, converter=plain_number, validator=above(0, finite=True)
    )
    next_chunk_timeout: float = field(
        default=30.0, kw_only=True, converter=plain_number, validator=above(0, finite=True)
    )
    length_field: LengthField = field(
        default="max_tokens", kw_only=True, validator=in_(get_args(LengthField))
    )
    include_usage: bool = field(default=True, kw_only=True, validator=_flag)
    done_is_enough: bool = field(default=False, kw_only=True, validator=_flag)
    trust_env: bool = field(default=False, kw_only=True, validator=_flag)
    extra: dict[str, Any] = field(factory=dict, kw_only=True, converter=_fields, hash=False)
    headers: dict[str, str] = field(factory=dict, kw_only=True, converter=_headers, hash=False, repr=False)
    limits: RateLimits | None = field(default=None, kw_only=True, validator=optional(instance_of(RateLimits)))
    price: Price = field(factory=Price, kw_only=True, validator=instance_of(Price))
