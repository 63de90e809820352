"""Check that a stream survives every fault of its context; exit with 1 if it does not.

    python -m benchmarks.chaos --minutes 30 --seed 7            a runner that computes its tokens
    python -m benchmarks.chaos --minutes 30 --runner torch      a real model
    python -m benchmarks.chaos --minutes 30 --contexts 3        a worker over three contexts

32 callers are busy all the time, while the context is killed (SIGKILL, SIGSEGV, SIGABRT) and stopped (SIGSTOP) from outside,
and rebuilt by an operator. In every second tenth of the run requests also cause faults: they poison the context, kill it, run
out of memory, cut the connection in the middle of a frame, send bytes that are no frame or a frame that the protocol forbids at
that moment, raise an exception whose own code raises, ignore and block all signals, or close its standard output. Some loads
fail. Some streams are so wide that they fill the pipe. Rebuilds are ordered one by one and in storms. The seed determines all of
this.

With several contexts each signal strikes one of them, or one time in five all at once; and the operator also swaps the runner for an
equal one, and stops a context, which drains, and starts it again.

Beside it, other programs with a worker are started, one after the other: each is stopped with all its processes and continued,
as a frozen container is, and interrupted by Ctrl-C; every second one starts with SIGCHLD ignored.

Every token of every stream is compared with the fault-free stream. The run passes if nothing is lost, doubled or hung; if each
stream that does not complete ends in the error that its policy names; if at least 99 % of the requests that met only outside
kills complete; if every interrupted program ends in order; if memory is flat; and if neither this program nor those leave a
process, descriptor, shared memory or file behind.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import asdict, define, field, frozen

from benchmarks.holdings import Holdings, descendants
from benchmarks.progress import progress
from benchmarks.rough import Rough, kind_of, model_for, text_of
from runners.errors import (
    ContextLost,
    InferenceError,
    OutOfMemory,
    PoisonRequest,
    RebuildSuperseded,
    RunnerError,
    WorkerDown,
)
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Fault, Faulty, Scripted, expected, letter
from runners.models.torch_lm import TorchLM
from runners.types import ExecuteBatch, RunnerSpec, Sampling, TokenChunk
from runners.worker import device_worker, rebuild, replace
from supervise import ChildStopped, Limit, Ref, Refused, StartFailed, Supervisor, events, open_tree

STREAMS = 32
TENTHS = 10
MAX_TOKENS = 48
VARIANTS = 32
HUNG = 60.0
"""Seconds after which a request counts as hung: far more than all deadlines of the host and its restarts."""
BREATH = 4 * 2**20
"""Bytes by which a run may grow: allocators and queues fill."""

GONE = 30.0
"""Seconds that a process may take to die after its parent."""
DRAIN = 2.0
"""Seconds that begun streams get in a context of several that is stopped or gets a new runner."""
STORM = 20
"""How many rebuilds a storm orders at once."""

SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGSTOP)
FAILING_LOADS = 0.15
HARMFUL: dict[str, tuple[type[Exception], ...]] = {
    "poison": (),
    "kill": (),
    "tear": (),
    "garbage": (),
    "wide": (),
    "rogue": (),
    "ignore": (),
    "mute": (),
    "hostile": (RunnerError,),
    "oom": (OutOfMemory,),
    "error": (RunnerError,),
    "killer": (PoisonRequest,),
}
"""The faults that a request may cause, and the errors with which it must then end; without an error it moves, and completes."""

DECIDED = {
    "ContextDied",
    "ContextHung",
    "ContextPoisoned",
    "LoadFailed",
    "OutOfMemory",
    "ProtocolError",
    "SessionRebuild",
}
"""The failures that a context may have here; any other is a defect."""

FAULTS = (
    *(Fault(kind, model=kind, at_token=5, moved=False) for kind in ("poison", "kill")),
    *(Fault(kind, model=kind, at_token=7) for kind in ("oom", "error")),
    Fault("segv", model="killer", at_token=3),
)


Answers = Sequence[tuple[tuple[int, ...], str]]
"""The tokens and the text of each variant."""


@frozen
class Plan:
    """The plan of a run.

    Args:
        seconds: how long callers are busy.
        seed: determines all random choices.
        runner: `scripted` or `torch`.
        pause: the mean of the seconds between two signals.
        every: the seconds between two lines of counters.
        contexts: of the worker.
    """

    seconds: float
    seed: int
    runner: str = "scripted"
    pause: float = 2.0
    every: float = 10.0
    contexts: int = 1

    def chance(self, what: str) -> random.Random:
        """A random generator for one purpose, independent of the others."""
        return random.Random(f"{self.seed} {what}")

    def spec(self) -> RunnerSpec:
        """The runner, with all faults from inside."""
        return Faulty(Rough(self.model(), self.seed, FAILING_LOADS), FAULTS)

    def model(self) -> RunnerSpec:
        """The runner that makes the tokens."""
        if self.runner == "torch":
            return TorchLM(streams=STREAMS)
        return Scripted(MAX_TOKENS, delay=0.0002, streams=STREAMS)

    def batch(self, number: int, *, harmful: bool) -> ExecuteBatch:
        """Request `number`: one of `VARIANTS`, perhaps with a fault as its model name."""
        chance = self.chance(f"request {number}")
        kind = chance.choice(tuple(HARMFUL)) if harmful and chance.random() < 0.25 else ""
        on_loss = "fail" if not kind and harmful and chance.random() < 0.1 else "migrate"
        return _variant(number % VARIANTS, f"{number}", model=model_for(kind), on_loss=on_loss)


def _variant(number: int, request_id: str, **options: Any) -> ExecuteBatch:
    sampling = Sampling(max_tokens=8 + number % (MAX_TOKENS - 8), temperature=0.7, seed=number)
    return ExecuteBatch(request_id, f"The {number} import", sampling=sampling, **options)


@define
class Ledger:
    """The counters of callers and operators."""

    requests: int = 0
    completed: int = 0
    tokens: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    hung: int = 0
    left: int = 0
    strikes: Counter[str] = field(factory=Counter[str])
    failures: Counter[str] = field(factory=Counter[str])
    errors: Counter[str] = field(factory=Counter[str])
    rebuilds: Counter[str] = field(factory=Counter[str])
    orders: Counter[str] = field(factory=Counter[str])
    programs: Counter[str] = field(factory=Counter[str])
    misbehaved: list[str] = field(factory=list[str])
    unexpected: list[str] = field(factory=list[str])
    calm: int = 0
    calm_completed: int = 0
    memory: list[int] = field(factory=list[int])

    def sink(self, event: events.Event) -> None:
        """Count the failures of the context."""
        if isinstance(event, events.Decided):
            self.failures[type(event.exc).__name__] += 1

    def line(self) -> str:
        """The counters in one line."""
        struck = sum(self.strikes.values())
        return (
            f"{self.completed} of {self.requests} completed, {self.tokens} tokens; {struck} strikes, "
            f"{sum(self.rebuilds.values())} rebuilds, {sum(self.orders.values())} other orders, {self.programs['interrupted']} programs interrupted, "
            f"{sum(self.failures.values())} failures; {self.lost} lost, {self.doubled} doubled, {self.wrong} wrong, "
            f"{self.hung} hung, {len(self.unexpected)} unexpected"
        )

    def growth(self) -> float:
        """Bytes by which memory grew over the run, by least squares over all points but the first."""
        ys = self.memory[1:]
        mean_x, mean_y = (len(ys) - 1) / 2, sum(ys) / len(ys)
        above = sum((x - mean_x) * (y - mean_y) for x, y in enumerate(ys))
        return above / sum((x - mean_x) ** 2 for x in range(len(ys))) * (len(ys) - 1)


@define
class Chaos:
    """One run."""

    plan: Plan
    ledger: Ledger
    reference: Answers
    worker: Ref
    began: float = field(factory=trio.current_time)
    numbers: int = 0

    @property
    def over(self) -> bool:
        """Whether callers are to make no new request."""
        return self._tenth() >= TENTHS

    @property
    def harmful(self) -> bool:
        """Whether requests cause faults in this tenth of the run."""
        return self._tenth() % 2 == 1

    def _tenth(self) -> int:
        return int((trio.current_time() - self.began) / self.plan.seconds * TENTHS)

    async def run(self) -> None:
        """Run the callers until the time is over, and beside them signals, rebuilds and reports."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._strike)
            nursery.start_soon(self._operate)
            nursery.start_soon(self._report)
            nursery.start_soon(self._show)
            nursery.start_soon(self._weigh)
            async with trio.open_nursery() as callers:
                for number in range(STREAMS):
                    callers.start_soon(self._call, number)
                callers.start_soon(self._interrupt)
            nursery.cancel_scope.cancel()

    # --- callers

    async def _call(self, caller: int) -> None:
        """One caller, which makes request after request. One of four reads slowly."""
        while not self.over:
            self.numbers += 1
            harmful = self.harmful
            batch = self.plan.batch(self.numbers, harmful=harmful)
            self.ledger.requests += 1
            with trio.move_on_after(HUNG) as scope:
                outcome = await self._outcome(batch, slow=caller % 4 == 0)
                calm = not harmful and not self.harmful
                self._judge(batch, outcome, calm=calm)
                if isinstance(outcome, WorkerDown):
                    return  # counted as unexpected; every further request would end so at once
            if scope.cancelled_caught:
                self.ledger.hung += 1

    async def _outcome(self, batch: ExecuteBatch, *, slow: bool) -> str | InferenceError:
        """The end of a request: an error, `left` or `completed`."""
        leaves_at = self._leaves_at(batch)
        ids: tuple[int, ...] = ()
        texts: list[str] = []
        try:
            async with self.worker.stream(batch) as chunks:
                async for chunk in chunks:
                    ids = self._take(ids, chunk)
                    texts.append(chunk.text)
                    if len(ids) >= leaves_at:
                        return "left"
                    if slow:
                        await trio.sleep(0.002)
        except InferenceError as error:
            self._compare(batch, ids, "".join(texts), whole=False)
            return error
        self._compare(batch, ids, "".join(texts), whole=True)
        return "completed"

    def _leaves_at(self, batch: ExecuteBatch) -> float:
        """The number of tokens after which the caller leaves: one of twenty requests without a fault is left early."""
        chance = self.plan.chance(f"leaving {batch.request_id}")
        return chance.randrange(1, 8) if not batch.model and chance.random() < 0.05 else float("inf")

    def _take(self, ids: tuple[int, ...], chunk: TokenChunk) -> tuple[int, ...]:
        self.ledger.lost += max(0, chunk.index - len(ids))
        self.ledger.doubled += max(0, len(ids) - chunk.index)
        self.ledger.tokens += len(chunk.token_ids)
        return ids + chunk.token_ids

    def _compare(self, batch: ExecuteBatch, ids: tuple[int, ...], text: str, *, whole: bool) -> None:
        """Compare with the fault-free stream: the whole, or the part that arrived."""
        right_ids, right_text = self.reference[int(batch.request_id) % VARIANTS]
        right_text = text_of(batch, right_text)
        if whole:
            self.ledger.lost += max(0, len(right_ids) - len(ids))
            self.ledger.wrong += (ids, text) != (right_ids, right_text)
        else:
            self.ledger.wrong += ids != right_ids[: len(ids)] or not right_text.startswith(text)

    def _judge(self, batch: ExecuteBatch, outcome: str | InferenceError, *, calm: bool) -> None:
        """Check that the policy names this end. A request that was on trial in two deaths may count as their cause."""
        ledger = self.ledger
        if outcome == "left":
            ledger.left += 1
            return
        completed = outcome == "completed"
        ledger.completed += completed
        ledger.calm += calm
        ledger.calm_completed += calm and completed
        if not completed:
            ledger.errors[type(outcome).__name__] += 1
        must = HARMFUL.get(kind_of(batch), ())
        may = (*must, PoisonRequest, *([ContextLost] if batch.on_loss == "fail" else []))
        if completed if must else not isinstance(outcome, (str, *may)):
            ledger.unexpected.append(f"{kind_of(batch) or 'plain'} {batch.request_id}: {outcome!r}")

    # --- faults from outside

    async def _strike(self) -> None:
        """Send signals from outside, at times that the seed determines."""
        chance = self.plan.chance("strikes")
        while True:
            await trio.sleep(chance.expovariate(1 / self.plan.pause))
            number = chance.choice(SIGNALS)
            struck = self._up()
            for context in struck if chance.random() < 0.2 else struck and [chance.choice(struck)]:
                if _signal((await context.ready()).pid, number):
                    self.ledger.strikes[number.name] += 1

    def _up(self) -> list[Ref]:
        """The contexts that are up. Waiting for one here would always hit the first request on trial."""
        nodes = self.worker.status().walk()
        return [self.worker.tree[node.path] for node in nodes if node.kind == "child" and node.state == "up"]

    async def _operate(self) -> None:
        """Order rebuilds from time to time, one time in five many at once; or, of several contexts, something else."""
        chance = self.plan.chance("operator")
        while True:
            await trio.sleep(chance.expovariate(1 / (5 * self.plan.pause)))
            order = chance.choice([None, self._swap, self._stop_one]) if self.plan.contexts > 1 else None
            if order is not None:
                await self._carried_out(order)
                continue
            async with trio.open_nursery() as operators:
                for _ in range(STORM if chance.random() < 0.2 else 1):
                    operators.start_soon(self._rebuild)

    async def _carried_out(self, order: Callable[[], Awaitable[None]]) -> None:
        name = order.__name__.strip("_")
        with trio.move_on_after(HUNG) as scope:
            try:
                await order()
            except (StartFailed, Refused, ChildStopped, InferenceError) as error:
                self.ledger.orders[f"{name}: {type(error).__name__}"] += 1
            else:
                self.ledger.orders[f"{name}: done"] += 1
        if scope.cancelled_caught:
            self.ledger.hung += 1

    async def _swap(self) -> None:
        await replace(self.worker, self.plan.spec(), drain=DRAIN)

    async def _stop_one(self) -> None:
        """Stop one context, and start it again until it loads."""
        one = self.worker.tree[f"{self.worker.path}/context-{self.numbers % self.plan.contexts}"]
        await one.stop()
        await trio.sleep(self.plan.pause / 2)
        while True:
            try:
                await one.start()
            except StartFailed:
                continue
            return

    async def _rebuild(self) -> None:
        with trio.move_on_after(HUNG) as scope:
            try:
                await rebuild(self.worker)
            except (RebuildSuperseded, InferenceError) as error:
                self.ledger.rebuilds[type(error).__name__] += 1
            else:
                self.ledger.rebuilds["done"] += 1
        if scope.cancelled_caught:
            self.ledger.hung += 1

    async def _interrupt(self) -> None:
        """Start programs one after the other; freeze and continue them, and then interrupt them."""
        chance = self.plan.chance("programs")
        for number in range(sys.maxsize):
            await trio.sleep(chance.expovariate(1 / (2 * self.plan.pause)))
            if self.over:
                return
            try:
                with trio.fail_after(HUNG):
                    seen = await _interrupted(chance, number)
            except (trio.TooSlowError, ValueError) as error:
                self.ledger.misbehaved.append(f"{number}: {error!r}")
            else:
                self.ledger.programs.update(seen)
                self.ledger.programs["interrupted"] += 1
                self.ledger.wrong += seen.get("wrong", 0)

    # --- reports

    async def _report(self) -> None:
        while True:
            await trio.sleep(self.plan.every)
            print(f"{trio.current_time() - self.began:7.0f} s  {self.ledger.line()}", flush=True)

    async def _show(self) -> None:
        """Show the progress on a terminal."""
        with progress("seconds of chaos", self.plan.seconds) as step:
            while True:
                await trio.sleep(1)
                step(1)

    async def _weigh(self) -> None:
        """Note the resident memory at ten points, each in the middle of a tenth."""
        for point in range(TENTHS):
            await trio.sleep_until(self.began + (point + 0.5) * self.plan.seconds / TENTHS)
            self.ledger.memory.append(_resident())


async def _interrupted(chance: random.Random, number: int, command: Sequence[str] = ()) -> dict[str, int]:
    """Run one program, by default `benchmarks.interrupted`. Returns its counters.

    Raises:
        ValueError: it did not end in order, or left a process behind.
    """
    command = command or [sys.executable, "-m", "benchmarks.interrupted", str(chance.getrandbits(32))]
    if number % 2:
        command = ["sh", "-c", "trap '' CHLD; exec \"$@\"", "sh", *command]
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                command,
                stdin=None,
                stdout=subprocess.PIPE,
                capture_stdout=False,
                check=False,
            )
        )
        assert process.stdout is not None
        printed = await process.stdout.receive_some()
        await trio.sleep(chance.uniform(0, 2))
        if chance.random() < 0.5:
            await _freeze(process.pid, 1.5)
            await trio.sleep(chance.uniform(0, 2))
        family = {pid: began for pid in descendants(process.pid) if (began := _began(pid))}
        process.send_signal(signal.SIGINT)
        async for some in process.stdout:
            printed += some
    left = {pid for pid, began in family.items() if not await _is_gone(pid, began)}
    if process.returncode != 0 or not printed.startswith(b"up\n") or left:
        raise ValueError(f"it ended with {process.returncode}, printed {printed!r}, and left {left}")
    seen: dict[str, int] = json.loads(printed.splitlines()[-1])
    return seen


async def _freeze(pid: int, seconds: float) -> None:
    """Stop and continue a program with all its processes, as a frozen container."""
    frozen = [pid, *descendants(pid)]
    for one in frozen:
        _send(one, signal.SIGSTOP)
    await trio.sleep(seconds)
    for one in reversed(frozen):
        _send(one, signal.SIGCONT)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _began(pid: int) -> str:
    """The start time of a process, which distinguishes it from another with its pid; empty for none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]


async def _is_gone(pid: int, began: str) -> bool:
    """Whether a process has ended; the kernel may kill it a moment after its parent."""
    with trio.move_on_after(GONE):
        while _began(pid) == began:  # noqa: ASYNC110 - a process that is not this program's child can only be polled
            await trio.sleep(0.01)
    return _began(pid) != began


def _signal(pid: int, number: int) -> bool:
    """Send a signal if the process is still a descendant of this one: it may have died, and its pid been reused. Returns whether it was."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        ours = pid in descendants()
        if ours:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return ours


def _resident() -> int:
    """The resident bytes, after free memory was returned to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reference(plan: Plan) -> Answers:
    """The fault-free stream of every variant."""
    batches = [_variant(number, f"{number}") for number in range(VARIANTS)]
    if plan.runner == "scripted":
        answers = [expected(batch, MAX_TOKENS) for batch in batches]
        return [(ids, "".join(map(letter, ids))) for ids in answers]
    return trio.run(undisturbed, plan.model(), batches)


async def undisturbed(model: RunnerSpec, batches: Sequence[ExecuteBatch]) -> Answers:
    """The streams of these requests, run concurrently, without any fault."""
    answers: dict[str, tuple[tuple[int, ...], str]] = {}

    async def ask(worker: Ref, batch: ExecuteBatch) -> None:
        answer = await worker.call(batch)
        answers[batch.request_id] = answer.token_ids, answer.text

    worker = device_worker("llm", model, host=ProcessHost())
    async with open_tree(worker, sinks=[]) as tree, trio.open_nursery() as nursery:
        for batch in batches:
            nursery.start_soon(ask, tree[worker], batch)
    return [answers[batch.request_id] for batch in batches]


async def _run(plan: Plan, ledger: Ledger, right: Answers) -> None:
    host = ProcessHost(load_timeout=10, first_chunk_timeout=4, next_chunk_timeout=2)
    limit = Limit(1_000_000, within=60)
    several = {"hosts": [host] * plan.contexts, "worker_limit": limit, "drain": DRAIN}
    hosts = {"host": host} if plan.contexts == 1 else several
    worker = device_worker("llm", plan.spec(), limit=limit, backoff=None, **hosts)
    async with open_tree(Supervisor("chaos", [worker], limit=limit), sinks=[ledger.sink]) as tree:
        await Chaos(plan, ledger, right, tree[worker]).run()


def problems(ledger: Ledger, left_behind: dict[str, list[str]]) -> list[str]:
    """The problems of a run. One of a hundred requests may meet two kills while it is on trial."""
    tests: list[tuple[bool, str]] = [
        (ledger.lost > 0, f"{ledger.lost} tokens lost"),
        (ledger.doubled > 0, f"{ledger.doubled} tokens doubled"),
        (ledger.wrong > 0, f"{ledger.wrong} texts differ from their fault-free ones"),
        (ledger.hung > 0, f"{ledger.hung} requests hung"),
        (bool(ledger.unexpected), f"unexpected ends: {ledger.unexpected[:5]}"),
        (bool(set(ledger.failures) - DECIDED), f"unexpected failures: {set(ledger.failures) - DECIDED}"),
        (
            ledger.calm - ledger.calm_completed > max(1, 0.01 * ledger.calm),
            f"{ledger.calm_completed} of {ledger.calm} requests that met only outside kills completed",
        ),
        (not ledger.completed or not ledger.strikes, "nothing happened"),
        (bool(ledger.misbehaved), f"programs that were interrupted: {ledger.misbehaved[:5]}"),
        (ledger.growth() > BREATH, f"memory grew by {ledger.growth():.0f} bytes"),
        (any(left_behind.values()), f"left behind: {left_behind}"),
    ]
    return [text for fails, text in tests if fails]


def chaos(plan: Plan) -> dict[str, Any]:
    """Make one run. Returns its counters and problems."""
    right = reference(plan)
    trio.run(undisturbed, Scripted(), [_variant(0, "0")])  # open everything that is opened once
    ledger, before, began = Ledger(), Holdings.now(), time.monotonic()
    trio.run(_run, plan, ledger, right)
    left_behind = Holdings.now().beyond(before)
    return {
        **asdict(plan),
        **asdict(ledger),
        "took": round(time.monotonic() - began, 1),
        "calm_share": ledger.calm_completed / max(1, ledger.calm),
        "growth": round(ledger.growth()),
        "left_behind": left_behind,
        "problems": problems(ledger, left_behind),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runner", choices=["scripted", "torch"], default="scripted")
    parser.add_argument("--contexts", type=int, default=1, help="how many the worker has")
    parser.add_argument("--pause", type=float, default=2.0, help="mean seconds between two signals")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two lines of counters")
    parser.add_argument("--json", metavar="FILE", help="also write the summary to this file")
    arguments = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)  # the last lines of dying processes are expected here
    plan = Plan(
        arguments.minutes * 60,
        arguments.seed,
        arguments.runner,
        arguments.pause,
        arguments.every,
        arguments.contexts,
    )
    result = _in_own_folder(lambda: chaos(plan))
    summary = json.dumps(result)
    print(summary, flush=True)
    if arguments.json:
        Path(arguments.json).write_text(summary + "\n")
    for problem in result["problems"]:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if result["problems"] else 0


def _in_own_folder(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run with a separate folder for temporary files, so that all files left there are from this run."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        was, tempfile.tempdir = tempfile.tempdir, folder
        old = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = folder
        try:
            return run()
        finally:
            tempfile.tempdir = was
            os.environ.pop("TMPDIR")
            if old is not None:
                os.environ["TMPDIR"] = old


if __name__ == "__main__":
    sys.exit(main())
