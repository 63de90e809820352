"""The device worker: a stable parent over restartable contexts (D1, D12).

`device_worker(...)` returns an ordinary `Supervisor` spec. The resource of each of its children is a loaded runner; the child's
body, in `serving`, serves the mailbox. What the operator of a running worker may order is in `operations`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from attrs import evolve

from supervise import DEVICE, Backoff, Decider, Limit, Mailbox, Restart, Stop, Supervisor

from ..brief import brief
from ..checks import is_float
from ..errors import Backpressure, Timeout, WorkerDown
from ..hosts import Host
from ..hosts.default import default_host
from ..hosts.packing import check_for
from ..types import ExecuteBatch, RunnerSpec
from .breaker import Breaker
from .opener import Opener
from .operations import rebuild, replace, report_poison
from .serving import ContextState

__all__ = ["Breaker", "ContextState", "device_worker", "rebuild", "replace", "report_poison"]

WORKER_LIMIT = Limit(3, within=60, of_ready_time=True)
WORKER_BACKOFF = Backoff(initial=0.5, factor=2, maximum=15, immediate=1)

_LOADS = Decider({"device.load": Restart})
"""A load that fails is no reason to stop the other contexts of a worker: it is tried again, up to the limit (D12)."""


def device_worker(
    name: str,
    runner: RunnerSpec,
    *,
    host: Host | None = None,
    hosts: Iterable[Host] | None = None,
    queue: int = 1024,
    limit: Limit | None = WORKER_LIMIT,
    worker_limit: Limit | None = None,
    backoff: Backoff | None = WORKER_BACKOFF,
    decider: Decider = DEVICE,
    canary: float | None = None,
    drain: float = 0.0,
    retries: int = 0,
    retry_budget: float | None = 0.1,
    breaker: Breaker | None = None,
    **options: Any,
) -> Supervisor:
    """A supervisor over one restartable device context, or over several: a stable address for all of them (D1, D12).

    Send an `ExecuteBatch` to that address: `stream(batch)` gives `TokenChunk`s, `call(batch)` a `Completion`.

    - Requests that wait keep their order through every restart. A begun stream follows its `on_loss` (D6); `on_loss="fail"`
      as an argument of the call does the same as in the batch.
    - After the death of a context its streams come back one at a time. If the next context dies before it has made a step of
      such a stream, that stream fails with `PoisonRequest` (D6).
    - Once the worker is down for good, every caller gets `WorkerDown` (D8).
    - A request whose deadline passes fails with `Timeout`, whether it waits, is being served, or the context is restarting.
    - A full queue raises `Backpressure` from the `_nowait` forms.

    With `host` the worker has one child, `context`, which is its front: `ready()` gives its `ContextState`. With `hosts` it has
    `context-0`, `context-1` and so on, each a supervisor of one `context`, which take requests from one queue: each waiting
    request begins where a place is free, and a burst is spread evenly. When a context dies, another continues its streams
    at once, and none waits for the restart. A context that passes its limit or whose device is unrecoverable is stopped,
    and the others go on without it.

    Args:
        name: of the supervisor.
        runner: a runner spec whose class can be imported by name (D2), unless the host accepts others.
        host: where the runner runs; None is a `ProcessHost` on the CPU, unless there are `hosts`.
        hosts: for several contexts, the host of each, such as `[ProcessHost("cuda:0"), ProcessHost("cuda:1")]`.
        queue: how many requests may wait.
        limit: of the restarts of each context; the default is 3 within 60 s of ready time, so that a slow load cannot hide a
            crash loop.
        worker_limit: with `hosts`, how often contexts are started once more that have passed their `limit`, or whose
            failure the decider escalates; beyond it the worker itself fails. None stops each such context, and the worker
            is down when the last one is.
        backoff: the default restarts at once for the first time, then after 0.5 s, doubled up to 15 s.
        decider: the default is `DEVICE` (D3).
        canary: seconds without a request after which the worker asks a context for one token, so that a hung context is
            found and replaced before a caller needs it (D9). The host's timeout for a first chunk applies to the canary.
            None, the default, sends none: the first request finds a hung idle context, and a token may cost money.
        drain: seconds that begun streams get to finish when the worker is stopped, or restarted by a supervisor above (D13).
            Meanwhile requests that have not begun are refused with `WorkerStopping`. The default is 0: begun streams end
            with `ContextLost` or, as do waiting requests, with `WorkerDown`.
        retries: how often a request is sent again whose server failed before it gave anything, if the error `is_retryable`: after
            half a second, doubled up to 15 s, or when the server says; in a context at most as many wait for that as its runner has
            places. The default is 0: the caller gets the error (D14).
        retry_budget: in any minute at most ten requests, and this share of those that began in it, are sent again, so that
            retries do not multiply what a failing server has to bear. None sends each one again as often as `retries` says.
        breaker: after some failures of the server in a row requests are refused with `CircuitOpen` for a while, instead of
            waiting for it one by one. None, the default, always asks it.
        options: further arguments of the `Supervisor`.

    Raises:
        TypeError: `runner` is no runner spec, a host is no host, or both `host` and `hosts` are given.
        ValueError: a host cannot run this runner, `hosts` is empty, or `canary`, `drain`, `retries` or `retry_budget` is out of range.
    """
    several = _several(name, host, hosts)
    for each in several or [host := host or default_host()]:
        _check_host(name, each, runner)
    if canary is not None and not (is_float(canary) and canary > 0):
        raise ValueError(f"device worker {name!r}: canary must be > 0 seconds or None, got {brief(canary)}")
    if not (is_float(drain) and drain >= 0):
        raise ValueError(f"device worker {name!r}: drain must be >= 0 seconds, got {brief(drain)}")
    if type(retries) is not int or retries < 0:
        raise ValueError(f"device worker {name!r}: retries must be an integer >= 0, got {brief(retries)}")
    if retry_budget is not None and not (is_float(retry_budget) and 0 <= retry_budget < math.inf):
        raise ValueError(
            f"device worker {name!r}: retry_budget must be a share >= 0 or None, got {brief(retry_budget)}"
        )
    if breaker is not None and type(breaker) is not Breaker:
        raise TypeError(f"device worker {name!r}: breaker must be a Breaker or None, got {brief(breaker)}")
    mailbox = Mailbox(
        queue,
        on_loss="requeue",
        stopped=WorkerDown,
        full=Backpressure,
        deadline=_deadline,
        late=Timeout,
        affinity=None if several is None else _affinity,
    )
    if several is None:
        assert host is not None
        opener = Opener(
            host=host,
            runner=runner,
            backoff=backoff,
            canary=canary,
            drain=drain,
            retries=retries,
            retry_budget=retry_budget,
            breaker=breaker,
        )
        context = opener.child(mailbox)
        return Supervisor(name, [context], front=context, limit=limit, decider=decider, **options)
    opener = Opener(
        host=several[0],
        runner=runner,
        backoff=backoff,
        limit=limit,
        decider=_LOADS.over(decider),
        canary=canary,
        drain=drain,
        retries=retries,
        retry_budget=retry_budget,
        breaker=breaker,
    )
    contexts = [
        evolve(opener, host=each).supervised(f"context-{number}") for number, each in enumerate(several)
    ]
    beyond = Stop if worker_limit is None else Restart
    escalated = Decider({"limit": beyond}, default=beyond)
    return Supervisor(name, contexts, mailbox=mailbox, limit=worker_limit, decider=escalated, **options)


def _several(name: str, host: Host | None, hosts: Iterable[Host] | None) -> list[Host] | None:
    if hosts is None:
        return None
    if host is not None:
        raise TypeError(f"device worker {name!r}: give either host or hosts, got both")
    if not isinstance(hosts, Iterable):
        raise TypeError(f"device worker {name!r}: hosts must be a list of hosts, got {brief(hosts)}")
    several = list(hosts)
    if not several:
        raise ValueError(f"device worker {name!r}: hosts must name at least one host, got none")
    return several


def _check_host(name: str, host: object, runner: RunnerSpec) -> None:
    if isinstance(host, type) or not isinstance(host, Host):
        raise TypeError(
            f"device worker {name!r}: host must be a value with an open method, got {brief(host)}"
        )
    check_for(host, runner)


def _affinity(request: object) -> int | None:
    """The key by which a context is preferred for a request. The mailbox keeps many, and a client may give a text of megabytes."""
    return hash(request.affinity) if type(request) is ExecuteBatch and request.affinity else None


def _deadline(request: object) -> float | None:
    """The deadline of a request. Any other value has none; it is refused when its turn comes."""
    return request.deadline if type(request) is ExecuteBatch else None
