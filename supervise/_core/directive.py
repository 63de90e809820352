"""The four answers to a failure, mildest first."""

from __future__ import annotations

from enum import IntEnum


class Directive(IntEnum):
    """What happens to the child that failed. The greater is the more severe (R3)."""

    Resume = 0
    """Keep resource, mailbox and incarnation; enter the body again (R8)."""
    Restart = 1
    """End this incarnation and start the next, together with the children that the strategy names (R9, R13)."""
    Stop = 2
    """End it and keep it down: it is `condemned` (R10). After an operator's `Ref.stop` it is only `down`."""
    Escalate = 3
    """Let the next supervisor above decide, before anything is stopped (R11)."""

    def __repr__(self) -> str:
        return self.name


Resume, Restart, Stop, Escalate = Directive
