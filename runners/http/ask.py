"""What a client may ask, and the requests to a worker that it becomes.

A field that would change the answer must not be ignored: one that is unknown is refused, as OpenAI's own servers do, so that
a misspelt `temperature` is an error and not another answer. So is a known one that no runner gives (`n` above 1). A value with
which such a field changes nothing is accepted, since clients send it unasked; so are fields that only accompany a request.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, cast

from attrs import evolve, field, frozen

from ..brief import brief, is_a, text_of
from ..plain import are_integers, is_encodable
from ..types import ExecuteBatch, Sampling
from .refusal import Refusal

MAX_INPUTS = 2048
"""The most inputs of one request, as OpenAI's API has it."""
MAX_CONTAINERS = 65_536
"""The most lists and objects of one request. Each takes microseconds, in which nothing else is served, and a body has room for a million."""

_CONTAINERS = frozenset((dict, list))
_MOST = 2**31 - 1
_SEED_BITS = 2**63 - 1
_MAX_TOP = 20

_ACCOMPANYING = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
)
"""Fields that may have any value: they are for accounts, caches and statistics, or only allow what a model need not do."""

_NOT_GIVEN: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
"""Fields that no runner gives, and the values with which they change nothing."""


@frozen(kw_only=True)
class Asked:
    """A request as it is understood.

    Args:
        id: of the answer and of each of its events.
        model: as the client names it.
        batches: one for each choice or embedding of the answer.
        stream: whether it is answered by events.
        include_usage: whether the last event of a stream has the usage.
        logprobs: how many alternatives of each token are asked for; None if no log probabilities are.
        base64: whether embeddings are encoded in base64.
        token_ids: whether the ids of the tokens come with a text completion, and those of a prompt that was sent as ids.
    """

    id: str
    model: str
    batches: tuple[ExecuteBatch, ...]
    stream: bool = False
    include_usage: bool = False
    logprobs: int | None = None
    base64: bool = False
    token_ids: bool = False


class Fields:
    """The fields of a request; each is taken once, and those left over are refused. One that is null counts as absent."""

    def __init__(self, body: bytes) -> None:
        try:
            given: object = json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"the body must be JSON: {text_of(error)}") from error
        if not isinstance(given, dict):
            raise Refusal(400, f"the body must be a JSON object, got {brief(given)}")
        _check_containers(given)
        self._left = {
            name: value for name, value in cast("dict[str, Any]", given).items() if value is not None
        }

    def take(self, name: str) -> Any:
        """The value of a field; None if it is absent."""
        return self._left.pop(name, None)

    def needed(self, name: str) -> Any:
        """The value of a field that must be there."""
        if name not in self._left:
            raise Refusal(400, f"you must provide {name}", param=name, code="missing_required_parameter")
        return self.take(name)

    def text(self, name: str) -> str:
        """The value of a field that must be there, and a string."""
        value = self.needed(name)
        return value if isinstance(value, str) else refuse(name, "a string", value)

    def boolean(self, name: str) -> bool:
        """The value of a field that is true or false; false if it is absent."""
        value = self.take(name)
        return (
            value is True
            if value is None or isinstance(value, bool)
            else refuse(name, "true or false", value)
        )

    def integer(self, name: str, least: int, most: int | None = _MOST) -> int | None:
        """An integer between two bounds; an upper one of None allows any."""
        value = self.take(name)
        if value is None or (type(value) is int and least <= value and (most is None or value <= most)):
            return value
        return refuse(name, f"an integer, {least} {'or more' if most is None else f'to {most}'}", value)

    def number(self, name: str, least: float, most: float) -> float | None:
        """A number between two bounds."""
        value: Any = self.take(name)
        if value is None or (type(value) in (int, float) and least <= value <= most):
            number: float | None = value
            return number
        return refuse(name, f"a number, {least:g} to {most:g}", value)

    def finish(self) -> None:
        """Refuse what was not taken, unless it changes nothing."""
        for name in _ACCOMPANYING:
            self.take(name)
        for name, harmless in _NOT_GIVEN.items():
            value = self.take(name)
            if value is not None and not any(type(value) is type(it) and value == it for it in harmless):
                refuse(name, f"absent or {' or '.join(map(json.dumps, harmless))} for this server", value)
        if self._left:
            names = ", ".join(map(brief, self._left))
            raise Refusal(
                400,
                f"unrecognized request argument supplied: {names}",
                param=next(iter(self._left)),
                code="unknown_parameter",
            )


def refuse(param: str, allowed: str, got: object) -> NoReturn:
    """Refuse the value of a field."""
    raise Refusal(400, f"{param} must be {allowed}, got {brief(got)}", param=param)


def _check_containers(given: Any) -> None:
    """Refuse a body of too many lists and objects."""
    found: list[Any] = [given]
    for each in found:
        inner: Iterable[object] = each.values() if is_a(each, dict) else each
        if not _CONTAINERS.isdisjoint(map(type, inner)):
            found += [value for value in inner if type(value) in _CONTAINERS]
        if len(found) > MAX_CONTAINERS:
            raise Refusal(400, f"the body may have {MAX_CONTAINERS} lists and objects, and has more")


def _no_number(name: str) -> NoReturn:
    """NaN and infinity, which Python's parser accepts and JSON does not have."""
    raise ValueError(f"{name} is not JSON")


@frozen(kw_only=True)
class Reader:
    """Makes requests to a worker out of the bodies of clients.

    Args:
        max_tokens: of a chat completion that names no limit.
        deadline: when a request that comes now ends, on Trio's clock; None is never.
    """

    max_tokens: int
    deadline: Callable[[], float | None] = field(repr=False)

    def chat(self, body: bytes) -> Asked:
        """The body of a request for a chat completion."""
        fields = Fields(body)
        options: dict[str, Any] = {}
        model, messages = fields.text("model"), _messages(fields.needed("messages"))
        if fields.boolean("logprobs"):
            options["logprobs"] = fields.integer("top_logprobs", 0, _MAX_TOP) or 0
        elif fields.integer("top_logprobs", 0, _MAX_TOP):
            raise Refusal(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        tools = _tools(fields)
        if tools:
            options["tools"] = tools
        longer, shorter = fields.integer("max_completion_tokens", 1), fields.integer("max_tokens", 1)
        if longer is not None and shorter is not None:
            message = "max_tokens and max_completion_tokens mean the same: give one of them"
            raise Refusal(400, message, param="max_tokens")
        return self._asked(
            "chatcmpl", model, fields, [messages], longer or shorter or self.max_tokens, options
        )

    def completion(self, body: bytes) -> Asked:
        """The body of a request for a text completion."""
        fields = Fields(body)
        model, prompts = fields.text("model"), _inputs("prompt", fields.needed("prompt"))
        logprobs = fields.integer("logprobs", 0, _MAX_TOP)
        options = {} if logprobs is None else {"logprobs": logprobs}
        token_ids, most = fields.boolean("return_token_ids"), fields.integer("max_tokens", 1) or 16
        return evolve(self._asked("cmpl", model, fields, prompts, most, options), token_ids=token_ids)

    def embedding(self, body: bytes) -> Asked:
        """The body of a request for embeddings."""
        fields = Fields(body)
        model, inputs = fields.text("model"), _inputs("input", fields.needed("input"))
        form = fields.take("encoding_format") or "float"
        if form not in ("float", "base64"):
            refuse("encoding_format", "float or base64", form)
        fields.finish()
        batches = self._batches("embd", model, inputs, Sampling(max_tokens=1, temperature=0), None)
        return Asked(id=batches[0].request_id, model=model, batches=batches, base64=form == "base64")

    def _asked(  # noqa: PLR0917 - one call of each kind of completion, and none elsewhere
        self, kind: str, model: str, fields: Fields, inputs: Sequence[Any], most: int, options: dict[str, Any]
    ) -> Asked:
        stream, include_usage = fields.boolean("stream"), _include_usage(fields)
        temperature, seed = fields.number("temperature", 0, 2), fields.integer("seed", -(2**63), 2**63 - 1)
        sampling = Sampling(
            max_tokens=most,
            temperature=1.0 if temperature is None else temperature,
            seed=None if seed is None else seed & _SEED_BITS,  # OpenAI's seeds may be negative
            stop=_stop(fields.take("stop")),
        )
        options = {**options, **_choices(fields)}
        key: Any = fields.take("prompt_cache_key")
        if key is not None and not is_a(key, str):
            refuse("prompt_cache_key", "a text", key)
        fields.finish()
        batches = self._batches(kind, model, inputs, sampling, options or None, key=key)
        return Asked(
            id=batches[0].request_id.partition("/")[0],
            model=model,
            batches=batches,
            stream=stream,
            include_usage=include_usage,
            logprobs=options.get("logprobs"),
        )

    def _batches(
        self,
        kind: str,
        model: str,
        inputs: Sequence[Any],
        sampling: Sampling,
        options: dict[str, Any] | None,
        *,
        key: str | None = None,
    ) -> tuple[ExecuteBatch, ...]:
        name = f"{kind}-{secrets.token_hex(16)}"
        try:
            batch = ExecuteBatch(
                name,
                sampling=sampling,
                options=options,
                model=model,
                deadline=self.deadline(),
                affinity=key or "",
            )
            given = [{"prompt": each} if isinstance(each, str) else {"payload": each} for each in inputs]
            if len(given) == 1:
                return (evolve(batch, **given[0]),)
            return tuple(evolve(batch, request_id=f"{name}/{at}", **each) for at, each in enumerate(given))
        except (TypeError, ValueError) as error:  # nested too deeply, or a number that is too large
            raise Refusal(400, text_of(error)) from error


def _include_usage(fields: Fields) -> bool:
    given = fields.take("stream_options")
    if given is None:
        return False
    # `include_obfuscation` pads events against eavesdroppers, and changes no answer.
    if not is_a(given, dict) or given.keys() - {"include_usage", "include_obfuscation"}:
        refuse("stream_options", "an object with include_usage", given)
    include: Any = given.get("include_usage")
    if include is not None and not is_a(include, bool):
        refuse("stream_options.include_usage", "true or false", include)
    return include is True


def _choices(fields: Fields) -> dict[str, Any]:
    """The options that restrict or weigh the next token; one that changes nothing is left out, for runners without it."""
    given: dict[str, tuple[float | None, tuple[float, ...]]] = {
        "top_p": (fields.number("top_p", 0, 1), (1,)),
        "top_k": (fields.integer("top_k", -1), (0, -1)),  # two ways to allow all tokens
        "frequency_penalty": (fields.number("frequency_penalty", -2, 2), (0,)),
        "presence_penalty": (fields.number("presence_penalty", -2, 2), (0,)),
        "repetition_penalty": (fields.number("repetition_penalty", 0.01, 100), (1,)),
    }
    return {name: value for name, (value, neutral) in given.items() if value not in (None, *neutral)}


def _stop(given: Any) -> tuple[str, ...]:
    strings = [given] if is_a(given, str) else [] if given is None else given
    if not is_a(strings, list) or not all(is_a(each, str) and is_encodable(each) for each in strings):
        refuse("stop", "a string or a list of strings that UTF-8 can encode", given)
    return tuple(strings)


def _messages(given: Any) -> list[dict[str, Any]]:
    if not is_a(given, list) or not given:
        refuse("messages", "a list of at least one message", given)
    for at, message in enumerate(given):
        if not is_a(message, dict) or not is_a(message.get("role"), str):
            refuse(f"messages[{at}]", "an object with a role", message)
    messages: list[dict[str, Any]] = given
    return messages


def _tools(fields: Fields) -> list[Any]:
    """The tools of which the model may call one; none if the client forbids that."""
    tools, choice = fields.take("tools"), fields.take("tool_choice")
    if tools is not None and not is_a(tools, list):
        refuse("tools", "a list", tools)
    if choice not in (None, "auto", "none"):
        refuse("tool_choice", "absent, auto or none for this server", choice)
    return [] if choice == "none" or tools is None else tools


def _inputs(name: str, given: Any) -> list[Any]:
    """Some texts or lists of token ids, from one or several."""
    several = [given] if is_a(given, str) or _are_ids(given) else given
    if (
        not is_a(several, list)
        or not several
        or not all(is_a(each, str) or _are_ids(each) for each in several)
    ):
        refuse(name, "a string, a list of token ids, or a list of at least one of either", given)
    if len(several) > MAX_INPUTS:
        raise Refusal(400, f"{name} may have {MAX_INPUTS} inputs, got {len(several)}", param=name)
    inputs: list[Any] = several
    return inputs


def _are_ids(given: Any) -> bool:
    return are_integers(given) and min(given) >= 0
