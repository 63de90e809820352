"""The errors between a network runner and its server."""

import email.utils
import time

import pytest

from runners.diagnosis.network import classify_network, http_error, retry_after_seconds
from runners.errors import (
    BadRequest,
    Forbidden,
    NetworkError,
    RateLimited,
    ServerError,
    Unauthorized,
)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (401, Unauthorized),
        (403, Forbidden),
        (404, BadRequest),
        (408, NetworkError),
        (422, BadRequest),
        (425, NetworkError),
        (429, RateLimited),
        (500, ServerError),
        (502, ServerError),
        (503, ServerError),
        (504, ServerError),
        (529, ServerError),
    ],
)
def test_an_http_status_becomes_an_error(status, kind):
    """The error is typed, with the status as its code and the server's text."""
    error = http_error(status, "said so")
    assert (type(error), error.code, str(error)) == (kind, status, f"HTTP {status}: said so")
    assert str(http_error(status)) == f"HTTP {status}"


@pytest.mark.parametrize("status", [0, 200, 302])
def test_a_success_is_no_error(status):
    """Making an error of a success is refused as misuse."""
    with pytest.raises(ValueError, match=f"must be >= 400, got {status}"):
        http_error(status)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        ("0.5", 0.5),
        ("-1", None),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_may_be_in_seconds(header, seconds):
    """A header without a sensible value counts as absent."""
    assert retry_after_seconds(header) == seconds
    error = http_error(429, retry_after=header)
    assert error.retry_after == seconds


def test_retry_after_may_be_a_date():
    """A moment that has passed means now."""
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 20 < retry_after_seconds(soon) <= 31
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@pytest.mark.parametrize(
    "date",
    [
        "Mon, 99999999999999999999 Jan 2020 00:00:00 GMT",
        "1 Jan 99999999999 00:00:00 GMT",
        "1 Jan 2020 00:00:00 +99999999999999999999",
    ],
)
def test_a_date_with_a_number_that_no_date_has_is_none(date):
    """D14: The error of the server is told all the same."""
    assert retry_after_seconds(date) is None
    assert http_error(503, retry_after=date).code == 503


def test_trouble_of_the_connection_is_chained():
    """The original exception stays reachable; an exception that is no trouble of the connection stays itself."""
    lost, mine = ConnectionResetError("reset"), ValueError("mine")
    error = classify_network(lost)
    assert (type(error), error.__cause__, str(error)) == (NetworkError, lost, "ConnectionResetError: reset")
    assert classify_network(mine) is mine
    assert classify_network(ExceptionGroup("", [mine])) is mine
