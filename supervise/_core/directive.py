"""The four answers to a failure, mildest first."""

from __future__ import annotations

from enum import IntEnum


class Directive(IntEnum):
    """What happens to the child that failed. The greater is the more severe (R3)."""

    Resume = 0
    """Keep resource, mailbox and incarnation; enter the body again (R8)."""
    Restart = 1
    """End this incarnation and start the next, with whom the strategy names (R9)."""
    Stop = 2
    """End it and keep it down: condemned (R10). An operator's `Ref.stop` leaves it merely down."""
    Escalate = 3
    """Let the next supervisor up decide, before anything is torn down (R11)."""

    def __repr__(self) -> str:
        return self.name


Resume, Restart, Stop, Escalate = Directive
