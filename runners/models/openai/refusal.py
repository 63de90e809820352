"""Errors from what a server says, without its secrets. Pure.

A server may quote the key that it rejects, or the whole request. So its text gets into an error only as the message of an error
in JSON, shortened, and without anything that looks like a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, cast

from attrs import field, frozen

from runners.brief import is_a, one_line
from runners.diagnosis.network import http_error
from runners.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    Forbidden,
    InferenceError,
    ServerError,
)

MAX_BODY = 4096
"""Bytes of a refusal that are read, and characters of a message that are looked at."""

_WINDOW = 8
"""So many characters of a secret in a row are taken for it: a server may quote a part."""

_MOST = 300
_HIDDEN = "***"
_KEYS = re.compile(r"\b(?:sk|pk|key|token)-[\w.*-]{4,}|\bBearer\s+\S+", re.IGNORECASE)

_BY_CODE: dict[str, type[InferenceError]] = {
    "context_length_exceeded": ContextLengthExceeded,
    "content_filter": ContentFiltered,
    "content_policy_violation": ContentFiltered,
    "insufficient_quota": Forbidden,  # its status is that of a rate limit, but waiting does not help
}


@frozen
class Redactor:
    """Takes secrets out of a text."""

    _secrets: tuple[str, ...] = field(repr=False)

    def __call__(self, text: str) -> str:
        """The beginning of the text in one line."""
        text = text[:MAX_BODY]
        hidden = [False] * len(text)
        for secret in filter(None, self._secrets):
            width = min(_WINDOW, len(secret))
            parts = {secret[at : at + width] for at in range(len(secret) - width + 1)}
            for at in range(len(text) - width + 1):
                if text[at : at + width] in parts:
                    hidden[at : at + width] = [True] * width
        shown = "".join("\0" if hide else character for character, hide in zip(text, hidden, strict=True))
        return one_line(_KEYS.sub(_HIDDEN, re.sub("\0+", _HIDDEN, shown)), _MOST)


def refusal(status: int, body: bytes, redact: Redactor, *, retry_after: str | None = None) -> InferenceError:
    """The error for a status of 400 or more, whose body begins so."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        # An HTML page of a gateway, or a body that is longer than what was read.
        said = None
    return _error(status, _members(said), redact, retry_after)


def event_error(event: Any, redact: Redactor) -> InferenceError | None:
    """The error that an event of a stream reports; None if it reports none.

    It may have the number of an HTTP status as its code.
    """
    if is_a(event, dict):
        given = event.get("error")
        if given is None and event.get("object") != "error":
            return None
        members = _members(event)
        code = members.get("code", members.get("status"))
        status = code if type(code) is int and HTTPStatus.BAD_REQUEST <= code < 600 else None  # noqa: PLR2004 - the statuses of HTTP
        return _error(status, members, redact, None)
    return None


def _members(said: Any) -> dict[str, Any]:
    """What an error says of itself, wherever servers put it."""
    if not is_a(said, dict):
        return {}
    said = cast("dict[str, Any]", said)
    error = said.get("error", said)
    if is_a(error, str):
        return {"message": error}
    return cast("dict[str, Any]", error) if is_a(error, dict) else {}


def _error(
    status: int | None, members: dict[str, Any], redact: Redactor, retry_after: str | None
) -> InferenceError:
    text = _first_text([members.get("message"), members.get("detail")])
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        text = ""  # it is about the key, which it may quote in any form
    message = redact(text)
    for name in (members.get("code"), members.get("type")):
        kind = _BY_CODE.get(name) if isinstance(name, str) else None
        if kind is not None:
            error = kind(f"HTTP {status}: {message}" if status else message)
            error.code = status
            return error
    if status is None:
        return ServerError(f"the server reports an error: {message or 'without a text'}")
    return http_error(status, message, retry_after=retry_after)


def _first_text(values: Sequence[object]) -> str:
    return next((value for value in values if type(value) is str), "")
