"""A probe of a device: whether it still answers (D4). It imports no torch, and uses only a context that torch already has."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Sequence
from typing import Any

from attrs import field, frozen
from attrs.validators import instance_of

from ..brief import attribute
from ..checks import above, plain_number

_TIMES = 2
"""The first call may report an old error, and thereby clear it. An error that stays is that of the context."""

_CUDA = re.compile(r"cuda(:[0-9]{1,6}(,(cuda:)?[0-9]{1,6})*)?")


def device_numbers(device: str) -> list[int]:
    """The numbers in a name of CUDA devices: `cuda` (number 0), `cuda:1`, `cuda:0,1` or `cuda:0,cuda:1`.

    Raises:
        ValueError: the name is of no such form.
    """
    if not _CUDA.fullmatch(device):
        raise ValueError(f"a CUDA device is cuda, cuda:N, or several as in cuda:0,1, got {device!r}")
    return [int(number) for number in re.findall("[0-9]+", device)] or [0]


def check_device(_host: object, _field: object, device: str) -> None:
    """A name that begins with `cuda` must be one of torch's, or of several devices. Only the runner can judge other names."""
    if device.startswith("cuda"):
        device_numbers(device)
    elif not device:
        raise ValueError("device must name a device, got ''")


@frozen
class DeviceProbe:
    """Synchronises with a device (D4). A call returns True if the device answers, False if it fails twice or not in time.

    It returns None if this process has no CUDA context, or no thread can be started. The probe runs in a thread of its own,
    because a call to a device that hangs may never return; that thread is then left behind. The timeout is longer than any
    step should take, because a busy device is not poisoned; a host with deadlines of its own (D9) does not wait as long.

    Args:
        device: as torch names it, or several, as in `cuda:0,1`. For a name that is not CUDA's the first CUDA device is
            probed.
        timeout: seconds.

    Raises:
        ValueError: `timeout` is not above 0.
        TypeError: `device` is not a str.
    """

    device: str = field(validator=instance_of(str))
    timeout: float = field(default=30.0, kw_only=True, converter=plain_number, validator=above(0))

    def __call__(self) -> bool | None:
        """Probe the device; blocks for up to `timeout`."""
        cuda = attribute(sys.modules.get("torch"), "cuda")
        answers: list[bool] = []
        thread = threading.Thread(target=self._ask, args=(cuda, answers), name="device probe", daemon=True)
        try:
            if cuda is None or not cuda.is_initialized():
                return None
            thread.start()
        except Exception:  # noqa: BLE001 - the module `torch` may be a stand-in, or no thread can be started
            return None
        thread.join(self.timeout)
        return bool(answers) and answers[0]

    def _ask(self, cuda: Any, answers: list[bool]) -> None:
        answers.append(any(self._synchronises(cuda) for _ in range(_TIMES)))

    def _synchronises(self, cuda: Any) -> bool:
        try:
            for device in self._devices():
                cuda.synchronize(device)
        except Exception:  # noqa: BLE001 - with any exception the device has not answered
            return False
        return True

    def _devices(self) -> Sequence[str | int]:
        """The devices to synchronise with, in order."""
        if "," in self.device and _CUDA.fullmatch(self.device):
            return [f"cuda:{number}" for number in device_numbers(self.device)]
        return [self.device if self.device.startswith("cuda") else 0]
