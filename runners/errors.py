"""The inference errors and their tags (D3). A tag decides what the supervisor does; the class is for callers.

`is_retryable` says whether the same request may succeed when sent again.
"""

from __future__ import annotations

from typing import ClassVar


class InferenceError(Exception):
    """Something went wrong with a request or with the device that served it."""

    tag: ClassVar[str | None] = None
    is_retryable: ClassVar[bool] = False


class BadRequest(InferenceError):
    """The request makes no sense to this runner. Concerns nobody else (D5)."""


class ContextLengthExceeded(InferenceError):
    """The prompt does not fit the model's context. Concerns nobody else (D5)."""


class Backpressure(InferenceError):
    """The queue is full and the caller did not want to wait."""

    is_retryable = True


class DeviceError(InferenceError):
    """The device or its context is in trouble. What follows is the supervisor's decision.

    A host fills in what it knows: the device's own error code, and the requests whose step raised it.
    This class itself stands for trouble that has no name here; `DEVICE` escalates it.
    """

    tag = "device"
    is_retryable = True
    code: int | None = None
    request_ids: tuple[str, ...] = ()


class ContextPoisoned(DeviceError):
    """The device context answers nothing but errors from now on; only a new process helps."""

    tag = "device.poisoned"


class ContextDied(ContextPoisoned):
    """The process that held the context ended, by a signal or an exit that nobody ordered."""

    tag = "device.poisoned.died"


class ContextHung(ContextPoisoned):
    """No progress before the deadline (D9); the process was killed."""

    tag = "device.poisoned.hung"


class ProtocolError(ContextPoisoned):
    """The process said something that it may not say; it was killed."""

    tag = "device.poisoned.protocol"


class OutOfMemory(DeviceError):
    """Not enough device memory for this request; the context itself is sound."""

    tag = "device.oom"


class Unrecoverable(DeviceError):
    """The device, its driver or the configuration is beyond what a restart can mend."""

    tag = "device.unrecoverable"
    is_retryable = False


class LoadFailed(DeviceError):
    """The runner could not be made or loaded."""

    tag = "device.load"


class SessionRebuild(DeviceError):
    """No fault: an operator ordered a new session. Decided and charged like one, and always Resume (D7)."""

    tag = "device.rebuild"


class WeightsCorrupt(Unrecoverable):
    """The weights file is not what its checksum says."""


class ContextLost(InferenceError):
    """A begun stream ended with its context, and could not or should not move to the next one (D6).

    Args:
        incarnation: the context that was lost.
        delivered: how many chunks the caller had received from it.
    """

    is_retryable = True

    def __init__(self, message: str, *, incarnation: int, delivered: int) -> None:
        super().__init__(message)
        self.incarnation = incarnation
        self.delivered = delivered


class PoisonRequest(InferenceError):
    """This request, served alone, killed a context; it is not tried again (D6)."""


class WorkerDown(InferenceError):
    """The worker has ended for good; its cause is chained (D8)."""


class WorkerStopping(InferenceError):
    """The worker was being stopped before a rebuild had begun (D7)."""


class RebuildSuperseded(InferenceError):
    """Something else made an ordered rebuild pointless: a new context, or a later order (D7)."""


class RunnerError(InferenceError):
    """The runner raised something that nothing classified; the text is all that is left of it."""
