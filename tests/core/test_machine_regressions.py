"""What the exploration of every state has found in the machine."""

import pytest

from supervise import Child, Limit, Supervisor, events
from supervise.testing import assert_lifecycle
from tests.explore.world import POLICY, World, hold, work


def tree(**options):
    """Two leaves that own something."""
    children = [Child(name, work, resource=hold, **options) for name in "ab"]
    return Supervisor("app", children, decider=POLICY, limit=Limit(3, within=60))


def up(spec):
    """Both are up."""
    return World(spec).play(("boot", "app", "up"), ("up", "app/a"), ("up", "app/b"))


def test_a_stop_waits_for_a_child_that_was_being_stopped_by_hand():
    """Each child has really ended before the next is stopped, whatever stopped it (R12)."""
    world = up(tree()).play(("request", "app", "stop", "a"), ("stop",))
    assert modes(world) == {"app": "running", "app/a": "stopping", "app/b": "up"}
    assert modes(world.play(("end", "app/a"))) == {"app": "running", "app/b": "stopping"}


def test_a_stop_waits_for_a_start_that_was_too_late():
    """So it is with one that was cancelled because it hung in its start (R12, R17)."""
    world = up(tree(start_timeout=4)).play(("fail", "app/a", "restart"), ("end", "app/a"))
    world.play(*wakes(world, "stopping"), ("stop",))
    assert modes(world) == {"app": "running", "app/a": "stopping", "app/b": "up"}


def test_a_start_cannot_be_too_late_once_its_supervisor_stops():
    """It is stopped in its turn, and not by its timeout while another is being stopped (R12)."""
    world = up(tree(start_timeout=1)).play(("fail", "app/a", "restart"), ("end", "app/a"), ("stop",))
    assert modes(world) == {"app": "running", "app/a": "starting", "app/b": "stopping"}
    world.play(*wakes(world, "never"))
    assert modes(world) == {"app": "running", "app/a": "starting", "app/b": "stopping"}


def test_a_failure_that_crosses_with_a_stop_may_be_followed_by_overdue_and_another():
    """The body's failure, an `Overdue` of the resource, and the error that the resource raises are all reported (R24, R32)."""
    life = {"path": "app/a", "incarnation": 1}
    assert_lifecycle(
        [
            events.Starting(at=0, **life),
            events.Ready(at=0, **life, value=None),
            events.Stopping(at=1, **life, reason="a stop"),
            events.StopError(at=1, **life, exc=ValueError()),
            events.Overdue(at=6, **life, seconds=5),
            events.StopError(at=7, **life, exc=OSError()),
            events.Stopped(at=7, **life),
        ]
    )


@pytest.mark.parametrize(("order", "left"), [("restart", {"app/s": "opening"}), ("stop", {})])
def test_a_supervisor_that_is_started_and_stopped_in_one_step_has_ended_in_it(order, left):
    """A `start` waits at a supervisor that boots, and an order to end it waits above; both are served once it is up (R19, R25)."""
    inner = Supervisor("s", [Supervisor("t", []), Child("u", work)])
    world = World(Supervisor("app", [inner], decider=POLICY)).play(
        ("boot", "app", "up"), ("boot", "app/s", "up")
    )
    world.play(
        ("boot", "app/s/t", "ignored"), ("request", "app/s", "start", "t"), ("request", "app", order, "s")
    )
    world.play(("ignore", "app/s/u"))
    assert world.lives["app/s/t"] == 2
    assert modes(world) == {"app": "running", **left}


def modes(world):
    """What each task is doing."""
    return {path: task.mode for path, task in world.tasks.items()}


def wakes(world, mode):
    """The clock goes on, at most three times, until a leaf is in this mode."""
    for _ in range(3):
        if mode not in modes(world).values() and any(world.timers()):
            world.play(("wake", "app"))
    return ()
