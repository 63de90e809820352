"""What the random campaign, or writing it, has shown once."""

from __future__ import annotations

from supervise import Child, Supervisor, events, open_tree
from supervise.testing import Fail, FaultPlan, Script, idle, nothing, run_virtual


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
