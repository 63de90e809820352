"""The device worker: a stable parent over one restartable context (D1).

`device_worker(...)` is an ordinary `Supervisor` spec. Its one child owns a host with a loaded runner as its resource; the
child's body, in `serving`, serves the mailbox. What else is here, an operator says to a running worker.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from trio.lowlevel import enable_ki_protection

from supervise import (
    DEVICE,
    Backoff,
    Child,
    ChildStopped,
    Decider,
    Limit,
    Mailbox,
    Ref,
    Refused,
    Resume,
    Status,
    Supervisor,
)

from ..brief import brief
from ..errors import (
    Backpressure,
    ContextPoisoned,
    RebuildSuperseded,
    Timeout,
    WorkerDown,
    WorkerStopping,
)
from ..hosts import CheckingHost, Host
from ..hosts.default import default_host
from ..hosts.spec import check_runner
from ..types import ExecuteBatch, RunnerSpec, SessionRebuildCause
from .serving import ContextState, Opener, serve

__all__ = ["ContextState", "device_worker", "rebuild", "report_poison"]

WORKER_LIMIT = Limit(3, within=60, of_ready_time=True)
WORKER_BACKOFF = Backoff(initial=0.5, factor=2, maximum=15, immediate=1)

_REBUILDS = Decider({"device.rebuild": Resume})
"""What an operator orders is no matter of policy."""


def device_worker(
    name: str,
    runner: RunnerSpec,
    *,
    host: Host | None = None,
    queue: int = 1024,
    limit: Limit | None = WORKER_LIMIT,
    backoff: Backoff | None = WORKER_BACKOFF,
    decider: Decider = DEVICE,
    canary: float | None = None,
    drain: float = 0.0,
    **options: Any,
) -> Supervisor:
    """A supervisor whose front is its one child, `context`: a stable address over one restartable device context.

    Its `stream(batch)` gives `TokenChunk`s, its `call(batch)` a `Completion`, both for an `ExecuteBatch`. What waits is
    kept, in order, through any restart; a begun stream follows its `on_loss` (D6), and `on_loss="fail"` at the call
    itself is the same. After a death that nobody ordered its streams come back one at a time, and one with which the
    context dies again before it has made a step fails with `PoisonRequest`. Once the worker is down for good everybody
    gets `WorkerDown` (D8), past its own deadline a request `Timeout`, whether it waits, is under way, or the context is just
    restarting; from the `_nowait` forms a full queue is `Backpressure`.

    Args:
        name: of the supervisor.
        runner: a runner spec, importable by name (D2) unless the host says otherwise.
        host: where the runner lives; None is a `ProcessHost` on the CPU.
        queue: how many requests may wait.
        limit: of restarts; by default 3 within 60 s of ready time, so that a slow load cannot hide a crash loop.
        backoff: by default the first restart is at once, then 0.5 s × 2 up to 15 s.
        decider: by default `DEVICE` (D3).
        canary: seconds without any request after which the context is asked for one token, so that one that hangs is found
            and replaced before somebody needs it (D9); it has the host's time for a first chunk. None is never, the default:
            an idle context that hangs harms nobody, the first request would find it, and a runner may cost money.
        drain: seconds that begun streams get to finish when the worker is stopped, or restarted by a supervisor above (D13).
            Meanwhile new requests, and those that wait and have not begun, are refused with `WorkerStopping`. By default
            none: begun streams end with `ContextLost` or, like what waits, with `WorkerDown`.
        options: further arguments of the `Supervisor`.

    Raises:
        TypeError: the runner or the host is none; so for ValueError.
    """
    if host is None:
        host = default_host()
    if isinstance(host, type) or not isinstance(host, Host):
        raise TypeError(
            f"device worker {name!r}: host must be a value with an open method, got {brief(host)}"
        )
    check = host.check if isinstance(host, CheckingHost) else check_runner
    check(runner)
    if canary is not None and not canary > 0:
        raise ValueError(f"device worker {name!r}: canary must be > 0 seconds or None, got {brief(canary)}")
    if type(drain) not in (int, float) or not drain >= 0:
        raise ValueError(f"device worker {name!r}: drain must be >= 0 seconds, got {brief(drain)}")
    context = Child(
        "context",
        serve,
        resource=Opener(host, runner, canary, drains=drain > 0),
        mailbox=Mailbox(
            queue, on_loss="requeue", stopped=WorkerDown, full=Backpressure, deadline=_deadline, late=Timeout
        ),
        backoff=backoff,
        decider=_REBUILDS,
        drain=drain,
        grace=30.0,
    )
    return Supervisor(name, [context], front=context, limit=limit, decider=decider, **options)


def _deadline(request: object) -> float | None:
    """Of whatever was sent; what is no request is refused when its turn comes."""
    return request.deadline if type(request) is ExecuteBatch else None


@enable_ki_protection
def report_poison(worker: Ref, reason: str, incarnation: int) -> None:
    """Tell a worker from outside that its context is poisoned; of a stale incarnation it is ignored (D3).

    A context that drains ends with it too: what had begun there ends with `WorkerDown` or `ContextLost`, or goes on in the
    next context if a supervisor above starts the worker again (D13).
    """
    with suppress(ChildStopped, Refused):  # it is down, or failing already
        context = _context_of(worker)
        if context is not None and context.incarnation == incarnation:
            worker.inject(ContextPoisoned(reason))


@enable_ki_protection
async def rebuild(worker: Ref, cause: SessionRebuildCause = SessionRebuildCause.MANUAL) -> ContextState:
    """Have a worker's session made anew, and wait until it is; gives the context that serves from then on (D7).

    Streams that may move stop meanwhile and go on behind what they have, each token once; those that may not are waited
    for, while nothing new begins. `CONTEXT_POISONED` waits for nobody: it is a restart. Either is charged to the worker's
    limit, and makes no request a suspect. A caller who is cancelled before it begins takes the order along.

    Raises:
        WorkerDown: the worker is down for good.
        WorkerStopping: it is being stopped.
        RebuildSuperseded: the context failed first, or is not there yet: a new one takes its place. Or another rebuild was
            ordered while this one waited.
        InferenceError: the session could not be made anew; the context fails with the same error.
    """
    state = await _serving(worker, cause)
    order = state._context.ask(cause)
    try:
        await order.answered.wait()
    finally:
        state._context.withdraw(order)
    if isinstance(order.outcome, Exception):
        raise order.outcome
    if order.outcome == "done":
        return state
    now = await _next(worker)
    if not order.wants_restart or order.failure is None:
        raise RebuildSuperseded(f"the context failed first: incarnation {now.incarnation} took its place")
    return now


def _context_of(worker: Ref) -> Status | None:
    """The leaf of a worker, as it stands."""
    return next((node for node in worker.status().walk() if node.kind == "child"), None)


async def _serving(worker: Ref, cause: SessionRebuildCause) -> ContextState:
    """The context that serves now, for a rebuild. One that drains gets none, but does not go on if it is poisoned.

    As a lease gives it: at once, so that a stop cannot come between the look at the worker's state and the order.
    """
    try:
        context = _context_of(worker)
        state = "down" if context is None else context.state
        if state == "up":
            async with worker.lease() as now:
                serving: ContextState = now
                return serving
        if state in ("down", "condemned"):
            await worker.ready()
    except ChildStopped as exc:
        raise _down(exc) from exc.__cause__
    if state == "stopping":
        if context is not None and cause is SessionRebuildCause.CONTEXT_POISONED:
            report_poison(worker, f"a new session was ordered ({cause})", context.incarnation)
        raise _stopping(worker)
    raise RebuildSuperseded(f"{worker.path!r} has no context just now, it is {state}: a new one comes")


async def _next(worker: Ref) -> ContextState:
    """The context that takes the place of one that has ended with an order."""
    try:
        state: ContextState = await worker.ready()
    except ChildStopped as exc:
        if exc.__cause__ is None:  # it did not fail: somebody stopped it
            raise _stopping(worker) from None
        raise _down(exc) from exc.__cause__
    return state


def _stopping(worker: Ref) -> WorkerStopping:
    return WorkerStopping(f"{worker.path!r} is being stopped")


def _down(exc: ChildStopped) -> WorkerDown:
    return WorkerDown(str(exc))
