"""What NVML, NVIDIA's management library, reports about a device (D4).

Needs `nvidia-ml-py` (the extra `nvml`). This module imports no Trio, because on another machine a process without an event loop runs it.
"""

from __future__ import annotations

import importlib
import os
import re
from contextlib import suppress
from types import ModuleType
from typing import Any

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


def trouble_of(device: str, module: Any = None) -> str | None:
    """The reason why a device cannot be used; None if it can be, or if NVML does not know. Blocks, perhaps for ever.

    Args:
        device: as torch names it.
        module: the NVML module; None imports `pynvml`.

    Raises:
        Exception: of any class, if `nvidia-ml-py` is too old.
    """
    try:
        nvml = module or importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return _GONE.get(type(error).__name__)
    try:
        return _first_trouble(nvml, device)
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _first_trouble(nvml: ModuleType, device: str) -> str | None:
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
