"""The settings that all hosts of context processes have in common."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, converters, field, frozen
from attrs.validators import instance_of, optional

from runners.checks import above, at_least, integer, plain_integer, plain_number
from runners.diagnosis.nvml import Nvml
from runners.diagnosis.probe import check_device


@frozen(kw_only=True)
class Terms:
    """The settings that a session in a process and its reserve need of their host. `ProcessHost` describes them."""

    device: str = field(default="cpu", validator=[instance_of(str), check_device])
    standby: int = field(default=0, converter=plain_integer, validator=integer(0))
    load_timeout: float = field(default=300.0, converter=plain_number, validator=above(0))
    first_chunk_timeout: float = field(default=60.0, converter=plain_number, validator=above(0))
    next_chunk_timeout: float | None = field(
        default=None, converter=converters.optional(plain_number), validator=optional(above(0))
    )
    close_timeout: float = field(default=5.0, converter=plain_number, validator=above(0))
    kill_timeout: float = field(default=10.0, converter=plain_number, validator=above(0))
    linger: float = field(default=30.0, converter=plain_number, validator=at_least(0))
    nvml: Nvml = field(factory=Nvml, validator=instance_of(Nvml))


def own_first(cls: type, fields: list[Attribute[Any]]) -> list[Attribute[Any]]:
    """A field transformer for attrs: a host shows its own fields before those of its base, as its docstring does."""
    return sorted(fields, key=lambda each: each.name not in cls.__annotations__)
