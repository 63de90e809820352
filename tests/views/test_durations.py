"""Tables of a timeline: how long a start took, and each recovery."""

import pytest
import trio

from supervise import IGNORE, Child, Supervisor, current_child, errors, open_tree
from supervise.sinks.data import as_data
from supervise.testing import run_virtual
from supervise.views.durations import recovery, starts, startup
from supervise.views.timeline import Lane, Segment, Timeline, timelines


def starting(seconds, value=None, *, fails=False):
    async def body(task_status):
        await trio.sleep(seconds)
        if fails:
            raise ConnectionError("gone")
        task_status.started(value)
        await trio.sleep_forever()

    return body


async def ignored(task_status):
    await trio.sleep(0.5)
    return IGNORE


def run(tree, *, until=1.0, add=None):
    """The timeline of a run that is left so long after its start."""
    seen = []

    async def main():
        with trio.move_on_after(60):
            async with open_tree(tree, sinks=[seen.append]) as t:
                if add is not None:
                    await t[tree].add(add)
                await trio.sleep(until)

    try:
        run_virtual(main, seed=1)
    except errors.SuperviseError:
        pass
    [found] = timelines(as_data(event, number=n, time=event.at) for n, event in enumerate(seen, 1))
    return found


def test_the_parts_of_a_start():
    """A supervisor waits for its children, and its own part is the rest; a node that is added later is not among them."""
    inner = Supervisor(
        "inner", [Child("slow", starting(2)), Child("off", ignored), Child("quick", starting(0.25))]
    )
    rows = starts(
        run(Supervisor("app", [inner, Child("last", starting(1.25))]), add=Child("late", starting(1)))
    )
    assert [(row.path, row.at, row.took, row.own, row.outcome) for row in rows] == [
        ("app", 0, 4, 0, "ready"),
        ("app/inner", 0, 2.75, 0, "ready"),
        ("app/inner/slow", 0, 2, 2, "ready"),
        ("app/inner/off", 2, 0.5, 0.5, "not needed"),
        ("app/inner/quick", 2.5, 0.25, 0.25, "ready"),
        ("app/last", 2.75, 1.25, 1.25, "ready"),
    ]


def test_a_start_that_fails():
    """The table names the node that failed, and what became of the others."""
    shown = startup(
        run(
            Supervisor(
                "app", [Child("a", starting(1)), Child("b", starting(2, fails=True)), Child("c", starting(1))]
            )
        )
    )
    assert shown.splitlines()[0] == "app did not become ready in 3.000 s"
    assert "app/c" not in shown
    assert [line.split()[-1] for line in shown.splitlines() if "failed" in line] == ["failed", "failed"]


async def after_a(task_status):
    await current_child().tree["app/a"].ready()
    task_status.started()
    await trio.sleep_forever()


def test_a_start_that_waits_for_another_node():
    """The report of the overdue start names that node; a start that is stopped is no start that is ready."""
    app = Supervisor(
        "app", [Child("b", after_a, start_warning=5.0, start_timeout=20.0), Child("a", starting(1))]
    )
    shown = startup(run(app)).splitlines()
    assert shown[0] == "app did not become ready in 20.000 s"
    assert shown[-1].endswith("failed; waited for app/a")
    tree = Supervisor("app", [Child("a", starting(1)), Child("b", starting(500), start_warning=5.0)])
    assert [row.outcome for row in starts(run(tree))] == ["stopped", "ready", "stopped"]


def test_a_start_that_is_not_over():
    """It took until the last event."""
    lanes = [
        Lane("app", (Segment("starting", 0.0, 9.0, 1),)),
        Lane("app/a", (Segment("starting", 1.0, 9.0, 1),)),
    ]
    shown = startup(Timeline(0.0, 9.0, True, tuple(lanes))).splitlines()
    assert shown[0] == "app is not ready after 9.000 s"
    assert shown[-1].split()[-4:] == ["+8.000", "s", "89%", "starting"]


def test_of_many_nodes_those_that_took_long():
    """With the ones above them, and a line about the others."""
    groups = [
        Supervisor(f"g{g}", [Child(f"n{n}", starting(5 if (g, n) == (7, 3) else 0.125)) for n in range(9)])
        for g in range(10)
    ]
    whole = run(Supervisor("app", groups))
    shown = startup(whole, most=5).splitlines()
    assert [line.split("@")[0].split()[-1] for line in shown[3:8]] == ["app", "g0", "n0", "g7", "n3"]
    assert shown[-1] == "96 more nodes took 11.000 s together; --all shows them"
    assert "more nodes" not in startup(whole)


def test_a_start_that_is_not_among_the_events():
    """As after the file of that time was deleted."""
    whole = run(Supervisor("app", [Child("a", starting(1))]))
    late = [lane for lane in whole.lanes if lane.path == "app/a"]
    for segments in ((), (Segment("up", 0.0, 9.0, 1),), (Segment("starting", 0.0, 9.0, 2),)):
        rest = Timeline(0.0, 9.0, False, (Lane("app", segments), *late))
        assert startup(rest) == "the start of app is not among these events\n"
        assert starts(rest) == []


@pytest.mark.parametrize(("until", "last"), [(0.5, "no failures"), (1.5, "1 failure, none recovered"), (4.0, "1 failure, 1 recovered; until ready again: median 2.000 s, longest 2.000 s")])  # fmt: skip
def test_recoveries(until, last):
    """The last line counts them."""
    starts_left = iter([0.25, 2.0])

    async def once(task_status):
        wait = next(starts_left)
        await trio.sleep(wait)
        task_status.started()
        await trio.sleep(1 if wait < 1 else 100)
        raise ConnectionError("gone")

    assert recovery(run(Supervisor("app", [Child("a", once)]), until=until)).splitlines()[-1] == last
