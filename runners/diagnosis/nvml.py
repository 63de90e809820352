"""The state of the hardware (D4): after the death of a poisoned context NVML is asked about the device.

NVML needs no CUDA context. It is called in a thread with a deadline, because a call into a driver that hangs does not return. A device
of another machine is asked about there, by a process that its guardian starts (D16).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import outcome
import trio
from attrs import field, frozen

from ..checks import above, plain_number
from ..errors import ContextPoisoned, DeviceError, Unrecoverable
from .hardware import trouble_of


@frozen(kw_only=True)
class Nvml:
    """Asks NVML whether a device can be used again after a poison (D4).

    If NVML cannot answer, the device counts as usable, and the restart shows whether it is: that is so without
    `nvidia-ml-py` or a driver, with a driver that is too old, for an unknown device, or if no thread can be started.

    Args:
        timeout: seconds after which a device about which NVML has not answered counts as unusable.
        module: the NVML module; None imports `pynvml`. `SshHost` and `RayHost` refuse one, since it cannot be sent to another machine.

    Raises:
        ValueError: `timeout` is not above 0.
    """

    timeout: float = field(default=10.0, converter=plain_number, validator=above(0))
    module: Any = field(default=None, repr=False)

    async def judge(
        self,
        error: DeviceError,
        device: str,
        ask: Callable[[Nvml, str], Awaitable[str | None]] | None = None,
    ) -> DeviceError:
        """Returns the failure of a context, or an `Unrecoverable` raised from it if a restart cannot help.

        Args:
            error: the failure of the context. NVML is asked only about a `ContextPoisoned`.
            device: as torch names it; NVML is asked only about CUDA devices.
            ask: asks about the device, as `trouble` does here; None is `trouble`.
        """
        if not isinstance(error, ContextPoisoned) or not device.startswith("cuda"):
            return error
        trouble = await (self.trouble(device) if ask is None else ask(self, device))
        return error if trouble is None else _worse(error, device, trouble)

    async def trouble(self, device: str) -> str | None:
        """The reason why a device of this machine cannot be used; None if it can be, or if NVML does not know."""
        # In a list, so that an answer counts which came in time though the loop was blocked.
        answers: list[outcome.Outcome[str | None]] = []

        def ask() -> None:
            answers.append(outcome.capture(trouble_of, device, self.module))

        with trio.move_on_after(self.timeout):
            try:
                # It has a limiter of its own, so that a thread that hangs takes no place in Trio's default limiter.
                await trio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
            except RuntimeError:  # no thread can be started
                return None
        if answers:
            # An old `nvidia-ml-py` raises, which must not replace the poison.
            return answers[0].value if isinstance(answers[0], outcome.Value) else None
        return self.silence

    @property
    def silence(self) -> str:
        """The reason why a device cannot be used about which NVML has not answered in time."""
        return f"NVML has not answered within {self.timeout:g} s"


def _worse(error: ContextPoisoned, device: str, trouble: str) -> Unrecoverable:
    worse = Unrecoverable(f"{device} cannot be used again: {trouble}; its context failed with: {error}")
    worse.code, worse.request_ids = error.code, error.request_ids
    worse.__cause__ = error
    return worse
