"""Random trees adopt random declarations, at rest and among failures (R38)."""

from __future__ import annotations

import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import (
    Backoff,
    Decider,
    Escalate,
    Limit,
    Pool,
    Refused,
    Restart,
    Resume,
    Stop,
    Supervisor,
    TreeFailed,
    open_tree,
)
from supervise._core.spec import walk
from supervise.testing import assert_lifecycle, run_virtual

from .scene import Boom, Kit, Seen, quiet
from .test_adopting import STRATEGIES, leaf


@st.composite
def declarations(draw, depth=2, restarts=("permanent", "transient")):
    """A small tree of leaves with few names and versions, so that two of them have much in common."""

    def grown(name, depth):
        children = []
        for letter in draw(st.permutations("abcd"))[: draw(st.integers(0, 3))]:
            kind = draw(st.sampled_from(["leaf", "leaf", "supervisor", "pool"])) if depth else "leaf"
            if kind == "supervisor":
                children.append(grown(letter, depth - 1))
            elif kind == "pool":
                children.append(Pool(letter, leaf("m", draw(st.integers(0, 1)))))
            else:
                children.append(
                    leaf(
                        letter,
                        draw(st.integers(0, 1)),
                        backoff=draw(st.sampled_from([None, Backoff(initial=0.5, jitter=0)])),
                        restart=draw(st.sampled_from(restarts)),
                        resource=draw(st.sampled_from([None, KIT])),
                    )
                )
        return Supervisor(
            name,
            children,
            strategy=draw(st.sampled_from(STRATEGIES)),
            limit=draw(st.sampled_from([None, Limit(2, within=5), Limit(2, within=5, of_ready_time=True)])),
            decider=Decider({Boom: draw(st.sampled_from([Restart, Restart, Resume, Stop, Escalate]))}),
        )

    return grown("app", depth)


KIT = Kit()
# No sum of these seconds is the moment of a retry: what happens first then would be up to the schedule.
FAILURES = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.2003, 1.0007, 6.0011])), max_size=6)


async def fail(tree, failures):
    """Have leaves fail, chosen by their number among those that run."""
    for number, pause in failures:
        leaves = sorted(tree._driver.leaves)
        if leaves:
            try:
                tree[leaves[number % len(leaves)]].inject(Boom())
            except (Refused, KeyError):
                pass
        await quiet()
        await trio.sleep(pause)


@given(declarations(), declarations(), FAILURES, st.integers(0, 2**32))
def test_a_tree_that_has_adopted_a_declaration_is_as_one_that_was_opened_with_it(
    before, after, failures, seed
):
    """R38: It has the same nodes in the same order, and from then on the same failures have the same consequences."""

    def ran(first, second):
        seen, since, found = Seen(), [0], []

        async def main():
            async with open_tree(first, sinks=[seen]) as tree:
                await quiet()
                if second is not None:
                    await tree.adopt(second)
                    assert tree.changes(second) == []
                await quiet()
                found.append(
                    [(one.path, one.kind, one.state, one.strategy, one.limit) for one in tree.status().walk()]
                )
                since[0] = len(seen)
                await fail(tree, failures)

        try:
            run_virtual(main, seed=seed)
        except TreeFailed as failed:
            found.append(str(failed))
        assert_lifecycle(seen)
        return found, seen.order(since=since[0])

    assert ran(before, after) == ran(after, None)


ANY = declarations(restarts=("permanent", "transient", "temporary"))


@given(ANY, ANY, FAILURES, FAILURES, st.integers(0, 2**32))
def test_an_adoption_among_failures_never_hangs_and_loses_no_declaration(before, after, failures, more, seed):
    """R38: Whatever fails meanwhile, each node that runs afterwards has the new declaration, and none is there twice."""
    seen = Seen()

    async def main():
        async with open_tree(before, sinks=[seen]) as tree:
            await quiet()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail, tree, more)
                await fail(tree, failures)
                await tree.adopt(after)
            await trio.sleep(20)
            declared = dict(walk(after))
            for node in tree._driver.forest.nodes():
                if node.path in declared:
                    assert node.spec is declared[node.path]
                    running = tree._driver.leaves.get(node.path)
                    assert running is None or running.spec.args == node.spec.args
                else:
                    raise AssertionError(f"{node.path} is declared no more")
            assert tree.changes(after) == []

    try:
        run_virtual(main, seed=seed)
    except (TreeFailed, BaseExceptionGroup) as failed:
        assert isinstance(failed, TreeFailed) or failed.split(TreeFailed | trio.Cancelled)[1] is None
    assert_lifecycle(seen)
