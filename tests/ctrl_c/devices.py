"""A device worker with output: a SIGINT at each line of its parent's end. The processes are real, and so is the time.

Which lines a run executes, and in which order, depends on the processes. So a line is struck by its place in the source, at
one of the times that a plain run has executed it, or at the first if it comes to fewer.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import trio

from runners import EngineHost, ExecuteBatch, OpenAIModel, Sampling, ThreadHost, device_worker, rebuild
from runners.hosts import Host
from runners.hosts.process.host import ProcessHost
from runners.hosts.process.parent import standby
from runners.models.scripted import Fault, Scripted
from runners.types import RunnerSpec
from supervise import Child, Supervisor, stop_requested
from supervise.programs import Command

from ..runners.contexts import descriptors, processes
from .strike import Place, PlaceStriker
from .talking import PREPARED, Talking
from .verdict import FOLDERS, Hang, Program, Scene, judge

DEVICES: dict[str, Program] = {}
IN_TIME = 120.0
"""Seconds after which a run hangs."""
GONE = 30.0
"""Seconds in which the kernel must have ended what a dead process leaves behind."""

RUNNER = Talking(Scripted(8, delay=0.002, faults=(Fault("kill", "stream", 3, incarnation=1),)))
ENGINES = str(Path(__file__).parents[1] / "runners" / "engines.py")
TOKENS = Sampling(max_tokens=8, temperature=0, seed=0)


def device(fn: Program) -> Program:
    """Have it tried."""
    DEVICES[fn.__name__] = fn
    return fn


@device
async def forked(scene: Scene) -> None:
    """From a fork server, with one that stands by and takes over."""
    heard, again = trio.Event(), trio.Event()

    def prepared() -> None:
        (again if heard.is_set() else heard).set()

    with _listening(prepared):
        await _served(scene, ProcessHost(standby=1, close_timeout=10), heard, again)


@device
async def spawned(scene: Scene) -> None:
    """Cold, each time."""
    await _served(scene, ProcessHost(start="spawn", close_timeout=10))


@device
async def threaded(scene: Scene) -> None:
    """In a thread, which no failure is cured in."""
    await _served(scene, ThreadHost(), runner=Scripted(8, delay=0.002))


@device
async def engined(scene: Scene) -> None:
    """A server program, which is killed in the middle of a stream."""
    engine = Command("engine", [sys.executable, ENGINES, "{port}", "sums"])
    model = OpenAIModel("http://127.0.0.1:{port}/v1", "m", token_ids=True)
    worker = device_worker("worker", model, host=EngineHost(engine), backoff=None)
    async with scene.tree(Supervisor("app", [worker])) as tree:
        ref = tree["app/worker"]
        pid = (await ref.ready()).pid
        begun = []
        async with ref.stream(ExecuteBatch("stream", payload=[1, 2], sampling=TOKENS)) as stream:
            async for chunk in stream:
                begun.append(chunk.index)
                if len(begun) == 3:
                    os.kill(pid, signal.SIGKILL)
        assert begun == list(range(8))
        # The last chunks may have been sent before the kill.
        while (await ref.ready()).incarnation == 1:  # noqa: ASYNC110 - the change has no event here
            await trio.sleep(0.005)
        await rebuild(ref)
        async with ref.stream(ExecuteBatch("left", payload=[1, 2], sampling=TOKENS)) as stream:
            await anext(stream)


async def _served(scene: Scene, host: Host, *prepared: trio.Event, runner: RunnerSpec = RUNNER) -> None:
    async def drains() -> None:
        with scene.life("steady"), scene.drain("steady"):
            await stop_requested()
            await trio.sleep(0.01)

    async def calls() -> None:
        done = await tree["app/worker"].call(ExecuteBatch("call", "c", sampling=TOKENS, on_loss="migrate"))
        assert len(done.token_ids) == 8

    worker = device_worker("worker", runner, host=host)
    spec = Supervisor("app", [Child("steady", drains, drain=30), worker])
    async with scene.tree(spec) as tree:
        ref = tree["app/worker"]
        for event in prepared[:1]:
            await event.wait()
        client = await tree.root.add(Child("client", calls, restart="transient"))
        async with ref.stream(ExecuteBatch("stream", "s", sampling=TOKENS, on_loss="migrate")) as stream:
            assert [chunk.index async for chunk in stream] == list(range(8))
        await client.ended()
        await rebuild(ref)
        async with ref.stream(ExecuteBatch("left", "l", sampling=TOKENS)) as stream:
            await anext(stream)
        for event in prepared[1:]:
            await event.wait()


@contextmanager
def _listening(prepared: Callable[[], object]) -> Generator[None, None, None]:
    """Call it for each standby that is prepared."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().endswith(PREPARED):
                prepared()

    handler = Listener()
    logging.getLogger("runners.context").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("runners.context").removeHandler(handler)


class Silence:
    """Reports that must not come: ignored exceptions, errors in the log."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    @contextmanager
    def kept(self) -> Generator[None, None, None]:
        """Listen in the block."""
        silence = self

        class Errors(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                silence.broken.append(f"logged: {record.getMessage()}")

        handler, logger = Errors(logging.ERROR), logging.getLogger()
        loud = logging.getLogger("runners.context")
        before = sys.unraisablehook, threading.excepthook, loud.level
        sys.unraisablehook = lambda it: self.broken.append(f"ignored in {it.object!r}: {it.exc_value!r}")
        threading.excepthook = lambda it: self.broken.append(f"in a thread: {it.exc_value!r}")
        logger.addHandler(handler)
        loud.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            sys.unraisablehook, threading.excepthook = before[:2]
            loud.setLevel(before[2])


def run(program: Program, at: tuple[Place, int] | None = None) -> tuple[str | None, PlaceStriker]:
    """Run it with SIGINT at that line, the n-th time. Gives what is wrong with how it ended, if anything is."""
    scene, striker, silence = Scene(), PlaceStriker(FOLDERS, at), Silence()
    gc.collect()
    before, raised = there(), None
    with _in_time(), _no_pause(), silence.kept(), warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        try:
            with striker.watching():
                trio.run(program, scene)
        except BaseException as exc:
            raised = exc
        remains = left(before)
        gc.collect()
    if at is None:
        problem = None if raised is None else f"without a signal it raised {raised!r}"
    else:
        problem = _judged(scene, striker, raised)
    if problem is None and silence.broken:
        problem = f"said: {silence.broken}"
    return problem or remains, striker


def strikes(plain: PlaceStriker, chance: random.Random) -> list[tuple[Place, int]]:
    """One for each line that a plain run has executed, in their order."""
    return [(place, chance.randint(1, times)) for place, times in plain.places.items()]


def strike(program: Program, at: tuple[Place, int]) -> tuple[str | None, PlaceStriker]:
    """Run it with SIGINT at that line, and if it is not executed so often, at its first time."""
    problem, striker = run(program, at)
    if problem is None and not striker.struck and at[1] > 1:
        return run(program, (at[0], 1))
    return problem, striker


def _judged(scene: Scene, striker: PlaceStriker, raised: BaseException | None) -> str | None:
    if isinstance(raised, Hang) or isinstance(getattr(raised, "__cause__", None), Hang):
        return "hangs"
    if not striker.struck:
        return None if raised is None else f"without a signal it raised {raised!r}"
    return judge(scene, raised)


There: TypeAlias = tuple[set[int], Sequence[str], int]


def there() -> There:
    """Processes, descriptors and threads."""
    return processes(), descriptors(), _threads()


def _threads() -> int:
    """How many there are, without those that Trio keeps for ten seconds in case they are needed again."""
    return sum(not thread.name.startswith("Trio thread") for thread in threading.enumerate())


def left(before: There) -> str | None:
    """The processes and descriptors that were not there before. A process that is no child of ours, such as one whose fork server is dead, may take a moment to end."""
    end = time.monotonic() + GONE
    while (more := processes() - before[0]) and time.monotonic() < end:
        if any(_is_child(pid) for pid in more):
            break
        time.sleep(0.005)
    for pid in more:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if more:
        return f"processes left: {more}"
    if descriptors() != before[1]:
        return f"descriptors left: {before[1]} became {descriptors()}"
    return "a thread is left" if _threads() > before[2] else None


def _is_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@contextmanager
def _in_time() -> Generator[None, None, None]:
    def hangs(*_: Any) -> None:
        raise Hang

    # A process in the background of a script has SIGINT ignored.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, IN_TIME, IN_TIME / 4)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, interrupt)


@contextmanager
def _no_pause() -> Generator[None, None, None]:
    """What stands by begins at once: nothing else wants the machine."""
    before = standby._PAUSE
    standby._PAUSE = 0.0
    try:
        yield
    finally:
        standby._PAUSE = before
