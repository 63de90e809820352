"""Asking a device whether it still answers. Imports no torch; asks only where torch has a context already."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Sequence
from typing import Any

from attrs import field, frozen
from attrs.validators import gt, instance_of

from ..brief import attribute

_TIMES = 2  # the first may report, and so clear, an old error; one that stays is the context's

_CUDA = re.compile(r"cuda(:[0-9]{1,6}(,(cuda:)?[0-9]{1,6})*)?")


def device_numbers(device: str) -> list[int]:
    """The numbers of CUDA devices: of `cuda`, `cuda:1`, or several as in `cuda:0,1` or `cuda:0,cuda:1`.

    Raises:
        ValueError: it names none.
    """
    if not _CUDA.fullmatch(device):
        raise ValueError(f"a CUDA device is cuda, cuda:N, or several as in cuda:0,1, got {device!r}")
    return [int(number) for number in re.findall("[0-9]+", device)] or [0]


@frozen
class DeviceProbe:
    """Synchronises with the device: True if it answers, False if it fails twice or not in time, None if none is in use.

    In a thread of its own, because a device that hangs may keep its caller for ever; the thread is left behind then. It is
    given longer than any step should take: one that is merely busy is not poisoned, and a host with deadlines of its own
    (D9) does not wait as long.

    Args:
        device: as torch names it, or several of it; of anything but `cuda…` the first CUDA device is asked, if one is in
            use.
        timeout: seconds.
    """

    device: str = field(validator=instance_of(str))
    timeout: float = field(default=30.0, kw_only=True, validator=gt(0))

    def __call__(self) -> bool | None:
        """Ask."""
        cuda = attribute(sys.modules.get("torch"), "cuda")
        answers: list[bool] = []
        thread = threading.Thread(target=self._ask, args=(cuda, answers), name="device probe", daemon=True)
        try:
            if cuda is None or not cuda.is_initialized():
                return None
            thread.start()
        except Exception:  # noqa: BLE001 - what stands for torch here is no torch, or there is no thread to be had
            return None
        thread.join(self.timeout)
        return bool(answers) and answers[0]

    def _ask(self, cuda: Any, answers: list[bool]) -> None:
        answers.append(any(self._synchronises(cuda) for _ in range(_TIMES)))

    def _synchronises(self, cuda: Any) -> bool:
        try:
            for device in self._devices():
                cuda.synchronize(device)
        except Exception:  # noqa: BLE001 - whatever it raises, the device does not answer
            return False
        return True

    def _devices(self) -> Sequence[str | int]:
        """What torch is asked about, one after the other."""
        if "," in self.device and _CUDA.fullmatch(self.device):
            return [f"cuda:{number}" for number in device_numbers(self.device)]
        return [self.device if self.device.startswith("cuda") else 0]
