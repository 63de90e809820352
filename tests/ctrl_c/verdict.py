"""Run one program with SIGINT at given lines, and return whether it ended as it must (R4)."""

from __future__ import annotations

import gc
import signal
import sys
import warnings
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from trio.lowlevel import enable_ki_protection

import runners
import supervise
from supervise import Pool, Supervisor, events
from supervise.testing import assert_lifecycle, run_virtual

from .strike import Striker

FOLDERS = (Path(supervise.__file__).parent, Path(runners.__file__).parent)
FOR_EVER = 100_000.0
"""Virtual seconds after which a program hangs."""

PATIENCE = 60.0
"""Real seconds after which a program spins."""


class Hang(BaseException):
    """The program did not end."""


class Life:
    """Something that is opened, and must be closed: a count that no interrupt comes in between."""

    def __init__(self, lives: dict[str, int], name: str) -> None:
        self._lives = lives
        self._name = name

    @enable_ki_protection
    def __enter__(self) -> None:
        self._lives[self._name] = self._lives.get(self._name, 0) + 1

    @enable_ki_protection
    def __exit__(self, *_: object) -> None:
        self._lives[self._name] -= 1


class Scene:
    """What a program is given, and what it leaves behind to be judged."""

    def __init__(self) -> None:
        self.seen: list[events.Event] = []
        self.trees: list[Supervisor | Pool] = []
        self.lives: dict[str, int] = {}
        self.undrained: list[str] = []
        self.ignored: list[str] = []
        self.has_nursery = False

    def tree(self, spec: Supervisor | Pool) -> Any:
        """Open a tree whose events are kept."""
        self.trees.append(spec)
        return supervise.open_tree(spec, sinks=[self.seen.append])

    def life(self, name: str) -> Life:
        """Something that is opened, and must be closed."""
        return Life(self.lives, name)

    @contextmanager
    def drain(self, name: str) -> Generator[None, None, None]:
        """Something that one is not to be cancelled in."""
        try:
            yield
        except trio.Cancelled:
            self.undrained.append(name)
            raise


Program = Callable[[Scene], Awaitable[None]]


def run(
    program: Program, strikes: Sequence[int] = (), folders: Sequence[Path] = FOLDERS
) -> tuple[str | None, Striker]:
    """Run it in virtual time with SIGINT at those lines. Gives what is wrong with how it ended, if anything is."""
    scene, striker = Scene(), Striker(folders, strikes)

    async def main() -> None:
        trio.lowlevel.spawn_system_task(_end_of_patience)
        with striker.watching():
            await program(scene)

    raised: BaseException | None = None
    with _no_patience_for_spinning(), warnings.catch_warnings(), _nothing_ignored(scene.ignored):
        warnings.simplefilter("error", ResourceWarning)
        warnings.simplefilter("error", RuntimeWarning)  # a coroutine that was never awaited
        try:
            run_virtual(main, seed=0)
        except BaseException as exc:
            raised = exc
    if strikes:
        return _judge(scene, striker, raised, several=len(strikes) > 1), striker
    return (None if raised is None else f"without a signal it raised {raised!r}"), striker


async def _end_of_patience() -> None:
    await trio.sleep(FOR_EVER)
    raise Hang


@contextmanager
def _no_patience_for_spinning() -> Generator[None, None, None]:
    def spinning(*_: object) -> None:
        raise Hang

    # A process in the background of a script has SIGINT ignored.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGALRM, spinning)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, interrupt)


@contextmanager
def _nothing_ignored(ignored: list[str]) -> Generator[None, None, None]:
    """Keep what Python would print as ignored."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda it: ignored.append(f"{it.exc_value!r} in {it.object!r}")
    try:
        yield
    finally:
        sys.unraisablehook = before


def _judge(scene: Scene, striker: Striker, raised: BaseException | None, *, several: bool) -> str | None:
    if not striker.struck:
        return None  # it ended before that line
    if isinstance(raised, Hang) or isinstance(getattr(raised, "__cause__", None), Hang):
        return "hangs"
    return judge(scene, raised, several=several)


def judge(scene: Scene, raised: BaseException | None, *, several: bool = False) -> str | None:
    """What is wrong with how an interrupted program has ended, if anything is."""
    wrong = _wrong_exception(scene, raised)
    if wrong is not None:
        return wrong
    open_still = [name for name, count in scene.lives.items() if count]
    if open_still:
        return f"never closed: {open_still}"
    if scene.ignored:
        return f"ignored: {scene.ignored}"
    undrained = [name for name in scene.undrained if _was_ready(name, scene.seen)]
    if undrained and not several:
        return f"not drained: {undrained}"
    try:
        for spec in scene.trees:
            its = [event for event in scene.seen if event.path.partition("/")[0] == spec.name]
            assert_lifecycle(its)
            _assert_order(spec, its)
    except AssertionError as problem:
        return f"events: {problem}"
    return None


def _wrong_exception(scene: Scene, raised: BaseException | None) -> str | None:
    if raised is None:
        return "swallowed"
    if isinstance(raised, trio.TrioInternalError):
        return f"TrioInternalError from {raised.__cause__!r}"
    if isinstance(raised, KeyboardInterrupt) or (scene.has_nursery and _is_interrupt(raised)):
        return None
    return f"leaves as {raised!r}"


def _is_interrupt(exc: BaseException) -> bool:
    """Whether it is one in the group of a nursery, of the program's own."""
    if isinstance(exc, BaseExceptionGroup):
        return all(map(_is_interrupt, exc.exceptions))
    return isinstance(exc, KeyboardInterrupt)


def _was_ready(name: str, seen: Sequence[events.Event]) -> bool:
    """Whether a child was ready before it was stopped; only then is it asked first, and may drain."""
    its = [event for event in seen if event.path.rpartition("/")[2] == name]
    last = max(number for number, event in enumerate(its) if isinstance(event, events.Starting))
    return any(isinstance(event, events.Ready) for event in its[last:])


def _assert_order(root: Supervisor | Pool, seen: Sequence[events.Event]) -> None:
    """Once the root stops, a child is stopped only when all after it have ended (R12).

    A supervisor further down goes on until it is told to stop in its turn, so children of it may still start.
    """
    places = {path: number for number, (path, _) in enumerate(_paths(root))}
    free = {f"{path}/" for path, spec in _paths(root) if isinstance(spec, Pool)}
    alive: set[str] = set()
    ending: set[str] = set()
    stopping = False
    for event in seen:
        path, above = event.path, f"{event.path.rpartition('/')[0]}/"
        if isinstance(event, events.Starting):
            assert above[:-1] not in ending, f"{event} while its supervisor stops"
            ending.discard(path)
            alive.add(path)
        elif isinstance(event, events.Stopped):
            alive.discard(path)
        elif isinstance(event, events.Stopping):
            ending.add(path)
            stopping = stopping or path == root.name
            if stopping and above not in free and path != root.name:
                later = [
                    other
                    for other in alive
                    if other.rpartition("/")[0] == above[:-1]
                    and places.get(other, len(places)) > places.get(path, len(places))
                ]
                assert not later, f"{path!r} is stopped before {later}"
    assert not alive, f"alive: {alive}"


def _paths(root: Supervisor | Pool) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [(root.name, root)]
    for path, spec in found:
        found += [(f"{path}/{child.name}", child) for child in getattr(spec, "children", ())]
    return found


def tidy() -> None:
    """Let what a hanging run has left go, in silence: it is reported as what it is."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
    finally:
        sys.unraisablehook = before
