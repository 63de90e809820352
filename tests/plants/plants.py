"""All of them."""

from __future__ import annotations

from .mailboxes import MAILBOXES

PLANTS = [*MAILBOXES]
