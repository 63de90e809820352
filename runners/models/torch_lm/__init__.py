"""A small but real language model: its runner spec. Importing this module imports no torch.

`TorchLM()` is a character transformer with 1 MB of weights, which are in the package; its output looks like Python's
documentation. One token is one character; characters outside the vocabulary become U+FFFD. `train.py` made the weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

from attrs import field, frozen
from attrs.validators import instance_of, optional

from runners.checks import integer, plain_integer
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
    """A character model on one device. It serves several streams at once, and its streams may move to another context (D6).

    On the CPU it is reproducible: its logits are bitwise the same whatever the batch, the slot and the replay. There it
    computes in one thread, which it sets for torch as a whole. With the packaged weights the context of the model has 256
    characters, of which the first is a newline before the prompt; a stream that fills it ends with LENGTH.

    A prompt of more than 254 characters is `ContextLengthExceeded`. `causal_runner` says what else a request may have.

    Args:
        weights: a `WeightsFile` that `runners.models.torch_lm.train` wrote, or its path; a checksum in it is verified at every
            load. None is the file in the package.
        streams: how many streams it serves at once, 1 or more.
    """

    weights: WeightsFile | None = field(
        default=None, converter=_file, validator=optional(instance_of(WeightsFile))
    )
    streams: int = field(default=16, kw_only=True, converter=plain_integer, validator=integer(1))

    def build(self, start: RunnerStart) -> ContinuingRunner:
        """Load the weights, verify them, and run the model once; or take the runner that `preload` has built of the same file.

        Raises:
            LoadFailed: there is no such weights file, or it cannot be read.
            WeightsCorrupt: the file does not match its checksum, or is not of this model.
        """
        from runners.models.torch_lm.checkpoint import digest  # noqa: PLC0415 - only the process with the model needs torch
        from runners.models.torch_lm.engine import torch_runner  # noqa: PLC0415 - imports torch too

        weights = self._weights()
        built, checked = _preloaded.pop(self, (None, ""))
        if built is not None and start.device == "cpu" and digest(Path(weights.path)) == checked:
            return built
        return torch_runner(Path(weights.path), weights.sha256, streams=self.streams, device=start.device)

    def _weights(self) -> WeightsFile:
        return self.weights or WeightsFile(str(PACKAGED), sha256=PACKAGED_SHA256)

    def preload(self) -> None:
        """Build the runner on the CPU, in one thread, because further threads would not survive a fork (D15).

        Forked processes then have the runner. For another device they have the imports, the initialisations of torch's first
        pass, and the weights file in the page cache.
        """
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # otherwise importing numpy starts threads
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # is_available() would initialise CUDA
        import torch  # noqa: PLC0415 - after the environment is set, which it reads

        torch.set_num_threads(1)  # before the first computation, which would start the threads
        from runners.models.torch_lm.checkpoint import digest  # noqa: PLC0415 - imports torch, whose threads are set above

        with suppress(DeviceError, OSError):  # an error of the weights: every start raises it again
            checked = digest(Path(self._weights().path))
            _preloaded[self] = self._run_in(), checked

    def _run_in(self) -> ContinuingRunner:
        """A runner on the CPU that has served one short stream, with which torch does its initialisations."""
        runner = self.build(RunnerStart(incarnation=1))
        request = ExecuteBatch("first", " ", sampling=Sampling(max_tokens=2, seed=1))
        for _ in cast("Iterator[TokenChunk]", runner.execute(request)):
            pass
        return runner

    def prepare(self, device: str) -> RunnerSpec:
        """On the CPU, a spec with a runner that is built and has run. For another device only the imports, and the page cache."""
        runner = self._run_in()
        if device == "cpu":
            return _Built(runner)
        runner.close()
        return self


class _Built:
    """A spec whose runner is already built."""

    def __init__(self, runner: ContinuingRunner) -> None:
        self._runner = runner

    def build(self, start: RunnerStart) -> ContinuingRunner:  # noqa: ARG002  it is the same for every start
        """Return the runner."""
        return self._runner


_preloaded: dict[TorchLM, tuple[ContinuingRunner, str]] = {}
"""The runners that `preload` has built, in this process or before the fork, each with the checksum of its weights."""
