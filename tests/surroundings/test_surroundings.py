"""Device workers in hostile surroundings: one of each kind here, all of them with `python -m tests.surroundings`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from .__main__ import tried
from .cases import CASES
from .driver import Outcome

SHORT = {
    "SIGCHLD is ignored": "fork",
    "SIGTERM is ignored": "spawn",
    "all signals are blocked": "standby",
    "64 descriptors": "standby",
    "16 descriptors": "fork",
    "1 GiB of addresses": "fork",
    "no more processes": "standby",
    "closed stdin and stdout and stderr": "standby",
    "standard streams that are closed in the middle of a run": "spawn",
    "its folder is deleted": "fork",
    "a path with a colon": "spawn",
    "a path that is not UTF-8": "standby",
    "site-packages that shadow the standard library": "fork",
    "python -c": "spawn",
    "python -I": "standby",
    "python -X dev": "fork",
    "zipapp": "spawn",
    "sys.frozen": "fork",
    "process 1": "standby",
    "a subreaper": "fork",
    "guest of asyncio": "standby",
    "in a thread": "spawn",
    "stopped and continued, all of it, the parent first": "spawn",
    "socket.setdefaulttimeout": "fork",
    "an empty environment": "standby",
}


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, Future[Outcome]]]:
    """All of them, two at a time."""
    with ProcessPoolExecutor(2) as pool:
        yield {name: pool.submit(tried, name, host) for name, host in SHORT.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_stream_survives_its_surroundings_or_is_refused_in_one_line(name, outcomes):
    """D10: Whatever surrounds the program, its stream is whole after a SIGKILL of the context, and nothing is left behind."""
    outcome = outcomes[name].result(timeout=900)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert not outcome.trouble


def test_each_named_surrounding_exists():
    """A misspelt name would never be tried."""
    assert {case.name for case in CASES} >= SHORT.keys()
