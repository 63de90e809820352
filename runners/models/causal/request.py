"""What a request asks of a causal model, checked before anything reaches the device (D5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from attrs import field, frozen

from runners.brief import brief
from runners.errors import BadRequest, ContextLengthExceeded
from runners.models.causal.model import CausalModel, ChatTokenizer
from runners.types import ExecuteBatch, Sampling

_MOST_STOPS, _MOST_STOP_CHARACTERS = 64, 4096
"""The limits for one request: each token is compared with all its stop strings, and the other streams wait meanwhile."""

_MOST_LOGPROBS = 20


def _is_number(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and least <= value <= most


def _is_integer(least: int, most: float) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


_OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "top_p": ("a number above 0 and at most 1", lambda value: _is_number(0, 1)(value) and value > 0),
    "top_k": ("an integer >= 1", _is_integer(1, float("inf"))),
    "frequency_penalty": ("a number from -2 to 2", _is_number(-2, 2)),
    "presence_penalty": ("a number from -2 to 2", _is_number(-2, 2)),
    "repetition_penalty": ("a number from 0.01 to 100", _is_number(0.01, 100)),
    "logprobs": (f"an integer from 0 to {_MOST_LOGPROBS}", _is_integer(0, _MOST_LOGPROBS)),
    "tools": ("a list", lambda value: type(value) is list),
}


@frozen(kw_only=True)
class Options:
    """The options of a request, each as it is without it. `causal_runner` says what they mean."""

    top_p: float = 1.0
    top_k: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    tools: list[Any] | None = field(default=None, hash=False)

    @classmethod
    def of(cls, options: dict[str, Any] | None) -> Options:
        """The options of a batch.

        Raises:
            BadRequest: one is not known, or has a wrong value.
        """
        for name, value in (options or {}).items():
            if name not in _OPTIONS:
                raise BadRequest(f"an option must be one of {', '.join(_OPTIONS)}, got {brief(name)}")
            allowed, is_allowed = _OPTIONS[name]
            if not is_allowed(value):
                raise BadRequest(f"the option {name} must be {allowed}, got {brief(value)}")
        return cls(**(options or {}))

    @property
    def penalises(self) -> bool:
        """Whether there is a penalty."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)


@frozen
class Request:
    """A checked request.

    Args:
        prompt: the token ids of the prompt.
        is_chat: whether they come from chat messages, so that the answer does not continue a text.
        limit: the most tokens that may be generated.
    """

    prompt: tuple[int, ...]
    is_chat: bool
    limit: int
    sampling: Sampling
    options: Options

    @classmethod
    def of(cls, batch: ExecuteBatch, accepted: Sequence[int], model: CausalModel) -> Request:
        """Check a batch, and make the tokens of its prompt.

        Raises:
            BadRequest: it has no meaning for this model.
            ContextLengthExceeded: its prompt leaves no room for a token.
            Exception: the tokenizer refuses it.
        """
        options = Options.of(batch.options)
        _check_sampling(batch.sampling)
        _check_tokens("accepted token ids", accepted, model)
        if batch.prompt and batch.payload is not None:
            raise BadRequest(f"a request must have a prompt or a payload, got both: {brief(batch.prompt)}")
        messages = _messages(batch.payload)
        if options.tools is not None and messages is None:
            raise BadRequest("the option tools is only for a request with chat messages as its payload")
        prompt = _of_messages(messages, options, model) if messages else _prompt(batch, model)
        if not prompt:
            what = "what the chat template makes of messages" if messages else "a prompt"
            raise BadRequest(f"{what} must have at least one token, got none")
        if len(prompt) >= model.context_length:
            raise ContextLengthExceeded(
                f"a prompt may have {model.context_length - 1} tokens, got {len(prompt)}"
            )
        # Those of a text too: a tokenizer may have tokens that were added to it alone, and they would fail on the device.
        _check_tokens("token ids", prompt, model)
        limit = min(batch.sampling.max_tokens, model.context_length - len(prompt))
        return cls(prompt, messages is not None, limit, batch.sampling, options)


def _check_sampling(sampling: Sampling) -> None:
    stops = sampling.stop
    if "" in stops:
        raise BadRequest(f"a stop string must not be empty, got {stops!r}")
    if len(stops) > _MOST_STOPS or sum(map(len, stops)) > _MOST_STOP_CHARACTERS:
        raise BadRequest(
            f"at most {_MOST_STOPS} stop strings of {_MOST_STOP_CHARACTERS} characters in all may be asked for, "
            f"got {len(stops)} of {sum(map(len, stops))}"
        )
    if sampling.temperature and sampling.seed is None:
        raise BadRequest("a request with a temperature above 0 needs a seed, got None")


def _check_tokens(what: str, tokens: Sequence[int], model: CausalModel) -> None:
    foreign = [token for token in tokens if not 0 <= token < model.vocabulary_size]
    if foreign:
        raise BadRequest(f"{what} must be from 0 to {model.vocabulary_size - 1}, got {foreign[0]}")


def _messages(payload: Any) -> list[dict[str, Any]] | None:
    """The payload, if it is chat messages."""
    if not _is_list(payload) or not payload:
        return None
    is_chat = all(type(message) is dict and "role" in message for message in payload)
    return payload if is_chat else None


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return type(value) is list


def _of_messages(messages: list[dict[str, Any]], options: Options, model: CausalModel) -> tuple[int, ...]:
    if not isinstance(model.tokenizer, ChatTokenizer):
        raise BadRequest("the model has no chat template: a request must have a prompt or token ids")
    return tuple(model.tokenizer.chat(messages, options.tools))


def _prompt(batch: ExecuteBatch, model: CausalModel) -> tuple[int, ...]:
    """The tokens of a request without messages."""
    payload: object = batch.payload
    if payload is None:
        prompt = tuple(model.tokenizer.encode(batch.prompt))
    else:
        if not _is_list(payload) or not all(type(token) is int for token in payload):
            raise BadRequest(
                f"a payload must be a list of token ids or of chat messages, got {brief(payload)}"
            )
        prompt = tuple(payload)
    return prompt
