"""What things cost, in counts: instructions, calls, turns of the scheduler, bytes. No seconds here.

A pin that is passed is a regression; one that lies far above is stale. Both times `python -m benchmarks.costs` shows
the numbers, and `--write` pins them anew, which is then seen in the diff.
"""

import sys

import pytest

from benchmarks import costs, streams
from benchmarks.measure import run
from benchmarks.operations import OPERATIONS

MORE, LESS = 1.05, 0.9
"""More than 5 % above a pin is a regression, more than 10 % below it the pin is stale."""
ABOUT = 1.1
"""The lines of a request differ by some turns of the scheduler, which orders runnable tasks at random."""
MANY = 300
BREATH = 1024
"""Bytes by which what an operation holds may differ; a list of `MANY` has 2,400."""


def counted(what):
    """Counted in a process of its own: pytest rewrites the asserts of this project, and coverage traces it."""
    code = f"import json; from benchmarks import costs; print(json.dumps(costs.{what}))"
    return run(sys.executable, "-c", code)


@pytest.fixture(scope="module")
def few():
    return counted("costs()")


@pytest.fixture(scope="module")
def pins():
    pinned = costs.pinned()
    if costs.PYTHON not in pinned:
        pytest.skip(f"no pins for Python {costs.PYTHON}, only for {', '.join(pinned)}")
    return pinned[costs.PYTHON]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_costs_what_is_pinned(few, pins, operation):
    """No operation has become dearer, in instructions and calls of ours, and in turns of the scheduler."""
    for what, pinned in pins[operation].items():
        counted = few[operation][what]
        assert counted <= pinned * MORE, f"{operation} takes {counted} {what}, pinned are {pinned}"
        assert counted >= pinned * LESS, (
            f"{operation} takes only {counted} {what}: pin that instead of {pinned}"
        )


def test_an_idle_child_keeps_the_bytes_that_are_pinned(few, pins):
    """An idle child has not become bigger, Trio's task and its own declaration included."""
    pinned, kept = pins[costs.IDLE]["bytes"], few[costs.IDLE]["bytes"]
    assert pinned * LESS <= kept <= pinned * MORE


@pytest.fixture(scope="module", params=["siblings", "history"])
def much(request):
    return counted(f"count({request.param}={MANY})")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_cost_of_an_operation_depends_neither_on_siblings_nor_on_the_past(few, much, operation):
    """The same instructions, calls and turns, whether there is one sibling or many, one restart before or many."""
    assert much[operation] == few[operation]


@pytest.mark.parametrize("where", ["siblings", "history"])
def test_what_an_operation_holds_depends_neither_on_siblings_nor_on_the_past(where):
    """No copy of anything that grows, not even one that C code makes."""
    few, many = counted("peaks()"), counted(f"peaks({where}={MANY})")
    grown = {name: held - few[name] for name, held in many.items()}
    assert max(grown.values()) < BREATH, grown


@pytest.fixture(scope="module")
def lines():
    """The lines of a request beside no open stream, and beside many."""
    code = (
        "import json; from benchmarks import streams as s; print(json.dumps([s.counts(0), s.counts(s.MANY)]))"
    )
    return run(sys.executable, "-c", code)


@pytest.mark.parametrize("operation", streams.COUNTS)
def test_the_cost_of_a_request_does_not_depend_on_the_open_streams(lines, operation):
    """The same lines within a tenth, beside 1,024 open streams as beside none: a worker and a session look at none of them."""
    none, many = (counted[operation] for counted in lines)
    assert none / ABOUT < many < none * ABOUT


def test_without_a_sink_no_event_is_made(few):
    """R31: Without a sink an event costs nothing: a restart makes none, and five with a sink."""
    assert few["restart"]["events"] == 0
    assert few["restart the last, rest_for_one"]["events"] == 5
