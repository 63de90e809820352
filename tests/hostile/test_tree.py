"""Whatever an object does when it is looked at, a tree does with it what it does with a plain one (R4–R6, R23, R24, R31)."""

from __future__ import annotations

import io
import logging
import traceback

import pytest
import trio

from supervise import StartFailed, TreeFailed, events, open_tree
from supervise._core._brief import brief
from supervise.sinks.lines import LineSink
from supervise.sinks.log import LoggingSink
from supervise.testing import assert_lifecycle, run_virtual
from supervise.testing.story import transcript

from .programs import RAISED, RETURNED
from .values import ALL, BAD, EXCEPTIONS, JUDGED_OTHERWISE

QUICK = {
    "repr raises",
    "both raise",
    "repr leaves",
    "is false",
    "bool raises",
    "class raises",
    "deep group",
    "huge",
    "tag raises",
}
KINDS = [kind for kind in EXCEPTIONS if ALL or kind in QUICK]


def lived(spec):
    """What happened in the tree, as kinds of events by path, and what left it."""
    seen = []
    logger = logging.Logger("hostile")  # noqa: LOG001 - of this run alone
    logger.addHandler(logging.StreamHandler(io.StringIO()))

    async def main():
        with trio.move_on_after(30):
            async with open_tree(
                spec, sinks=[seen.append, LoggingSink(logger), LineSink(io.StringIO())]
            ) as tree:
                await trio.sleep(10)
                repr(tree.status())
                await trio.sleep_forever()

    left = escaped = None
    try:
        run_virtual(main, seed=0)
    except (StartFailed, TreeFailed) as exc:
        left = type(exc).__name__
        str(exc), repr(exc)
    except BaseException as exc:  # not let out: what runs tests would look at it
        escaped = f"{brief(exc)}\n{where(exc)}"
    if escaped is not None:
        pytest.fail(escaped, pytrace=False)
    assert_lifecycle(seen)
    assert isinstance(transcript(seen), str)
    assert not [event for event in seen if isinstance(event, events.SinkFailed)]
    paths = sorted({event.path for event in seen})
    return {path: [type(event).__name__ for event in seen if event.path == path] for path in paths}, left


def where(exc):
    return "".join(traceback.StackSummary.extract(traceback.walk_tb(exc.__traceback__)).format())


def plain():
    return ValueError("plain")


@pytest.mark.parametrize("program", RAISED, ids=lambda program: program.__name__)
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] * kind.startswith("deep")) for kind in KINDS],
)
def test_a_hostile_exception_is_treated_as_a_plain_one(program, kind):
    """R4, R24: The events are those of a plain exception, in the same order, and nothing hangs."""
    happened = lived(program(EXCEPTIONS[kind]))
    if kind not in JUDGED_OTHERWISE:
        assert happened == lived(program(plain))


@pytest.mark.parametrize("program", RETURNED, ids=lambda program: program.__name__)
@pytest.mark.parametrize("kind", BAD)
def test_a_hostile_value_is_passed_on_unchanged(program, kind):
    """R17, R28, R29: The tree passes it on as it is, and calls none of its methods."""
    assert lived(program(BAD[kind])) == lived(program(object))
