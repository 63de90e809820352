"""The breaker of a worker by itself: what counts, when, and what is logged. `tests/servers` plays it in a worker (D14)."""

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners import InlineHost, device_worker
from runners.diagnosis.network import concerns_server, http_error
from runners.errors import (
    BadRequest,
    CircuitOpen,
    ContextLost,
    NetworkError,
    RateLimited,
    ServerError,
    Timeout,
    Unauthorized,
)
from runners.models.scripted import Scripted
from runners.worker import Breaker
from runners.worker.breaker import Circuit
from runners.worker.group import Group


def circuit(**policy):
    changes = []
    return Circuit(Breaker(**policy), changes.append), changes


def opened(made, at=0.0):
    """The circuit, after as many failures as it needs."""
    for _ in range(made.policy.failures):
        assert made.refuses(at) is None
        made.begin().failed(at)
    assert made.state == "open"
    return made


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (NetworkError("reset"), True),
        (ServerError("down"), True),
        (http_error(503), True),
        (http_error(408), False),
        (http_error(425), False),
        (http_error(429), False),
        (RateLimited("slow down"), False),
        (CircuitOpen("another worker's"), False),
        (http_error(400), False),
        (http_error(401), False),
        (BadRequest("x"), False),
        (Unauthorized("x"), False),
        (Timeout("x"), False),
        (ContextLost("x", incarnation=1, delivered=0), False),
    ],
)
def test_only_what_tells_of_the_server_is_a_failure(error, counts):
    """D14: Not an error of the request, of its caller, or of the context."""
    assert concerns_server(error) is counts


def test_failures_in_a_row_open_it_and_a_success_begins_a_new_row():
    """D14: What ended in another way is neither."""
    made, changes = circuit(failures=3)
    for end in ("failed", "failed", "withdraw", "succeeded", "failed", "withdraw", "failed"):
        ticket = made.begin()
        getattr(ticket, end)(*([5.0] if end == "failed" else []))
    assert (made.state, changes) == ("closed", [])
    made.begin().failed(5.0)
    assert (made.state, changes) == ("open", ["open"])


def test_it_opens_for_its_time_and_tells_how_long_that_still_is():
    """D14: Then it is half-open, with the next request."""
    made, changes = circuit(failures=1, open_for=30)
    opened(made, at=100.0)
    refused = made.refuses(110.0)
    assert (type(refused), refused.retry_after) == (CircuitOpen, 20.0)
    assert str(refused) == "the server has failed too often, it is tried again in 20 s"
    assert made.refuses(130.0) is None
    assert changes == ["open", "half-open"]


@pytest.mark.parametrize("probes", [1, 3])
def test_no_more_than_its_probes_try_the_server(probes):
    """D14: One that ends in another way makes room; the first chunk of one lets all begin."""
    made, _ = circuit(failures=1, open_for=30, probes=probes)
    opened(made)
    assert made.refuses(30.0) is None
    tickets = [made.begin() for _ in range(probes)]
    refused = made.refuses(31.0)
    assert refused.retry_after is None
    tickets[0].withdraw()
    tickets[0].withdraw()
    assert made.refuses(31.0) is None
    again = made.begin()
    assert made.refuses(31.0) is not None
    again.gave()
    assert made.state == "closed"
    assert made.refuses(31.0) is None


def test_a_probe_that_fails_opens_it_for_the_whole_time_again():
    """D14: From now, not from the first time."""
    made, changes = circuit(failures=4, open_for=30)
    opened(made)
    assert made.refuses(35.0) is None
    made.begin().failed(37.0)
    assert made.refuses(66.0).retry_after == 1.0
    assert made.refuses(67.0) is None
    assert changes == ["open", "half-open", "open", "half-open"]


@pytest.mark.parametrize("end", ["gave", "succeeded", "failed", "withdraw"])
def test_a_request_of_an_earlier_state_counts_for_nothing(end):
    """D14: It tells of the server as it was: a late failure neither opens it longer nor again, a late success closes nothing."""
    made, changes = circuit(failures=2, open_for=30)
    late = [made.begin() for _ in range(9)]
    opened(made)
    for ticket in late[:4]:
        getattr(ticket, end)(*([20.0] if end == "failed" else []))
    assert made.refuses(30.0) is None  # half-open, and no longer than it was said
    probe = made.begin()
    for ticket in late[4:]:
        getattr(ticket, end)(*([31.0] if end == "failed" else []))
    assert (made.state, made.probes) == ("half-open", 1)
    probe.gave()
    assert (made.state, made.failures, changes) == ("closed", 0, ["open", "half-open", "closed"])
    probe.failed(40.0)  # the same request, which is of the present state since its first chunk
    assert (made.state, made.failures) == ("closed", 1)


@given(st.lists(st.sampled_from(["gave", "succeeded", "failed", "withdraw"]), min_size=1, max_size=6))
def test_the_end_of_a_request_counts_once(ends):
    """D14: Whatever follows it; so a context that closes all of its streams does no harm."""
    made, _ = circuit(failures=2, open_for=30)
    ticket = made.begin()
    for end in ends:
        getattr(ticket, end)(*([0.0] if end == "failed" else []))
    assert made.failures <= 1
    assert made.state == "closed"
    opened(made, 0.0) if not made.failures else made.begin().failed(0.0)
    assert made.refuses(30.0) is None
    probe = made.begin()
    probe.withdraw()
    assert made.probes == 0


def test_each_change_is_one_record(caplog):
    """D14: A warning when it opens."""
    caplog.set_level(logging.INFO, logger="runners.worker")
    group = Group()
    group.protect_server(Breaker(failures=1, open_for=30, probes=2), "app/api")
    made = group.circuit
    opened(made)
    assert made.refuses(1.0) is not None
    assert made.refuses(30.0) is None
    made.begin().succeeded()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "[app/api] breaker is open: the server has failed too often, no request begins for 30 s",
        ),
        ("INFO", "[app/api] breaker is half-open: the server is tried again with 2 at once"),
        ("INFO", "[app/api] breaker is closed: the server works again"),
    ]
    group.protect_server(Breaker(failures=1, open_for=30, probes=2), "app/api")
    assert group.circuit is made  # another context of the same worker
    group.protect_server(Breaker(), "app/api")
    assert group.circuit is not made
    group.protect_server(None, "app/api")
    assert group.circuit is None


def test_a_log_that_fails_harms_no_worker(monkeypatch, capsys):
    """R31: Its traceback is printed."""
    group = Group()
    group.protect_server(Breaker(failures=1), "app/api")

    def broken(*_):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(logging.getLogger("runners.worker"), "log", broken)
    opened(group.circuit)
    assert "the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"failures": 0}, ValueError, "failures must be >= 1, got 0"),
        ({"failures": 1.5}, TypeError, "failures must be an integer, got 1.5"),
        ({"open_for": 0}, ValueError, "open_for must be a finite number > 0, got 0"),
        ({"open_for": float("inf")}, ValueError, "open_for must be a finite number > 0, got inf"),
        ({"probes": 0}, ValueError, "probes must be >= 1, got 0"),
    ],
)
def test_a_breaker_refuses_what_makes_no_sense(options, kind, says):
    """D14: When it is declared."""
    with pytest.raises(kind, match=re.escape(says)):
        Breaker(**options)


def test_a_worker_refuses_what_is_no_breaker():
    """D14: When it is declared."""
    with pytest.raises(TypeError, match="device worker 'api': breaker must be a Breaker or None, got 3"):
        device_worker("api", Scripted(3), host=InlineHost(), breaker=3)
