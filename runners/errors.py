"""The inference errors and their tags (D3). A tag decides what the supervisor does; the class is for callers.

`is_retryable` says whether the same request may succeed when sent again.
"""

from __future__ import annotations

from typing import ClassVar


class InferenceError(Exception):
    """Something went wrong with a request or with the device that served it.

    `code` is the number that the device or the server gave, where there was one.
    """

    tag: ClassVar[str | None] = None
    is_retryable: ClassVar[bool] = False
    code: int | None = None


class BadRequest(InferenceError):
    """The request makes no sense to this runner. Concerns nobody else (D5)."""

    tag = "request.invalid"


class ContextLengthExceeded(InferenceError):
    """The prompt does not fit the model's context. Concerns nobody else (D5)."""

    tag = "request.length"


class ContentFiltered(InferenceError):
    """The model's keeper will not answer this. Concerns nobody else (D5)."""

    tag = "request.filtered"


class Timeout(InferenceError):
    """The request was not answered within the time that it allowed."""

    tag = "request.timeout"
    is_retryable = True


class Backpressure(InferenceError):
    """The queue is full and the caller did not want to wait."""

    tag = "request.backpressure"
    is_retryable = True


class NetworkError(InferenceError):
    """The server could not be reached, did not answer in time, or hung up."""

    tag = "net"
    is_retryable = True


class ServerError(NetworkError):
    """The server failed; `code` is the status it gave."""

    tag = "net.server"


class RateLimited(NetworkError):
    """The server wants fewer requests.

    Args:
        retry_after: seconds after which it will take one again, if it said so.
    """

    tag = "net.rate_limited"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unauthorized(InferenceError):
    """The server does not know who asks: the session's credentials are no good any more (`REMOTE_AUTH_FAILURE`)."""

    tag = "net.unauthorized"


class Forbidden(InferenceError):
    """The server knows who asks, and will not have it."""

    tag = "net.forbidden"


class DeviceError(InferenceError):
    """The device or its context is in trouble. What follows is the supervisor's decision.

    A host fills in the requests whose step raised it.
    This class itself stands for trouble that has no name here; `DEVICE` escalates it.
    """

    tag = "device"
    is_retryable = True
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
    """Not enough memory, the device's or the host's, for this request; the context itself is sound."""

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
    """The worker is being stopped: it begins no request any more (D13), and no rebuild (D7)."""


class RebuildSuperseded(InferenceError):
    """Something else made an ordered rebuild pointless: a new context, or a later order (D7)."""


class RunnerError(InferenceError):
    """The runner raised something that nothing classified; the text is all that is left of it."""
