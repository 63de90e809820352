"""What only the hardware can tell (D4): after the death of a poisoned context the parent asks NVML about the device.

Needs `nvidia-ml-py` (the extra `nvml`). No CUDA context is made for it, and it is asked in a thread with a deadline, because
a driver that is stuck keeps its caller.
"""

from __future__ import annotations

import importlib
import os
import re
from contextlib import suppress
from types import ModuleType
from typing import Any

import trio
from attrs import field, frozen
from attrs.validators import gt

from ..errors import ContextPoisoned, DeviceError, Unrecoverable
from .probe import device_numbers

_USABLE = {0, 3}  # nothing to recover from; or of concern only to devices that talk to each other
_ACTIONS = {
    1: "a reset of the device",
    2: "a reboot of the node",
    3: "draining its peers",
    4: "draining and a reset of the device",
    5: "recovery of its IMEX domain",
    6: "a reset of the bus",
    7: "a reboot of the system",
}
_GONE = {
    "NVMLError_GpuIsLost": "the device is lost",
    "NVMLError_ResetRequired": "the device must be reset first",
}


@frozen(kw_only=True)
class Nvml:
    """Asks whether a device can be used again.

    Where NVML cannot be asked, the device counts as usable, and a restart will show whether it is: without `nvidia-ml-py` or
    a driver, with one that is too old to know, without such a device, or without a thread to ask in.

    Args:
        timeout: seconds, after which the device counts as gone.
        module: NVML's; None imports `pynvml`.
    """

    timeout: float = field(default=10.0, validator=gt(0))
    module: Any = field(default=None, repr=False)

    async def judge(self, error: DeviceError, device: str) -> DeviceError:
        """The failure of a context on a device, or, chained from it, a worse one if a restart will not help.

        Args:
            error: what the context failed with; only a poison is ever worse than it looks.
            device: as torch names it.
        """
        if not isinstance(error, ContextPoisoned) or not device.startswith("cuda"):
            return error
        trouble: str | None = f"NVML has not answered within {self.timeout:g} s"
        with trio.move_on_after(self.timeout):
            try:
                trouble = await trio.to_thread.run_sync(
                    self._trouble, device, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
                )  # a limiter of its own: a thread that is stuck takes nobody's place
            except Exception:  # noqa: BLE001 - an old `nvidia-ml-py` or a lack of threads must not replace the poison itself
                trouble = None
        return error if trouble is None else _worse(error, device, trouble)

    def _trouble(self, device: str) -> str | None:
        """What is wrong with a device; None if nothing is, or nobody knows. Blocks."""
        try:
            nvml = self.module or importlib.import_module("pynvml")
        except ImportError:
            return None
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            return _GONE.get(type(error).__name__)
        try:
            return self._first_trouble(nvml, device)
        finally:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()

    def _first_trouble(self, nvml: ModuleType, device: str) -> str | None:
        """Of a device, or of several."""
        try:
            numbers = device_numbers(device)
        except ValueError:  # not a name of torch's
            return None
        for number in numbers:
            try:
                trouble = _needs(nvml, _handle(nvml, number))
            except nvml.NVMLError as error:
                trouble = _GONE.get(type(error).__name__)
            if trouble is not None:
                return trouble if len(numbers) == 1 else f"of cuda:{number}, {trouble}"
        return None


def _worse(error: ContextPoisoned, device: str, trouble: str) -> Unrecoverable:
    worse = Unrecoverable(f"{device} cannot be used again: {trouble}; its context failed with: {error}")
    worse.code, worse.request_ids = error.code, error.request_ids
    worse.__cause__ = error
    return worse


def _needs(nvml: ModuleType, handle: object) -> str | None:
    """By the recovery action, which newer drivers know."""
    (value,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    if value.nvmlReturn != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(value.nvmlReturn)
    action = value.value.uiVal
    return None if action in _USABLE else f"it needs {_ACTIONS.get(action, f'recovery action {action}')}"


def _handle(nvml: ModuleType, number: int) -> object:
    """The device that torch's number means: NVML counts all of them, torch those that are visible.

    Both count along the bus, unless `CUDA_DEVICE_ORDER` says otherwise and the devices differ.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return nvml.nvmlDeviceGetHandleByIndex(number)
    names = [name.strip() for name in visible.split(",")]
    if number >= len(names):
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_FOUND)
    name = names[number]
    return (
        nvml.nvmlDeviceGetHandleByIndex(int(name))
        if re.fullmatch("[0-9]+", name)
        else nvml.nvmlDeviceGetHandleByUUID(name)
    )
