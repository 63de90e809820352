"""A model behind a server that speaks OpenAI's API: its runner spec. Importing this module imports no HTTP client.

It needs the extra `openai`, and an `InlineHost`. `settings` has the fields of the spec, `request` makes the body of a request,
`events` makes events of the bytes that come back, `answer` makes chunks of events, `refusal` makes errors of what a server says instead,
and `runner` talks to it.
"""

from __future__ import annotations

from attrs import frozen

from runners.models.openai.settings import Settings
from runners.types import ContinuingRunner, RunnerStart

__all__ = ["OpenAIModel"]


@frozen
class OpenAIModel(Settings):
    """A model on a server that speaks OpenAI's API: that of OpenAI, vLLM, SGLang, llama.cpp, a gateway, `runners.serve`.

    It needs an `InlineHost`, or an `EngineHost`, which starts the server as well. A request with a `prompt`, or with a list of token
    ids as its `payload`, goes to `completions`, one with a list of messages to `chat/completions`; `chat=True` sends a prompt there
    too, as one message of a user. The request's `options` are fields of the body, as they are. What a chat gives besides text, such
    as tool calls, is in the `data` of its chunks: `{"delta": {…}}`.

    A stream is complete only with a finish reason; whatever else ends it is a `NetworkError`, and an error event counts whatever
    follows it. The texts of errors quote no key.

    A stream may move to another context only with `token_ids`, since a text that is split into tokens anew goes on
    otherwise. It is never `reproducible`: a server may compute with other neighbours each time.

    Args:
        url: that `/completions` is below, such as `https://api.openai.com/v1`. With an `EngineHost` its port is `{port}`.
        model: its name on the server; None sends the `model` of each request.
        key_env: the name of the environment variable that has the key. It is read when a session is made: at the start, at a rebuild,
            and once more when the server rejects the key. None sends none.
        chat: whether a prompt is sent as a message of a user.
        token_ids: whether the server takes prompts as token ids and gives the ids of its tokens, as vLLM does with
            `return_token_ids`. Streams of `completions` without stop strings then have ids, and may move.
        streams: how many streams are open at once, 1 or more.
        connect_timeout: seconds for a connection.
        first_chunk_timeout: seconds from the beginning of a request to its first token.
        next_chunk_timeout: seconds between two tokens. What carries no token, such as a comment, extends neither.
        length_field: the name of the field for the most tokens.
        include_usage: whether the server is asked for the usage of each stream, which some servers refuse.
        done_is_enough: whether `[DONE]` completes a stream without a finish reason, for a server that never gives one. A stream
            that is cut by a gateway which adds `[DONE]` is then taken for a whole one.
        trust_env: whether proxies and `.netrc` of the environment are used. The log of httpx2 then has the words of the server's
            status line, which are taken out otherwise.
        extra: further fields of each body.
        headers: further headers of each request. A repr does not show them.
        limits: what the server takes in a minute.
        price: of its tokens.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of range.
    """

    def build(self, start: RunnerStart) -> ContinuingRunner:  # noqa: ARG002 - a server needs no device
        """Make a session. The server is not asked yet: one that is away fails its requests, and not the worker.

        Raises:
            LoadFailed: the variable of the key is not set, or has what no header can carry; or the URL still has `{port}`.
            ModuleNotFoundError: the extra `openai` is not installed.
        """
        try:
            from runners.models.openai.runner import openai_runner  # noqa: PLC0415 - a tree can be declared without the extra
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error}; install trio-supervise[openai]", name=error.name) from error
        return openai_runner(self)
