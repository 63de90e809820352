"""Asking a device whether it still answers. Imports no torch; asks only where torch has a context already."""

from __future__ import annotations

import sys
import threading
from typing import Any

from attrs import field, frozen
from attrs.validators import gt, instance_of

from .brief import attribute

_TIMES = 2  # the first may report, and so clear, an old error; one that stays is the context's


@frozen
class DeviceProbe:
    """Synchronises with the device: True if it answers, False if it fails twice or not in time, None if none is in use.

    In a thread of its own, because a device that hangs may keep its caller for ever; the thread is left behind then. It is
    given longer than any step should take: one that is merely busy is not poisoned, and a host with deadlines of its own
    (D9) does not wait as long.

    Args:
        device: as torch names it; of anything but `cuda…` the first CUDA device is asked, if one is in use.
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
            cuda.synchronize(self.device if self.device.startswith("cuda") else 0)
        except Exception:  # noqa: BLE001 - whatever it raises, the device does not answer
            return False
        return True
