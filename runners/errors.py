"""The errors of inference, and their tags (D3). The supervisor decides by the tag, a caller by the class."""

from __future__ import annotations

from typing import ClassVar


class InferenceError(Exception):
    """The base class: a request failed, or the device that served it.

    `tag`: the dotted name by which a decider finds a directive (D3); None if it has none. `is_retryable`: whether the same
    request may succeed if it is sent again. `code`: the number that the device or the server gave; None if it gave none.
    """

    tag: ClassVar[str | None] = None
    is_retryable: ClassVar[bool] = False
    code: int | None = None


class BadRequest(InferenceError):
    """The runner cannot serve this request as it stands. Only this request fails (D5)."""

    tag = "request.invalid"


class ContextLengthExceeded(InferenceError):
    """The prompt does not fit the model's context. Only this request fails (D5)."""

    tag = "request.length"


class ContentFiltered(InferenceError):
    """The content filter of the model refuses this request. Only this request fails (D5)."""

    tag = "request.filtered"


class Timeout(InferenceError):
    """The deadline of the request passed before its answer was complete."""

    tag = "request.timeout"
    is_retryable = True


class Backpressure(InferenceError):
    """The queue is full, and the caller used a form that does not wait for room."""

    tag = "request.backpressure"
    is_retryable = True


class NetworkError(InferenceError):
    """The server could not be reached, did not answer in time, or closed the connection."""

    tag = "net"
    is_retryable = True


class NetworkTimeout(NetworkError):
    """The server gave no answer, or no further token, in time."""

    tag = "net.timeout"


class ServerError(NetworkError):
    """The server failed. `code` is its HTTP status."""

    tag = "net.server"


class RateLimited(NetworkError):
    """The server limits the rate of requests.

    Args:
        retry_after: seconds after which the server accepts a request again; None if it did not say.
    """

    tag = "net.rate_limited"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CircuitOpen(NetworkError):
    """The server has failed so often that the worker's breaker lets no request begin for a while (D14).

    Args:
        retry_after: seconds after which the server is tried again; None if that is being done just now.
    """

    tag = "net.open"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unauthorized(InferenceError):
    """The server rejects the credentials of the session. The cause of a rebuild for it is `REMOTE_AUTH_FAILURE` (D7)."""

    tag = "net.unauthorized"


class Forbidden(InferenceError):
    """The server accepts the credentials, but does not allow the request."""

    tag = "net.forbidden"


class DeviceError(InferenceError):
    """The device or its context has failed, and the supervisor decides what follows (D3).

    This class itself stands for a failure that no subclass describes; the decider `DEVICE` escalates it.
    `request_ids`: the requests whose step raised it; the host fills them in.
    """

    tag = "device"
    is_retryable = True
    request_ids: tuple[str, ...] = ()


class ContextPoisoned(DeviceError):
    """The device context is broken: every further call fails. Only a new process clears that."""

    tag = "device.poisoned"


class ContextDied(ContextPoisoned):
    """The process that held the context was killed or exited, and its parent had not ordered that."""

    tag = "device.poisoned.died"


class ContextUnreachable(ContextDied):
    """The connection to a context on another machine is lost, so that nothing reports whether its process has ended (D16)."""

    tag = "device.poisoned.unreachable"


class ContextPreempted(ContextDied):
    """The machine of a context was taken away by those who lend it (D16)."""

    tag = "device.poisoned.preempted"


class ContextHung(ContextPoisoned):
    """The context made no progress before its deadline (D9), and its process was killed."""

    tag = "device.poisoned.hung"


class ProtocolError(ContextPoisoned):
    """The process sent a message that the protocol does not allow (D10), and was killed."""

    tag = "device.poisoned.protocol"


class OutOfMemory(DeviceError):
    """There was not enough memory for this request, on the device or on the host. The context is sound (D5)."""

    tag = "device.oom"


class Unrecoverable(DeviceError):
    """The device, its driver or the configuration is broken, and a restart does not repair it."""

    tag = "device.unrecoverable"
    is_retryable = False


class LoadFailed(DeviceError):
    """The runner could not be built or loaded."""

    tag = "device.load"


class NoPlace(LoadFailed):
    """No machine had room for a context in time (D16)."""

    tag = "device.load.no_place"


class SessionRebuild(DeviceError):
    """An operator requested a rebuild. It is decided and charged like a fault; the directive is always Resume (D7)."""

    tag = "device.rebuild"


class WeightsCorrupt(Unrecoverable):
    """The weights file does not match its checksum, or is no file of this model."""


class ContextLost(InferenceError):
    """A begun stream ended with its context, because it could not move to the next one, or had `on_loss="fail"` (D6).

    Args:
        incarnation: the number of the last context that made a chunk of the stream.
        delivered: how many chunks the stream had got, from all of its contexts.
    """

    is_retryable = True

    def __init__(self, message: str, *, incarnation: int, delivered: int) -> None:
        super().__init__(message)
        self.incarnation = incarnation
        self.delivered = delivered


class PoisonRequest(InferenceError):
    """Two contexts died while they served this request, the second while it served no other. It is not tried again (D6)."""


class WorkerDown(InferenceError):
    """The worker is down for good; the failure that ended it is the `__cause__` (D8)."""


class WorkerStopping(InferenceError):
    """The worker is being stopped: it begins no more requests (D13) and no rebuild (D7)."""


class RebuildSuperseded(InferenceError):
    """A new context, or a later rebuild request, made this rebuild request pointless (D7)."""


class RunnerError(InferenceError):
    """The runner raised an exception that could not be classified (D4), or yielded a wrong chunk (D5). Only its request fails.

    The text quotes the exception: its class and its text.
    """
