"""All of them."""

from __future__ import annotations

from .adopting import ADOPTING
from .devices import DEVICES
from .engines import ENGINES
from .fleets import FLEETS
from .hosts import HOSTS
from .mailboxes import MAILBOXES
from .operating import OPERATING
from .remote import REMOTE
from .trees import TREES
from .workers import WORKERS

PLANTS = [
    *MAILBOXES,
    *TREES,
    *ADOPTING,
    *OPERATING,
    *WORKERS,
    *DEVICES,
    *HOSTS,
    *REMOTE,
    *ENGINES,
    *FLEETS,
]
