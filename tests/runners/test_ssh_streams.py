"""Thirty-two streams of a real model on another machine, and what may be lost between the machines. Real processes, real time."""

import os
import signal

import pytest
import trio
from contexts import (
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    until,
)
from farlings import HoldsTorch
from sshd import carriers, far, host, kill_left, needs_sshd, signalled

from benchmarks import namespaces
from benchmarks.loopback import serving
from runners.models.torch_lm import TorchLM
from runners.types import ExecuteBatch, RunnerStart, Sampling
from runners.worker import device_worker
from supervise import open_tree

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.filterwarnings("error"), needs_sshd, pytest.mark.slow]

STREAMS, TOKENS = 32, 60


def request(number):
    return ExecuteBatch(
        f"{number}", "The ", sampling=Sampling(seed=number, max_tokens=TOKENS, temperature=0.8)
    )


@pytest.fixture(scope="module")
def undisturbed():
    """The tokens of each stream, where nothing is lost."""
    runner = TorchLM(streams=STREAMS).build(RunnerStart(incarnation=1))
    return [[t for chunk in runner.execute(request(n)) for t in chunk.token_ids] for n in range(STREAMS)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("sshd")) as server:
        yield server
        kill_left(server)


async def streamed(worker, strike):
    """The tokens of each stream, and the incarnations that made them; `strike` runs when all streams have begun."""
    tokens = [[] for _ in range(STREAMS)]
    incarnations = set()

    async def ask(tree, number):
        async with tree[worker].stream(request(number)) as chunks:
            async for chunk in chunks:
                assert chunk.index == len(tokens[number])
                tokens[number] += chunk.token_ids
                incarnations.add(chunk.incarnation)

    with trio.fail_after(200):
        async with open_tree(worker, sinks=[]) as tree, trio.open_nursery() as nursery:
            for number in range(STREAMS):
                nursery.start_soon(ask, tree, number)
            while min(map(len, tokens)) < 5:  # noqa: ASYNC110 - the streams set no event
                await trio.sleep(0.005)
            await strike()
    return tokens, incarnations


def strikes(server):
    async def engine():
        assert signalled(server, "runners:context", signal.SIGKILL)

    async def guardian():
        assert signalled(server, "runners:guard", signal.SIGKILL)

    async def ssh():
        for pid in carriers(server):
            os.kill(pid, signal.SIGKILL)

    async def silence():
        for pid in carriers(server):
            os.kill(pid, signal.SIGSTOP)

    async def fork_server():
        assert signalled(server, "runners:server", signal.SIGKILL)

    return {
        "fork server": fork_server,
        "engine": engine,
        "guardian": guardian,
        "ssh": ssh,
        "silence": silence,
    }


@pytest.mark.parametrize("victim", ["engine", "guardian", "ssh", "silence"])
@pytest.mark.trio
async def test_streams_of_another_machine_equal_their_undisturbed_text(server, undisturbed, tmp_path, victim):
    """D6, D16: Whatever is killed or stopped on the way, no token is lost or doubled, and no two contexts hold the device."""
    worker = device_worker("llm", HoldsTorch(str(tmp_path)), host=host(server))
    tokens, incarnations = await streamed(worker, strikes(server)[victim])
    assert tokens == undisturbed
    assert incarnations == {1, 2}
    assert not (tmp_path / "two at once").exists()
    await until(lambda: not far(server))


@pytest.mark.parametrize("victim", ["engine", "fork server"])
@pytest.mark.trio
async def test_streams_of_forked_contexts_equal_their_undisturbed_text(server, undisturbed, tmp_path, victim):
    """D6, D15, D16: The next context is forked too, and the death of the fork server ends no context."""
    there = host(server, start="forkserver")
    worker = device_worker("llm", HoldsTorch(str(tmp_path)), host=there)
    tokens, incarnations = await streamed(worker, strikes(server)[victim])
    assert tokens == undisturbed
    assert incarnations == ({1, 2} if victim == "engine" else {1})
    assert not (tmp_path / "two at once").exists()
    await until(lambda: not far(server))


@pytest.mark.skipif(namespaces.missing() is not None, reason=str(namespaces.missing()))
@pytest.mark.parametrize("heals", ["before the lease is over", "after it"])
@pytest.mark.trio
async def test_a_link_that_is_cut_costs_no_token(undisturbed, tmp_path, heals):
    """D6, D9, D16: A deadline of the session finds the silence; the far side ends itself, and its device is used only after that."""
    folder = tmp_path / "sshd"
    folder.mkdir()
    with (
        namespaces.network() as (there,),
        serving(folder, address=there.address, port=2222, inside=there.inside) as server,
    ):
        lease = 3.0

        async def cut():
            (pid,) = far(server, "runners:context")
            there.cut()
            if heals == "after it":
                await until(lambda: pid not in far(server))
            else:
                await trio.sleep(lease / 2)
            there.heal()

        cut_off = host(server, lease=lease, next_chunk_timeout=1, first_chunk_timeout=20)
        worker = device_worker("llm", HoldsTorch(str(tmp_path)), host=cut_off)
        tokens, incarnations = await streamed(worker, cut)
        await until(lambda: not far(server))
    assert tokens == undisturbed
    assert incarnations == {1, 2}
    assert not (tmp_path / "two at once").exists()
