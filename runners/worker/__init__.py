"""The device worker: a stable parent over one restartable context (D1).

`device_worker(...)` returns an ordinary `Supervisor` spec. The resource of its one child is a loaded runner; the child's body,
in `serving`, serves the mailbox. `report_poison` and `rebuild` are for the operator of a running worker.
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
"""A rebuild request is always a Resume (D7), whatever the decider of the worker says."""


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
    """A supervisor whose front is its one child, `context`: a stable address over one restartable device context (D1).

    Send an `ExecuteBatch` to that address: `stream(batch)` gives `TokenChunk`s, `call(batch)` a `Completion`.

    - Requests that wait keep their order through every restart. A begun stream follows its `on_loss` (D6); `on_loss="fail"`
      as an argument of the call does the same as in the batch.
    - After the death of a context its streams come back one at a time. If the next context dies before it has made a step of
      such a stream, that stream fails with `PoisonRequest` (D6).
    - Once the worker is down for good, every caller gets `WorkerDown` (D8).
    - A request whose deadline passes fails with `Timeout`, whether it waits, is being served, or the context is restarting.
    - A full queue raises `Backpressure` from the `_nowait` forms.

    Args:
        name: of the supervisor.
        runner: a runner spec whose class can be imported by name (D2), unless the host accepts others.
        host: where the runner runs; None is a `ProcessHost` on the CPU.
        queue: how many requests may wait.
        limit: of restarts; the default is 3 within 60 s of ready time, so that a slow load cannot hide a crash loop.
        backoff: the default restarts at once for the first time, then after 0.5 s, doubled up to 15 s.
        decider: the default is `DEVICE` (D3).
        canary: seconds without a request after which the worker asks the context for one token, so that a hung context is
            found and replaced before a caller needs it (D9). The host's timeout for a first chunk applies to the canary.
            None, the default, sends none: the first request finds a hung idle context, and a token may cost money.
        drain: seconds that begun streams get to finish when the worker is stopped, or restarted by a supervisor above (D13).
            Meanwhile requests that have not begun are refused with `WorkerStopping`. The default is 0: begun streams end
            with `ContextLost` or, as do waiting requests, with `WorkerDown`.
        options: further arguments of the `Supervisor`.

    Raises:
        TypeError: `runner` is no runner spec, or `host` no host.
        ValueError: the host cannot run this runner, or `canary` or `drain` is out of range.
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
    """The deadline of a request. Any other value has none; it is refused when its turn comes."""
    return request.deadline if type(request) is ExecuteBatch else None


@enable_ki_protection
def report_poison(worker: Ref, reason: str, incarnation: int) -> None:
    """Report from outside that the context of a worker is poisoned: the context fails with `ContextPoisoned` (D3).

    A report about an earlier incarnation is ignored, as is a report to a worker that is down. A context that drains ends
    too: streams that have begun there end with `WorkerDown` or `ContextLost`, or continue in the next context if a
    supervisor above starts the worker again (D13).

    Args:
        worker: its address.
        reason: the text of the error.
        incarnation: of the poisoned context, as `ContextState` and `TokenChunk` have it.
    """
    with suppress(ChildStopped, Refused):  # the worker is down, or already failing
        context = _context_of(worker)
        if context is not None and context.incarnation == incarnation:
            worker.inject(ContextPoisoned(reason))


@enable_ki_protection
async def rebuild(worker: Ref, cause: SessionRebuildCause = SessionRebuildCause.MANUAL) -> ContextState:
    """Have the session of a worker made anew, and wait until it serves; returns the context that serves from then on (D7).

    Streams that may move stop meanwhile and then continue, without losing or repeating a token. The rebuild waits for those
    that may not move, and meanwhile no request begins. For the cause `CONTEXT_POISONED` it waits for no stream: it is a
    restart. Both are charged to the worker's limit, and make no request a suspect. If the caller is cancelled before the
    rebuild begins, the request is withdrawn.

    Raises:
        WorkerDown: the worker is down for good.
        WorkerStopping: the worker is being stopped.
        RebuildSuperseded: the context failed first, or is not up yet, and a new one takes its place; or another rebuild was
            requested while this one waited.
        OutOfMemory: there was not enough memory for the new session; the context is restarted.
        InferenceError: the session could not be made anew for another reason; the context fails with the same error.
    """
    state = await _serving(worker, cause)
    request = state._context.ask(cause)
    try:
        await request.answered.wait()
    finally:
        state._context.withdraw(request)
    if isinstance(request.outcome, Exception):
        raise request.outcome
    if request.outcome == "done":
        return state
    now = await _next(worker)
    if not request.wants_restart or request.failure is None:
        raise RebuildSuperseded(f"the context failed first: incarnation {now.incarnation} took its place")
    return now


def _context_of(worker: Ref) -> Status | None:
    """The present status of the worker's leaf; None if there is none."""
    return next((node for node in worker.status().walk() if node.kind == "child"), None)


async def _serving(worker: Ref, cause: SessionRebuildCause) -> ContextState:
    """The context that serves now, for a rebuild request. A draining context is not rebuilt, and ends if it is poisoned.

    The context comes from a lease, which gives it without a checkpoint: so no stop can come between the check of the
    worker's state and the request.
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
    """The context that replaces one that ended before it had carried out a rebuild request, or for that request."""
    try:
        state: ContextState = await worker.ready()
    except ChildStopped as exc:
        if exc.__cause__ is None:  # it did not fail: an operator stopped it
            raise _stopping(worker) from None
        raise _down(exc) from exc.__cause__
    return state


def _stopping(worker: Ref) -> WorkerStopping:
    return WorkerStopping(f"{worker.path!r} is being stopped")


def _down(exc: ChildStopped) -> WorkerDown:
    return WorkerDown(str(exc))
