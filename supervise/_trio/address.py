"""The address of a path, which outlives its incarnations, and the answer of a request: tasks wait at both.

Nothing here decides whether a node is down for good: the machines do (`Forest.gone`).
"""

from __future__ import annotations

from typing import Any

import outcome
from trio.lowlevel import ParkingLot

from .._core._brief import brief
from .._core.spec import SHARED, Child, Mailbox, Spec
from ..errors import ChildStopped
from .mailbox import Queue, Report
from .protect import protected
from .shared import SharedQueue


@protected
class Address:
    """The part of a node that outlives its incarnations: its mailbox, and the tasks that wait until it is up, or gone."""

    __slots__ = ("_changes", "below", "ends", "gone", "mailbox", "path", "why")

    _changes: ParkingLot | None  # made for the first task that waits

    def __init__(self, path: str) -> None:
        self.path = path
        self.below: dict[str, Address] = {}
        self.mailbox: Queue | None = None
        self.gone = False
        self.why: BaseException | None = None  # the failure of its last end
        self.ends = 0
        self._changes = None

    def ensure_mailbox(self, spec: Spec, report: Report) -> Queue:
        """Its mailbox, made at the first need."""
        if self.mailbox is None:
            if not isinstance(spec.mailbox, Mailbox):
                raise TypeError(f"{self.path!r} has no mailbox{self._advice(spec)}")
            kind = Queue if isinstance(spec, Child) else SharedQueue
            self.mailbox = kind(self.path, spec.mailbox, report)
            if self.gone:
                self.mailbox.close(self.why)
        return self.mailbox

    def _advice(self, spec: Spec) -> str:
        if spec.mailbox is SHARED:
            return f" of its own: send to {self.path.rpartition('/')[0]!r}, whose messages it takes"
        return (
            ": declare its child with mailbox=…"
            if isinstance(spec, Child)
            else ", and names no child as its front"
        )

    def adopt(self, spec: Spec) -> None:
        """Take the mailbox of another declaration; without one, all who wait at this one get an error (R38)."""
        mailbox = self.mailbox
        if mailbox is None:
            return
        if isinstance(spec.mailbox, Mailbox) and mailbox.shared is not isinstance(spec, Child):
            mailbox.adopt(spec.mailbox)
        else:
            mailbox.close(None)
            self.mailbox = None

    def starts(self, spec: Spec) -> None:
        """Its node starts with this declaration, which may be a later one than that of the mailbox (R38)."""
        if self.gone:
            self.reopen()
        if self.mailbox is not None and self.mailbox.spec is not spec.mailbox:
            self.adopt(spec)

    def close(self, why: BaseException | None) -> None:
        """Note that the node is down for good, because of `why`; the first reason stays."""
        if self.gone:
            return
        self.gone, self.why = True, why
        self.ends += 1
        if self.mailbox is not None:
            self.mailbox.close(why)
        self.changed()

    def reopen(self) -> None:
        self.gone = False
        if self.mailbox is not None:
            self.mailbox.open()

    def serve_again(self) -> None:
        """A child serves the mailbox, or one that is added will: it is open, unless the node is down for good (R37)."""
        if self.mailbox is not None and self.mailbox.closed and not self.gone:
            self.mailbox.open()

    def stopped(self) -> ChildStopped:
        exc = ChildStopped(
            f"{self.path!r} is down for good" + ("" if self.why is None else f": {brief(self.why)}")
        )
        exc.__cause__ = self.why
        return exc

    def changed(self) -> None:
        if self._changes is not None:
            self._changes.unpark_all()

    async def wait(self) -> None:
        """Wait for the next change."""
        if self._changes is None:
            self._changes = ParkingLot()
        await self._changes.park()


@protected
class Answer:
    """The token of a request, at which its caller waits."""

    __slots__ = ("_outcome", "_waiting")

    def __init__(self) -> None:
        self._waiting = ParkingLot()
        self._outcome: outcome.Outcome[Any] | None = None

    def set(self, result: outcome.Outcome[Any]) -> None:
        self._outcome = result
        self._waiting.unpark_all()

    async def wait(self) -> Any:
        """Wait for the answer. A caller that is cancelled here withdraws its request, see `Driver.ask`."""
        if self._outcome is None:
            await self._waiting.park()
        assert self._outcome is not None
        return self._outcome.unwrap()
