"""A declaration with device workers is made anew: which contexts are restarted for it (R38)."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from functools import partial

import pytest
import trio
from test_groups import asks
from test_runner_declarations import Server, request

from runners import InlineHost, ProcessHost, TorchLM, device_worker, replace
from runners.errors import ContextDied, ContextLost
from runners.hosts.packing import pack
from runners.models.scripted import Scripted
from runners.types import ExecuteBatch, Price, RateLimits, TokenUsage
from supervise import Backoff, Decider, Limit, Restart, Supervisor, open_tree
from supervise._core.changes import changes


def declared(runner=None, **options):
    given = {name: value() if callable(value) else value for name, value in options.items()}
    return Supervisor("app", [device_worker("llm", runner or TorchLM(), **given)])


def found(before, after):
    return changes(before, after, lambda _: None, lambda _: None)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hosts": lambda: [ProcessHost("cpu"), ProcessHost("cpu")]},
        {"host": InlineHost, "canary": 3, "retries": 2, "queue": 9},
    ],
)
def test_a_worker_that_is_declared_alike_is_the_same(options):
    """R38: Its hosts, its runner and the stand-in for its declaration are made anew, and equal."""
    assert found(declared(**options), declared(**options)) == []


@pytest.mark.parametrize("several", [False, True])
def test_no_context_is_restarted_for_what_its_supervisor_uses(several):
    """R38: A model may take minutes to load."""
    base = {"hosts": lambda: [ProcessHost("cpu"), ProcessHost("cpu")]} if several else {}
    changed = {
        "limit": Limit(9),
        "backoff": Backoff(initial=3),
        "decider": Decider({OSError: Restart}),
        "queue": 99,
    }
    differ = found(declared(**base), declared(**base, **changed))
    assert differ
    assert not any(change.restarts for change in differ)


@pytest.mark.parametrize("changed", [{"canary": 9}, {"drain": 3}, {"retries": 1}, {"host": InlineHost()}])
def test_a_context_is_restarted_for_what_it_was_opened_with(changed):
    """R38: With what differs."""
    (change,) = found(declared(), declared(**changed))
    assert (change.path, change.restarts) == ("app/llm/context", True)


@pytest.mark.trio
async def test_a_worker_with_another_runner_goes_on_with_its_queue(autojump_clock):
    """R29, R38: A begun stream continues in a runner that is equal, a waiting request begins in the new one."""

    def whole(tokens, **options):
        return Supervisor(
            "app",
            [device_worker("llm", Scripted(tokens, streams=1, delay=1.0), host=InlineHost(), **options)],
        )

    async with open_tree(whole(3)) as tree, trio.open_nursery() as nursery:
        worker = tree["app/llm"]
        (begun,) = await asks(nursery, worker, "a")
        await trio.sleep(1.5)
        assert not any(change.restarts for change in await tree.adopt(whole(3, limit=Limit(9), queue=7)))
        (waits,) = await asks(nursery, worker, "b")
        assert (await tree.adopt(whole(4)))[-1].restarts
        await begun.over.wait()
        await waits.over.wait()
        assert isinstance(begun.error, ContextLost)
        waits.assert_whole(4)


@pytest.mark.parametrize("act", ["adopt", "restart"])
@pytest.mark.trio
async def test_a_context_that_drains_alone_leaves_what_waits_to_the_next_one(act, autojump_clock):
    """D13, R38: Its begun stream ends first, and no request is refused, also none that comes meanwhile."""

    def whole(**options):
        runner = Scripted(3, streams=1, delay=1.0)
        return Supervisor("app", [device_worker("llm", runner, host=InlineHost(), drain=60, **options)])

    async with open_tree(whole()) as tree, trio.open_nursery() as nursery:
        worker = tree["app/llm"]
        begun, waits = await asks(nursery, worker, "ab")
        await trio.sleep(0.5)
        change = {
            "adopt": partial(tree.adopt, whole(canary=50.0)),
            "restart": tree["app/llm/context"].restart,
        }
        nursery.start_soon(change[act])
        await trio.sleep(0.5)
        (comes,) = await asks(nursery, worker, "c")
        for asked in (begun, waits, comes):
            await asked.over.wait()
            asked.assert_whole(3)
        assert tree["app/llm/context"].status().incarnation == 2


async def dies(tree, number):
    """A context of the worker fails; returns the state of the next one."""
    tree[f"app/llm/context-{number}/context"].inject(ContextDied("killed"))
    await trio.testing.wait_all_tasks_blocked()
    return await tree[f"app/llm/context-{number}"].ready()


@pytest.mark.parametrize("changed", [{"queue": 9}, {"canary": 50.0}, {"hosts": [InlineHost()] * 3}])
@pytest.mark.trio
async def test_a_worker_that_is_declared_anew_keeps_its_replaced_runner(changed, autojump_clock):
    """D12, R38: Its contexts are restarted for the declaration, or by a failure later; one may be new."""
    base = {"hosts": [InlineHost()] * 2, "backoff": None}
    async with open_tree(declared(Scripted(3), **base)) as tree:
        await replace(tree["app/llm"], Scripted(9))
        await tree.adopt(declared(Scripted(3), **base | changed))
        contexts = [await tree[node.path].ready() for node in tree["app/llm"].status().children]
        contexts += [await dies(tree, 0), await dies(tree, 1)]
        assert {state._context.runner for state in contexts} == {Scripted(9)}
        await replace(tree["app/llm"], Scripted(4))
        contexts = [await tree[node.path].ready() for node in tree["app/llm"].status().children]
        assert {state._context.runner for state in contexts} == {Scripted(4)}


@pytest.mark.trio
async def test_another_runner_that_is_declared_counts_instead_of_a_replaced_one(autojump_clock):
    """D12, R38: Also if the first one is declared again afterwards."""
    base = {"hosts": [InlineHost()] * 2, "backoff": None}
    async with open_tree(declared(Scripted(3), **base)) as tree:
        await replace(tree["app/llm"], Scripted(9))
        for runner in (Scripted(4), Scripted(3)):
            await tree.adopt(declared(runner, **base))
            contexts = [await tree["app/llm/context-0"].ready(), await dies(tree, 1)]
            assert {state._context.runner for state in contexts} == {runner}


@pytest.mark.trio
async def test_contexts_of_two_declarations_keep_to_one_limit(autojump_clock):
    """D14, R38: They ask one server."""
    server = Server(RateLimits(requests=2))
    base = {"hosts": [InlineHost()] * 2, "backoff": None}
    async with open_tree(declared(server, **base)) as tree, trio.open_nursery() as nursery:
        await tree.adopt(declared(server, **base, queue=9))
        await dies(tree, 0)
        for name in "abcd":
            nursery.start_soon(tree["app/llm"].call, request(name))
        await trio.sleep(50)
        assert len(server.began) == 2


@pytest.mark.trio
async def test_a_request_counts_where_it_has_begun(autojump_clock):
    """D14, R38: The difference between its usage and its estimate is not charged to the limits of the runner that is declared later."""
    limits, usage = RateLimits(tokens=100), TokenUsage(input=70)
    old, new = (Server(limits, usage=usage, price=Price(output=dollars)) for dollars in (1, 2))
    base = {"hosts": [InlineHost()], "backoff": None}
    async with open_tree(declared(old, **base)) as tree, trio.open_nursery() as nursery:
        nursery.start_soon(tree["app/llm"].call, request("a"))
        await trio.sleep(0.5)
        await tree.adopt(declared(new, **base))
        await trio.sleep(60)
        for name in "bcd":
            nursery.start_soon(tree["app/llm"].call, request(name, 45))
        await trio.sleep(50)
        assert len(new.began) == 3


CODE = """
from attrs import frozen
from runners.models.batched import batched_runner

@frozen
class Numbered:
    def build(self, start):
        return batched_runner(lambda inputs: [NUMBER] * len(inputs))
"""


@pytest.fixture
def numbered(tmp_path, monkeypatch):
    """Gives a runner whose answer is a number, from a file that is written and loaded anew for it."""
    monkeypatch.syspath_prepend(tmp_path)

    def load(number):
        (tmp_path / "numbered.py").write_text(CODE.replace("NUMBER", str(number)))
        sys.modules.pop("numbered", None)
        importlib.invalidate_caches()
        return importlib.import_module("numbered").Numbered()

    yield load
    sys.modules.pop("numbered", None)


def test_equal_runners_are_packed_apart_if_their_class_was_made_anew(numbered):
    """D2, R38: What has preloaded one of them is not for the other. The earlier one is used until its context has been restarted."""
    first = numbered(1)
    packed, again = pack(first), pack(numbered(22))
    assert packed != again
    del sys.modules["numbered"]
    assert pack(first) == packed


@pytest.mark.slow
@pytest.mark.parametrize("start", ["forkserver", "spawn"])
@pytest.mark.trio
async def test_a_context_has_the_code_with_which_it_was_declared(numbered, start):
    """D2, D15, R38: After a reload it has the new code, though a fork server has the earlier one.

    A file that was only loaded, as for a dry run, keeps no context of the earlier declaration from being restarted.
    """

    def whole(runner):
        return Supervisor("app", [device_worker("llm", runner, host=ProcessHost("cpu", start=start))])

    async def answer():
        (number,) = (await tree["app/llm"].call(ExecuteBatch("a", payload=1))).data
        return number

    async with open_tree(whole(numbered(1))) as tree:
        context = await tree["app/llm"].ready()
        loaded = numbered(22)
        os.kill(context.pid, signal.SIGKILL)
        # A cold start imports the file as it is.
        assert await answer() == (1 if start == "forkserver" else 22)
        await tree.adopt(whole(loaded))
        assert await answer() == 22
