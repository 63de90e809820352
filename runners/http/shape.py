"""The answers of OpenAI's API: chat completions, text completions and embeddings, whole and as events."""

from __future__ import annotations

import base64
import math
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from attrs import define, field, frozen

from ..brief import brief, is_a
from ..errors import RunnerError
from ..types import FinishReason, TokenChunk, TokenUsage
from .ask import Asked
from .refusal import Refusal

_LEAST = -9999.0
"""Stands for minus infinity, which JSON does not have."""


def usage(tokens: TokenUsage) -> dict[str, Any]:
    """The tokens of a completion."""
    return {
        "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.input + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }


@define
class Choice:
    """What one choice of a completion, or one embedding, has got so far."""

    is_text: bool = True
    texts: list[str] = field(factory=list[str])
    logprobs: list[dict[str, Any]] = field(factory=list[dict[str, Any]])
    token_ids: list[int] = field(factory=list[int])
    finish_reason: FinishReason | None = None
    usage: TokenUsage = field(factory=TokenUsage)
    data: Any = None

    def add(self, chunk: TokenChunk) -> None:
        """Add a chunk.

        Raises:
            RunnerError: it has no place in a text.
        """
        self.texts.append(chunk.text)
        self.token_ids += chunk.token_ids
        if self.is_text:
            self.logprobs += logprobs_of(chunk)
        self.finish_reason = chunk.finish_reason
        self.usage = chunk.usage or self.usage
        self.data = self.data if chunk.data is None else chunk.data

    @property
    def text(self) -> str:
        """Its text so far."""
        return "".join(self.texts)


def total(choices: Sequence[Choice]) -> TokenUsage:
    """The tokens of all choices together."""
    return sum((choice.usage for choice in choices), TokenUsage())


def logprobs_of(chunk: TokenChunk) -> list[dict[str, Any]]:
    """The log probabilities that a chunk carries, as the runner gives them.

    Raises:
        RunnerError: they do not have the form that runners agree on, or the chunk has data of another kind instead of text.
    """
    data: Any = chunk.data
    if data is None:
        return []
    if not is_a(data, dict) or "logprobs" not in data:
        if chunk.text or chunk.token_ids:
            return []  # a runner may add data of its own to a text
        raise RunnerError(f"the model must answer a completion with text, got data: {brief(data)}")
    entries = data["logprobs"]
    if entries is None:
        return []
    if not is_a(entries, list) or not all(map(_is_entry, entries)):
        raise RunnerError(
            "logprobs must be a list of dicts with a token, its logprob and a list of the same as top, "
            f"got {brief(entries)}"
        )
    return cast("list[dict[str, Any]]", entries)


def _is_entry(entry: Any) -> bool:
    return _is_scored(entry) and is_a(entry.get("top"), list) and all(map(_is_scored, entry["top"]))


def _is_scored(entry: Any) -> bool:
    """Whether it is a token with its log probability, which JSON can have once it is not below the least one."""
    return (
        is_a(entry, dict)
        and type(entry.get("token")) is str
        and type(entry.get("logprob")) in (int, float)
        and entry["logprob"] < math.inf
    )


class Shape(Protocol):
    """How completions of one kind look."""

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The whole answer."""
        ...

    def begin(self, index: int) -> list[dict[str, Any]]:
        """The events with which a choice begins."""
        ...

    def events(self, index: int, chunk: TokenChunk) -> list[dict[str, Any]]:
        """The events for one chunk of a choice."""
        ...

    def usage_event(self, tokens: TokenUsage) -> dict[str, Any]:
        """The event with the usage, which has no choice."""
        ...


@frozen
class _Completions:
    """What both kinds of completions share."""

    asked: Asked
    created: int = field(factory=lambda: int(time.time()))

    def _envelope(self, kind: str, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        made = {"id": self.asked.id, "object": kind, "created": self.created, "model": self.asked.model}
        return {**made, "choices": list(choices)}

    def _event(self, kind: str, choice: Mapping[str, Any]) -> dict[str, Any]:
        # A client that asks for the usage finds the field in every event: null, but for the last one.
        return self._envelope(kind, [choice]) | ({"usage": None} if self.asked.include_usage else {})


@frozen
class Chat(_Completions):
    """Chat completions."""

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """See `Shape`."""
        made = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._envelope("chat.completion", made), "usage": usage(total(choices))}

    def begin(self, index: int) -> list[dict[str, Any]]:
        """See `Shape`."""
        return [self._delta(index, {"role": "assistant", "content": ""})]

    def events(self, index: int, chunk: TokenChunk) -> list[dict[str, Any]]:
        """See `Shape`."""
        entries = logprobs_of(chunk)
        made = [self._delta(index, {"content": chunk.text}, entries)] if chunk.text or entries else []
        return made + ([self._delta(index, {}, finish=chunk.finish_reason)] if chunk.finish_reason else [])

    def usage_event(self, tokens: TokenUsage) -> dict[str, Any]:
        """See `Shape`."""
        return {**self._envelope("chat.completion.chunk", []), "usage": usage(tokens)}

    def _delta(
        self,
        index: int,
        delta: Mapping[str, Any],
        entries: Sequence[Mapping[str, Any]] = (),
        finish: FinishReason | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        if entries:
            choice["logprobs"] = self._logprobs(entries)
        return self._event("chat.completion.chunk", choice)

    def _logprobs(self, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        if self.asked.logprobs is None:
            return None
        content = [{**_token(entry), "top_logprobs": list(map(_token, entry["top"]))} for entry in entries]
        return {"content": content, "refusal": None}


def _token(entry: Mapping[str, Any]) -> dict[str, Any]:
    token: str = entry["token"]
    return {
        "token": token,
        "logprob": max(entry["logprob"], _LEAST),
        "bytes": list(token.encode("utf-8", "surrogatepass")),
    }


@frozen
class Text(_Completions):
    """Text completions."""

    _offsets: dict[int, int] = field(factory=dict[int, int], init=False, eq=False)

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """See `Shape`."""
        made = [
            self._choice(index, choice.text, choice.logprobs, choice.finish_reason, choice.token_ids)
            for index, choice in enumerate(choices)
        ]
        return {**self._envelope("text_completion", made), "usage": usage(total(choices))}

    def begin(self, index: int) -> list[dict[str, Any]]:
        """See `Shape`."""
        # The ids of the prompt come before the first token: a client needs them to go on behind what it has got.
        if not self.asked.token_ids:
            return []
        choice = {**self._choice(index, "", (), None), "prompt_token_ids": self.asked.batches[index].payload}
        return [self._event("text_completion", choice)]

    def events(self, index: int, chunk: TokenChunk) -> list[dict[str, Any]]:
        """See `Shape`."""
        entries = logprobs_of(chunk)
        ids = chunk.token_ids if self.asked.token_ids else ()
        if not (chunk.text or entries or ids or chunk.finish_reason):
            return []
        choice = self._choice(index, chunk.text, entries, chunk.finish_reason, ids)
        return [self._event("text_completion", choice)]

    def usage_event(self, tokens: TokenUsage) -> dict[str, Any]:
        """See `Shape`."""
        return {**self._envelope("text_completion", []), "usage": usage(tokens)}

    def _choice(
        self,
        index: int,
        text: str,
        entries: Sequence[Mapping[str, Any]],
        finish: FinishReason | None,
        ids: Sequence[int] = (),
    ) -> dict[str, Any]:
        logprobs = self._logprobs(index, entries)
        choice: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish,
        }
        if self.asked.token_ids:
            choice["token_ids"] = list(ids)
        return choice

    def _logprobs(self, index: int, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        if self.asked.logprobs is None:
            return None
        offsets: list[int] = []
        for entry in entries:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(entry["token"])
        tops = [{top["token"]: max(top["logprob"], _LEAST) for top in entry["top"]} for entry in entries]
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [max(entry["logprob"], _LEAST) for entry in entries],
            "top_logprobs": tops if self.asked.logprobs else None,
            "text_offset": offsets,
        }


def embeddings(asked: Asked, choices: Sequence[Choice]) -> dict[str, Any]:
    """The answer to a request for embeddings.

    Raises:
        Refusal: the model gave something else than lists of numbers.
        RunnerError: a number is too large for its encoding.
    """
    data = [
        {"object": "embedding", "index": index, "embedding": _embedding(asked, choice.data)}
        for index, choice in enumerate(choices)
    ]
    tokens = sum(choice.usage.input for choice in choices)
    return {
        "object": "list",
        "data": data,
        "model": asked.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _embedding(asked: Asked, data: Any) -> list[float] | str:
    numbers: list[Any] = data if is_a(data, list) else []
    if not numbers or not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise Refusal(400, f"the model {asked.model!r} gives no embeddings", param="model")
    if not asked.base64:
        return numbers
    try:
        packed = struct.pack(f"<{len(numbers)}f", *numbers)
    except OverflowError as error:
        raise RunnerError(
            "an embedding in base64 must have numbers in the range of float32, got "
            f"{brief(max(numbers, key=abs))}"
        ) from error
    return base64.b64encode(packed).decode()
