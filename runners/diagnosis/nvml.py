"""The state of the hardware (D4): after the death of a poisoned context the parent asks NVML about the device.

Needs `nvidia-ml-py` (the extra `nvml`). NVML needs no CUDA context. It is called in a thread with a deadline, because a call
into a driver that hangs does not return.
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

_USABLE = {0, 3}  # no recovery is needed; or only for devices that communicate with each other
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
    """Asks NVML whether a device can be used again after a poison (D4).

    If NVML cannot answer, the device counts as usable, and the restart shows whether it is: that is so without
    `nvidia-ml-py` or a driver, with a driver that is too old, for an unknown device, or if no thread can be started.

    Args:
        timeout: seconds after which a device about which NVML has not answered counts as unusable.
        module: the NVML module; None imports `pynvml`.

    Raises:
        ValueError: `timeout` is not above 0.
    """

    timeout: float = field(default=10.0, validator=gt(0))
    module: Any = field(default=None, repr=False)

    async def judge(self, error: DeviceError, device: str) -> DeviceError:
        """Returns the failure of a context, or an `Unrecoverable` raised from it if a restart cannot help.

        Args:
            error: the failure of the context. NVML is asked only about a `ContextPoisoned`.
            device: as torch names it; NVML is asked only about CUDA devices.
        """
        if not isinstance(error, ContextPoisoned) or not device.startswith("cuda"):
            return error
        trouble: str | None = f"NVML has not answered within {self.timeout:g} s"
        with trio.move_on_after(self.timeout):
            try:
                trouble = await trio.to_thread.run_sync(
                    self._trouble, device, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
                )  # with a limiter of its own, so that a thread that hangs takes no place in Trio's default limiter
            except Exception:  # noqa: BLE001 - an old `nvidia-ml-py`, or the lack of a thread, must not replace the poison
                trouble = None
        return error if trouble is None else _worse(error, device, trouble)

    def _trouble(self, device: str) -> str | None:
        """The reason why a device cannot be used; None if it can be, or if NVML does not know. Blocks."""
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
        """The reason for the first unusable device of those that `device` names."""
        try:
            numbers = device_numbers(device)
        except ValueError:  # torch has no such name
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
    """The recovery action that the device needs; None if it can be used. Only newer drivers know it."""
    (value,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    if value.nvmlReturn != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(value.nvmlReturn)
    action = value.value.uiVal
    return None if action in _USABLE else f"it needs {_ACTIONS.get(action, f'recovery action {action}')}"


def _handle(nvml: ModuleType, number: int) -> object:
    """NVML's handle for torch's number of a device: NVML counts all devices, torch only the visible ones.

    Both count in the order of the bus, unless `CUDA_DEVICE_ORDER` demands another order and the devices differ.
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
