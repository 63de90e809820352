"""The events of a server as the chunks of a stream. Pure.

An event may have no text (the role of a chat's message), half of a token's text or that of several tokens, and a server sends the
usage behind the finish reason, if it does. So the last chunk is made only when the stream has ended.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from attrs import define

from runners.brief import is_a
from runners.errors import NetworkError
from runners.models.openai.refusal import Redactor, event_error
from runners.plain import is_encodable
from runners.types import FinishReason, TokenChunk, TokenUsage, token_chunk

_REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "eos_token": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}
"""Those of OpenAI, and what other servers say for them. Another one, such as `abort`, is none: the answer is not whole."""

_MOST_HELD = 2**20
"""Characters that the last chunk may have, if a server makes more pieces than a request may have tokens."""
_MOST_TOKENS = 2**53


@define(eq=False)
class Answer:
    """What a stream has given so far.

    `at`: the position of the next chunk. `most`: the tokens that the request may have. `before`: the accepted tokens that are
    part of the prompt. `finish`: why the answer ended; None while it has not.
    """

    request_id: str
    most: int
    is_chat: bool
    counts_ids: bool
    redact: Redactor
    at: int = 0
    before: int = 0
    finish: FinishReason | None = None
    usage: TokenUsage | None = None
    _held: str = ""
    _last_ids: tuple[int, ...] = ()
    _last_data: dict[str, Any] | None = None

    def __attrs_post_init__(self) -> None:
        self.at = self.before

    def take(self, data: str, *, is_error: bool = False) -> TokenChunk | None:
        """The chunk of an event; None if it carries no token, or the last ones.

        Args:
            data: of the event, which is not `[DONE]`.
            is_error: whether the event is named `error`.

        Raises:
            InferenceError: the event reports an error, or is none of this API.
        """
        event = _parsed(data)
        error = event_error({"error": event} if is_error and "error" not in event else event, self.redact)
        if error is not None:
            raise error
        self.usage = _usage(event.get("usage"), self.before) or self.usage
        choice = _choice(event)
        if choice is None or self.finish is not None:
            return None
        text, ids, extras = self._piece(choice)
        reason = choice.get("finish_reason")
        if reason is not None:
            self._finish(reason, text, ids, extras)
            return None
        return self._chunk(text, ids, extras)

    def last(self, reason: FinishReason | None = None) -> TokenChunk:
        """The last chunk, when the stream has ended.

        Raises:
            NetworkError: it ended without a finish reason, and none is given here.
        """
        finish = self.finish or reason
        if finish is None:
            raise NetworkError(f"the server ended the stream without a finish reason, at position {self.at}")
        return token_chunk(
            self.request_id, self.at, self._last_ids, self._held, finish, self.usage, data=self._last_data
        )

    def _piece(self, choice: dict[str, Any]) -> tuple[str, tuple[int, ...], dict[str, Any] | None]:
        """The text, ids and data of a choice."""
        delta = choice.get("delta") if self.is_chat else choice
        if not is_a(delta, dict):
            delta = {}
        delta = cast("dict[str, Any]", delta)
        text = _text(delta.get("content" if self.is_chat else "text"))
        ids = _ids(choice.get("token_ids")) if self.counts_ids else ()
        extras: dict[str, Any] = {}
        if self.is_chat:
            others = {
                name: value
                for name, value in delta.items()
                if name not in ("role", "content") and value not in (None, "", [], {})
            }
            extras = {"delta": others} if others else {}
        if entries := _logprobs(choice.get("logprobs")):
            extras["logprobs"] = entries
        return text, ids, extras or None

    def _finish(self, reason: object, text: str, ids: tuple[int, ...], extras: dict[str, Any] | None) -> None:
        known = _REASONS.get(reason) if is_a(reason, str) else None  # type: ignore[call-overload]  # it is a str
        if known is None:
            raise NetworkError(
                f"the server ended the stream with another finish reason than {', '.join(_REASONS)}, at position {self.at}"
            )
        self._check_room(len(ids))
        self.finish, self._last_ids, self._last_data = known, ids, extras
        self._hold(text)

    def _chunk(self, text: str, ids: tuple[int, ...], extras: dict[str, Any] | None) -> TokenChunk | None:
        if self.counts_ids:
            self._check_room(len(ids))
        # A text without its ids comes with the next ones; and what is beyond the last position with the end.
        if (self.counts_ids and not ids) or (not self.counts_ids and self.at >= self.most):
            if extras is not None:
                raise NetworkError(f"the server sends more than {self.most} tokens, or none beside its data")
            self._hold(text)
            return None
        if not (text or ids or extras):
            return None
        text, self._held = self._held + text, ""
        chunk = token_chunk(self.request_id, self.at, ids, text, data=extras)
        self.at += len(ids) or 1
        return chunk

    def _check_room(self, more: int) -> None:
        if self.at + more > self.most:
            raise NetworkError(f"the server sends more than {self.most} tokens")

    def _hold(self, text: str) -> None:
        self._held += text
        if len(self._held) > _MOST_HELD:
            raise NetworkError(f"the server sends more than {self.most} pieces, and goes on")


def prompt_ids(data: str) -> tuple[int, ...] | None:
    """The ids of the prompt, which the first event of a stream has if they were asked for; None if it has none.

    Raises:
        NetworkError: it is no event of this API.
    """
    event = _parsed(data)
    for place in (_choice(event) or {}, event):
        if given := _ids(place.get("prompt_token_ids")):
            return given
    return None


def _parsed(data: str) -> dict[str, Any]:
    try:
        event: Any = json.loads(data)
    except (ValueError, RecursionError):  # the text of the error would quote the server's
        event = None
    if not is_a(event, dict):
        raise NetworkError(f"the server sent an event that is no JSON object, of {len(data)} characters")
    found: dict[str, Any] = event
    return found


def _choice(event: dict[str, Any]) -> dict[str, Any] | None:
    """The one that was asked for; an event with the usage alone has none."""
    return next((choice for choice in _dicts(event.get("choices")) if choice.get("index", 0) == 0), None)


def _text(value: object) -> str:
    if value is None:
        return ""
    if type(value) is not str:
        raise NetworkError("the server sent an event whose text is no string")
    if is_encodable(value):
        return value
    return value.encode("utf-16", "surrogatepass").decode(
        "utf-16", "replace"
    )  # JSON can escape half a character


def _ids(value: object) -> tuple[int, ...]:
    """Token ids; none for what is no list of them."""
    given = cast("Sequence[Any]", value) if is_a(value, list) else ()
    if not all(type(each) is int and 0 <= each < 2**63 for each in given):
        raise NetworkError("the server sent an event whose token ids are none")
    return tuple(given)


def _usage(value: Any, before: int) -> TokenUsage | None:
    """What the server has counted; None if it says nothing, or nonsense. Accepted tokens in the prompt are none of the input."""
    if not is_a(value, dict):
        return None

    def number(of: Any, name: str) -> int:
        found = of.get(name) if is_a(of, dict) else None
        return found if type(found) is int and 0 <= found <= _MOST_TOKENS else 0

    return TokenUsage(
        input=max(0, number(value, "prompt_tokens") - before),
        output=number(value, "completion_tokens"),
        cached=number(value.get("prompt_tokens_details"), "cached_tokens"),
        reasoning=number(value.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _logprobs(value: Any) -> list[dict[str, Any]]:
    """Log probabilities in the form that runners agree on: of each token its own, and those of the best ones as `top`."""
    if not is_a(value, dict):
        return []
    if is_a(value.get("content"), list):
        return [
            {**_scored(entry), "top": [_scored(top) for top in _dicts(entry.get("top_logprobs"))]}
            for entry in _dicts(value["content"])
        ]
    tokens, own = value.get("tokens"), value.get("token_logprobs")
    tops = value.get("top_logprobs")
    if not is_a(tokens, list) or not is_a(own, list):
        return []
    best = tops if is_a(tops, list) else [None] * len(tokens)
    return [
        {
            "token": token,
            "logprob": logprob,
            "top": [{"token": name, "logprob": each} for name, each in _dict(top).items()],
        }
        for token, logprob, top in zip(tokens, own, best, strict=False)
    ]


def _dict(value: object) -> dict[str, Any]:
    """A dict, empty for what is none."""
    return cast("dict[str, Any]", value) if is_a(value, dict) else {}


def _dicts(value: object) -> list[dict[str, Any]]:
    """The dicts in a list; none of what is no list."""
    return [each for each in cast("list[Any]", value) if is_a(each, dict)] if is_a(value, list) else []


def _scored(entry: dict[str, Any]) -> dict[str, Any]:
    return {"token": entry.get("token"), "logprob": entry.get("logprob")}
