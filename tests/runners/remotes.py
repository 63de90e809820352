"""Async runners: what a network runner looks like to its host, with Trio's clock for a network. And two that are not."""

import time

import attrs
import trio

from runners.models.scripted import letter, token
from runners.types import FinishReason, RunnerInfo, TokenChunk


@attrs.define
class Log:
    """What happened to a `Remote`, for the test that made it."""

    events: list = attrs.field(factory=list)
    made: dict = attrs.field(factory=dict)


@attrs.frozen
class Remote:
    """Makes `tokens` tokens for each request, one every `delays[request_id]` seconds; in the first
    incarnation `fails[request_id]` comes third."""

    tokens: int = 5
    delays: dict = attrs.field(factory=dict)
    fails: dict = attrs.field(factory=dict)
    log: Log = attrs.field(factory=Log)
    close_delay: float = 0.0
    transport: str = "network"
    streams: int = 32

    def build(self, start):
        return _Remote(self, start.incarnation)


class _Remote:
    def __init__(self, spec, incarnation=1):
        self.spec, self.incarnation = spec, incarnation
        self.info = RunnerInfo(
            streams=spec.streams, can_continue=True, runtime="remote", transport=spec.transport
        )

    def execute(self, batch):
        return self.continue_from(batch, ())

    async def continue_from(self, batch, accepted):
        name = batch.request_id
        try:
            for index in range(len(accepted), self.spec.tokens):
                await trio.sleep(self.spec.delays.get(name, 0.1))
                if index == 2 and name in self.spec.fails and self.incarnation == 1:
                    raise self.spec.fails[name]
                self.spec.log.made[name] = index + 1
                made = token(batch.sampling.seed, index, batch.prompt)
                last = FinishReason.STOP if index == self.spec.tokens - 1 else None
                yield TokenChunk(
                    request_id=name, index=index, token_ids=(made,), text=letter(made), finish_reason=last
                )
        finally:
            self.spec.log.events.append(f"{name} closed")

    async def rebuild(self, cause):
        await trio.sleep(1)
        self.spec.log.events.append(f"rebuilt for {cause}")

    async def close(self):
        await trio.sleep(self.spec.close_delay)
        self.spec.log.events.append("closed")


@attrs.frozen
class HalfAsync:
    """Only its streams would have to be awaited."""

    def build(self, start):
        return _HalfAsync(Remote(transport="local"))


class _HalfAsync(_Remote):
    def rebuild(self, cause):
        pass

    def close(self):
        pass


@attrs.frozen
class Speaks:
    """Instead of its third chunk, the error of a broken device."""

    text: str

    def build(self, start):
        return _Speaks(self)


class _Speaks:
    info = RunnerInfo(streams=4)

    def __init__(self, spec):
        self.spec = spec

    def execute(self, batch):
        for index in range(2):
            yield TokenChunk(request_id=batch.request_id, index=index, token_ids=(1,))
        raise RuntimeError(self.spec.text)

    def rebuild(self, cause):
        raise RuntimeError(self.spec.text)

    def close(self):
        pass


@attrs.frozen
class Told:
    """Its one chunk has how many seconds there are to the deadline, on Trio's clock or the machine's."""

    trio: bool

    def build(self, start):
        return _Told(self)


class _Told(_Speaks):
    def execute(self, batch):
        now = trio.current_time() if self.spec.trio else time.monotonic()
        left = None if batch.deadline is None else batch.deadline - now
        yield TokenChunk(
            request_id=batch.request_id, index=0, text=f"{left}", finish_reason=FinishReason.STOP
        )
