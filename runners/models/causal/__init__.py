"""A runner from a causal model: its author brings the forward step, `causal_runner` all that is the same for every model.

Importing this package imports neither numpy nor torch, so the module of a runner spec may import it.
"""

from __future__ import annotations

from runners.models.causal.model import CausalModel, ChatTokenizer, Feed, ReloadingModel, Tokenizer
from runners.types import ContinuingRunner

__all__ = ["CausalModel", "ChatTokenizer", "Feed", "ReloadingModel", "Tokenizer", "causal_runner"]


def causal_runner(
    model: CausalModel,
    *,
    streams: int = 16,
    reproducible: bool = False,
    runtime: str = "custom",
    prefill: int | None = None,
) -> ContinuingRunner:
    """A runner from a causal model, for a spec's `build` to return.

    Streams share the steps of the model, and join and leave between them. Each may move to another context, where the tokens
    accepted so far are fed again (D6): no token is lost or repeated. If the model's logits are not bitwise the same there,
    the tokens after them may be others than without the move.

    A request has a `prompt`, or as its `payload` a list of token ids or of chat messages. Its `options` may be `top_p`, `top_k`,
    `frequency_penalty`, `presence_penalty`, `repetition_penalty`, `logprobs` and, with messages, `tools`. `logprobs` are of the
    model's own distribution, before temperature, penalties and filters. A temperature of 0 takes the best token. Whatever else a
    request has is `BadRequest`; a prompt that leaves no room for a token is `ContextLengthExceeded`. Both concern the one
    request, and its first `next` raises them.

    Args:
        model: the model.
        streams: how many streams it serves at once, 1 or more.
        reproducible: declare only what a test shows: the model's logits are bitwise the same whatever the batch, the slot and the
            replay.
        runtime: what computes, for `RunnerInfo.runtime`.
        prefill: the most tokens of a stream that one step feeds, which bounds the memory of a long prompt; the other streams go on
            between its pieces. With None a step feeds any number.
    """
    from runners.models.causal.runner import CausalRunner  # noqa: PLC0415 - imports numpy, which starts threads of its own

    return CausalRunner(model, streams=streams, reproducible=reproducible, runtime=runtime, prefill=prefill)
