"""Real harm to a real device, in one stream among many (D4-D6, D9)."""

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from device import DEVICE, needs_device
from harm import OnDevice, expected

from runners.diagnosis.nvml import Nvml
from runners.errors import (
    ContextDied,
    ContextHung,
    ContextPoisoned,
    OutOfMemory,
    PoisonRequest,
    RunnerError,
)
from runners.hosts import RequestFailed
from runners.hosts.process.host import ProcessHost
from runners.models.torch_lm import TorchLM
from runners.types import ExecuteBatch, Sampling
from runners.worker import device_worker
from supervise import Limit, Restart, Resume, events, open_tree

pytestmark = needs_device

HOST = ProcessHost(DEVICE, load_timeout=120, first_chunk_timeout=60, next_chunk_timeout=20, kill_timeout=60)
PATIENCE = 300.0
NAMES = ["a", "b", "victim", "c", "d"]


def batch(name):
    return ExecuteBatch(name, "", sampling=Sampling(seed=len(name), max_tokens=40))


@asynccontextmanager
async def serving(runner, host=HOST, **options):
    seen = []
    spec = device_worker("llm", runner, host=host, **options)
    with trio.fail_after(PATIENCE):
        async with open_tree(spec, sinks=[seen.append]) as tree:
            yield tree[spec], seen


def device_memory():
    """Bytes that the device has, asked by a process of its own: ours has no context."""
    code = f"import torch; print(torch.cuda.get_device_properties({DEVICE!r}).total_memory)"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)


def decided(seen):
    return [event for event in seen if isinstance(event, events.Decided)]


async def answers(worker, names=NAMES):
    """What becomes of each request: its tokens, or its error."""
    outcomes = {}

    async def ask(name):
        try:
            outcomes[name] = (await worker.call(batch(name))).token_ids
        except (RunnerError, OutOfMemory, PoisonRequest) as error:
            outcomes[name] = error

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(ask, name)
    return outcomes


async def failure_of(runner, host=HOST):
    """How the context ends in which the victim alone is served."""
    with trio.fail_after(PATIENCE):
        async with host.open(runner) as session:
            session.begin(batch("victim"))
            with pytest.raises(ContextPoisoned) as raised:
                while True:
                    for item in await session.receive():
                        assert not isinstance(item, RequestFailed), item.error
            return raised.value


@pytest.mark.parametrize(
    ("harm", "codes"), [("assertion", {710}), ("wild", {700}), ("crooked", {716}), ("trapped", {715, 719})]
)
@pytest.mark.trio
async def test_a_poison_is_known_by_its_code(harm, codes, record_property):
    """D4: The code that torch raises is the one in the table, and it reaches the parent."""
    error = await failure_of(OnDevice(harm))
    record_property("code", error.code)
    assert error.code in codes
    assert error.request_ids == ("victim",)


@pytest.mark.parametrize("harm", ["silent", "secondary"])
@pytest.mark.trio
async def test_a_poison_that_lost_its_text_is_convicted_by_the_probe(harm, record_property):
    """D4: Whatever the exception's text, a device that fails again is poisoned."""
    error = await failure_of(OnDevice(harm))
    record_property("said", f"{error} ({error.code})")
    assert type(error) is ContextPoisoned


@pytest.mark.trio
async def test_a_mistake_on_a_sound_device_is_the_requests_own():
    """D4, D5: The probe acquits; the context goes on."""
    async with serving(OnDevice("mistaken")) as (worker, seen):
        outcomes = await answers(worker)
        assert type(outcomes.pop("victim")) is RunnerError
        assert outcomes == {name: expected(batch(name)) for name in outcomes}
        assert not decided(seen)


@pytest.mark.parametrize("harm", ["assertion", "wild"])
@pytest.mark.trio
async def test_other_streams_do_not_notice_a_poison(harm):
    """D6: Every stream goes on in a new process where it was, the victim's too; no token is lost or comes twice."""
    async with serving(OnDevice(harm, incarnation=1)) as (worker, seen):
        assert await answers(worker) == {name: expected(batch(name)) for name in NAMES}
        assert (await worker.ready()).incarnation == 2
        assert [event.directive for event in decided(seen)] == [Restart]


@pytest.mark.trio
async def test_a_request_that_poisons_every_context_fails_alone():
    """D6: At its second death, on trial alone, it becomes a PoisonRequest; the others complete."""
    async with serving(OnDevice("assertion"), limit=Limit(8, within=60)) as (worker, _):
        outcomes = await answers(worker)
        assert type(outcomes.pop("victim")) is PoisonRequest
        assert outcomes == {name: expected(batch(name)) for name in outcomes}


@pytest.mark.trio
async def test_a_too_large_request_fails_alone():
    """D5: It gets OutOfMemory, the verdict is Resume, the others go on in the same process."""
    async with serving(OnDevice("greedy")) as (worker, seen):
        pid = (await worker.ready()).pid
        outcomes = await answers(worker)
        assert type(outcomes.pop("victim")) is OutOfMemory
        assert outcomes == {name: expected(batch(name)) for name in outcomes}
        assert [event.directive for event in decided(seen)] == [Resume]
        assert (await worker.ready()).pid == pid


@pytest.mark.trio
async def test_a_kernel_without_an_end_is_killed():
    """D9: It makes no progress before the deadline: SIGKILL ends the kernel too, and the streams go on in a new process."""
    host = ProcessHost(
        DEVICE, load_timeout=120, next_chunk_timeout=3, first_chunk_timeout=30, kill_timeout=60
    )
    assert type(await failure_of(OnDevice("spin"), host)) is ContextHung
    async with serving(OnDevice("spin", incarnation=1), host) as (worker, seen):
        assert await answers(worker) == {name: expected(batch(name)) for name in NAMES}
        assert [type(event.exc) for event in decided(seen)] == [ContextHung]


@pytest.mark.trio
async def test_memory_is_free_before_the_next_load(record_property):
    """D2, D9: SIGKILL with most of the device's memory allocated, three times: as much is free at each next load."""
    total = device_memory()
    runner = OnDevice(hold=total * 6 // 10)
    async with serving(runner, limit=Limit(5, within=60)) as (worker, seen):
        free = []
        for number in range(1, 5):
            completion = await worker.call(batch(f"{number}"))
            free.append(int(completion.text[: len(completion.text) // 40]))
            assert completion.token_ids == expected(batch(f"{number}"))
            if number < 4:
                os.kill((await worker.ready()).pid, signal.SIGKILL)
                while (await worker.ready()).incarnation == number:  # noqa: ASYNC110 - it may not have noticed yet
                    await trio.sleep(0.01)
        record_property("free at load", free)
        assert min(free) >= runner.hold
        assert max(free) - min(free) < total // 100
        assert [type(event.exc) for event in decided(seen)] == [ContextDied] * 3


@pytest.mark.trio
async def test_a_model_goes_on_in_a_standby(caplog):
    """D2, D6: A preloaded and prepared runner makes a device context after the fork, and a cut stream goes on there."""
    host = attrs.evolve(HOST, standby=1)
    batch = ExecuteBatch("r", "The import", sampling=Sampling(seed=1, max_tokens=200))
    async with serving(TorchLM(), host) as (worker, seen):
        got, killed = (), False
        async with worker.stream(batch) as chunks:
            async for chunk in chunks:
                assert chunk.index == len(got)
                got += chunk.token_ids
                if len(got) >= 20 and not killed:
                    killed = True
                    os.kill((await worker.ready()).pid, signal.SIGKILL)
        assert chunk.finish_reason is not None
        assert (await worker.ready()).incarnation == 2
        assert [type(event.exc) for event in decided(seen)] == [ContextDied]
    assert not [record for record in caplog.records if record.name == "runners.hosts"]


@pytest.mark.trio
async def test_a_sound_device_stays_usable_to_nvml():
    """D4: After a real poison NVML asks for nothing more than a new process."""
    pytest.importorskip("pynvml", reason="asks NVML by nvidia-ml-py")
    error = await failure_of(OnDevice("assertion"))
    assert await Nvml().judge(error, DEVICE) is error
