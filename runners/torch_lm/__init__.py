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
        weights: a file that `runners.torch_lm.train` wrote, or its path; its checksum is checked at every load. None is the
            packaged one.
        streams: how many it serves at once.
    """

    weights: WeightsFile | None = field(
        default=None, converter=_file, validator=optional(instance_of(WeightsFile))
    )
    streams: int = field(default=16, kw_only=True, validator=[instance_of(int), ge(1)])

    def build(self, start: RunnerStart) -> ContinuingRunner:
        """Load the weights, check them, and run the model once.

        Raises:
            LoadFailed: there is no such weights file, or it cannot be read.
            WeightsCorrupt: it is not what its checksum says, or not of this model.
        """
        from runners.torch_lm.engine import TorchRunner  # noqa: PLC0415  imports torch

        weights = self.weights or WeightsFile(str(PACKAGED), sha256=PACKAGED_SHA256)
        return TorchRunner(Path(weights.path), weights.sha256, streams=self.streams, device=start.device)

    def preload(self) -> None:
        """Import torch and run the model once on the CPU, in one thread: what others have started does not survive a fork.

        The pages of the weights file stay in memory, and of what torch does at its first pass, the children do nothing.
        """
        os.environ.setdefault(
            "OPENBLAS_NUM_THREADS", "1"
        )  # numpy's library would start its threads when imported
        os.environ.setdefault(
            "PYTORCH_NVML_BASED_CUDA_CHECK", "1"
        )  # or is_available() would initialise the driver
        import torch  # noqa: PLC0415  as above

        torch.set_num_threads(1)  # before the first thing that would be shared out among threads
        with suppress(DeviceError):  # of weights that are not sound: every start says so itself
            self.build(RunnerStart(incarnation=1)).close()

    def prepare(self, device: str) -> RunnerSpec:
        """On the CPU, all of `build`, and one stream. Elsewhere the imports, and the weights in the page cache."""
        runner = self.build(RunnerStart(incarnation=1))
        request = ExecuteBatch("standby", " ", sampling=Sampling(max_tokens=2, seed=1))
        for _ in cast("Iterator[TokenChunk]", runner.execute(request)):
            pass  # what the first tokens of a forked process touch, it has to copy
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
