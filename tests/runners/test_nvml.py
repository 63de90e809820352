"""What NVML reports of a device after a poison (D4)."""

import sys
import threading
import time
from types import SimpleNamespace

import pytest
import trio
from sessions import PATIENCE

from runners.diagnosis.nvml import Nvml
from runners.errors import (
    ContextDied,
    ContextHung,
    ContextPoisoned,
    DeviceError,
    LoadFailed,
    OutOfMemory,
    Unrecoverable,
)
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Fault, Scripted
from runners.types import ExecuteBatch


class Error(Exception):
    """As in pynvml: the class of an instance follows from its number."""

    def __new__(cls, value):
        return super().__new__({15: GpuIsLost, 16: ResetRequired}.get(value, Error))

    def __init__(self, value):
        super().__init__(value)


GpuIsLost = type("NVMLError_GpuIsLost", (Error,), {})
ResetRequired = type("NVMLError_ResetRequired", (Error,), {})


class Fake:
    """An NVML whose one device needs a given action, or that raises at a given call."""

    NVMLError = Error
    NVML_SUCCESS = 0
    NVML_ERROR_NOT_FOUND = 6
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION = 230

    def __init__(self, action=0, *, status=0, raises=None):
        self.action, self.status, self.raises = action, status, raises or {}
        self.calls = []

    def __getattr__(self, name):
        if not name.startswith("nvml"):
            raise AttributeError(name)
        return lambda *args: self._call(name, *args)

    def _call(self, name, *args):
        self.calls.append((name, *args))
        if name in self.raises:
            raise Error(self.raises[name])
        if name == "nvmlDeviceGetFieldValues":
            return [SimpleNamespace(nvmlReturn=self.status, value=SimpleNamespace(uiVal=self.action))]
        return "handle"


def poison():
    error = ContextPoisoned("an illegal memory access")
    error.code, error.request_ids = 700, ("r",)
    return error


async def judged(fake, error=None, device="cuda:0"):
    return await Nvml(module=fake).judge(error or poison(), device)


@pytest.mark.parametrize("action", [0, 3])
@pytest.mark.trio
async def test_a_device_that_needs_nothing_is_restarted(action):
    """D4: The poison stays one; NVML is left as it was found."""
    fake, error = Fake(action), poison()
    assert await judged(fake, error) is error
    assert [name for name, *_ in fake.calls] == [
        "nvmlInit",
        "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetFieldValues",
        "nvmlShutdown",
    ]


@pytest.mark.parametrize("action", [1, 2, 4, 5, 6, 7, 8])
@pytest.mark.trio
async def test_a_device_that_needs_more_than_a_process_is_unrecoverable(action):
    """D4: The error has what the device needs, and keeps what was known of the poison."""
    error = poison()
    worse = await judged(Fake(action), error)
    assert (type(worse), worse.code, worse.request_ids, worse.__cause__) == (
        Unrecoverable,
        700,
        ("r",),
        error,
    )
    assert "cuda:0 cannot be used again: it needs " in str(worse)


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetFieldValues"])
@pytest.mark.parametrize(
    ("number", "gone"), [(15, True), (16, True), (9, False), (12, False), (3, False), (999, False)]
)
@pytest.mark.trio
async def test_only_a_lost_device_is_gone(call, number, gone):
    """D4: Without a driver, a library or the permission the state is unknown, and a restart shows it."""
    assert isinstance(await judged(Fake(raises={call: number})), Unrecoverable) is gone


@pytest.mark.parametrize(("status", "gone"), [(15, True), (16, True), (3, False)])
@pytest.mark.trio
async def test_a_field_has_a_status_of_its_own(status, gone):
    """D4: An old driver does not know the field; a lost device reports its loss there too."""
    assert isinstance(await judged(Fake(status=status)), Unrecoverable) is gone


@pytest.mark.trio
async def test_if_nvml_cannot_be_asked_a_poison_stays_a_poison(monkeypatch):
    """D4: An application may have an older `nvidia-ml-py` for reasons of its own, or may be out of threads."""
    error = poison()
    monkeypatch.delattr(Fake, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION")
    fake = Fake(1)
    assert await judged(fake, error) is error
    assert fake.calls[-1] == ("nvmlShutdown",)

    async def no_thread(*_args, **_options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    assert await judged(Fake(1), error) is error


@pytest.mark.parametrize("error", [OutOfMemory("x"), LoadFailed("x"), Unrecoverable("x")])
@pytest.mark.trio
async def test_nvml_is_asked_only_about_a_poison(error):
    """D5: A failure that leaves the context standing, or is already worse than a poison, stays what it is."""
    fake = Fake(1)
    assert await judged(fake, error) is error
    assert await judged(fake, device="cpu") is not None
    assert fake.calls == []


@pytest.mark.parametrize("kind", [ContextDied, ContextHung])
@pytest.mark.trio
async def test_deaths_and_hangs_are_poisons(kind):
    """D3, D4: A device that hung or killed its process may be broken."""
    assert type(await judged(Fake(1), kind("x"))) is Unrecoverable


@pytest.mark.trio
async def test_a_stuck_driver_makes_its_device_unrecoverable():
    """D4: NVML is asked with a deadline; the thread is left behind, and does not take another thread's place."""
    release = threading.Event()
    fake = Fake()
    fake.nvmlInit = lambda: release.wait(PATIENCE)
    with trio.fail_after(PATIENCE):
        for _ in range(3):
            worse = await Nvml(module=fake, timeout=0.05).judge(poison(), "cuda")
            assert type(worse) is Unrecoverable
            assert "NVML has not answered within 0.05 s" in str(worse)
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    release.set()


@pytest.mark.trio
async def test_an_answer_that_came_while_the_loop_was_blocked_is_one():
    """D4: A device about which NVML has answered in time can be used again, whatever else the program does."""
    fake, asked, blocked, answered = Fake(), threading.Event(), threading.Event(), threading.Event()

    def init():
        asked.set()
        assert blocked.wait(PATIENCE)

    fake.nvmlInit, fake.nvmlShutdown = init, answered.set

    async def block():
        while not asked.is_set():  # noqa: ASYNC110 - A thread sets it, which cannot set an event of Trio.
            await trio.sleep(0.001)
        blocked.set()
        assert answered.wait(PATIENCE)
        time.sleep(0.5)  # noqa: ASYNC251 - it is what this test is about

    async with trio.open_nursery() as nursery:
        nursery.start_soon(block)
        assert type(await Nvml(module=fake, timeout=0.4).judge(poison(), "cuda")) is ContextPoisoned


@pytest.mark.parametrize(
    ("visible", "device", "call"),
    [
        (None, "cuda", ("nvmlDeviceGetHandleByIndex", 0)),
        (None, "cuda:3", ("nvmlDeviceGetHandleByIndex", 3)),
        ("4,5", "cuda:1", ("nvmlDeviceGetHandleByIndex", 5)),
        ("GPU-a, MIG-b", "cuda:1", ("nvmlDeviceGetHandleByUUID", "MIG-b")),
    ],
)
@pytest.mark.trio
async def test_nvml_is_asked_about_the_device_that_torch_means(monkeypatch, visible, device, call):
    """D4: Torch numbers only the devices that are visible."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    fake = Fake()
    await judged(fake, device=device)
    assert fake.calls[1] == call


@pytest.mark.parametrize("device", ["cuda:0,2", "cuda:0,cuda:2"])
@pytest.mark.trio
async def test_nvml_is_asked_about_each_of_several_devices(device, monkeypatch):
    """D4: A tensor-parallel runner holds them all, and one that needs a reset is one too many."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake, error = Fake(), poison()
    assert await judged(fake, error, device) is error
    assert [number for name, *number in fake.calls if name == "nvmlDeviceGetHandleByIndex"] == [[0], [2]]
    fake.nvmlDeviceGetHandleByIndex = lambda number: number
    actions = {0: 0, 2: 1}
    fake.nvmlDeviceGetFieldValues = lambda handle, fields: [
        SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=actions[handle]))
    ]
    worse = await judged(fake, error, device)
    assert type(worse) is Unrecoverable
    assert f"{device} cannot be used again: of cuda:2, it needs a reset of the device" in str(worse)


@pytest.mark.parametrize("visible", ["²", "", "all", "-1,,"])
@pytest.mark.parametrize("device", ["cuda:0,1", "cuda:x", "cudax", "cuda:", "cuda:1:2", "cuda:²"])
@pytest.mark.trio
async def test_an_answer_that_makes_no_sense_counts_as_unknown(device, visible, monkeypatch):
    """D4: It is no failure of its own; a restart shows the state of the device."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert isinstance(await judged(Fake(), device=device), ContextPoisoned)


@pytest.mark.parametrize(
    "device", ["", "cuda:", "cuda:x", "cuda:0,", "cuda:0,x", "cuda:0;1", "cudax", "cuda:²"]
)
def test_a_device_that_torch_does_not_know_is_refused_when_declared(device):
    """D4: It is refused then, and not at the first poison."""
    with pytest.raises(ValueError, match="device"):
        ProcessHost(device)


@pytest.mark.parametrize(
    "device", ["cpu", "cuda", "cuda:1", "cuda:0,1", "cuda:0,cuda:1", "mps", "xpu:0", "npu:0,1"]
)
def test_a_device_is_as_torch_names_it_or_the_runners_business(device):
    """Several too, for a runner that is spread over them."""
    assert ProcessHost(device).device == device


@pytest.mark.trio
async def test_nvml_is_not_asked_about_a_device_that_is_not_visible(monkeypatch):
    """D4: A restart shows its state."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    error = poison()
    assert await judged(Fake(1), error, "cuda:1") is error


@pytest.mark.trio
async def test_without_the_library_a_poison_stays_a_poison(monkeypatch):
    """D4: The extra is not installed, and a restart shows the state of the device."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    error = poison()
    assert await Nvml().judge(error, "cuda:0") is error


@pytest.mark.trio
async def test_the_real_library_knows_these_names():
    """The names above are pynvml's; on a machine without a driver a restart shows."""
    nvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    assert nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
    assert {type(nvml.NVMLError(number)).__name__ for number in (15, 16)} == {
        "NVMLError_GpuIsLost",
        "NVMLError_ResetRequired",
    }
    assert isinstance(await Nvml().judge(poison(), "cuda:0"), ContextPoisoned | Unrecoverable)


@pytest.mark.parametrize("at", ["token", "load"])
@pytest.mark.parametrize(("action", "kind"), [(0, ContextPoisoned), (1, Unrecoverable)])
@pytest.mark.trio
async def test_a_process_host_asks_nvml_before_it_reports_a_poison(action, kind, at):
    """D4: So the verdict on the poison is the right one; the first answer stands."""
    fake = Fake(action)
    host = ProcessHost("cuda:0", load_timeout=20, nvml=Nvml(module=fake))

    async def use():
        async with host.open(Scripted(faults=(Fault("poison", at=at),))) as session:
            session.begin(ExecuteBatch("r", "x"))
            with pytest.raises(DeviceError) as first:
                await session.receive()
            with pytest.raises(DeviceError) as again:
                await session.receive()
            assert again.value is first.value
            assert first.value.request_ids == ("r",)
            raise first.value

    with trio.fail_after(20), pytest.raises(kind) as raised:
        await use()
    assert type(raised.value) is kind
    assert [name for name, *_ in fake.calls].count("nvmlInit") == 1


def test_nonsense_is_refused():
    """A constructor refuses what cannot be meant."""
    with pytest.raises(ValueError, match="timeout"):
        Nvml(timeout=0)
