"""All of them."""

from __future__ import annotations

from .mailboxes import MAILBOXES
from .workers import WORKERS

PLANTS = [*MAILBOXES, *WORKERS]
