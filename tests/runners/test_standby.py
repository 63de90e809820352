"""Processes that stand by for the next incarnation. Real processes, real deaths."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.lowlevel
from contexts import (
    contexts,
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    opened,
    stat,
    until,
)
from rogues import Preloads, Witness
from sessions import (
    BATCH,
    FOREVER,
    ids,
    until_failure,
    whole,
)

from runners.errors import ContextDied, ContextHung
from runners.hosts.process.host import ProcessHost
from runners.hosts.process.parent.standby import Reserve
from runners.models.scripted import Fault, Faulty, Scripted, expected
from runners.models.torch_lm import TorchLM

pytestmark = pytest.mark.filterwarnings("error")

HOST = ProcessHost(standby=1, load_timeout=60)
COLD = ProcessHost(start="spawn", standby=1, load_timeout=60)
STARTS = pytest.mark.parametrize("host", [HOST, COLD], ids=["fork", "spawn"])


async def standby(session, count=1):
    """The pid of the one that stands by."""
    await until(lambda: len(contexts()) == count + 1)
    return min(contexts() - {session.pid})


def waits(pid):
    """Whether it has nothing to do but to read its connection."""
    return Path(f"/proc/{pid}/wchan").read_text().startswith("unix_stream")


@STARTS
@pytest.mark.trio
async def test_the_next_incarnation_is_the_standby(host):
    """A standby waits while a context serves; it serves when that one is dead, and another standby is made."""
    async with opened(Scripted(FOREVER, delay=0.001), host) as one:
        ready = await standby(one)
        one.begin(BATCH)
        await one.receive()
        os.kill(one.pid, signal.SIGKILL)
        await until_failure(one, ContextDied)
    async with opened(Scripted(FOREVER, delay=0.001), host, incarnation=2) as two:
        assert two.pid == ready
        assert await standby(two) != ready
        two.begin(BATCH)
        assert (await two.receive())[0].incarnation == 2


@pytest.mark.slow
@pytest.mark.trio
async def test_there_is_no_standby_until_one_has_loaded():
    """A standby does not compete with the load of the context that serves."""

    async def load():
        async with HOST.open(Scripted(load_delay=60)):
            raise AssertionError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(load)
        await until(contexts)
        await trio.sleep(1)  # longer than it takes until there is one
        assert len(contexts()) == 1
        nursery.cancel_scope.cancel()
    assert contexts() == set()


@pytest.mark.trio
async def test_a_standby_prepares_ahead_and_builds_when_the_other_is_dead(tmp_path):
    """D2: The steps that need the device happen after the end of the context before."""
    runner = Preloads(str(tmp_path))
    async with opened(runner, HOST) as one:
        ready = await standby(one)
        await until(lambda: ("prepare", ready) in runner.told())
        os.kill(one.pid, signal.SIGKILL)
        await until_failure(one, ContextDied)
        assert runner.told()[1:] == [("build", one.pid), ("prepare", ready)]
    async with opened(runner, HOST, incarnation=2):
        assert runner.told()[3] == ("build", ready)


@pytest.mark.slow
@STARTS
@pytest.mark.trio
async def test_no_two_contexts_are_loaded_at_once(host, tmp_path):
    """D2: With a standby too, the context before is reaped before the next one loads."""
    for incarnation in range(1, 4):
        async with opened(Witness(str(tmp_path)), host, incarnation=incarnation) as session:
            await standby(session)
            os.kill(session.pid, signal.SIGKILL)
            await until_failure(session, ContextDied)
    starts = (tmp_path / "starts").read_text()
    assert starts.count('"alone": true') == 3


@pytest.mark.trio
async def test_a_standby_that_has_died_is_passed_over(caplog):
    """The next one is forked anew, and a warning names the dead one."""
    async with opened(Scripted(4), HOST) as one:
        dead = await standby(one)
        os.kill(dead, signal.SIGKILL)
        await until(lambda: len(contexts()) == 1)
    async with opened(Scripted(4), HOST, incarnation=2) as two:
        assert two.pid != dead
        assert ids(await whole(two)) == expected(BATCH, 4)
    assert f"the standby process {dead} of Scripted failed, and was killed by SIGKILL" in caplog.text


@pytest.mark.parametrize("preparing", ["fails", "dies"])
@pytest.mark.trio
async def test_a_standby_that_cannot_prepare_is_passed_over(preparing, tmp_path, caplog):
    """The failure is the standby's own, not the next incarnation's."""
    runner = Preloads(str(tmp_path), preparing=preparing)
    async with opened(runner, HOST) as one:
        await until(lambda: "prepare" in dict(runner.told()))
        await until(lambda: len(contexts()) == 1)
        assert contexts() == {one.pid}
    async with opened(runner, HOST, incarnation=2) as two:
        assert ("build", two.pid) in runner.told()
        assert ("prepare", two.pid) not in runner.told()
        await trio.lowlevel.checkpoint()
    assert "the standby process" in caplog.text


@pytest.mark.trio
async def test_a_standby_that_has_sent_something_is_passed_over(tmp_path):
    """D10: A standby must send nothing before its start; the next incarnation must not depend on what it sends later."""
    runner = Preloads(str(tmp_path), preparing="babbles")
    async with opened(runner, HOST) as one:
        ready = await standby(one)
        await until(lambda: ("prepare", ready) in runner.told() and waits(ready))
    async with opened(runner, HOST, incarnation=2) as two:
        assert two.pid != ready


@pytest.mark.slow
@pytest.mark.trio
async def test_beside_two_contexts_there_are_as_many_standbys_as_declared():
    """Standbys that are being made are counted: two loads in a row do not make twice as many."""
    async with opened(Scripted(), HOST), opened(Scripted(), HOST):
        await until(lambda: len(contexts()) == 3)
        await trio.sleep(0.5)
        assert len(contexts()) == 3


@STARTS
@pytest.mark.trio
async def test_a_standby_that_was_stopped_is_continued(host):
    """D15: SIGSTOP does it no harm, though the next incarnation would otherwise wait for its deadline."""
    async with opened(Scripted(4), host) as one:
        stopped = await standby(one)
        os.kill(stopped, signal.SIGSTOP)
        await until(lambda: stat(stopped)[0] == "T")
    with trio.fail_after(host.load_timeout / 2):
        async with opened(Scripted(4), host, incarnation=2) as two:
            assert two.pid == stopped
            assert ids(await whole(two)) == expected(BATCH, 4)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_standby_that_hangs_is_killed_at_the_deadline(tmp_path):
    """D9: It has as long to load as any other context."""
    host = ProcessHost(standby=1, load_timeout=8)
    runner = Preloads(str(tmp_path), preparing="hangs")
    async with opened(runner, host) as one:
        hangs = await standby(one)
        await until(lambda: ("prepare", hangs) in runner.told())
    with pytest.raises(ContextHung, match="loaded no runner within 8 s"):
        async with host.open(runner):
            raise AssertionError
    async with opened(runner, host) as two:
        assert two.pid != hangs


@pytest.mark.slow
@pytest.mark.trio
async def test_a_fault_of_the_load_strikes_at_the_start_and_not_before():
    """A prepared runner still gets its incarnation at the start, and fails as it would have."""
    runner = Faulty(TorchLM(), (Fault("kill", at="load", incarnation=2),))
    async with opened(runner, HOST) as one:
        ready = await standby(one)
        await until(lambda: waits(ready))
    with pytest.raises(ContextDied, match="was killed by SIGKILL"):
        async with HOST.open(runner, incarnation=2):
            raise AssertionError
    async with opened(runner, HOST, incarnation=3) as three:
        assert three.info.runtime == "torch"


@pytest.mark.slow
@pytest.mark.trio
async def test_a_torch_standby_is_built_and_goes_on_with_a_stream():
    """D6: On the CPU all of the load is done ahead; the text is that of an uncut stream."""
    async with opened(TorchLM(), HOST) as one:
        text = await whole(one)
        ready = await standby(one)
        await until(lambda: waits(ready))
        os.kill(one.pid, signal.SIGKILL)
        await until_failure(one, ContextDied)
    async with opened(TorchLM(), HOST, incarnation=2) as two:
        assert two.pid == ready
        assert ids(await whole(two, accepted=ids(text[:10]))) == ids(text[10:])


@pytest.mark.slow
@pytest.mark.trio
async def test_standbys_die_with_their_server_and_are_replaced(caplog):
    """D10: The next start finds no standby, and makes a server first."""
    async with opened(Scripted(4), HOST) as one:
        ready = await standby(one)
        os.kill(stat(ready)[1], signal.SIGKILL)
        await until_failure(one, ContextDied)
    async with opened(Scripted(4), HOST, incarnation=2) as two:
        assert await standby(two) != ready
    assert "ended with its fork server" in caplog.text


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.trio
async def test_there_are_as_many_standbys_as_declared(count):
    """The default is none."""
    async with opened(Scripted(), ProcessHost(standby=count)):
        await until(lambda: len(contexts()) == count + 1)
        await trio.sleep(0.1)
        assert len(contexts()) == count + 1


def test_a_count_of_standbys_is_not_negative():
    """A constructor refuses nonsense."""
    with pytest.raises(ValueError, match="standby"):
        ProcessHost(standby=-1)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_standby_that_is_being_discarded_is_reaped_though_its_reserve_ends():
    """D10: It is no standby any more, so no other task would reap it."""
    reaped = []

    class Standby:
        pid = 1

        async def fate(self, seconds):
            await trio.sleep(1)
            return "closed its connection"

        async def reap(self, seconds):
            reaped.append(self)

    plan = SimpleNamespace(name="plan", kill_timeout=1)
    with trio.move_on_after(0.01):
        await Reserve(plan)._discard(Standby())
    assert reaped
