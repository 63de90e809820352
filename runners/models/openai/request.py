"""The body of a request to a server, from a request to a worker. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attrs import evolve, frozen

from runners.brief import brief, is_a, text_of
from runners.errors import BadRequest
from runners.models.openai.settings import Settings
from runners.plain import are_integers
from runners.types import ExecuteBatch

_SEED_BITS = 2**31 - 1
"""Several servers take 32 bits, some of them with a sign; a seed of the worker has 63."""

_OURS = frozenset(
    (
        "model",
        "messages",
        "prompt",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "seed",
        "stop",
        "return_token_ids",
    )
)
"""The fields that follow from a request's own fields and from the spec, so that its options must not have them."""


@frozen
class Asked:
    """What is sent. `path`: below the URL of the spec. `counts_ids`: whether the chunks of the answer have token ids."""

    path: str
    body: dict[str, Any]
    counts_ids: bool = False

    @property
    def is_chat(self) -> bool:
        """Whether the events are those of a chat."""
        return "messages" in self.body

    def content(self) -> bytes:
        """The body as JSON.

        Raises:
            BadRequest: it has something that JSON does not have, such as bytes or infinity.
        """
        try:
            return json.dumps(self.body, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise BadRequest(f"payload and options must be values that JSON has: {text_of(error)}") from error

    def at_most(self, most: int, length_field: str) -> Asked:
        """The same with another number of tokens."""
        return evolve(self, body={**self.body, length_field: most})

    def behind(self, ids: Sequence[int]) -> Asked:
        """The same with these ids as the prompt: its own, and those of the tokens accepted so far."""
        return evolve(self, body={**self.body, "prompt": list(ids)})


def asked(spec: Settings, batch: ExecuteBatch) -> Asked:
    """What is sent for a request.

    Raises:
        BadRequest: the server cannot be asked this.
    """
    path, prompt = _prompt(spec, batch)
    counts_ids = spec.token_ids and "prompt" in prompt and not batch.sampling.stop
    sampling = batch.sampling
    body: dict[str, Any] = {
        **spec.extra,
        **_options(batch, is_chat="messages" in prompt),
        **prompt,
        "model": batch.model if spec.model is None else spec.model,
        "stream": True,
        spec.length_field: sampling.max_tokens,
        "temperature": sampling.temperature,
    }
    if spec.include_usage:
        body["stream_options"] = {"include_usage": True}
    if sampling.seed is not None:
        body["seed"] = sampling.seed & _SEED_BITS
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if counts_ids:
        body["return_token_ids"] = True
    made = Asked(path, body, counts_ids)
    made.content()  # so that what JSON does not have is refused before anything is sent
    return made


def _prompt(spec: Settings, batch: ExecuteBatch) -> tuple[str, dict[str, Any]]:
    payload = batch.payload
    if batch.prompt and payload is not None:
        raise BadRequest(f"a request must have a prompt or a payload, got both: {brief(batch.prompt)}")
    if payload is None and not spec.chat:
        return "/completions", {"prompt": batch.prompt}
    if payload is None:
        return "/chat/completions", {"messages": [{"role": "user", "content": batch.prompt}]}
    if are_integers(payload):
        return "/completions", {"prompt": payload}
    if is_a(payload, list) and payload and all(is_a(message, dict) for message in payload):
        return "/chat/completions", {"messages": payload}
    raise BadRequest(f"payload must be a list of token ids or of messages, got {brief(payload)}")


def _options(batch: ExecuteBatch, *, is_chat: bool) -> dict[str, Any]:
    options = dict(batch.options or {})
    if wrong := sorted(options.keys() & _OURS):
        raise BadRequest(f"options must not have what a request has fields for, got {', '.join(wrong)}")
    if options.get("n", 1) != 1:
        raise BadRequest(f"options must ask for one answer, got n of {brief(options['n'])}")
    alternatives = options.get("logprobs")
    if is_chat and type(alternatives) is int:  # as runners have it; a chat has a flag and a number
        options |= {"logprobs": True, "top_logprobs": alternatives}
    return options
