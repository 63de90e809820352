"""A runner that misuses its connection and its process, for `benchmarks.chaos`."""

from __future__ import annotations

import os
import random
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NoReturn, cast

from attrs import define, evolve, frozen

from runners.hosts.process import wire
from runners.hosts.turns import close
from runners.models.scripted import Fault, Kind
from runners.types import ContinuingRunner, ExecuteBatch, ModelRunner, RunnerSpec, RunnerStart, TokenChunk

WIDTH = 20_000
"""How often a wide stream repeats each character: a step of many such streams is more than a socket holds."""

AT_CHUNK = 3
FAILING_LOADS: tuple[Kind, ...] = ("poison", "error", "kill")


@frozen
class Rough:
    """Any runner, with misbehaviour that the model name of a request selects.

    For `tear` it dies in the middle of a frame, for `garbage` it sends bytes that are no frame, for `rogue` frames that the
    protocol forbids at that moment, for `hostile` it raises an exception whose own code raises, for `ignore` it ignores
    signals, and for `mute` it closes its standard output: each once in a request. For `wide` it repeats every character. Some
    of its loads fail, never the first.

    Args:
        inner: the spec of the runner that does the work.
        seed: determines which loads fail.
        failing: the share of loads that fail.
    """

    inner: RunnerSpec
    seed: int = 0
    failing: float = 0.0

    def build(self, start: RunnerStart) -> ModelRunner:
        """Load the inner runner."""
        chance = random.Random(f"{self.seed} load {start.incarnation}")
        if start.incarnation > 1 and chance.random() < self.failing:
            Fault(chance.choice(FAILING_LOADS), at="load").do()
        return cast("ModelRunner", _Rough(cast("ContinuingRunner", self.inner.build(start))))


class _Rough:
    def __init__(self, inner: ContinuingRunner) -> None:
        self._inner = inner
        self.info = inner.info
        self.rebuild = inner.rebuild
        self.close = inner.close

    def execute(self, batch: ExecuteBatch) -> Iterator[TokenChunk]:
        chunks = cast("Iterator[TokenChunk]", self._inner.execute(batch))
        kind = kind_of(batch)
        return _Altered(chunks, _roughly(kind, batch)) if kind in ROUGH else _wide(batch, chunks)

    def continue_from(self, batch: ExecuteBatch, accepted: Sequence[int]) -> Iterator[TokenChunk]:
        chunks = cast("Iterator[TokenChunk]", self._inner.continue_from(batch, accepted))
        if kind_of(batch) == "hostile":  # it has moved before that chunk
            return _Altered(chunks, _roughly("hostile", batch, len(accepted)))
        return _wide(batch, chunks)


@define(eq=False)
class _Altered(Iterator[TokenChunk]):
    """A stream whose chunks `alter` changes; closing it, even before it has begun, frees the place of the inner stream."""

    chunks: Iterator[TokenChunk]
    alter: Callable[[TokenChunk], TokenChunk]

    def __next__(self) -> TokenChunk:
        return self.alter(next(self.chunks))

    def close(self) -> None:
        close(self.chunks)


def _wide(batch: ExecuteBatch, chunks: Iterator[TokenChunk]) -> Iterator[TokenChunk]:
    return _Altered(chunks, _widened) if kind_of(batch) == "wide" else chunks


def _widened(chunk: TokenChunk) -> TokenChunk:
    return evolve(chunk, text="".join(character * WIDTH for character in chunk.text))


def _roughly(kind: str, batch: ExecuteBatch, begun: int = 0) -> Callable[[TokenChunk], TokenChunk]:
    numbers = count(begun)
    chance = random.Random(batch.request_id)

    def alter(chunk: TokenChunk) -> TokenChunk:
        if next(numbers) == AT_CHUNK:
            ROUGH[kind](chance)
        return chunk

    return alter


def _tear(_: random.Random) -> NoReturn:
    _inject(b"\x00\x00\x40\x00\x93half a frame")
    os._exit(9)


def _garble(_: random.Random) -> None:
    _inject(b"\x00\x00\x00\x05what?")


def _break_rules(chance: random.Random) -> None:
    """Send frames of the protocol at a forbidden moment, some of them a thousand times."""
    unknown = wire.Step([wire.Chunk(2**40, 0, (1,), "x", None, None)], [])
    lack = wire.Broken(wire.Error("OutOfMemory", "none left", None, ""), ())
    frame = chance.choice(
        [wire.Step([], []), unknown, lack, wire.Rebuilt(), wire.Closed(), wire.Dropped(2**40)]
    )
    _inject(wire.encode(frame) * chance.choice([1, 1000]))


def _ignore(_: random.Random) -> None:
    """Ignore all signals that can be ignored, and block the rest."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _close_output(_: random.Random) -> None:
    with suppress(OSError):
        os.close(1)


def _rage(*_: object) -> NoReturn:
    raise ArithmeticError("looked at")


def _raise_hostile(chance: random.Random) -> NoReturn:
    """Raise an exception that raises when it is inspected, lies, or is very long."""
    place = chance.choice(
        ["__str__", "__repr__", "__eq__", "__getattr__", "__class__", "tag", "code", "", "chain"]
    )
    if not place:
        raise RuntimeError("CUDA error: " + "x" * 10_000_000)
    if place == "chain":
        error = ValueError("the end")
        for number in range(5000):
            above = ValueError(number)
            above.__cause__ = error
            error = above
        raise error
    member = _rage if place.startswith("__") and place != "__class__" else property(_rage)
    kind: type[Exception] = type("Hostile", (Exception,), {place: member})
    raise kind("hostile")


ROUGH: dict[str, Callable[[random.Random], None]] = {
    "tear": _tear,
    "garbage": _garble,
    "rogue": _break_rules,
    "hostile": _raise_hostile,
    "ignore": _ignore,
    "mute": _close_output,
}


def _inject(data: bytes) -> None:
    """Send data on every Unix socket of this process, one of which is the connection to the parent."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(entry.name)).st_mode):
                _send(int(entry.name), data)


def _send(descriptor: int, data: bytes) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family == socket.AF_UNIX:
            connection.sendall(data)


def kind_of(batch: ExecuteBatch) -> str:
    """The misbehaviour that a request selects."""
    return batch.model.rstrip()


def model_for(kind: str) -> str:
    """The model name of a request of this kind; that of a wide one is longer than a frame or two."""
    return kind + " " * (5 * WIDTH if kind == "wide" else 0)


def text_of(batch: ExecuteBatch, text: str) -> str:
    """The text of a request's stream; `text` is that of the inner stream."""
    return "".join(character * WIDTH for character in text) if kind_of(batch) == "wide" else text
