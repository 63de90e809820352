"""Tools for testing trees: virtual time with a seeded schedule, and the grammar that events must follow."""

from __future__ import annotations

from .lifecycle import assert_lifecycle
from .virtual import run_virtual

__all__ = ["assert_lifecycle", "run_virtual"]
