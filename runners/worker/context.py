"""What a context of a device worker has: its session, the streams that are open in it, and the rebuild requests of operators."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import trio
from attrs import define, field

from supervise import Message

from ..errors import (
    ContextPoisoned,
    DeviceError,
    InferenceError,
    RebuildSuperseded,
    SessionRebuild,
    WorkerStopping,
)
from ..hosts import Session
from ..protect import protected
from ..types import CANARY, RunnerSpec, SessionRebuildCause
from .deadlines import Deadlines
from .group import Group, Replacement
from .record import Record, record_of


@protected
@define(eq=False)
class RebuildRequest:
    """A rebuild request of an operator, and its outcome (D7).

    `failure`: the failure of the context by which it is carried out. `outcome`: `done`; or `ended`, if the context ended first;
    or an error.
    """

    cause: SessionRebuildCause
    failure: DeviceError | None = None
    outcome: Literal["done", "ended"] | InferenceError | None = None
    answered: trio.Event = field(factory=trio.Event)

    @property
    def wants_restart(self) -> bool:
        """Whether the operator reports a poison: such a context is never rebuilt in place."""
        return self.cause is SessionRebuildCause.CONTEXT_POISONED

    def carry_out(self) -> DeviceError:
        """Returns the failure with which the context is to fail for this request."""
        text = f"a new session was ordered ({self.cause})"
        self.failure = ContextPoisoned(text) if self.wants_restart else SessionRebuild(text)
        return self.failure

    def answer(self, outcome: Literal["done", "ended"] | InferenceError) -> None:
        """Set the outcome and wake the requester."""
        self.outcome = outcome
        self.answered.set()


@protected
@define(eq=False)
class Context:
    """The resource of the leaf: a session, and the streams that are open in it. A Resume keeps both.

    `retries`: the requests that are tried again, each with the time from which it may begin. `since_oom`: None until memory runs
    out; then the requests that have begun since, until the session makes a chunk. `waiting`: a rebuild request that waits for
    the streams that it would lose. `under_way`: the rebuild request for which the body has failed. `again`: when a request may
    begin again, if the rate limits hold one back. `runner`: the spec of the loaded runner; `replacement`: which replacement
    that is, if it is one. `opener`: what declares this context. `drain`: for how many seconds begun streams continue once the
    worker is asked to stop (D13). `held`: whether an operator wants no request to begin here. `canary_open`: whether the
    canary's stream is open.
    """

    session: Session
    runner: RunnerSpec
    group: Group
    opener: Any  # the `opener.Opener`, whose module imports this one
    canary: float | None = None
    drain: float = 0
    replacement: Replacement | None = None
    again: float = 0.0
    held: bool = False
    canary_open: bool = False
    open: dict[str, Message] = field(factory=dict[str, Message])
    retries: dict[str, tuple[float, Message]] = field(factory=dict[str, "tuple[float, Message]"])
    since_oom: set[str] | None = None
    waiting: RebuildRequest | None = None
    under_way: RebuildRequest | None = None
    _changed: trio.Event = field(factory=trio.Event)
    # These are kept up to date, so that no request costs more if many other streams are open.
    deadlines: Deadlines = field(init=False)
    _last: Record | None = None  # the stream that was begun last, if it is open
    _staying: set[str] = field(factory=set[str])  # the open streams that would be lost with the session

    def __attrs_post_init__(self) -> None:
        self.deadlines = Deadlines(self.open)

    def put(self, message: Message) -> None:
        """Note that the message's stream is open."""
        record = self._last = record_of(message)
        request_id = record.batch.request_id
        self.open[request_id] = message
        record.leave = self._left
        self.deadlines.add(record)
        self._note(request_id)
        self.has_changed()

    def _note(self, request_id: str) -> None:
        """Note a request that begins now: if it runs out of memory, that is no repetition of the last lack (D5)."""
        if self.since_oom is not None:
            self.since_oom.add(request_id)

    def close(self, message: Message) -> None:
        """Note that the message's stream has ended."""
        self._forget(record_of(message))

    def _forget(self, record: Record) -> None:
        del self.open[record.batch.request_id]
        self._staying.discard(record.batch.request_id)
        if self._last is record:
            self._last = None
        record.leave = None
        record.settle()
        record.withdraw()
        self.has_changed()

    def close_all(self) -> None:
        """The session has ended: callers who leave from now on have no stream in it to drop."""
        for message in self.open.values():
            record = record_of(message)
            record.leave = None
            record.withdraw()
        self.open.clear()
        self._staying.clear()
        self._last = None
        self.has_changed()

    def retry(self, message: Message) -> None:
        """A request is to be tried again, at its time."""
        record = record_of(message)
        self.retries[record.batch.request_id] = record.begins_again, message
        record.leave = self._retry_left
        self.has_changed()

    def _retry_left(self, record: Record) -> None:
        del self.retries[record.batch.request_id]
        record.leave = None
        self.has_changed()

    def take_retries(self, until: float) -> list[Message]:
        """Take the requests that are to be tried again by then, the earliest first."""
        due = sorted((at, name) for name, (at, _) in self.retries.items() if at <= until)
        messages = [self.retries.pop(name)[1] for _, name in due]
        for message in messages:
            record_of(message).leave = None
        return messages

    def _left(self, record: Record) -> None:
        """The caller has left: drop the stream, so that its place is free at the next step."""
        self._forget(record)
        self.session.drop(record.batch.request_id)

    def is_idle(self) -> bool:
        """Whether no stream and no canary is open, and no rebuild request waits or is under way."""
        return not self.open and not self.canary_open and self.waiting is None and self.under_way is None

    def begin_canary(self) -> None:
        """Begin the canary's stream."""
        self.canary_open = True
        self.session.begin(CANARY)
        self._note(CANARY.request_id)

    def end_canary(self, *, over: bool) -> None:
        """The canary has answered, so the time of silence begins anew. Its place is free only when its stream is `over`."""
        if over:
            self.canary_open = False
        self.has_changed()

    def cancel_canary(self) -> None:
        """Drop the canary, because a request needs its place or the session ends."""
        if self.canary_open:
            self.canary_open = False
            self.session.drop(CANARY.request_id)

    def has_room(self) -> bool:
        """Whether one more stream may begin. None may while a suspect is on trial or a rebuild request waits."""
        streams = self.session.info.streams
        free = self.waiting is None and not self.held and len(self.retries) < streams
        return free and len(self.open) < streams and not self._tries()

    def _tries(self) -> bool:
        """Whether a suspect is on trial. It is the stream that was begun last, because none begins after it."""
        return self._last is not None and self._last.suspect

    def may_move(self, record: Record) -> bool:
        """Whether a begun stream may continue in another session."""
        # A begun stream without token ids cannot be continued (D6).
        counts_ids = bool(record.accepted) or not record.chunks
        return counts_ids and record.batch.on_loss == "migrate" and self.session.info.can_continue

    def must_stay(self, record: Record) -> bool:
        """Whether a stream would be lost with its session."""
        return record.chunks > 0 and not self.may_move(record)

    def has_begun(self, record: Record) -> None:
        """Note that an open stream has got its first chunks, which decide whether it must stay: and its server works."""
        if record.ticket is not None:
            record.ticket.gave()
        if self.must_stay(record):
            self._staying.add(record.batch.request_id)

    def keeps_any(self) -> bool:
        """Whether a stream is open that would be lost with the session."""
        return bool(self._staying)

    # --- changes of the context, and tasks that wait for one

    def has_changed(self) -> None:
        """Wake the tasks in `change`: there may be room, or a rebuild request, or one may be due."""
        self._changed.set()
        self._changed = trio.Event()

    async def change(self) -> None:
        """Wait for the next call of `has_changed`."""
        await self._changed.wait()

    @contextmanager
    def hold(self) -> Generator[None]:
        """Let no request begin here during the block."""
        self.held = True
        try:
            yield
        finally:
            self.held = False
            self.has_changed()

    async def emptied(self, within: float) -> None:
        """Wait until no stream is open, or until so many seconds have passed."""
        with trio.move_on_after(within):
            while self.open:
                await self.change()

    # --- rebuild requests

    def ask(self, cause: SessionRebuildCause) -> RebuildRequest:
        """Add a rebuild request. It supersedes one that waits, unless only that one reports a poison."""
        request = RebuildRequest(cause)
        if self.waiting is not None and self.waiting.wants_restart and not request.wants_restart:
            request.answer(RebuildSuperseded("a restart was ordered just before"))
            return request
        if self.waiting is not None:
            self.waiting.answer(_superseded())
        self.waiting = request
        self.has_changed()
        return request

    def take_back(self) -> None:
        """Let the rebuild request that was just begun wait again. It is superseded if another one waits by now."""
        request, self.under_way = self.under_way, None
        if request is not None and self.waiting is None:
            request.failure = None
            self.waiting = request
        elif request is not None:
            request.answer(_superseded())

    def refuse_rebuild(self) -> None:
        """The worker is being stopped: refuse the rebuild request, unless it reports a poison, which ends the context (D13)."""
        if self.waiting is not None and not self.waiting.wants_restart:
            self.waiting.answer(WorkerStopping("the worker was being stopped"))
            self.waiting = None
            self.has_changed()

    def withdraw(self, request: RebuildRequest) -> None:
        """The requester has left: withdraw the rebuild request, unless it is under way."""
        if self.waiting is request:
            self.waiting = None
            self.has_changed()

    def is_due(self) -> bool:
        """Whether the rebuild request can be carried out: a restart at once, a rebuild when it would lose no stream.

        A rebuild also waits for the one that is under way (D7).
        """
        if self.waiting is None:
            return False
        return self.waiting.wants_restart or (self.under_way is None and not self.keeps_any())

    def carry_out(self) -> DeviceError:
        """Returns the failure that carries the request out. A restart supersedes a rebuild that is under way."""
        assert self.waiting is not None
        if self.under_way is not None:
            self.under_way.answer(
                RebuildSuperseded("a restart was ordered while this rebuild was carried out")
            )
        self.under_way, self.waiting = self.waiting, None
        return self.under_way.carry_out()

    def end(self, *, stopping: bool) -> None:
        """The session has ended: answer every rebuild request."""
        self.close_all()
        for request in (self.under_way, self.waiting):
            if request is not None:
                stopped = stopping and request.failure is None
                request.answer(WorkerStopping("the worker was being stopped") if stopped else "ended")
        self.under_way = self.waiting = None


def _superseded() -> RebuildSuperseded:
    return RebuildSuperseded("another rebuild was ordered before this one had begun")
