"""Eight contexts on three machines, of which one is lost under 64 streams. Real processes, real time."""

import os
import signal
from contextlib import ExitStack, suppress

import pytest
import trio
from contexts import (
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    until,
)
from sshd import far, host, needs_sshd
from stage import Caller, batch

from benchmarks.loopback import serving
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Fault, Scripted
from runners.worker import device_worker, rebuild, replace
from supervise import open_tree

pytestmark = [pytest.mark.filterwarnings("error"), needs_sshd, pytest.mark.slow]

MEMBERS = (3, 3, 2)
STREAMS, TOKENS, BEGUN = 64, 40, 5
LEASE = 8.0


@pytest.fixture
def machines(tmp_path):
    with ExitStack() as stack:
        folders = [tmp_path / f"{number}" for number in range(len(MEMBERS))]
        for folder in folders:
            folder.mkdir()
        yield [stack.enter_context(serving(folder)) for folder in folders]


def fleet(machines, runner):
    hosts = [
        host(machine, lease=LEASE)
        for machine, count in zip(machines, MEMBERS, strict=True)
        for _ in range(count)
    ]
    return device_worker("llm", runner, hosts=hosts, limit=None)


async def are_up(tree):
    for node in tree["llm"].status().children:
        await tree[node.path].ready()


def lose(machine):
    """Kill all of its processes at once."""
    for pid in far(machine) | {machine.process.pid}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.trio
async def test_a_fleet_loses_a_machine_and_no_token(machines):
    """D6, D12, D16: Each of the 64 streams is whole, also those of the three contexts that are gone."""
    them = [Caller(batch(f"{number}")) for number in range(STREAMS)]
    # Each stream takes its time behind token 20, so that none is over before the machine is lost.
    slow = Fault("slow", at_token=20, incarnation=1, seconds=0.3)
    runner = Scripted(TOKENS, streams=16, delay=0.002, faults=(slow,))
    with trio.fail_after(300):
        async with open_tree(fleet(machines, runner), sinks=[]) as tree:
            await are_up(tree)
            async with trio.open_nursery() as nursery:
                for caller in them:
                    nursery.start_soon(caller.run, tree["llm"])
                while min(len(caller.chunks) for caller in them) < BEGUN:  # noqa: ASYNC110 - the streams set no event
                    await trio.sleep(0.005)
                lose(machines[0])
            for caller in them:
                caller.assert_whole(TOKENS)
            states = [node.state for node in tree["llm"].status().children]
            assert states[MEMBERS[0] :] == ["up"] * sum(MEMBERS[1:])
    await until(lambda: not any(far(machine) for machine in machines))


@pytest.mark.trio
async def test_orders_go_through_local_and_far_members_while_they_serve(machines):
    """D7, D12, D16: A rolling rebuild loses no token; after a new runner is swapped in, all requests get its answers."""
    hosts = [ProcessHost(), *(host(machine, lease=LEASE) for machine in machines[:2])]
    worker = device_worker("llm", Scripted(400, streams=4, delay=0.002), hosts=hosts, limit=None)
    with trio.fail_after(300):
        async with open_tree(worker, sinks=[]) as tree:
            await are_up(tree)
            them = [Caller(batch(f"{number}")) for number in range(9)]
            async with trio.open_nursery() as nursery:
                for caller in them:
                    nursery.start_soon(caller.run, tree["llm"])
                while min(len(caller.chunks) for caller in them) < BEGUN:  # noqa: ASYNC110 - the streams set no event
                    await trio.sleep(0.005)
                await rebuild(tree["llm"])
                await replace(tree["llm"], Scripted(TOKENS, streams=4), drain=30)
            after = [Caller(batch(f"after {number}")) for number in range(9)]
            async with trio.open_nursery() as nursery:
                for caller in after:
                    nursery.start_soon(caller.run, tree["llm"])
            for caller in them:
                caller.assert_whole(400)
            for caller in after:
                caller.assert_whole(TOKENS)
            assert [node.path for node in tree["llm"].status().children] == [
                f"llm/context-{n}" for n in range(3)
            ]
    await until(lambda: not any(far(machine) for machine in machines))
