"""The parts that must work while the event loop is blocked: ending the program, and naming the child that blocks the loop.

A child whose code does not yield blocks the loop, and with it every task of this library. So this code runs in threads and
signal handlers. It does not rely on standard error, which may be closed, full, or an object that raises.
"""

from __future__ import annotations

import _thread
import faulthandler
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import NoReturn

import trio

from .._core._brief import brief
from .._core.spec import Child, Pool, Spec
from .driver import Driver
from .leaf import Leaf
from .reports import complain, stack_of, stacks, tasks_below

EX_SOFTWARE = 70
"""The exit status of a tree that failed."""

_PATIENCE = 0.5  # seconds that a last write may take: a pipe may be full
_LOOK = 0.25  # seconds in which a stop without any waiting ends at least one child
_LATE = 1.0  # seconds past its time after which a thread of ours counts as held up
_MOST = 20  # the most children that a report lists one by one


def leave(status: int, text: str = "") -> NoReturn:
    """End the process now, with `text` on standard error if that works within half a second.

    A thread writes, since writing may block. It is not one of `threading`, because this may run in a signal handler that has
    interrupted the bookkeeping of that module.
    """
    try:
        done = _thread.allocate_lock()
        done.acquire()
        _thread.start_new_thread(_write_all, (text, done))
        done.acquire(timeout=_PATIENCE)
    finally:
        os._exit(status)


def _write_all(text: str, done: _thread.LockType) -> None:
    try:
        write(text)
        with suppress(Exception):
            sys.stdout.flush()
    finally:
        done.release()


def write(text: str) -> None:
    """Write to standard error, and ignore any failure of that."""
    with suppress(Exception):  # it may be closed, or None, and there is no other channel
        if text:
            sys.stderr.write(text)
        sys.stderr.flush()


class HardExit:
    """Ends the program if the stop of its tree takes too long, even if the loop is blocked meanwhile (R20).

    The seconds count from `begin`. If they pass while children still end, at least one in every quarter of a second, the time
    is extended until that stops: so with a limit of 0 a stop that never has to wait still ends in order.
    """

    def __init__(self, seconds: float, driver: Callable[[], Driver | None]) -> None:
        self._seconds = min(seconds, threading.TIMEOUT_MAX / 2)
        self._driver = driver
        self._begins: SimpleQueue[bool] = SimpleQueue()  # True: the stop begins; False: the block is over
        self._begun = False

    @contextmanager
    def watching(self) -> Generator[None, None, None]:
        """Let a thread wait for `begin` during the block."""
        thread = threading.Thread(target=self._wait, name="supervise: hard exit", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._begins.put(False)
            if self._begun:
                faulthandler.cancel_dump_traceback_later()

    def begin(self) -> None:
        """Start the time: the tree begins to stop, or a signal has asked for that. May be called in a signal handler."""
        if self._begun:
            return
        self._begun = True
        self._begins.put(True)
        set_last_alarm(self._seconds + _LATE)
        with suppress(Exception):
            # For code in C that neither lets threads run nor checks for signals: faulthandler needs neither, and exits with 1.
            seconds = min(self._seconds + 10 * _LATE, threading.TIMEOUT_MAX / 1e9)
            faulthandler.dump_traceback_later(seconds, exit=True, file=_nowhere())

    def _wait(self) -> None:
        if not self._begins.get():
            return
        left, seconds = -1, self._seconds
        while self._still_on(seconds):
            driver = self._driver()
            before, left = left, -1 if driver is None else len(driver.leaves)
            if left == before:
                leave(EX_SOFTWARE, self._report(driver))
            seconds = _LOOK

    def _still_on(self, seconds: float) -> bool:
        try:
            return self._begins.get(timeout=seconds)
        except Empty:
            return True

    def _report(self, driver: Driver | None) -> str:
        try:
            return f"not stopped within {self._seconds:g} s; {_what_hangs(driver, self._seconds)}"
        except BaseException as exc:  # noqa: BLE001 - the program is about to end, and reports what it can
            return f"not stopped within {self._seconds:g} s; and the report of what hangs failed: {exc!r}\n"


def _nowhere() -> int:
    """The descriptor of the null device, open for as long as the process lives."""
    global _null  # noqa: PLW0603 - made at the first need
    if _null is None:
        _null = os.open(os.devnull, os.O_WRONLY)
    return _null


_null: int | None = None


class Watchdog:
    """Logs which child's code blocks the event loop, again at doubling intervals for as long as it does."""

    def __init__(self, seconds: float, driver: Callable[[], Driver | None]) -> None:
        self._seconds = min(seconds, threading.TIMEOUT_MAX / 2)
        self._driver = driver
        self._over: SimpleQueue[None] = SimpleQueue()
        self._turned: SimpleQueue[None] = SimpleQueue()

    @contextmanager
    def watching(self) -> Generator[None, None, None]:
        """Let a thread watch the loop of the running task during the block."""
        where = trio.lowlevel.current_trio_token(), trio.lowlevel.current_root_task(), threading.get_ident()
        thread = threading.Thread(target=self._watch, args=where, name="supervise: watchdog", daemon=True)
        thread.start()
        set_alarm(self._seconds + _LATE)
        try:
            yield
        finally:
            self._over.put(None)
            self._turned.put(None)
            thread.join(
                _PATIENCE
            )  # or it might set the timer of `alarms` when nothing handles that signal any more

    def _watch(self, token: trio.lowlevel.TrioToken, root: trio.lowlevel.Task | None, main: int) -> None:
        with suppress(trio.RunFinishedError):
            while not _comes(self._over, self._seconds / 4):
                token.run_sync_soon(self._turned.put, None)
                set_alarm(self._seconds + _LATE)
                self._wait_for_turn(token, root, main)

    def _wait_for_turn(
        self, token: trio.lowlevel.TrioToken, root: trio.lowlevel.Task | None, main: int
    ) -> None:
        began, patience, reported = time.monotonic(), self._seconds, False
        while not _comes(self._turned, patience):
            late = time.monotonic() - began
            if not reported and late > patience + _LATE and _comes(self._turned, _LATE):
                return  # the whole process did not run, for instance because it was stopped
            reported = True
            who, stack = _who_runs(root, main)
            text = f"the event loop has been blocked for {late:.3g} s by the code of {who}:\n{stack}"
            self._log(token, logging.ERROR, text)
            patience = late
        if reported:
            text = f"the event loop turns again, after {time.monotonic() - began:.3g} s"
            self._log(token, logging.WARNING, text)

    def _log(self, token: trio.lowlevel.TrioToken, level: int, text: str) -> None:
        try:
            complain(level, text)
        except BaseException as exc:  # noqa: BLE001 - A thread would end by a SystemExit of the log; the tree stops in order instead (R4).
            driver = self._driver()
            if driver is not None:
                token.run_sync_soon(driver.stop_for, exc, f"the log raised {brief(exc)}")


def _comes(queue: SimpleQueue[None], seconds: float) -> bool:
    """Whether an item arrives within `seconds`."""
    try:
        queue.get(timeout=seconds)
    except Empty:
        return False
    return True


# --- code in C that keeps the interpreter's lock


@contextmanager
def alarms() -> Generator[None, None, None]:
    """Let SIGALRM interrupt code that holds the interpreter's lock, if the program does not use that signal itself.

    Code in C that holds the lock, for instance a long search with `re`, lets no thread run, but some of it checks for
    signals. The handler sleeps for a moment, and that lets the threads run. The timer is due only if a thread is late.
    """
    free = signal.getsignal(signal.SIGALRM) is signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    if free:
        signal.signal(signal.SIGALRM, _let_threads_run)
    try:
        yield
    finally:
        if free and signal.getsignal(signal.SIGALRM) is _let_threads_run:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _latest[0] = math.inf


def _let_threads_run(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the arguments of a signal handler
    time.sleep(0.05)


_latest = [math.inf]  # when, by `time.monotonic`, the timer is due whatever `set_alarm` says


def set_alarm(seconds: float) -> None:
    """Set the timer of `alarms`: it is due after `seconds`, or when the hard exit is, and from then on twice a second."""
    if signal.getsignal(signal.SIGALRM) is not _let_threads_run:
        return
    seconds = min(seconds, _latest[0] - time.monotonic())
    with suppress(OSError, OverflowError):  # more seconds than the kernel can count
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), 0.5)


def set_last_alarm(seconds: float) -> None:
    """As `set_alarm`, and no later call of that puts it off: the watchdog sets the timer again and again."""
    _latest[0] = time.monotonic() + seconds
    set_alarm(seconds)


# --- the texts of reports


def _who_runs(root: trio.lowlevel.Task | None, thread: int) -> tuple[str, str]:
    """The child or task whose code a thread runs, and its stack."""
    frame = sys._current_frames().get(thread)
    if frame is not None and frame.f_code is _let_threads_run.__code__:
        frame = frame.f_back
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    known = {id(frame): place for place, frame in enumerate(frames)}
    for task in tasks_below(root):
        place = known.get(id(getattr(task.coro, "cr_frame", None)))
        if place is not None:
            its = reversed([(each, each.f_lineno) for each in frames[: place + 1]])
            return _owner(task), stack_of(its)
    its = reversed([(each, each.f_lineno) for each in frames])
    return "no task", stack_of(its)


def _owner(task: trio.lowlevel.Task) -> str:
    """The node that a task belongs to: that of the nearest task, itself or above it, which is a node's own."""
    above: trio.lowlevel.Task | None = task
    while above is not None:
        code = getattr(above.coro, "cr_code", None)
        if code is Leaf.run.__code__:
            return f"child {above.name!r}"
        if code is Driver._host.__code__:
            return f"the init of {above.name!r}"
        above = None if above.parent_nursery is None else above.parent_nursery.parent_task
    return f"task {task.name!r}, which belongs to no child"


def _what_hangs(driver: Driver | None, seconds: float) -> str:
    """The children that are being stopped and have not ended, with their stacks; the cancelled ones first."""
    if driver is None:
        return "the tree had not even begun to start\n"
    leaves = list(driver.leaves.values())
    ending = [leaf for leaf in leaves if leaf.stopping or leaf._node.state in ("stopping", "releasing")]
    ending.sort(key=lambda leaf: not leaf._cancelled)
    parts = ["still there:\n" if ending else "no child had been asked to stop yet:\n"]
    for leaf in (ending or leaves)[:_MOST]:
        its = [] if leaf._task is None else tasks_below(leaf._task)
        parts.append(f"\n{leaf.path} #{leaf.incarnation}: {_how_far(leaf)}\n{stacks(its)}")
    if len(ending or leaves) > _MOST:
        parts.append(f"\nand {len(ending or leaves) - _MOST} more\n")
    if ending and len(leaves) > len(ending):
        parts.append(f"\n{len(leaves) - len(ending)} other children had not been asked to stop yet\n")
    who, stack = _who_runs(driver.root_task, threading.main_thread().ident or 0)
    if who != "no task":
        parts.append(f"\nthe event loop is blocked by the code of {who}:\n{stack}")
    declared = drains(driver.forest.root.spec)
    if declared > seconds:
        parts.append(
            f"\nthe declared drains add up to {declared:g} s, more than the limit of {seconds:g} s\n"
        )
    return "".join(parts)


def _how_far(leaf: Leaf) -> str:
    if leaf._cancelled:
        return "cancelled, and it has not yielded"
    if leaf.stopping:
        return f"draining, for up to {leaf.spec.drain:g} s"
    return "leaving its resource" if leaf._node.state in ("stopping", "releasing") else leaf._node.state


def drains(root: Spec) -> float:
    """The seconds that an ordered stop may drain by declaration: the sum over children, but a pool's members drain at once."""
    order: list[Spec] = [root]
    for spec in order:
        order += [spec.template] if isinstance(spec, Pool) else getattr(spec, "children", ())
    known: dict[Spec, float] = {}
    for spec in reversed(order):
        if isinstance(spec, Child):
            known[spec] = spec.drain
        elif isinstance(spec, Pool):
            known[spec] = known[spec.template]
        else:
            known[spec] = sum(known[child] for child in spec.children)
    return known[root]
