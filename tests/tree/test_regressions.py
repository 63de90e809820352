"""What the random campaign, or writing it, has shown once."""

from __future__ import annotations

import pytest
import trio

from supervise import Child, Supervisor, events, open_tree
from supervise.testing import (
    Fail,
    FaultPlan,
    Return,
    Script,
    assert_lifecycle,
    idle,
    nothing,
    run_virtual,
    simulate,
)

from .talk import Halt


def test_a_resource_that_fails_after_its_body_failed_to_stop_is_reported():
    """R23, R24: The last failure is the `StopError`, and the earlier one is its context; neither is swallowed."""
    plan = FaultPlan({"app/a": Script(stop=Fail(ValueError("body")), leave=Fail(OSError("resource")))})
    seen = []

    async def main():
        async with open_tree(
            plan.over(Supervisor("app", [Child("a", idle, resource=nothing)])), sinks=[seen.append]
        ):
            pass

    run_virtual(main, seed=0)
    (error,) = (event.exc for event in seen if isinstance(event, events.StopError))
    assert repr(error) == "OSError('resource')"
    assert repr(error.__context__) == "ValueError('body')"


def test_a_root_that_ends_by_itself_does_not_return_if_an_exception_stops_it_meanwhile():
    """R4, R18, R32: It was about to end because a significant child had ended; the exception leaves, and the events say so."""
    root = Supervisor(
        "app",
        [Child("a", idle, drain=3.0), Child("b", idle, restart="transient", significant=True)],
        auto_shutdown="any_significant",
    )
    plan = FaultPlan({"app/a": Script(body=Fail(Halt(), after=2.5)), "app/b": Script(body=Return())})
    seen = []

    async def main():
        async with open_tree(plan.over(root), sinks=[seen.append]):
            await trio.sleep_forever()

    with pytest.raises(Halt):
        run_virtual(main, seed=0)
    assert_lifecycle(seen)
    assert [type(event).__name__ for event in seen if event.path == "app"] == [
        "Starting",
        "Ready",
        "Stopping",
        "Stopped",
    ]
    assert_lifecycle(simulate(root, plan))
