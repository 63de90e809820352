"""What outlives incarnations: who waits at a path, and who waits for a request's answer.

It decides nothing: whether a node is down for good is the machines' to say (`Forest.gone`).
"""

from __future__ import annotations

from typing import Any

import outcome
from trio.lowlevel import ParkingLot, Task

from .._core._brief import brief
from .._core.spec import Child
from ..errors import ChildStopped
from .mailbox import Holder, Inbox, Queue
from .protect import protected


@protected
class Address:
    """What outlives the incarnations of a path: its mailbox, and who waits for it to be up, or gone."""

    __slots__ = ("_changes", "below", "ends", "gone", "mailbox", "path", "why")

    _changes: ParkingLot | None  # from when somebody waits

    def __init__(self, path: str) -> None:
        self.path = path
        self.below: dict[str, Address] = {}
        self.mailbox: Queue | None = None
        self.gone = False
        self.why: BaseException | None = None  # of the last end
        self.ends = 0
        self._changes = None

    def inbox(self, leaf: Holder) -> Inbox:
        assert self.mailbox is not None
        return Inbox(self.mailbox, leaf)

    def is_served_by(self, task: Task) -> None:
        """The task of its child."""
        assert self.mailbox is not None
        self.mailbox.server = task

    def ensure_mailbox(self, spec: Child) -> Queue:
        """Its mailbox, made when first wanted."""
        if self.mailbox is None:
            if spec.mailbox is None:
                raise TypeError(f"{self.path!r} has no mailbox: declare its child with mailbox=…")
            self.mailbox = Queue(self.path, spec.mailbox)
            if self.gone:
                self.mailbox.close(self.why)
        return self.mailbox

    def close(self, why: BaseException | None) -> None:
        """The node is down for good; if it was already, it stays so for the same reason."""
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
    """A request's token: whoever asked waits here."""

    __slots__ = ("_outcome", "_waiting")

    def __init__(self) -> None:
        self._waiting = ParkingLot()
        self._outcome: outcome.Outcome[Any] | None = None

    def set(self, result: outcome.Outcome[Any]) -> None:
        self._outcome = result
        self._waiting.unpark_all()

    async def wait(self) -> Any:
        """The answer. What a caller that is cancelled had asked for is withdrawn, unless it has begun: see `Driver.ask`."""
        if self._outcome is None:
            await self._waiting.park()
        assert self._outcome is not None
        return self._outcome.unwrap()
