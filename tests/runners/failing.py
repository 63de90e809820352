"""A host whose loads, rebuilds and requests fail as a plan says, and that holds the worker to the contract of `Session`."""

from contextlib import asynccontextmanager

import attrs
import trio

from runners.errors import (
    BadRequest,
    ContextDied,
    ContextPoisoned,
    LoadFailed,
    NetworkError,
    OutOfMemory,
    RateLimited,
    RunnerError,
)
from runners.hosts import RequestFailed
from runners.models.scripted import Scripted
from runners.types import FinishReason, RunnerInfo, TokenChunk, TokenUsage

ERRORS = {
    "network": lambda: NetworkError("reset"),
    "limited": lambda: RateLimited("429", retry_after=7),
    "bad": lambda: BadRequest("not this one"),
    "broken": lambda: RunnerError("a bug"),
}
"""With what a request alone may fail."""


def text(name: str, version: int, most: int) -> tuple[int, ...]:
    """The tokens with which the runner of this version answers a request: those of two runners never agree."""
    return tuple(100 * ord(name[0]) + 10 * index + version for index in range(most))


@attrs.define(eq=False)
class FailingHost:
    """`loads`, `rebuilds`: `(outcome, seconds)` of the next ones; afterwards they succeed at once. `faults`: of requests."""

    info: RunnerInfo
    loads: list[tuple[str, float]]
    rebuilds: list[tuple[str, float]]
    faults: dict[str, list]
    begun: list[tuple[float, str]] = attrs.field(factory=list)
    sessions: list = attrs.field(factory=list)

    def check(self, runner):
        assert isinstance(runner, Scripted)

    @property
    def session(self):
        """The newest one that is open."""
        return next((session for session in reversed(self.sessions) if not session.ended), None)

    @asynccontextmanager
    async def open(self, runner, *, incarnation=1, cause=None):
        outcome, seconds = self.loads.pop(0) if self.loads else ("good", 0)
        await trio.sleep(seconds)
        if outcome == "fails":
            raise LoadFailed("no")
        async with trio.open_nursery() as nursery:
            session = Session(self, runner, incarnation, nursery)
            self.sessions.append(session)
            try:
                yield session
            finally:
                session.ended = True
                nursery.cancel_scope.cancel()


class Session:
    """One that makes a token of each stream a second, the first one a second after its begin."""

    pid = None

    def __init__(self, host, runner, incarnation, nursery):
        self.host, self.info, self.version, self.incarnation = host, host.info, runner.tokens, incarnation
        self.open, self.taken, self.ended, self.is_rebuilding = {}, set(), False, False
        self._nursery, self._out, self._dead, self._changed = nursery, [], None, trio.Event()

    def begin(self, request, accepted=(), *, confirm=False):
        assert not self.ended
        assert not self.is_rebuilding
        name, most = request.request_id, request.sampling.max_tokens
        self.host.begun.append((trio.current_time(), name))
        if self._dead is not None:
            return
        assert name not in self.open
        assert len(self.open) < self.info.streams
        assert self.info.can_continue or not accepted
        assert tuple(accepted) == text(name, self.version, most)[: len(accepted)], "of another runner"
        self.open[name] = stream = object()
        self._nursery.start_soon(self._make, name, most, len(accepted), stream)

    async def _make(self, name, most, index, stream):
        await trio.sleep(0.5)
        self.taken.add(name)
        await trio.sleep(0.5)
        while self.open.get(name) is stream and self._dead is None:
            kind, at, times = self.host.faults.get(name, ("", 0, 0))
            if times and at == index:
                self.host.faults[name][2] -= 1
                self._fail(name, kind)
                return
            last = index + 1 == most
            if last:
                del self.open[name]
            chunk = TokenChunk(
                request_id=name,
                index=index,
                token_ids=(text(name, self.version, most)[index],),
                finish_reason=FinishReason.STOP if last else None,
                usage=TokenUsage(input=3, output=most) if last else None,
                incarnation=self.incarnation,
            )
            self.gives([chunk])
            index += 1
            await trio.sleep(1)

    def _fail(self, name, kind):
        if kind == "dies":
            self.dies(ContextDied("killed"))
        elif kind == "lacks memory":
            self.lacks_memory([name])
        else:
            del self.open[name]
            self.gives([RequestFailed(name, ERRORS[kind]())])

    def gives(self, made):
        self._out.append(made)
        self._wake()

    def dies(self, error):
        self._dead = self._dead or error
        self._wake()

    def lacks_memory(self, names):
        """In one step, for these."""
        if self._dead is None and names:
            for name in names:
                del self.open[name]
            error = OutOfMemory("memory ran out")
            error.request_ids = tuple(names)
            self._out += [[RequestFailed(name, OutOfMemory(name)) for name in names], error]
            self._wake()

    def _wake(self):
        self._changed.set()
        self._changed = trio.Event()

    def has_taken(self, name):
        return name in self.taken

    def drop(self, name):
        assert not self.ended
        self.open.pop(name, None)
        self.taken.discard(name)
        kept = [
            made if isinstance(made, Exception) else [item for item in made if item.request_id != name]
            for made in self._out
        ]
        self._out = [made for made in kept if made]

    async def receive(self):
        assert not self.ended
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._out:
                await trio.lowlevel.cancel_shielded_checkpoint()
                made = self._out.pop(0) if self._out else []
                if isinstance(made, Exception):
                    raise made
                return made
            if self._dead is not None:
                raise self._dead
            await self._changed.wait()

    async def rebuild(self, cause):
        assert not self.ended
        assert not self.open
        assert not self.is_rebuilding
        self.is_rebuilding = True
        outcome, seconds = self.host.rebuilds.pop(0) if self.host.rebuilds else ("good", 0.5)
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            self.dies(ContextPoisoned("its rebuild was cancelled"))
            raise
        finally:
            self.is_rebuilding = False
        if outcome == "lacks memory":
            self.dies(ContextPoisoned("no memory in a rebuild"))
            raise OutOfMemory("no memory in a rebuild")
        if outcome == "dies":
            self.dies(ContextDied("killed in a rebuild"))
        if self._dead is not None:
            raise self._dead
