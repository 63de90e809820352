"""Async runners: what a network runner looks like to its host, with Trio's clock for a network."""

import attrs
import trio

from runners.scripted import letter, token
from runners.types import FinishReason, RunnerInfo, TokenChunk


@attrs.define
class Log:
    """What happened to a `Remote`, for the test that made it."""

    events: list = attrs.field(factory=list)
    made: dict = attrs.field(factory=dict)


@attrs.frozen
class Remote:
    """Makes `tokens` tokens for each request, one every `delays[request_id]` seconds; `fails[request_id]` comes third."""

    tokens: int = 5
    delays: dict = attrs.field(factory=dict)
    fails: dict = attrs.field(factory=dict)
    log: Log = attrs.field(factory=Log)
    close_delay: float = 0.0
    transport: str = "network"

    def build(self, start):
        return _Remote(self)


class _Remote:
    def __init__(self, spec):
        self.spec = spec
        self.info = RunnerInfo(streams=32, can_continue=True, runtime="remote", transport=spec.transport)

    def execute(self, batch):
        return self.continue_from(batch, ())

    async def continue_from(self, batch, accepted):
        name = batch.request_id
        try:
            for index in range(len(accepted), self.spec.tokens):
                await trio.sleep(self.spec.delays.get(name, 0.1))
                if index == 2 and name in self.spec.fails:
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
