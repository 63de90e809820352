"""What the operator of a running device worker may order: a rebuild, a new runner, and the end of a poisoned context (D3, D7, D12)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

import trio
from attrs import evolve
from trio.lowlevel import enable_ki_protection

from supervise import ChildStopped, Ref, Refused, StartFailed, Status

from ..brief import brief
from ..checks import is_float
from ..errors import ContextPoisoned, RebuildSuperseded, WorkerDown, WorkerStopping
from ..hosts.packing import check_for
from ..types import RunnerSpec, SessionRebuildCause
from .context import Context
from .group import Group, Replacement, group_at
from .opener import Opener
from .serving import ContextState

SPARE = "spare"
"""The name of the context that serves while the others get a new runner."""

_DELAYS = (0, 0.5, 1, 2)
"""Seconds before each load of the runner from before, in a context where the new one has not loaded. No supervisor tries these loads
again, since a failed start by hand leaves a child down (R25)."""


@enable_ki_protection
def report_poison(worker: Ref, reason: str, incarnation: int) -> None:
    """Report from outside that the context of a worker is poisoned: the context fails with `ContextPoisoned` (D3).

    A report about an earlier incarnation is ignored, as is a report to a worker that is down. A context that drains ends
    too: streams that have begun there end with `WorkerDown` or `ContextLost`, or continue in the next context if a
    supervisor above starts the worker again (D13).

    Args:
        worker: its address; of a worker with several `hosts`, the address of the context.
        reason: the text of the error.
        incarnation: of the poisoned context, as `ContextState` and `TokenChunk` have it.

    Raises:
        ValueError: the worker has several contexts, which count their incarnations apart.
    """
    with suppress(ChildStopped, Refused):  # the worker is down, or already failing
        contexts = _contexts_of(worker)
        if len(contexts) > 1:
            paths = ", ".join(repr(context.path) for context in contexts)
            raise ValueError(
                f"{worker.path!r} has several contexts, report the poison of one of them: {paths}"
            )
        for context in contexts:
            if context.status().incarnation == incarnation:
                context.inject(ContextPoisoned(reason))


@enable_ki_protection
async def rebuild(worker: Ref, cause: SessionRebuildCause = SessionRebuildCause.MANUAL) -> ContextState:
    """Have the session of a worker made anew, and wait until it serves; returns the context that serves from then on (D7).

    Streams that may move stop meanwhile and then continue, without losing or repeating a token. The rebuild waits for those
    that may not move, and meanwhile no request begins. For the cause `CONTEXT_POISONED` it waits for no stream: it is a
    restart. Both are charged to the worker's limit, and make no request a suspect. If the caller is cancelled before the
    rebuild begins, the request is withdrawn.

    Of a worker with several `hosts` the contexts are rebuilt one after the other, while the others continue its streams;
    the last one is returned (D12). One that is down for good is left out, and one that is just starting is waited for.

    Args:
        worker: its address, or that of one of its contexts.
        cause: why, as a `SessionRebuildCause` or its value.

    Raises:
        ValueError: `cause` is not the value of a `SessionRebuildCause`.
        WorkerDown: the worker is down for good.
        WorkerStopping: the worker is being stopped.
        RebuildSuperseded: the context failed first, or is not up yet, and a new one takes its place; or another rebuild was
            requested while this one waited.
        OutOfMemory: there was not enough memory for the new session; the context is restarted.
        InferenceError: the session could not be made anew for another reason; the context fails with the same error.
    """
    cause = _checked_cause(cause)
    if not _has_several(worker):
        contexts = _contexts_of(worker)
        return await _rebuild_one(contexts[0] if contexts else worker, cause)
    contexts = await _contexts_when_up(worker)
    state, why = None, None
    for context in contexts:
        try:
            state = await _rebuild_or_await(context, cause)
        except WorkerDown as exc:
            why = exc.__cause__
        except WorkerStopping:  # if that context alone is being stopped, it is left out
            if not _is_up(worker):
                raise
    if state is None:
        raise _no_context(worker) from why
    return state


async def _rebuild_or_await(context: Ref, cause: SessionRebuildCause) -> ContextState:
    """Rebuild one context of several. One that is being replaced has a new session anyway."""
    try:
        return await _rebuild_one(context, cause)
    except RebuildSuperseded:
        return await _next(context)


async def _rebuild_one(context: Ref, cause: SessionRebuildCause) -> ContextState:
    state = await _serving(context, cause)
    request = state._context.ask(cause)
    try:
        await request.answered.wait()
    finally:
        state._context.withdraw(request)
    if isinstance(request.outcome, Exception):
        raise request.outcome
    if request.outcome == "done":
        return state
    now = await _next(context)
    if not request.wants_restart or request.failure is None:
        raise RebuildSuperseded(f"the context failed first: incarnation {now.incarnation} took its place")
    return now


@enable_ki_protection
async def replace(worker: Ref, runner: RunnerSpec, *, drain: float = 60.0) -> None:
    """Give a worker with several `hosts` a new runner, while it serves; returns when all contexts have it (D12).

    A stream that has to move meanwhile, because its context dies or is rebuilt, ends with `ContextLost` too if a context with
    another runner takes it.

    First one more context, `spare`, is started with the new runner beside the others, on the first host whose context is up: its
    device must have memory for both. Then the contexts are restarted with the new runner, one after the other. Each begins no
    more requests, and its begun streams get `drain` seconds to finish, because another runner cannot continue them: unless the new
    spec equals the old one, a stream that needs longer ends with `ContextLost`. At the end the spare is drained and removed.

    Later incarnations have the new runner too, also after a restart of the worker, if it is declared anew with the same runner (R38),
    or if the same spec is removed and added again under its name. A worker of another spec with an equal runner that gets the name of
    one which was removed may have it too. Restarts for this are not charged to a limit. If the caller is cancelled, or the worker is
    stopped, once the new runner has loaded, the contexts that still have the old one get the new one with their next restart.

    Args:
        worker: its address.
        runner: the new runner spec; equal to the present one, to load changed weights for instance, it is loaded anew.
        drain: seconds that begun streams get in each context.

    Raises:
        StartFailed: the new runner did not load in the spare, or later in another context. The worker has the old one again. A context
            where the old one does not load either, in four attempts within some seconds, stays down until it is started by hand.
        WorkerDown: the worker is down for good.
        WorkerStopping: the worker is being stopped.
        RuntimeError: another replacement is under way.
        TypeError: the worker was declared without `hosts`, or `runner` is no runner spec.
        ValueError: a host cannot run this runner, or `drain` is out of range.
    """
    if not (is_float(drain) and 0 <= drain < math.inf):
        raise ValueError(f"drain must be seconds >= 0, got {brief(drain)}")
    if not _has_several(worker):
        raise TypeError(f"{worker.path!r} has no queue for several contexts: declare it with hosts=[…]")
    contexts = await _contexts_when_up(worker)
    # The spare of another replacement may be the only context that serves just now: the worker is not down.
    _free_group(worker)
    opener = await _opener(worker, contexts)
    group = _free_group(worker)
    for context in group.contexts.values():
        check_for(context.opener.host, runner)
    group.replacing = True
    try:
        spare = await _spare(worker, evolve(opener, runner=runner, declared=False))
        await _swap(contexts, group, runner, spare, drain)
    except Refused as exc:
        if _is_up(worker):  # an operator has removed a context
            raise
        raise _stopping(worker) from exc
    finally:
        group.replacing = False


def _free_group(worker: Ref) -> Group:
    """The group of a worker, unless its runner is being replaced.

    Raises:
        RuntimeError: another replacement is under way.
    """
    group = group_at(worker.tree, worker.path)
    if group.replacing:
        raise RuntimeError(f"another replacement of the runner of {worker.path!r} is under way")
    return group


async def _spare(worker: Ref, opener: Opener) -> Ref:
    """One context more, loaded. A caller that is cancelled meanwhile leaves none."""
    try:
        return await worker.add(opener.supervised(SPARE))
    except trio.Cancelled:
        with trio.CancelScope(shield=True), suppress(KeyError, Refused):
            await _take_out(worker.tree[f"{worker.path}/{SPARE}"])
        raise


def _was_restarted(refused: Refused) -> bool:
    """Whether a request after a stop was refused because the node was restarted by hand as it stopped."""
    return refused.reason in ("running", "restarting")


async def _take_out(spare: Ref) -> None:
    """End the spare, also if it is restarted by hand as it stops."""
    while True:
        await spare.stop()
        try:
            await spare.remove()
        except Refused as refused:
            if not _was_restarted(refused):
                raise
        else:
            return


async def _opener(worker: Ref, contexts: Sequence[Ref]) -> Opener:
    """That of the first context that is up, which is waited for if none is."""
    down = None
    for ref in () if group_at(worker.tree, worker.path).contexts else contexts:
        try:
            await ref.ready()
        except ChildStopped as exc:
            down = exc
        else:
            break
    group = group_at(worker.tree, worker.path)
    for ref in contexts:
        if ref.path in group.contexts:
            opener: Opener = group.contexts[ref.path].opener
            return opener
    raise _no_context(worker) from (None if down is None else down.__cause__)


async def _swap(contexts: Sequence[Ref], group: Group, runner: RunnerSpec, spare: Ref, drain: float) -> None:
    """Give the contexts the runner of the spare, and then end the spare."""
    before, group.replacement = group.replacement, Replacement(runner)
    try:
        try:
            await _renew_all(contexts, group, drain, before)
        except StartFailed:
            await _renew_all(contexts, group, drain, before)
            raise
        finally:
            await _drained(group.contexts.get(f"{spare.path}/context"), drain)
        if not await _is_any_up(contexts):
            raise WorkerDown(f"every context with the new runner is down: {[ref.path for ref in contexts]}")
    finally:
        with trio.CancelScope(shield=True):
            await _take_out(spare)


async def _renew_all(contexts: Sequence[Ref], group: Group, drain: float, before: Replacement | None) -> None:
    """Start each context anew that has another runner than its next incarnation would have."""
    for ref in contexts:
        if ref.path not in group.contexts:  # it may be loading the other runner just now
            with suppress(ChildStopped):
                await ref.ready()
        context: Context | None = group.contexts.get(ref.path)
        if context is None:  # it is down for good, or just ending: its next incarnation has the right runner
            continue
        if context.replacement is not group.replacement:
            with context.hold():
                await context.emptied(drain)
                if group.contexts.get(ref.path) is context:
                    await _start_anew(ref, group, before)


async def _start_anew(context: Ref, group: Group, before: Replacement | None) -> None:
    """Stop a context and start it with the runner of the group; if that is new and does not load, with the one from before.

    It is not restarted: that would make a load that fails a failure of the context, which might stop the whole worker.
    """
    with trio.CancelScope(shield=True):  # a caller that is cancelled leaves no context down
        context = context.tree[context.path.rpartition("/")[0]]
        await context.stop()
        try:
            await _start(context)
        except StartFailed:
            is_new = group.replacement is not before
            group.replacement = before
            await _start_again(context)
            if is_new:
                raise


async def _start_again(context: Ref) -> None:
    """Start a context whose load has failed with the runner from before, or leave it down if that does not load several times."""
    for delay in _DELAYS:
        await trio.sleep(delay)
        with suppress(StartFailed):
            await _start(context)
            return


async def _start(context: Ref) -> None:
    """Start a context that was stopped, unless it was restarted by hand as it stopped, and has the runner of its group already."""
    try:
        await context.start()
    except Refused as refused:
        if not _was_restarted(refused):
            raise
        with suppress(ChildStopped):
            await context.ready()


async def _is_any_up(contexts: Sequence[Ref]) -> bool:
    """Whether one of the contexts is up, or will be: one that is just restarted is waited for."""
    for ref in contexts:
        with suppress(ChildStopped):
            await ref.ready()
            return True
    return False


async def _drained(context: Context | None, seconds: float) -> None:
    """Wait until no stream is open in this context, for so many seconds at most. Meanwhile none begins there."""
    if context is not None:
        with context.hold():
            await context.emptied(seconds)


def _checked_cause(cause: object) -> SessionRebuildCause:
    try:
        return SessionRebuildCause(cast("str", cause))
    except ValueError:
        allowed = ", ".join(repr(each.value) for each in SessionRebuildCause)
        raise ValueError(f"the cause of a rebuild must be one of {allowed}, got {brief(cause)}") from None


def _has_several(worker: Ref) -> bool:
    """Whether it is a worker that was declared with `hosts`: its contexts share its mailbox."""
    status = _status(worker)
    return status.mailbox is not None and status.kind == "supervisor"


def _status(node: Ref) -> Status:
    """Its status.

    Raises:
        WorkerDown: it was removed, or its tree has ended.
    """
    try:
        return node.status()
    except ChildStopped as exc:
        raise _down(exc) from exc.__cause__


def _is_up(worker: Ref) -> bool:
    """Whether a worker is up; one that is gone is not."""
    with suppress(WorkerDown):
        return _status(worker).state == "up"
    return False


def _contexts_of(worker: Ref) -> list[Ref]:
    """The contexts of a worker; or this context itself."""
    return [worker.tree[node.path] for node in worker.status().walk() if node.kind == "child"]


async def _contexts_when_up(worker: Ref) -> list[Ref]:
    """The contexts of a worker with several, those that are down too. A worker that is starting is waited for."""
    try:
        while (state := worker.status().state) != "up":
            if state == "stopping":
                raise _stopping(worker)
            await worker.ready()
    except ChildStopped as exc:
        raise _down(exc) from exc.__cause__
    return [
        worker.tree[f"{node.path}/context"]
        for node in worker.status().children
        if node.path != f"{worker.path}/{SPARE}"
    ]


async def _serving(context: Ref, cause: SessionRebuildCause) -> ContextState:
    """The context that serves now, for a rebuild request. A draining context is not rebuilt, and ends if it is poisoned.

    The context comes from a lease, which gives it without a checkpoint: so no stop can come between the check of the
    state and the request.
    """
    try:
        status = context.status()
        if status.state == "up":
            async with context.lease() as now:
                serving: ContextState = now
                return serving
        if status.state in ("down", "condemned"):
            await context.ready()
    except ChildStopped as exc:
        raise _down(exc) from exc.__cause__
    if status.state == "stopping":
        if cause is SessionRebuildCause.CONTEXT_POISONED:
            report_poison(context, f"a new session was ordered ({cause})", status.incarnation)
        raise _stopping(context)
    raise RebuildSuperseded(
        f"{context.path!r} serves nothing just now, it is {status.state}: a new context comes"
    )


async def _next(context: Ref) -> ContextState:
    """The context that replaces one that ended before it had carried out a rebuild request, or for that request."""
    try:
        state: ContextState = await context.ready()
    except ChildStopped as exc:
        if exc.__cause__ is None:  # it did not fail: an operator stopped it
            raise _stopping(context) from None
        raise _down(exc) from exc.__cause__
    return state


def _no_context(worker: Ref) -> WorkerDown:
    return WorkerDown(f"{worker.path!r} has no context that serves")


def _stopping(worker: Ref) -> WorkerStopping:
    return WorkerStopping(f"{worker.path!r} is being stopped")


def _down(exc: ChildStopped) -> WorkerDown:
    return WorkerDown(str(exc))
