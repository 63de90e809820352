"""The errors between a network runner and its server, as `InferenceError`s. They are never judged by a text."""

from __future__ import annotations

import email.utils
import math
import time
from http import HTTPStatus

import trio

from ..brief import attribute, is_a, quoted
from ..errors import (
    BadRequest,
    CircuitOpen,
    Forbidden,
    InferenceError,
    NetworkError,
    NetworkTimeout,
    RateLimited,
    ServerError,
    Unauthorized,
)
from .classify import worst

_LOST: tuple[type[Exception], ...] = (OSError, EOFError, trio.BrokenResourceError, trio.TooSlowError)
"""The exceptions of the operating system and of Trio for a server that is slow, has gone, or cannot be reached."""
_LATE: tuple[type[Exception], ...] = (TimeoutError, trio.TooSlowError)
"""Those of them for a server that is slow."""
_LONGEST_PAUSE = 86_400
"""Seconds; what a server says beyond a day, or not in seconds, is ignored."""


def classify_network(error: Exception) -> Exception:
    """Judge an exception of an async runner: an error of the connection becomes a `NetworkError`, others are returned as they are.

    Of the members of a group the one with the most severe directive is returned, the first one if there are several.
    """
    if is_a(error, ExceptionGroup):
        return worst(error, classify_network)
    if not is_a(error, *_LOST):
        return error
    lost = (NetworkTimeout if is_a(error, *_LATE) else NetworkError)(quoted(error))
    lost.__cause__ = error
    return lost


def concerns_server(error: Exception) -> bool:
    """Whether an error is a failure of the server, and not of one request."""
    code = attribute(error, "code")
    of_request = type(code) is int and code < HTTPStatus.INTERNAL_SERVER_ERROR
    return is_a(error, NetworkError) and not is_a(error, RateLimited, CircuitOpen) and not of_request


def pause_of(error: Exception) -> float | None:
    """The seconds after which its server accepts a request again, as the error says; None if it says none, or nonsense."""
    if not is_a(error, RateLimited, CircuitOpen):
        return None
    seconds = attribute(error, "retry_after")
    return float(seconds) if type(seconds) in (int, float) and 0 < seconds < _LONGEST_PAUSE else None


def http_error(status: int, message: str = "", *, retry_after: str | None = None) -> InferenceError:
    """The error for an HTTP status, which becomes its `code`.

    Args:
        status: 400 or more.
        message: the text of the response.
        retry_after: the value of the header `Retry-After`: seconds, or a date.

    Raises:
        ValueError: `status` is below 400.
    """
    if status < HTTPStatus.BAD_REQUEST:
        raise ValueError(f"an error's status must be >= 400, got {status}")
    text = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    error = _of_status(status, text, retry_after)
    error.code = status
    return error


def _of_status(status: int, text: str, retry_after: str | None) -> InferenceError:
    match status:
        case 401:
            return Unauthorized(text)
        case 403:
            return Forbidden(text)
        case 429:
            return RateLimited(text, retry_after=retry_after_seconds(retry_after))
        case 408 | 425:
            return NetworkError(text)
        case _:
            return BadRequest(text) if status < HTTPStatus.INTERNAL_SERVER_ERROR else ServerError(text)


def retry_after_seconds(header: str | None) -> float | None:
    """The seconds from now in a `Retry-After` header, which has seconds or a date; None if it has neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        return _until(header)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _until(date: str) -> float | None:
    try:
        when = email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):  # the latter of a number that no date has
        return None
    return max(0.0, when - time.time())
