"""A real, small language model: the spec from which a host makes it. Imports no torch.

`TorchLM()` is a character transformer with 1 MB of weights that come along; it writes what looks like Python's
documentation. One token is one character; characters it does not know become U+FFFD. `train.py` made the weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

from attrs import field, frozen
from attrs.validators import ge, instance_of, optional

from runners.errors import DeviceError
from runners.types import (
    ContinuingRunner,
    ExecuteBatch,
    RunnerSpec,
    RunnerStart,
    Sampling,
    TokenChunk,
    WeightsFile,
)

__all__ = ["TorchLM"]

PACKAGED = Path(__file__).with_name("weights.safetensors")
PACKAGED_SHA256 = "2795d8a45af3c3a595b583d06d24cae652d1ff6ae46738482344e9f298510282"


def _file(weights: str | WeightsFile | None) -> WeightsFile | None:
    return WeightsFile(weights) if isinstance(weights, str) else weights


@frozen
class TorchLM:
    """A character model on one device, for several streams at once, which may move to another context.

    On the CPU it computes in one thread, which it sets for torch as a whole, and is reproducible: its logits are bitwise
    the same whatever the batch, slot and replay (D6). A context has 256 characters; a full one ends with LENGTH.

    Args:
        weights: a file that `runners.models.torch_lm.train` wrote, or its path; its checksum is checked at every load. None is the
            packaged one.
        streams: how many it serves at once.
    """

    weights: WeightsFile | None = field(
        default=None, converter=_file, validator=optional(instance_of(WeightsFile))
    )
    streams: int = field(default=16, kw_only=True, validator=[instance_of(int), ge(1)])

    def build(self, start: RunnerStart) -> ContinuingRunner:
        """Load the weights, check them, and run the model once; or take what the fork server has built of the same file.

        Raises:
            LoadFailed: there is no such weights file, or it cannot be read.
            WeightsCorrupt: it is not what its checksum says, or not of this model.
        """
        from runners.models.torch_lm.checkpoint import digest  # noqa: PLC0415 - torch is for the process that holds the model
        from runners.models.torch_lm.engine import TorchRunner  # noqa: PLC0415 - imports torch, too

        weights = self._weights()
        built, checked = _preloaded.pop(self, (None, ""))
        if built is not None and start.device == "cpu" and digest(Path(weights.path)) == checked:
            return built
        return TorchRunner(Path(weights.path), weights.sha256, streams=self.streams, device=start.device)

    def _weights(self) -> WeightsFile:
        return self.weights or WeightsFile(str(PACKAGED), sha256=PACKAGED_SHA256)

    def preload(self) -> None:
        """Build the runner on the CPU, in one thread: what others have started does not survive a fork.

        A process that is forked has it then. For another device it has the imports, what torch does at its first pass, and
        the pages of the weights file.
        """
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's would start its threads when imported
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # is_available() would initialise CUDA
        import torch  # noqa: PLC0415 - and after the environment that it reads

        torch.set_num_threads(1)  # before the first thing that would be shared out among threads
        from runners.models.torch_lm.checkpoint import digest  # noqa: PLC0415 - imports torch, whose threads are set above

        with suppress(DeviceError, OSError):  # of weights that are not sound: every start says so itself
            checked = digest(Path(self._weights().path))
            _preloaded[self] = self._run_in(), checked

    def _run_in(self) -> ContinuingRunner:
        """A runner on the CPU that has served one short stream: what the first one touches, is touched."""
        runner = self.build(RunnerStart(incarnation=1))
        request = ExecuteBatch("first", " ", sampling=Sampling(max_tokens=2, seed=1))
        for _ in cast("Iterator[TokenChunk]", runner.execute(request)):
            pass
        return runner

    def prepare(self, device: str) -> RunnerSpec:
        """On the CPU, all of `build`, and one stream. Elsewhere the imports, and the weights in the page cache."""
        runner = self._run_in()
        if device == "cpu":
            return _Built(runner)
        runner.close()
        return self


class _Built:
    """A spec whose work is done."""

    def __init__(self, runner: ContinuingRunner) -> None:
        self._runner = runner

    def build(self, start: RunnerStart) -> ContinuingRunner:  # noqa: ARG002  it is the same for every start
        """Give it."""
        return self._runner


_preloaded: dict[TorchLM, tuple[ContinuingRunner, str]] = {}
"""What this process, or the one that it was forked from, has built ahead; and the checksum of the weights."""
