"""All of them."""

from __future__ import annotations

from .devices import DEVICES
from .mailboxes import MAILBOXES

PLANTS = [*MAILBOXES, *DEVICES]
