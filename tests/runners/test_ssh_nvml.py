"""NVML of another machine, asked there after a poison (D4, D16). Real sshd on the loopback interface, real processes, real time."""

import os
import signal
from contextlib import asynccontextmanager

import pytest
import trio
from contexts import (
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    until,
)
from far_nvml import FarNvml
from rogues import Verbose
from sessions import BATCH, until_failure, whole
from sshd import LEASE, carriers, far, host, needs_sshd

from benchmarks.loopback import serving
from runners.diagnosis.nvml import Nvml
from runners.errors import (
    ContextDied,
    ContextHung,
    ContextPoisoned,
    ContextUnreachable,
    DeviceError,
    LoadFailed,
    Unrecoverable,
    WorkerDown,
)
from runners.hosts.remote.ray import RayHost
from runners.hosts.remote.ssh import SshHost
from runners.models.scripted import Fault, Scripted
from runners.types import ExecuteBatch
from runners.worker import device_worker
from supervise import open_tree

pytestmark = [pytest.mark.filterwarnings("error"), needs_sshd]

POISON = (Fault("poison", incarnation=1),)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def on_gpu(server, says, **settings):
    """A host whose device is `cuda:0`, and whose NVML is the stand-in."""
    there = host(server)
    return host(server, **{"device": "cuda:0", "path": (says.path, *there.path), **settings})


@asynccontextmanager
async def opened(server, there, runner):
    """A session, and afterwards the proof that nothing of it is left there."""
    with trio.fail_after(60):
        async with there.open(runner) as session:
            yield session
        await until(lambda: not far(server))


async def failed(server, there, runner, kind):
    """The failure of a context."""
    with trio.fail_after(60), pytest.raises(DeviceError) as raised:
        async with there.open(runner) as session:
            session.begin(BATCH)
            raise (await until_failure(session, kind))[1]
    assert type(raised.value) is kind
    await until(lambda: not far(server))
    return raised.value


@pytest.mark.slow
@pytest.mark.trio
async def test_a_usable_device_of_another_machine_is_used_again(server, tmp_path):
    """D4, D16: NVML there says that a new process is enough; no caller notices."""
    nvml = FarNvml(tmp_path)
    worker = device_worker("llm", Scripted(5, faults=POISON), host=on_gpu(server, nvml))
    with trio.fail_after(60):
        async with open_tree(worker, sinks=[]) as tree, tree[worker].stream(ExecuteBatch("r", "x")) as chunks:
            assert {chunk.incarnation async for chunk in chunks} == {2}
    assert len(nvml.asked) == 1


@pytest.mark.parametrize("at", ["token", "load"])
@pytest.mark.trio
async def test_a_device_of_another_machine_that_needs_a_reset_is_unrecoverable(server, tmp_path, at):
    """D4, D16: The failure has what the device needs, and what was known of the poison."""
    nvml = FarNvml(tmp_path, 1)
    runner = Scripted(faults=(Fault("poison", at=at),))
    error = await failed(server, on_gpu(server, nvml), runner, Unrecoverable)
    says = "cuda:0 cannot be used again: it needs a reset of the device; its context failed with: "
    assert str(error).startswith(says)
    assert type(error.__cause__) is ContextPoisoned
    assert len(nvml.asked) == 1


@pytest.mark.trio
async def test_a_context_on_another_machine_whose_device_is_unrecoverable_is_stopped(server, tmp_path):
    """D3, D4, D16: No restart is tried, and callers get the reason."""
    nvml = FarNvml(tmp_path, 1)
    worker = device_worker("llm", Scripted(faults=(Fault("poison"),)), host=on_gpu(server, nvml))
    with trio.fail_after(60):
        async with open_tree(worker, sinks=[]) as tree:
            with pytest.raises(WorkerDown) as raised:
                await tree[worker].call(ExecuteBatch("r", "x"))
            assert type(raised.value.__cause__) is Unrecoverable
            assert tree["llm/context"].status().state == "condemned"


@pytest.mark.slow
@pytest.mark.trio
async def test_a_driver_of_another_machine_that_hangs_makes_its_device_unrecoverable(server, tmp_path):
    """D4, D16: The guardian serves the connection meanwhile, also for longer than a lease, and nothing is left there."""
    there = on_gpu(server, FarNvml(tmp_path, seconds=1000), nvml=Nvml(timeout=LEASE + 1))
    error = await failed(server, there, Scripted(faults=(Fault("poison"),)), Unrecoverable)
    assert f"NVML has not answered within {LEASE + 1:g} s" in str(error)
    assert type(error.__cause__) is ContextPoisoned


@pytest.mark.parametrize("how", ["raise ImportError", "raise OSError('broken')", "del os"])
@pytest.mark.trio
async def test_without_the_library_there_a_poison_stays_a_poison(server, tmp_path, how):
    """D4, D16: A restart shows the state of the device."""
    there = on_gpu(server, FarNvml(tmp_path, 1, how=how))
    await failed(server, there, Scripted(faults=(Fault("poison"),)), ContextPoisoned)


@pytest.mark.parametrize(
    ("kind", "error"), [("segv", ContextDied), pytest.param("hang", ContextHung, marks=pytest.mark.slow)]
)
@pytest.mark.trio
async def test_deaths_and_hangs_of_another_machine_are_poisons(server, tmp_path, kind, error):
    """D3, D4, D16: As with a `ProcessHost`: the device may be broken."""
    runner = Scripted(faults=(Fault(kind),))
    quick = {"first_chunk_timeout": 0.5, "next_chunk_timeout": 0.5}
    worse = await failed(server, on_gpu(server, FarNvml(tmp_path, 1), **quick), runner, Unrecoverable)
    assert type(worse.__cause__) is error


@pytest.mark.slow
@pytest.mark.trio
async def test_only_a_poison_is_asked_about_there(server, tmp_path):
    """D4, D5, D16: Neither an orderly end, nor a cancelled one, nor a load that fails, nor a device that is not CUDA's."""
    nvml = FarNvml(tmp_path, 1)
    there = on_gpu(server, nvml)
    async with opened(server, there, Scripted(2)) as session:
        await whole(session)
    with trio.CancelScope() as scope:
        async with opened(server, there, Scripted(10_000, delay=0.01)) as session:
            session.begin(BATCH)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    with trio.fail_after(60), pytest.raises(LoadFailed):
        async with there.open(Scripted(faults=(Fault("error", at="load"),))):
            pass
    await failed(
        server, on_gpu(server, nvml, device="cpu"), Scripted(faults=(Fault("poison"),)), ContextPoisoned
    )
    assert nvml.asked == []


@pytest.mark.slow
@pytest.mark.trio
async def test_a_connection_that_is_lost_during_the_question_leaves_the_failure(server, tmp_path):
    """D4, D16: Nothing is known of the device then, and the process that hangs in the driver ends with its guardian."""
    nvml = FarNvml(tmp_path, seconds=1000)

    async def cut():
        await until(lambda: nvml.asked)
        for pid in carriers(server):
            os.kill(pid, signal.SIGKILL)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut)
        await failed(server, on_gpu(server, nvml), Scripted(faults=(Fault("poison"),)), ContextPoisoned)


@pytest.mark.slow
@pytest.mark.trio
async def test_what_is_not_read_does_not_hide_what_nvml_says(server, tmp_path, monkeypatch):
    """D4, D16: More has come than the connection keeps for a session when its context hangs; the answer is behind that."""
    monkeypatch.setattr("runners.hosts.remote.link.BACKLOG", 1000)
    there = on_gpu(server, FarNvml(tmp_path, 1))
    with trio.fail_after(60), pytest.raises(Unrecoverable, match="it needs a reset"):
        async with there.open(Verbose(200_000)) as session:
            session.begin(BATCH)
            await until(lambda: len(session._peer._data) >= 1000)
            session._fail(ContextHung("as if its deadline had passed"))
            await session.receive()


@pytest.mark.slow
@pytest.mark.trio
async def test_a_lost_machine_is_not_waited_for_to_ask_about_its_device(server, tmp_path):
    """D4, D16: Its connection is lost, so no answer can come."""
    there = on_gpu(server, FarNvml(tmp_path, 1))
    with trio.fail_after(60):
        async with there.open(Scripted(10_000, delay=0.01)) as session:
            session.begin(BATCH)
            await session.receive()
            for pid in carriers(server):
                os.kill(pid, signal.SIGKILL)
            await until_failure(session, ContextUnreachable)
    await until(lambda: not far(server))


@pytest.mark.parametrize(
    "make", [lambda **nvml: SshHost("far", **nvml), lambda **nvml: RayHost("far:1", **nvml)]
)
def test_a_module_cannot_be_given_to_another_machine(make):
    """D2, D4: One clear error, where the host is declared."""
    assert make(nvml=Nvml(timeout=3)).nvml.timeout == 3
    with pytest.raises(
        ValueError, match="nvml must have no module, which cannot be sent to another machine, got <module"
    ):
        make(nvml=Nvml(module=os))
    with pytest.raises(TypeError, match="nvml"):
        make(nvml=None)
