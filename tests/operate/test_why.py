"""The story of a node in sentences."""

from __future__ import annotations

import re

import pytest
import trio

from supervise import (
    IGNORE,
    Backoff,
    Child,
    Decider,
    Escalate,
    Limit,
    Resume,
    Stop,
    Supervisor,
    TreeFailed,
    open_tree,
)
from supervise._trio.tree import opening
from supervise.operate.history import History
from supervise.operate.rows import Rows, waits_for
from supervise.operate.why import ago, why
from supervise.testing import run_virtual
from tests.tree.scene import Boom, Kit, Puppet, quiet


def story_of(spec, path, scene, *, kept=10_000):
    """The sentences about a node after a scene, without times of day; and the nodes for which the tree waits."""
    story, waiting = "", []

    async def main():
        nonlocal story, waiting
        history = History(kept)
        async with open_tree(spec, sinks=[history]) as tree:
            await scene(tree)
            await quiet()
            now = trio.current_time()
            rows = [row.data for row in Rows(tree).read(now=now, time=1000 + now)]
            row = next(row for row in rows if row["path"] == path)
            about = history.about(path.rpartition("/")[0] or path)
            story = why(row, [{**data, "time": 1000 + data["at"]} for data in about], time=1000 + now)
            waiting = waits_for(rows)

    try:
        run_virtual(main)
    except TreeFailed:
        pass
    return [
        re.sub(r"(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d\.\d\d\d", "T", line) for line in story.splitlines()
    ], waiting


def test_a_restart_is_explained_with_its_decision_its_group_and_its_duration():
    """R2, R13, R36: Which failure, which rule, which directive, what was stopped and started, how long it took."""
    a = Puppet("a", 0, 3)
    spec = Supervisor(
        "app",
        [a.spec, Puppet("b").spec, Supervisor("s", [Puppet("c").spec]), Child("other", trio.sleep_forever)],
        strategy="one_for_all",
        limit=Limit(3, within=60),
    )

    async def scene(tree):
        await trio.sleep(10)
        a.fail()
        await trio.sleep(4)

    story, waiting = story_of(spec, "app/a", scene)
    assert story == [
        "app/a is up, since T (1.0 s), incarnation 2.",
        "At T incarnation 1 failed: Boom: a.",
        "The decision: Restart, decided by 'app' (built-in rule).",
        "With it were stopped, in this order: app/other, app/s, app/s/c, app/b.",
        "It was ready again at T, 3.0 s after the failure.",
        "Since the tree opened it failed once and was started again once.",
    ]
    assert waiting == []


def test_what_was_started_before_it_was_ready_is_named():
    """R13: Under rest_for_one the failed child starts first; under one_for_all those before it start before it."""
    b = Puppet("b")
    spec = Supervisor("app", [Puppet("a").spec, b.spec], strategy="one_for_all")

    async def scene(tree):
        b.fail()

    story, _ = story_of(spec, "app/b", scene)
    assert "With it were stopped, in this order: app/a." in story
    assert "Of these were started again, in this order: app/a." in story
    assert "Its limit" not in " ".join(story)


def test_a_resume_a_backoff_and_a_condemned_child_say_so():
    """R8, R10, R15: Each with its state, and with the end of its backoff."""
    keeps = Puppet("keeps", resource=Kit())
    slow = Puppet("slow", backoff=Backoff(initial=30, jitter=0), limit=Limit(5, within=9))
    gone = Puppet("gone")
    table = {"keep": Resume, "gone": Stop}
    spec = Supervisor("app", [keeps.spec, slow.spec, gone.spec], decider=Decider(table))

    class Tagged(Exception):
        def __init__(self, tag):
            self.tag = tag

    async def scene(tree):
        keeps.fail(Tagged("keep"))
        slow.fail()
        gone.fail(Tagged("gone"))

    assert (
        story_of(spec, "app/keeps", scene)[0][2]
        == "The decision: Resume for 'keep', decided by 'app' (tag 'keep')."
    )
    story, waiting = story_of(spec, "app/slow", scene)
    assert (
        story[0] == "app/slow waits for its next start, since T (0 ms), incarnation 1; it starts in 30.0 s."
    )
    assert "Its limit of 5 within 9 s counts 1 of 5 now." in story
    story, waiting = story_of(spec, "app/gone", scene)
    assert story[0].startswith("app/gone is down: a decision has stopped it")
    assert waiting == [
        {"path": "app/gone", "state": "condemned", "why": "a decision has stopped it, and it stays down"}
    ]


def test_a_decision_from_above_names_what_it_applies_to():
    """R11: The leaf's story has the verdict of the root, and what fell with it."""
    leaf = Puppet("leaf")
    inner = Supervisor("in", [leaf.spec, Puppet("x").spec], decider=Decider({Boom: Escalate}))
    spec = Supervisor("app", [inner, Puppet("y").spec])

    async def scene(tree):
        await trio.sleep(1)
        leaf.fail()

    story, _ = story_of(spec, "app/in/leaf", scene)
    assert "it applies to 'app/in'" in story[2]
    assert "With it were stopped, in this order: app/in/x." in story


def test_a_node_that_never_failed_says_what_it_was_asked():
    """R25: The last request with its reason; or that it has not failed."""
    a = Puppet("a")

    async def scene(tree):
        await tree["app/a"].stop(reason="ann: too loud")

    story, _ = story_of(Supervisor("app", [a.spec]), "app/a", scene)
    assert story == [
        "app/a is down, since T (0 ms), incarnation 1.",
        "At T it is being stopped: 'app/a' was asked to stop: ann: too loud.",
        "It has not failed since the tree opened.",
    ]


def test_what_is_no_longer_kept_is_known_from_the_status():
    """R33: The last decision outlives its event."""
    a = Puppet("a")

    async def scene(tree):
        a.fail()
        await quiet()
        await tree["app/b"].restart()

    story, _ = story_of(Supervisor("app", [a.spec, Puppet("b").spec]), "app/a", scene, kept=2)
    assert story[1:3] == [
        "At T it failed: Boom: a.",
        "The decision: Restart, by 'app'. Its events are no longer kept.",
    ]


@pytest.mark.parametrize(("script", "required", "expected"), [
    ([0], (), []),
    ([5], (), ["app", "app/a"]),
    ([IGNORE], (), []),
    ([IGNORE], ("app/a",), ["app/a"]),
    ([0], ("app/z",), ["app/z"]),
])  # fmt: skip
def test_a_tree_is_ready_while_no_first_start_is_under_way(script, required, expected):
    """R17: A child that declined to start is not waited for, unless it is required."""
    waiting = []

    async def look(tree):
        await trio.sleep(1)
        waiting.extend(
            row["path"] for row in waits_for([row.data for row in Rows(tree).read(now=0, time=0)], required)
        )

    async def main():
        async with trio.open_nursery() as nursery:
            spec = Supervisor("app", [Puppet("first").spec, Puppet("a", *script).spec])
            async with opening(spec, [], lambda tree: nursery.start_soon(look, tree)):
                await trio.sleep(6)

    run_virtual(main)
    assert waiting == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 ms"),
        (0.35, "350 ms"),
        (12.34, "12.3 s"),
        (119, "119.0 s"),
        (120, "2 minutes"),
        (7_200, "2 hours"),
        (864_000, "10 days"),
    ],
)
def test_a_duration_is_short(seconds, expected):
    """For a person."""
    assert ago(seconds) == expected
