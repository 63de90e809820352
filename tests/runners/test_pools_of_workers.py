"""Device workers as members of a pool: one declaration stands at several places of the tree (D1, D12)."""

import pytest
import trio
from stage import Caller, batch
from test_runner_declarations import Server, request

from runners import InlineHost, device_worker, replace
from runners.models.scripted import Scripted
from runners.types import RateLimits
from runners.worker import group
from supervise import Pool, Supervisor, open_tree
from supervise.testing import run_virtual

SLOW = Scripted(40, delay=0.1)


@pytest.mark.parametrize("hosts", [{"host": InlineHost()}, {"hosts": [InlineHost(), InlineHost()]}])
def test_a_member_that_drains_leaves_the_others_alone(hosts):
    """D13: They serve on, also requests with the ids of its own."""

    async def main():
        pool = Pool("llms", device_worker("llm", SLOW, drain=30, **hosts))
        async with open_tree(Supervisor("app", [pool]), sinks=[]) as tree:
            first, second = await tree[pool].add(), await tree[pool].add()
            them = [Caller(batch("same")), Caller(batch("same")), Caller(batch("later"))]
            async with trio.open_nursery() as nursery:
                for caller, worker in zip(them, (first, second), strict=False):
                    await nursery.start(caller.run, worker)
                nursery.start_soon(first.stop)
                await trio.sleep(0.5)
                nursery.start_soon(them[2].run, second)
            for caller in them:
                caller.assert_whole(40)

    run_virtual(main)


def test_a_new_runner_is_for_one_member():
    """D12: The streams of the others go on, and members that come later have the declared one."""

    async def main():
        pool = Pool("llms", device_worker("llm", SLOW, hosts=[InlineHost()]))
        async with open_tree(Supervisor("app", [pool]), sinks=[]) as tree:
            first, second = await tree[pool].add(), await tree[pool].add()
            begun = Caller(batch("begun"))
            async with trio.open_nursery() as nursery:
                await nursery.start(begun.run, second)
                await replace(first, Scripted(7))
            begun.assert_whole(40)
            for worker, tokens in ((first, 7), (second, 40), (await tree[pool].add(), 40)):
                assert len((await worker.call(batch("next"))).token_ids) == tokens

    run_virtual(main)


def test_members_have_rate_limits_of_their_own():
    """D14: The contexts of one worker share them, two workers do not."""
    server = Server(RateLimits(requests=1))

    async def main():
        pool = Pool("apis", device_worker("api", server, host=InlineHost()))
        async with open_tree(Supervisor("app", [pool]), sinks=[]) as tree:
            began = trio.current_time()
            for _ in range(3):
                await (await tree[pool].add()).call(request("a"))
            assert trio.current_time() - began == pytest.approx(3)

    run_virtual(main)


def test_nothing_is_kept_of_members_that_have_left():
    """R31: A pool may have had thousands."""

    async def main():
        worker = device_worker("llm", Scripted(1), host=InlineHost())
        pool = Pool("llms", worker)
        async with open_tree(Supervisor("app", [pool]), sinks=[]) as tree:
            for _ in range(20):
                await (await tree[pool].add()).stop()
            (groups,) = group._GROUPS[tree].values()
            assert len(groups) == 1

    run_virtual(main)
