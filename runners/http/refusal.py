"""Errors as OpenAI's API has them: a status, and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from supervise import SuperviseError

from ..brief import attribute, text_of
from ..diagnosis.network import pause_of
from ..errors import (
    Backpressure,
    BadRequest,
    CircuitOpen,
    ContentFiltered,
    ContextLengthExceeded,
    ContextLost,
    DeviceError,
    Forbidden,
    InferenceError,
    NetworkError,
    PoisonRequest,
    RateLimited,
    RunnerError,
    Timeout,
    Unauthorized,
    WorkerDown,
    WorkerStopping,
)

INVALID = "invalid_request_error"
_LIMIT = "rate_limit_error"
_SERVER = "server_error"

_TABLE: dict[type[Exception], tuple[int, str, str | None]] = {
    BadRequest: (400, INVALID, None),
    ContextLengthExceeded: (400, INVALID, "context_length_exceeded"),
    ContentFiltered: (400, INVALID, "content_filter"),
    Backpressure: (429, _LIMIT, "rate_limit_exceeded"),
    RateLimited: (429, _LIMIT, "rate_limit_exceeded"),
    RunnerError: (500, _SERVER, "runner_error"),
    PoisonRequest: (500, _SERVER, "poison_request"),
    NetworkError: (502, _SERVER, "upstream_error"),
    Unauthorized: (502, _SERVER, "upstream_error"),
    Forbidden: (502, _SERVER, "upstream_error"),
    WorkerDown: (503, _SERVER, "worker_down"),
    WorkerStopping: (503, _SERVER, "worker_stopping"),
    ContextLost: (503, _SERVER, "context_lost"),
    DeviceError: (503, _SERVER, "device_error"),
    CircuitOpen: (503, _SERVER, "upstream_unavailable"),
    Timeout: (504, _SERVER, "timeout"),
    InferenceError: (500, _SERVER, None),
    SuperviseError: (503, _SERVER, "worker_down"),
}
"""The status, type and code of each error; a class that is not here has those of its nearest base class."""

_RETRY_AFTER = {429: 1, 503: 5}
"""Seconds after which a client may send a request again: a place in a queue is free sooner than a worker is up."""


class Refusal(Exception):
    """A request that is answered with an error instead of a result.

    Args:
        status: the HTTP status.
        message: for a person.
        kind: the `type` in the answer.
        param: the field of the request that is wrong; None if no single field is.
        code: for a program; None if the status is enough.
        headers: of the answer, besides those of its content.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers

    def content(self) -> dict[str, Any]:
        """The body of the answer, and the last event of a stream that has begun."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        """The whole answer."""
        return json_response(self.content(), status=self.status, headers=self.headers)


def as_json(content: object) -> bytes:
    """A value as JSON in ASCII, so that a lone surrogate in a client's text, which UTF-8 cannot encode, can be quoted."""
    return json.dumps(content, separators=(",", ":")).encode("ascii")


def json_response(
    content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer of JSON."""
    return Response(as_json(content), status_code=status, headers=headers, media_type="application/json")


def refusal_of(error: Exception) -> Refusal:
    """The answer to a request that ended with this error of a worker."""
    status, kind, code = next(_TABLE[base] for base in type(error).__mro__ if base in _TABLE)
    headers: dict[str, str] = {}
    if status in _RETRY_AFTER:
        headers["retry-after"] = str(_seconds(error) or _RETRY_AFTER[status])
    elif isinstance(error, InferenceError) and attribute(error, "is_retryable") is not True:
        # OpenAI's clients send a request with a status of 500 or more again, unless this header forbids it: one that has
        # killed two contexts must not come back at once.
        headers["x-should-retry"] = "false"
    return Refusal(status, text_of(error), kind=kind, code=code, headers=headers)


def _seconds(error: Exception) -> int | None:
    """The time that a server behind the runner asked for, in whole seconds as HTTP has them; None if it asked for none."""
    after = pause_of(error)
    return None if after is None else math.ceil(after)


async def answer_refusal(_: Request, error: Exception) -> Response:
    """Starlette's handler for an error of the request or of its worker."""
    return (error if isinstance(error, Refusal) else refusal_of(error)).response()


async def answer_http(request: Request, error: Exception) -> Response:
    """Starlette's handler for its own errors, such as a path without a route."""
    assert isinstance(error, HTTPException)
    asked = _asked(request)
    message = f"unknown URL: {asked}" if error.status_code == 404 else f"{error.detail}: {asked}"  # noqa: PLR2004 - the number is HTTP's name for it
    return Refusal(error.status_code, message, headers=error.headers).response()


async def answer_bug(request: Request, _: Exception) -> Response:
    """Starlette's handler for any other exception: it is in this program, and the server logs it."""
    message = f"internal error while answering {_asked(request)}"
    return Refusal(500, message, kind=_SERVER, headers={"x-should-retry": "false"}).response()


def _asked(request: Request) -> str:
    """Its method and its path. Not `request.url`, which fails for a query of bytes that are no UTF-8."""
    return f"{request.method} {request.scope['path']}"
