"""A causal model of Hugging Face: its runner spec. Importing this module imports neither torch nor transformers.

It needs the extra `transformers`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from attrs import converters, field, frozen
from attrs.validators import and_, in_, instance_of, min_len, optional

from runners.checks import integer, plain_integer
from runners.types import ContinuingRunner, ExecuteBatch, RunnerStart, Sampling, TokenChunk

if TYPE_CHECKING:
    from runners.models.transformers.engine import Loaded

__all__ = ["TransformersLM"]

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]


@frozen
class TransformersLM:
    """A causal model of Hugging Face on one device, from a folder or from the hub.

    It serves several streams at once: they join and leave between steps, and share the pass of each step. `causal_runner` says
    what a request may have; chat messages need a tokenizer with a chat template. The model's `generation_config` has the tokens
    with which a stream ends; nothing else of it is used.

    A stream continues in the next context after its accepted tokens, with its seed: no token is lost or repeated. But it is
    not declared `reproducible`: torch may add up in another order if a pass has other rows or a prompt is fed at once, so a
    logit may differ in its last bits, and where two tokens are almost equally good another one may follow than without the loss.

    All layers of the model must be full or sliding attention with a cache of keys and values; others are `LoadFailed`. The
    cache has room for the most streams that were open together times the longest of them, each rounded up to a power of two;
    all of it is released when no stream is open.

    Args:
        model: a folder, or the name of a repository of the hub.
        revision: a commit, branch or tag of the repository; None is its main branch. Only a commit makes every incarnation load
            the same.
        local_files_only: whether the hub is not asked: only a folder, or what is in its cache.
        dtype: of the weights and of the cache; `auto` is that of the files.
        streams: how many streams it serves at once, 1 or more.
        context: the most tokens of a stream, 1 or more; None is what the model's configuration has.
        prefill: the most tokens of a prompt that one step feeds, 1 or more; it bounds the memory of a long prompt, between whose
            pieces the other streams go on.
        threads: of torch on the CPU, 1 or more; it is set for the process as a whole.

    Raises:
        ValueError: a number is out of range, or a text empty.
        TypeError: an argument has a wrong type.
    """

    model: str = field(validator=and_(instance_of(str), min_len(1)))
    revision: str | None = field(default=None, kw_only=True, validator=optional(instance_of(str)))
    local_files_only: bool = field(default=False, kw_only=True, validator=instance_of(bool))
    dtype: Dtype = field(default="auto", kw_only=True, validator=in_(get_args(Dtype)))
    streams: int = field(default=16, kw_only=True, converter=plain_integer, validator=integer(1))
    context: int | None = field(
        default=None,
        kw_only=True,
        converter=converters.optional(plain_integer),
        validator=optional(integer(1)),
    )
    prefill: int = field(default=2048, kw_only=True, converter=plain_integer, validator=integer(1))
    threads: int = field(default=1, kw_only=True, converter=plain_integer, validator=integer(1))

    def build(self, start: RunnerStart) -> ContinuingRunner:
        """Load the model and run it once; or take what `preload` or `prepare` has loaded of the same files.

        Raises:
            LoadFailed: it has layers that cannot be served, or no length of its context is known.
            OSError, ValueError: transformers finds no such model, or cannot read it.
        """
        _set_environment()
        loaded, stamp = _preloaded.pop(self, (None, None))
        if loaded is None or stamp != self._stamp():
            loaded = self._load()
        return self._runner(loaded, start.device, self.threads)

    def preload(self) -> None:
        """Load the model into host memory and run it once, in one thread, because others would not survive a fork (D15).

        Forked processes share that memory until they write to it; on another device they only have to copy the weights there.
        """
        _set_environment()
        import torch  # noqa: PLC0415 - after the environment is set, which it reads

        torch.set_num_threads(1)  # before the first computation, which would start the threads
        with suppress(OSError, ValueError):  # there is no such model: every start raises it again
            stamp = self._stamp()
            loaded = self._load()
            runner = self._runner(loaded, "cpu", 1)
            request = ExecuteBatch("first", payload=[0], sampling=Sampling(max_tokens=2, seed=1))
            for _ in cast("Iterator[TokenChunk]", runner.execute(request)):
                pass
            _preloaded[self] = loaded, stamp

    def prepare(self, device: str) -> TransformersLM:  # noqa: ARG002 - nothing of the device is held before `build`
        """Load the model into host memory, for the `build` that follows in this process."""
        _set_environment()
        if self not in _preloaded:
            stamp = self._stamp()
            _preloaded[self] = self._load(), stamp
        return self

    def _runner(self, loaded: Loaded, device: str, threads: int) -> ContinuingRunner:
        from runners.models.transformers.engine import transformers_runner  # noqa: PLC0415 - only the process with the model needs torch

        return transformers_runner(
            loaded,
            device=device,
            streams=self.streams,
            context=self.context,
            prefill=self.prefill,
            threads=threads,
        )

    def _load(self) -> Loaded:
        from runners.models.transformers.engine import load  # noqa: PLC0415 - as above

        return load(
            self.model, revision=self.revision, local_files_only=self.local_files_only, dtype=self.dtype
        )

    def _stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Of a folder what shows that its files have changed."""
        folder = Path(self.model)
        if not folder.is_dir():
            return ()
        stats = sorted((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _set_environment() -> None:
    """Before the first import of what reads it: without this, each of these libraries starts threads of its own."""
    for name, value in (
        ("OPENBLAS_NUM_THREADS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("HF_DEACTIVATE_ASYNC_LOAD", "1"),  # otherwise threads may outlive a load
        ("PYTORCH_NVML_BASED_CUDA_CHECK", "1"),  # otherwise is_available() initialises CUDA
    ):
        os.environ.setdefault(name, value)


_preloaded: dict[TransformersLM, tuple[Loaded, tuple[tuple[str, int, int], ...]]] = {}
"""What `preload` or `prepare` has loaded, in this process or before the fork, each with the stamp of its files."""
