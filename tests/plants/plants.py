"""All of them."""

from __future__ import annotations

from .devices import DEVICES
from .hosts import HOSTS
from .mailboxes import MAILBOXES
from .trees import TREES
from .workers import WORKERS

PLANTS = [*MAILBOXES, *TREES, *WORKERS, *DEVICES, *HOSTS]
