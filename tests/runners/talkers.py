"""A chat model for tests: it joins the messages into a prompt for any runner that continues texts."""

from attrs import evolve, field, frozen

from runners.models.torch_lm import TorchLM
from runners.types import RunnerSpec


@frozen
class Talking:
    inner: RunnerSpec = field(factory=TorchLM)

    def build(self, start):
        return _Talker(self.inner.build(start))

    def preload(self):
        self.inner.preload()


class _Talker:
    def __init__(self, inner):
        self.inner = inner
        self.info = inner.info
        self.rebuild = inner.rebuild
        self.close = inner.close

    def execute(self, batch):
        return self.inner.execute(_joined(batch))

    def continue_from(self, batch, accepted):
        return self.inner.continue_from(_joined(batch), accepted)


def _joined(batch):
    if batch.payload is None:
        return batch
    return evolve(batch, payload=None, prompt=" ".join(message["content"] for message in batch.payload))
