"""A declared tree that streams tokens from a real model, and recovers from faults while it does.

    supervise run runners.demo                         plain lines, one fault of each kind
    supervise run --live runners.demo                  the same beneath a live picture of the tree
    python -m runners.demo --live --fault segv         the same, with a fault of your choice, or all
    python -m runners.demo --json --fault kill         one line of JSON; compares with a run without faults

The faults are real: SIGKILL, SIGSEGV and SIGSTOP of the process that holds the model, a poison that the runner itself
reports, and an additional request that needs more memory than there is, and is the only one that fails. A feed reads prompts,
the device worker streams their continuations, and a printer prints them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import trio
from attrs import define, field, frozen

from runners.errors import InferenceError, OutOfMemory
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Fault, Faulty
from runners.models.torch_lm import TorchLM
from runners.types import ExecuteBatch, Sampling, TokenChunk
from runners.worker import ContextState, device_worker
from supervise import (
    Child,
    Inbox,
    Limit,
    StartFailed,
    Supervisor,
    TreeFailed,
    current_child,
    open_tree,
    run_tree,
)
from supervise.sinks.lines import LineSink
from supervise.views.terminal import run_live

FaultKind = Literal["kill", "segv", "poison", "hang", "oom"]
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
PROMPTS = Path(__file__).with_name("demo.txt")
MAX_TOKENS = 160
_SIGNALS = {"kill": signal.SIGKILL, "segv": signal.SIGSEGV, "hang": signal.SIGSTOP}
_LINE = 88
_SHORTEST = 8
"""The fewest tokens of a stream in which a fault may strike."""
_OVERSIZED = "oversized"
"""The id of the request that is too large."""


@define
class Strike:
    """One fault: its kind, request and token; afterwards also the process that it struck, and the one that served at the end.

    For `oom` the oversized request is sent at that token of the other request's stream, and the process stays the same.
    """

    kind: FaultKind
    request: int
    token: int
    pid_before: int | None = None
    pid_after: int | None = None
    over: trio.Event = field(factory=trio.Event)


@define
class Ledger:
    """The texts, tokens and errors that the consumer of the streams received."""

    prompts: Sequence[str]
    seed: int
    strikes: Sequence[Strike] = ()
    texts: dict[int, str] = field(factory=dict[int, str])
    tokens: dict[int, int] = field(factory=dict[int, int])
    lost: int = 0
    duplicated: int = 0
    expected_errors: int = 0
    longest_gap: float = 0.0
    restarts: int = 0
    failed: bool = False

    def batch(self, number: int) -> ExecuteBatch:
        """Request `number`, the same in every run with this seed."""
        return ExecuteBatch(f"request-{number}", self.prompts[number], sampling=self._sampling(number))

    def oversized(self, number: int) -> ExecuteBatch:
        """The additional request beside request `number`, for which there is not enough memory."""
        return ExecuteBatch(_OVERSIZED, self.prompts[number], sampling=self._sampling(number))

    def _sampling(self, number: int) -> Sampling:
        return Sampling(max_tokens=MAX_TOKENS, temperature=0.7, seed=self.seed * 1000 + number)

    async def turn(self, strike: Strike) -> None:
        """Wait until the strikes before this one are over, so that no two faults strike the same context."""
        for before in self.strikes[: self.strikes.index(strike)]:
            await before.over.wait()

    def accept(self, number: int, chunk: TokenChunk, gap: float) -> None:
        """Count one chunk: a token that comes twice is a duplicate, one that is skipped is lost."""
        had = self.tokens.get(number, 0)
        self.duplicated += max(0, had - chunk.index)
        self.lost += max(0, chunk.index - had)
        self.tokens[number] = chunk.index + len(chunk.token_ids)
        self.texts[number] = self.texts.get(number, "") + chunk.text
        self.longest_gap = max(self.longest_gap, gap)

    def summary(self) -> str:
        """One line for a person."""
        return (
            f"{len(self.texts)} requests, {sum(self.tokens.values())} tokens, {self.restarts} restarts, "
            f"{self.lost} lost, {self.duplicated} duplicated, longest gap {self.longest_gap * 1000:.0f} ms"
        )


# --- the tree, as configuration


def declare(ledger: Ledger, *, at_once: int = 1, show: bool = True) -> Supervisor:
    """The tree of the demo: a device worker, a printer, and a feed whose end stops the tree."""
    llm = device_worker(
        "llm",
        _runner(ledger.strikes),
        host=ProcessHost(device="cpu", load_timeout=60.0, next_chunk_timeout=1.0),
        limit=Limit(2 * len(KINDS), within=60, of_ready_time=True),
        backoff=None,
    )
    printer = Child("printer", _Printer(show), mailbox=256)
    feed = Child("feed", _Feed(ledger, llm, printer, at_once), restart="transient", significant=True)
    return Supervisor("demo", [llm, printer, feed], auto_shutdown="any_significant")


def _runner(strikes: Sequence[Strike]) -> TorchLM | Faulty:
    """The model; if a strike is a poison or a lack of memory, with a `Faulty` runner around it."""
    faults = [*_poisons(strikes)]
    if any(strike.kind == "oom" for strike in strikes):
        faults.append(Fault("oom", request_id=_OVERSIZED))
    return Faulty(TorchLM(), tuple(faults)) if faults else TorchLM()


def _poisons(strikes: Sequence[Strike]) -> Iterator[Fault]:
    """The poisons, each in the incarnation to which the strikes before it lead, so that it strikes once."""
    incarnation = 1
    for strike in strikes:
        if strike.kind == "poison":
            name = f"request-{strike.request}"
            yield Fault("poison", request_id=name, at_token=strike.token, incarnation=incarnation)
        incarnation += strike.kind != "oom"


@frozen
class _Feed:
    """Sends the prompts, up to `at_once` at the same time, and passes the text on to the printer."""

    ledger: Ledger
    llm: Supervisor
    printer: Child
    at_once: int

    async def __call__(self) -> None:
        room = trio.CapacityLimiter(self.at_once)
        async with trio.open_nursery() as nursery:
            for number in range(len(self.ledger.prompts)):
                await room.acquire_on_behalf_of(number)
                nursery.start_soon(self._one, number, room)
        await current_child().tree[self.printer].call(f"\n{self.ledger.summary()}\n")

    async def _one(self, number: int, room: trio.CapacityLimiter) -> None:
        ledger = self.ledger
        strike = next((strike for strike in ledger.strikes if strike.request == number), None)
        await self._print(f"\n— request {number + 1} of {len(ledger.prompts)}: {ledger.prompts[number]!r}\n")
        if strike is not None:
            await ledger.turn(strike)
            strike.pid_before = (await self._context()).pid
        try:
            await self._stream(number, strike)
        except InferenceError as exc:
            ledger.texts.setdefault(number, "")
            await self._print(f"\n  {type(exc).__name__}: {exc}\n")
        context = await self._context()
        ledger.restarts = max(ledger.restarts, context.incarnation - 1)
        if strike is not None:
            strike.pid_after = context.pid
            strike.over.set()
        room.release_on_behalf_of(number)

    async def _stream(self, number: int, strike: Strike | None) -> None:
        before = trio.current_time()
        async with current_child().tree[self.llm].stream(self.ledger.batch(number)) as chunks:
            async for chunk in chunks:
                now = trio.current_time()
                self.ledger.accept(number, chunk, now - before)
                before = now
                await self._print(chunk.text)
                if strike is not None and chunk.index == strike.token - 1 and strike.kind != "poison":
                    await self._strike(strike)

    async def _print(self, text: str) -> None:
        await current_child().tree[self.printer].send(text)

    async def _context(self) -> ContextState:
        state: ContextState = await current_child().tree[self.llm].ready()
        return state

    async def _strike(self, strike: Strike) -> None:
        """Send the signal to the process that serves, or the oversized request. The runner itself raises a poison."""
        strike.pid_before = (await self._context()).pid
        if strike.kind == "oom":
            await self._ask_too_much(strike)
        elif strike.pid_before is not None:
            os.kill(strike.pid_before, _SIGNALS[strike.kind])

    async def _ask_too_much(self, strike: Strike) -> None:
        """Send the oversized request, which must fail with `OutOfMemory`."""
        try:
            await current_child().tree[self.llm].call(self.ledger.oversized(strike.request))
        except OutOfMemory as exc:
            self.ledger.expected_errors += 1
            await self._print(f"\n  the oversized request: OutOfMemory: {exc}\n")


@frozen
class _Printer:
    """Prints what it is sent, in lines of a readable width."""

    show: bool

    async def __call__(self, inbox: Inbox) -> None:
        rest = ""
        async for message in inbox:
            *lines, rest = _wrapped(rest + message.value)
            if self.show and lines:
                sys.stdout.write("\n".join(lines) + "\n")
                sys.stdout.flush()
            message.reply()


def _wrapped(text: str) -> list[str]:
    """The lines of a text; long ones are broken at a space. The last one may be incomplete."""
    lines: list[str] = []
    for line in text.split("\n"):
        rest = line
        while len(rest) > _LINE:
            cut = rest.rfind(" ", 1, _LINE) + 1 or _LINE
            lines.append(rest[:cut])
            rest = rest[cut:]
        lines.append(rest)
    return lines


# --- runs


def wanted(fault: str) -> list[FaultKind]:
    """The kinds that `--fault` names."""
    return [kind for kind in KINDS if fault in (kind, "all")]


def _plan(kinds: Sequence[FaultKind], lengths: Sequence[int], seed: int) -> list[Strike]:
    """One strike for each kind, each in a request of its own, strictly inside the stream.

    Raises:
        ValueError: too few streams are long enough.
    """
    chance = random.Random(seed)  # noqa: S311 - a plan, not a secret
    long_enough = [number for number, length in enumerate(lengths) if length >= _SHORTEST]
    if len(long_enough) < len(kinds):
        raise ValueError(
            f"{len(kinds)} faults need as many streams of {_SHORTEST} tokens, got {len(long_enough)}"
        )
    requests = sorted(chance.sample(long_enough, k=len(kinds)))
    return [
        Strike(kind, request, round(lengths[request] * chance.uniform(0.2, 0.5)))
        for kind, request in zip(kinds, requests, strict=True)
    ]


async def _measure(ledger: Ledger) -> None:
    """Run the tree without output, and note whether it failed."""
    try:
        async with open_tree(declare(ledger, at_once=4, show=False), sinks=[]) as tree:
            await tree.root.ended()
    except TreeFailed:
        ledger.failed = True


def report(prompts: Sequence[str], kinds: Sequence[FaultKind], seed: int) -> dict[str, Any]:
    """Run without faults, then with them, and compare."""
    reference = Ledger(prompts, seed)
    trio.run(_measure, reference)
    lengths = [reference.tokens.get(number, 0) for number in range(len(prompts))]
    faulty = Ledger(prompts, seed, _plan(kinds, lengths, seed))
    trio.run(_measure, faulty)
    return {
        "requests": len(prompts),
        "tokens": sum(faulty.tokens.values()),
        "restarts": faulty.restarts,
        "lost": faulty.lost + max(0, sum(lengths) - sum(faulty.tokens.values())),
        "duplicated": faulty.duplicated,
        "expected_errors": faulty.expected_errors,
        # A request that gave nothing proves nothing.
        "identical": not reference.failed and all(lengths) and faulty.texts == reference.texts,
        "longest_gap_ms": round(faulty.longest_gap * 1000, 1),
        "tree_failed": faulty.failed,
        "streams": [_sha256(faulty.texts.get(number, "")) for number in range(len(prompts))],
        "faults": [
            {
                "kind": strike.kind,
                "request": strike.request,
                "token": strike.token,
                "pid_before": strike.pid_before,
                "pid_after": strike.pid_after,
            }
            for strike in faulty.strikes
        ],
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _show(prompts: Sequence[str], kinds: Sequence[FaultKind], seed: int, *, live: bool) -> None:
    """Run with the lines of a `LineSink`, or with a live picture of the tree; the feed prints a summary at the end."""
    shown = declare(_shown(prompts, kinds, seed))
    if live:
        run_live(shown)
    else:
        run_tree(shown, sinks=[LineSink(sys.stdout)])


def _shown(prompts: Sequence[str], kinds: Sequence[FaultKind], seed: int) -> Ledger:
    return Ledger(prompts, seed, _plan(kinds, [MAX_TOKENS] * len(prompts), seed))


# --- the command


def read_prompts(name: str) -> list[str]:
    """Read one prompt from each line; `-` is standard input. Empty lines are skipped.

    Raises:
        ValueError: there is no such file, or no prompt in it.
    """
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"cannot read prompts from {name}: {exc}") from exc
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"no prompts in {name}: one a line is expected")
    return prompts


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    kinds = wanted(arguments.fault)
    try:
        prompts = read_prompts(arguments.prompts)
        if arguments.json:
            return _print_report(report(prompts, kinds, arguments.seed))
        _show(prompts, kinds, arguments.seed, live=arguments.live)
    except (ValueError, StartFailed) as exc:
        # It was closed, or cannot be written to: the status says it all the same.
        with suppress(AttributeError, OSError):
            sys.stderr.write(f"runners.demo: {exc}\n")
        return 2 if isinstance(exc, ValueError) else 1
    return 0


def _print_report(result: dict[str, Any]) -> int:
    sys.stdout.write(json.dumps(result) + "\n")
    sent = sum(fault["kind"] == "oom" for fault in result["faults"])
    wrong = (
        result["lost"] or result["duplicated"] or result["tree_failed"] or result["expected_errors"] != sent
    )
    return 0 if result["identical"] and not wrong else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runners.demo", description=(__doc__ or "").partition("\n")[0]
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print one line of JSON instead of the streams")
    shown.add_argument("--live", action="store_true", help="show the tree on the terminal (needs rich)")
    parser.add_argument(
        "--prompts", default=str(PROMPTS), metavar="FILE", help="one prompt a line; - is standard input"
    )
    parser.add_argument(
        "--fault", choices=["none", *KINDS, "all"], default="kill", help="what to do to the model's process"
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, help="of the sampling, and of where the fault strikes"
    )
    return parser


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"a seed must be >= 0, got {value}")
    return value


_ledger = _shown(read_prompts(str(PROMPTS)), KINDS, 0)
tree = declare(_ledger)

if __name__ == "__main__":
    sys.exit(main())
