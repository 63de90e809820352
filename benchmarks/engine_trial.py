"""What an engine server does below a device worker when it is left, asked too much, asked twice at once, killed and stopped.

`python -m benchmarks.engines --trial` runs it. It needs only the command of the engine, so it shows before production whether an engine
can be replaced, and what its requests get. It prints what happened in each case. A fault is what the worker must not do with any engine:
give a part of an answer for the whole, replace an engine that works, leave a process behind, or lose a request that waits.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import trio
from attrs import define, field, frozen

from runners import EngineHost, ExecuteBatch, OpenAIModel, Sampling, device_worker
from runners.errors import ContextHung, ContextLost, DeviceError, InferenceError
from runners.types import TokenChunk
from supervise import Ref, open_tree
from supervise.events import Event, Failed
from supervise.programs.guardian import below

SHORT, LONG = 20, 1000
"""Tokens of an answer, and of a stream that is struck."""
STRUCK_AT = 10
"""The chunk after which a stream is struck."""


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@frozen
class End:
    """How a stream has ended."""

    chunks: int
    last: TokenChunk | None
    error: InferenceError | None
    text: str

    def __str__(self) -> str:
        if self.error is not None:
            return f"{type(self.error).__name__} after {self.chunks} chunks: {self.error}"
        assert self.last is not None
        return f"whole ({self.last.finish_reason}, {self.chunks} chunks, incarnation {self.last.incarnation})"


@define
class _Trial:
    worker: Ref
    seen: list[Event]
    faults: list[str] = field(factory=list[str])

    def say(self, what: str, happened: object) -> None:
        print(f"{what:28} {happened}", flush=True)

    def check(self, *, good: bool, fault: str) -> None:
        if not good:
            self.faults.append(fault)
            self.say("FAULT", fault)

    def failures(self) -> list[Exception]:
        return [
            event.exc
            for event in self.seen
            if isinstance(event, Failed) and isinstance(event.exc, DeviceError)
        ]

    async def stream(
        self,
        name: str,
        prompt: str = "Hello",
        *,
        most: int = SHORT,
        on: Callable[[int], object] = lambda _: None,
    ) -> End:
        request = ExecuteBatch(name, prompt, sampling=Sampling(max_tokens=most, temperature=0, seed=1))
        chunks, last, text = 0, None, ""
        try:
            async with self.worker.stream(request) as stream:
                async for chunk in stream:
                    chunks, last, text = chunks + 1, chunk, text + chunk.text
                    on(chunks)
        except InferenceError as error:
            return End(chunks, last, error, text)
        self.check(good=last is not None and last.finish_reason is not None, fault=f"{name} has no end")
        return End(chunks, last, None, text)

    async def answers(self) -> str:
        first, second = await self.stream("first"), await self.stream("second")
        same = "the same again" if first.text == second.text else "another text for the same seed"
        usage = None if first.last is None else first.last.usage
        self.say("an answer", f"{first}; {same}; {usage}")
        return first.text

    async def leave_a_stream(self) -> None:
        async with self.worker.stream(
            ExecuteBatch("left", "Hello", sampling=Sampling(max_tokens=LONG))
        ) as stream:
            await anext(stream)
        began = trio.current_time()
        after = await self.stream("after")
        self.say(
            "a caller who leaves", f"the next request: {after}, after {trio.current_time() - began:.2f} s"
        )

    async def ask_too_much(self, words: int) -> None:
        self.say("a prompt that is too long", await self.stream("long", "x " * words))

    async def ask_twice(self, text: str) -> None:
        ends: list[End] = []

        async def one(name: str) -> None:
            ends.append(await self.stream(name))

        async with trio.open_nursery() as nursery:
            for name in ("left", "right"):
                nursery.start_soon(one, name)
        self.say("two requests at once", "; ".join(map(str, ends)))
        whole = [end.text for end in ends if end.error is None]
        # An engine that batches requests may round differently than for a single one, so a different text is not counted as a fault.
        parts = [part for part in whole if part != text and text.startswith(part)]
        self.check(good=not parts, fault=f"the beginning of an answer is given for the whole one: {parts}")

    async def strike_it(self, number: signal.Signals) -> None:
        """Strike it in the middle of a stream, while another request waits."""
        state = await self.worker.ready()
        pid = state.pid
        assert pid is not None
        processes, ends, struck = [pid, *below(pid)], {}, trio.Event()
        began = 0.0

        def strike(chunks: int) -> None:
            nonlocal began
            if chunks == STRUCK_AT:
                os.kill(pid, number)
                began = trio.current_time()
                struck.set()

        async def wait() -> None:
            await struck.wait()
            ends["waits"] = await self.stream("waits")
            self.say("", f"a request that waits: {ends['waits']}, after {trio.current_time() - began:.2f} s")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            begun = await self.stream("begun", most=LONG, on=strike)
            self.say(f"{number.name} in a stream", f"{begun}, after {trio.current_time() - began:.2f} s")
            if not struck.is_set():
                self.check(good=False, fault="the stream was too short to be struck")
                nursery.cancel_scope.cancel("nothing is struck")
                return
        failure = self.failures()[-1] if self.failures() else None
        self.say("", f"the failure: {type(failure).__name__}: {failure}")
        left = list(filter(_runs, processes))
        self.check(good=not left, fault=f"processes are left: {left}")
        self.check(
            good=begun.error is None or isinstance(begun.error, ContextLost), fault=f"the stream: {begun}"
        )
        self.check(
            good="waits" in ends and ends["waits"].error is None, fault="the request that waits has failed"
        )
        if number == signal.SIGSTOP:
            self.check(good=isinstance(failure, ContextHung), fault=f"{failure!r} is not ContextHung")


async def trial(host: EngineHost, model: OpenAIModel, too_long: int | None) -> list[str]:
    """Try an engine, print what it does, and return the faults.

    Args:
        host: starts the engine; it is started three times.
        model: asks it.
        too_long: words of a prompt that is longer than the context; None sends none, since an engine without a limit would compute it.
    """
    seen: list[Event] = []
    llm = device_worker("llm", model, host=host, backoff=None)
    began = trio.current_time()
    async with open_tree(llm, sinks=[seen.append]) as tree:
        one = _Trial(tree[llm], seen)
        one.say("ready", f"after {trio.current_time() - began:.2f} s")
        text = await one.answers()
        await one.leave_a_stream()
        if too_long is not None:
            await one.ask_too_much(too_long)
        await one.ask_twice(text)
        one.check(good=not one.failures(), fault=f"an engine that works was replaced: {one.failures()}")
        await one.strike_it(signal.SIGKILL)
        await one.strike_it(signal.SIGSTOP)
        state = await tree[llm].ready()
        last: int = state.pid
        began = trio.current_time()
    one.say("stopped in order", f"after {trio.current_time() - began:.2f} s")
    one.check(good=not _runs(last), fault=f"process {last} is left")
    return one.faults
