"""A declaration with device workers is made anew: which contexts are restarted for it (R38)."""

from __future__ import annotations

import pytest
import trio
from test_groups import asks

from runners import InlineHost, ProcessHost, TorchLM, device_worker
from runners.errors import ContextLost
from runners.models.scripted import Scripted
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
