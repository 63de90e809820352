"""A worker whose contexts follow a script, and what must hold for every script.

The session, its connection and its streams are real; the process at the other end is a task, and time is virtual. So what
holds the loop is counted, not timed: the frames that are read, and the bytes, between two turns of the loop.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from attrs import define, field, frozen

from runners.errors import DeviceError, InferenceError
from runners.hosts.process import host, wire
from runners.hosts.process.host import ENOUGH, TURN, ProcessHost, ProcessSession
from runners.hosts.process.parent.output import Output
from runners.hosts.process.parent.peer import Peer
from runners.models.scripted import Scripted
from runners.types import ExecuteBatch, FinishReason, RunnerInfo, Sampling, positions_without_ids
from runners.worker import device_worker, rebuild
from supervise import Limit, StartFailed, Supervisor, events, open_tree
from supervise.testing import assert_lifecycle, run_virtual

from .grammar import Act, Bytes, Chunk, Cut, Honest, Many, Script, Waits, packed

TIMES = ProcessHost(load_timeout=5, first_chunk_timeout=2, next_chunk_timeout=2, close_timeout=1)
VERDICT = 120.0 + 6 * 60.0
"""Virtual seconds in which everything is over: of each context its load, a rebuild, a few chunks, and its end; and a minute
for each request, since a context may declare that its server takes one a minute (D14)."""
TOKENS = 4
STREAMS = 3
FRAMES = 2 * TURN + 2
"""That may be read in one turn of the loop: those of which nothing came, and those that came along with the first of which
something did."""
READS = TURN // 8 + 1
_A_READ = 65_536
_LOOKS = 200


@define(eq=False)
class Turns(trio.abc.Instrument):
    """What was read in each turn of the loop, by all sessions."""

    frames: int = 0
    reads: int = 0
    most_frames: int = 0
    most_reads: int = 0
    most_held: int = 0
    most_items: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A turn begins."""
        self.frames = self.reads = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """It ends."""
        self.most_frames = max(self.most_frames, self.frames)
        self.most_reads = max(self.most_reads, self.reads)

    def watch(self, session: ProcessSession) -> None:
        """Count what this one does."""
        parser, peer, receive = session._parser, session._peer, session.receive
        parse, read = parser.next, peer.read

        def count_frame() -> Any:
            frame = parse()
            self.frames += frame is not None
            self.most_held = max(self.most_held, len(parser._bytes))
            return frame

        def count_read() -> bytes | None:
            data = read()
            self.reads += bool(data)
            return data

        async def count_items() -> Any:
            made = await receive()
            self.most_items = max(self.most_items, len(made))
            return made

        parser.next, peer.read, session.receive = count_frame, count_read, count_items  # type: ignore[method-assign]


class Task:
    """A process that is a task."""

    doomed = False
    pid = 2**30

    def __init__(self) -> None:
        self.pidfd, self._death = os.pipe()
        self.scope = trio.CancelScope()
        self.dead = False

    def die(self) -> None:
        """End as a process does: what it held is released, and its pidfd is readable."""
        if not self.dead:
            self.dead = True
            os.close(self._death)

    def kill(self) -> None:
        self.scope.cancel("SIGKILL")
        self.die()

    async def fate_known(self) -> None:
        """At once."""

    def fate(self) -> str:
        return "was killed by a test"

    async def reap(self) -> None:
        """There is nothing to reap."""


@define
class Context:
    """The other end of a connection: what a context process sends, and what it has received."""

    connection: trio.socket.SocketType
    process: Task
    parser: Any = field(factory=wire.from_parent)
    open: dict[int, int] = field(factory=dict)
    names: dict[str, int] = field(factory=dict)
    begun: int = 0
    asked: list[Any] = field(factory=list)
    untaken: list[int] = field(factory=list)
    over: bool = False

    def hear(self) -> None:
        """All that the parent has sent by now."""
        with suppress(BlockingIOError, ConnectionResetError):
            while data := os.read(self.connection.fileno(), _A_READ):
                self.parser.feed(data)
        while (frame := self.parser.next()) is not None:
            match frame:
                case wire.Begin():
                    self.open[frame.stream] = len(frame.accepted)
                    self.names[frame.request_id] = frame.stream
                    self.begun = frame.stream + 1
                    if frame.confirm:
                        self.untaken.append(frame.stream)
                case wire.Hello() | wire.Start():
                    pass
                case _:
                    self.asked.append(frame)

    async def say(self, *frames: Any) -> None:
        await self.send(b"".join(map(packed, frames)))

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        while view:
            view = view[await self.connection.send(view) :]

    def chunk(
        self, stream: int, *, ahead: int = 0, ids: int = 1, text: int = 1, last: bool = False
    ) -> wire.Chunk:
        """Of a stream, the next."""
        index = self.open.get(stream, 0) + ahead
        if stream in self.open:
            self.open[stream] += ids
            if last:
                del self.open[stream]
        return wire.Chunk(stream, index, (7,) * ids, "x" * text, FinishReason.STOP if last else None, None)

    def told(self, act: Chunk) -> wire.Step:
        """The bytes of such an act."""
        stream = self.names.get(act.stream, 0) if isinstance(act.stream, str) else self.begun - 1 - act.stream
        made = self.chunk(stream, ahead=act.ahead, ids=act.ids, text=act.text, last=act.last)
        return wire.Step([made], [])

    async def step(self, *, last: bool = False) -> None:
        """As it should."""
        untaken, self.untaken = self.untaken, []
        await self.say(*map(wire.Taken, untaken))
        chunks = [
            self.chunk(stream, ids=int(at < TOKENS), last=last or at >= TOKENS - 1)
            for stream, at in list(self.open.items())
        ]
        if chunks:
            await self.say(wire.Step(chunks, []))

    async def answer(self) -> None:
        """What it was asked, as it should."""
        asked, self.asked = self.asked, []
        for frame in asked:
            match frame:
                case wire.Drop(stream=stream):
                    self.open.pop(stream, None)
                    await self.say(wire.Dropped(stream))
                case wire.Rebuild():
                    await self.say(wire.Rebuilt())
                case wire.Shutdown():
                    await self.say(wire.Closed())
                    self.over = True

    async def act(self, act: Act) -> None:
        """One act of a script."""
        self.hear()
        match act:
            case Honest(what="answer"):
                await self.answer()
            case Honest(what=what):
                await self.step(last=what == "finish")
            case Chunk():
                await self.say(self.told(act))
            case Bytes(data=data):
                await self.send(data)
            case Cut():
                await self.send(act.length.to_bytes(4, "big") + b"\x93" * act.sent)
            case Waits(seconds=seconds):
                await trio.sleep(seconds)
            case Many(times=0):
                await self.endlessly(act.act)
            case Many():
                for _ in range(act.times):
                    await self.act(act.act)

    async def endlessly(self, act: Act) -> None:
        """Without a pause; time passes all the same, a tenth of a second with each burst."""
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        while True:
            clock.jump(0.1)
            match act:
                case Bytes(data=data) if data:
                    await self.send(data * (2**17 // len(data) + 1))
                case Chunk():
                    await self.send(
                        b"".join(packed(self.told(act)) for _ in range(2000 if not act.text > 1 else 1))
                    )
                case _:
                    await self.act(act)
                    await trio.sleep(0.01)

    async def live(self) -> None:
        """Act as a context that is well, until it is asked to end."""
        while not self.over:
            self.hear()
            await self.answer()
            if not self.over:
                await self.step()
                if self.open:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(self.connection)

    async def play(self, script: Script | None) -> None:
        """One incarnation, by a script or well."""
        ready = wire.ready(RunnerInfo(streams=STREAMS, can_continue=True))
        try:
            with self.process.scope, suppress(BrokenPipeError, ConnectionResetError):
                if script is None or script.loads:
                    await self.say(ready)
                while script is not None and not script.at_once and not self.open:
                    await trio.lowlevel.wait_readable(self.connection)
                    self.hear()
                for act in () if script is None else script.acts:
                    await self.act(act)
                if script is None or script.ends == "well":
                    await self.live()
                elif script.ends == "silent":
                    await trio.sleep_forever()
                elif script.ends == "closed":
                    self.connection.close()
                    await trio.sleep_forever()
        finally:
            self.connection.close()
            self.process.die()


@frozen
class Rogues:
    """A host whose first contexts follow the script."""

    script: Script
    turns: Turns

    @asynccontextmanager
    async def open(
        self,
        runner: Any,
        *,
        incarnation: int = 1,
        cause: str | None = None,
    ) -> AsyncGenerator[ProcessSession, None]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        task = Task()
        async with trio.open_nursery() as nursery:
            context = Context(trio.socket.from_stdlib_socket(theirs), task)
            rogue = incarnation <= self.script.incarnations
            peer = Peer(task, ours, Output(f"context {incarnation}"))
            nursery.start_soon(context.play, self.script if rogue else None)
            session = ProcessSession(TIMES, peer, incarnation)
            self.turns.watch(session)
            try:
                await session.load(wire.Start(incarnation, cause))
                yield session
            except DeviceError as error:
                session.condemn(error)
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await session.end()
                nursery.cancel_scope.cancel()


@define
class Outcome:
    """How a request ended; what is None has not. `at`: how many positions it got."""

    name: str
    ended: str | None = None
    at: int = 0


async def _ask(worker: Any, outcome: Outcome, leaves: int, **options: Any) -> None:
    request = ExecuteBatch(outcome.name, "x", sampling=Sampling(max_tokens=TOKENS, seed=1), **options)
    try:
        async with worker.stream(request) as stream:
            async for chunk in stream:
                assert chunk.index == outcome.at, "each token once, in order"
                outcome.at += len(chunk.token_ids) or positions_without_ids(chunk)
                if leaves and chunk.index >= leaves - 1:
                    outcome.ended = "left"
                    return
                last = chunk.finish_reason
    except InferenceError as error:
        outcome.ended = type(error).__name__
    else:
        assert last is not None, "never an empty success"
        outcome.ended = "completed"


async def _order(worker: Any, outcome: Outcome) -> None:
    try:
        await rebuild(worker)
    except InferenceError as error:
        outcome.ended = type(error).__name__
    else:
        outcome.ended = "done"


@frozen
class Played:
    """How everything ended, and what contexts failed with."""

    outcomes: list[Outcome]
    failures: list[str]

    @property
    def ends(self) -> dict[str, str | None]:
        """Of each request."""
        return {outcome.name: outcome.ended for outcome in self.outcomes}


async def _serve(script: Script, turns: Turns) -> Played:
    trio.lowlevel.add_instrument(turns)
    seen: list[Any] = []
    limit = Limit(20, within=60)
    spec = device_worker("llm", Scripted(), host=Rogues(script, turns), limit=limit, backoff=None)
    outcomes = [Outcome(name) for name in ("a", "b", "leaves", "stays", "late")]
    a, b, leaves, stays, late = outcomes
    orders = [Outcome("rebuild") for _ in range(script.rebuilds)]
    with trio.fail_after(VERDICT):
        try:
            root = Supervisor("app", [spec], limit=limit)
            async with open_tree(root, sinks=[seen.append]) as tree, trio.open_nursery() as nursery:
                worker = tree[spec]
                for outcome in (a, b):
                    nursery.start_soon(_ask, worker, outcome, 0)
                nursery.start_soon(_ask, worker, leaves, script.leaves)
                nursery.start_soon(lambda: _ask(worker, stays, 0, on_loss="fail"))
                nursery.start_soon(lambda: _ask(worker, late, 0, deadline=trio.current_time() + 1))
                for order in orders:
                    await trio.sleep(0.5)
                    nursery.start_soon(_order, worker, order)
        except StartFailed:
            return Played([], [])  # the first load failed, so no request could be sent
    assert_lifecycle(seen)
    failures = [type(event.exc).__name__ for event in seen if isinstance(event, events.Failed)]
    return Played([*outcomes, *orders], failures)


def play(script: Script, seed: int = 0) -> Played:
    """Play a script. The bound on what a context may send after its deadline is tried with less than there is.

    Raises:
        AssertionError: what must hold does not.
    """
    turns, before = Turns(), len(os.listdir("/proc/self/fd"))
    backlog, host.BACKLOG = host.BACKLOG, 2**19
    try:
        played = run_virtual(_serve, script, turns, seed=seed)
    finally:
        host.BACKLOG = backlog
    assert all(outcome.ended is not None for outcome in played.outcomes), played
    assert turns.most_frames <= FRAMES, turns
    assert turns.most_reads <= READS, turns
    assert turns.most_held <= wire.MAX_FRAME + 2 * _A_READ, turns
    assert turns.most_items <= ENOUGH + 2 * wire.MAX_ITEMS, turns
    assert len(os.listdir("/proc/self/fd")) == before
    return played
