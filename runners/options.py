"""The options of the HTTP front, and their checks: a tree with a front is declared where the extra `http` may be missing."""

from __future__ import annotations

from typing import Any

from .brief import brief
from .checks import is_float

MAX_BODY = 2 * 2**20
"""Bytes."""
TIMEOUT = 600.0
"""Seconds."""
MAX_TOKENS = 1024


def check_options(*, token: object, max_body: object, timeout: Any, max_tokens: object) -> None:
    """Refuse what `openai_app` cannot use.

    Raises:
        ValueError: an argument is none of the values that are allowed.
    """
    _check_token(token)
    if type(max_body) is not int or max_body < 1:
        raise ValueError(f"max_body must be 1 byte or more, got {brief(max_body)}")
    if timeout is not None and not (is_float(timeout) and timeout > 0):
        raise ValueError(f"timeout must be > 0 seconds or None, got {brief(timeout)}")
    if type(max_tokens) is not int or max_tokens < 1:
        raise ValueError(f"max_tokens must be 1 or more, got {brief(max_tokens)}")


def _check_token(token: object) -> None:
    """Refuse a token that no header can carry, or that everybody has. The message does not quote it."""
    if token is not None and not (
        isinstance(token, str) and token.isascii() and token.isprintable() and token and " " not in token
    ):
        raise ValueError("token must be None, or some printable ASCII characters without spaces")
