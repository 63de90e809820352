"""The model of `TransformersLM`, as `causal_runner` takes it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from attrs import field, frozen
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

from runners.brief import text_of
from runners.diagnosis.classify import concerns_device
from runners.errors import BadRequest, LoadFailed
from runners.models.causal import Feed, causal_runner
from runners.models.transformers.cache import SlotCache
from runners.types import ContinuingRunner

_FULL, _SLIDING = "full_attention", "sliding_attention"


@frozen
class Loaded:
    """A model in host memory, and its tokenizer."""

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)


def load(name: str, *, revision: str | None, local_files_only: bool, dtype: str) -> Loaded:
    """Load both.

    Raises:
        OSError, ValueError: there is no such model, or it cannot be read.
    """
    # Otherwise the first progress bar, say of a download, starts a thread, which does not survive a fork.
    tqdm.monitor_interval = 0
    library: Any = transformers  # its types are incomplete
    library.utils.logging.disable_progress_bar()
    where: dict[str, Any] = {"revision": revision or "main", "local_files_only": local_files_only}
    tokenizer = library.AutoTokenizer.from_pretrained(name, **where)
    model = library.AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **where)
    return Loaded(model.eval().requires_grad_(requires_grad=False), tokenizer)


def transformers_runner(
    loaded: Loaded, *, device: str, streams: int, context: int | None, prefill: int, threads: int
) -> ContinuingRunner:
    """The runner of `TransformersLM`.

    Raises:
        LoadFailed: the model cannot be served.
        RuntimeError: of torch, such as that there is no such device.
    """
    torch.set_num_threads(threads)
    model = TransformersModel(loaded, torch.device(device), streams, context)
    model.warm_up()
    return causal_runner(model, streams=streams, runtime="transformers", prefill=prefill)


class TransformersTokenizer:
    """A tokenizer of Hugging Face."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, with the special ones that the tokenizer adds."""
        tokens: list[int] = self._tokenizer(text)["input_ids"]
        return tokens

    def decode(self, tokens: list[int]) -> str:
        """The text, without special tokens."""
        if self._backend is not None:  # what the other one calls, after checks that take longer
            text: str = self._backend.decode(tokens, skip_special_tokens=True)
        else:
            text = self._tokenizer.decode(
                tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return text


class TransformersChatTokenizer(TransformersTokenizer):
    """One with a chat template."""

    def chat(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> list[int]:
        """The tokens that the template makes of the messages, up to where the answer begins.

        Raises:
            BadRequest: the template refuses them.
        """
        try:
            tokens: list[int] = self._tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:
            # A template raises what its author likes, and Python what the values are like.
            raise BadRequest(f"the chat template refuses the messages: {text_of(error)}") from error
        return tokens


class TransformersModel:
    """A loaded model on its device. The cache of a stream is a slot of `SlotCache`.

    A prompt is a pass of its own. The streams that feed one token share a pass: each is a row that sees its own slot, as far as
    its own position, so rows of any length stand side by side without padding in front of them.
    """

    def __init__(self, loaded: Loaded, device: torch.device, streams: int, context: int | None) -> None:
        model, tokenizer = loaded.model, loaded.tokenizer
        config = model.config.get_text_config()
        self._model: Any = model.to(device)
        self._device = device
        self._window: int | None = getattr(config, "sliding_window", None)
        self._kinds = _kinds(config, self._window)
        self._cache = SlotCache()
        self._free = set(range(streams))
        can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._keep = {"logits_to_keep": 1} if can_keep else {}
        self._streams = streams
        self.vocabulary_size: int = config.vocab_size
        self.context_length = _context_length(config, context)
        self.end_tokens = _end_tokens(model, tokenizer)
        has_template = getattr(tokenizer, "chat_template", None)
        self.tokenizer = (TransformersChatTokenizer if has_template else TransformersTokenizer)(tokenizer)

    def warm_up(self) -> None:
        """Run each kind of pass once: the first one in a process is slow, and finds what does not work.

        Raises:
            LoadFailed: the model cannot be served in this way.
        """
        slot = self.new_cache()
        try:
            self.step([Feed(slot, 0, [0, 0][: self.context_length])])
            self.step([Feed(slot, 0, [0])])
        except Exception as error:
            if concerns_device(error):
                raise
            kind = type(self._model).__name__
            raise LoadFailed(f"{kind} cannot be served: {type(error).__name__}: {text_of(error)}") from error
        finally:
            self.free_cache(slot)

    def new_cache(self) -> int:
        """The lowest free slot: slots that lie together are read in place."""
        slot = min(self._free)
        self._free.remove(slot)
        return slot

    def free_cache(self, cache: int) -> None:
        """The slot is free. With the last one the memory is, too."""
        self._free.add(cache)
        if len(self._free) == self._streams:
            self._cache.clear()

    @torch.inference_mode()
    def step(self, feeds: Sequence[Feed]) -> Any:
        """The logits after each feed."""
        rows: list[Tensor | None] = [None] * len(feeds)
        single = sorted(
            (place for place, feed in enumerate(feeds) if len(feed.tokens) == 1),
            key=lambda place: feeds[place].cache,
        )
        for place, feed in enumerate(feeds):
            if len(feed.tokens) > 1:
                rows[place] = self._pass([feed])[0]
        if single:
            for place, row in zip(single, self._pass([feeds[place] for place in single]), strict=True):
                rows[place] = row
        return torch.stack([row for row in rows if row is not None]).float().cpu().numpy()

    def _pass(self, feeds: Sequence[Feed]) -> Tensor:
        """The logits after the last token of each feed. All have equally many, and their slots ascend."""
        count = len(feeds[0].tokens)
        begins = torch.tensor([feed.begin for feed in feeds])
        positions = begins[:, None] + torch.arange(count)
        self._cache.begin([feed.cache for feed in feeds], positions, self._device)
        arguments = {
            "input_ids": torch.tensor([list(feed.tokens) for feed in feeds]).to(self._device),
            "position_ids": positions.to(self._device),
            "attention_mask": self._masks(positions),
            "cache": self._cache,
            "use_cache": True,
            **self._keep,
        }
        logits: Tensor = self._model(**arguments).logits
        return logits[:, -1]

    def _masks(self, positions: Tensor) -> Any:
        """What each row sees, for each kind of layer: its own positions so far, or those within the window."""
        seen = torch.arange(int(positions.max()) + 1)
        masks: dict[str, Tensor] = {}
        for kind in self._kinds:
            visible = seen <= positions[:, :, None]
            if kind == _SLIDING:
                visible &= seen > positions[:, :, None] - (self._window or 0)
            mask = torch.zeros(visible.shape, dtype=self._model.dtype)
            mask.masked_fill_(~visible, torch.finfo(mask.dtype).min)
            masks[kind] = mask[:, None].to(self._device)
        return masks if len(masks) > 1 else masks[self._kinds[0]]


def _kinds(config: Any, window: int | None) -> list[str]:
    """The kinds of the model's layers.

    Raises:
        LoadFailed: one is neither full nor sliding attention.
    """
    layers: list[str] | None = getattr(config, "layer_types", None)
    kinds = sorted(set(layers or [_SLIDING if window else _FULL]))
    if not set(kinds) <= {_FULL, _SLIDING}:
        raise LoadFailed(
            f"the layers of a model must be of the kinds {_FULL} and {_SLIDING}, got {', '.join(kinds)}"
        )
    return kinds


def _context_length(config: Any, context: int | None) -> int:
    """The most tokens of a stream.

    Raises:
        LoadFailed: neither says it, or the model cannot have as many.
    """
    most: int | None = getattr(config, "max_position_embeddings", None)
    if most is None and context is None:
        raise LoadFailed("the model's configuration has no max_position_embeddings: context must be given")
    if most is not None and context is not None and context > most:
        raise LoadFailed(f"context must be at most {most}, which the model has, got {context}")
    return context or most or 0


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens with which a stream ends: of the generation's configuration, else of the tokenizer."""
    ends: int | list[int] | None = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = tokenizer.eos_token_id
    return frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)
