"""`run_tree`: a tree as a whole program, with signals, an ordered stop and an exit status."""

from __future__ import annotations

import faulthandler
import logging
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

import trio
from trio.lowlevel import enable_ki_protection

from .._core._brief import brief, brief_text
from .._core._call import wrong_function
from .._core._check import check_number
from .._core.decide import is_decidable
from .._core.spec import Pool, Supervisor
from ..errors import StartFailed, TreeFailed
from ..events import Sink
from .driver import Driver
from .last_resort import EX_SOFTWARE, HardExit, Watchdog, alarms, leave, write
from .leaf import _without_cancelled
from .reports import complain, stacks, tasks_below
from .tree import Tree, check_root, opening

Watch = Callable[[Tree], Awaitable[object]]

logger = logging.getLogger("supervise")


def run_tree(
    spec: Supervisor | Pool,
    *,
    sinks: Iterable[Sink] | None = None,
    hard_exit_after: float | None = None,
    watchdog: float | None = None,
    watch: Watch | Iterable[Watch] | None = None,
    reload: Callable[[], Supervisor | Pool] | None = None,
) -> None:
    """Run a tree until its root ends; leave the program with an exit status if the tree failed.

    The first SIGINT, SIGTERM or SIGHUP stops the tree in order, and the function returns. The second signal ends the program
    at once with the status 130, 143 or 129, even while a child's code blocks the event loop; processes that belong to
    children die with it. SIGINT and SIGHUP stay ignored if the program was started so (`nohup`, or `&` in a script).
    SIGUSR1 writes all stacks to standard error.

    Args:
        spec: the root.
        sinks: as for `open_tree`.
        hard_exit_after: seconds that an ordered stop may take, 0 or more, from the moment at which the root begins to stop
            or the first signal arrives. Then the program writes to standard error which children are still there, and
            where they hang, and ends with 70 (R20). It is the only way past a child that does not yield. None: no limit.
        watchdog: seconds for which the event loop may be blocked until the log names the child whose code blocks it, with
            its stack. None or 0: no watchdog.
        watch: an async function for a view, or several; each is called with the tree as the tree starts, and cancelled when it
            has ended. If one raises an `Exception`, that is logged once and the tree goes on; anything else stops the tree in order.
        reload: a plain function that makes the declaration anew, for instance from a file of settings. SIGHUP then has the tree
            adopt what it returns (`Tree.adopt`) instead of stopping it, even under `nohup`. If it raises, or what it returns is
            refused, that is logged, and the tree goes on as it was (R38).

    Raises:
        SystemExit: with 70 if the tree failed, with 1 if it never started (one line in the log has the reason).
        RuntimeError: the caller is not in the main thread, the only one that receives signals; `open_tree` works anywhere.
        TypeError, ValueError: for an argument of another type, or out of range.
    """
    check_root(spec)
    for name, value in (("hard_exit_after", hard_exit_after), ("watchdog", watchdog)):
        if value is not None:
            check_number(name, value, least=0)
    wrong = None if reload is None else wrong_function(reload, "it is not awaited", ())
    if wrong is not None:
        raise TypeError(f"reload {wrong}")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "run_tree receives signals, so it must run in the main thread; elsewhere, use open_tree"
        )
    watches = _watches(watch)
    try:
        trio.run(_Program(spec, sinks, hard_exit_after, watchdog, watches, reload=reload).run)
    except TreeFailed as failed:
        complain(logging.CRITICAL, str(failed), failed)
        raise SystemExit(EX_SOFTWARE) from failed
    except StartFailed as failed:
        complain(logging.CRITICAL, str(failed))
        complain(logging.DEBUG, "the traceback of the failed start", failed)
        raise SystemExit(1) from failed


def _watches(watch: Watch | Iterable[Watch] | None) -> tuple[Watch, ...]:
    refusal = TypeError(f"watch must be an async function, or several, got {brief(watch)}")
    try:
        watches = () if watch is None else (watch,) if callable(watch) else tuple(watch)
    except TypeError as problem:
        raise refusal from problem
    if not all(map(callable, watches)):
        raise refusal
    return watches


class _Program:
    """One call of `run_tree`."""

    def __init__(
        self,
        spec: Supervisor | Pool,
        sinks: Iterable[Sink] | None,
        hard_exit_after: float | None,
        watchdog: float | None,
        watches: Iterable[Watch],
        *,
        reload: Callable[[], Supervisor | Pool] | None,
    ) -> None:
        self._spec = spec
        self._sinks = sinks
        self._watches = [*watches, self._keep_reloading] if reload else watches
        self._reload = reload
        self._hung_up = trio.Event()
        self._watchdog = Watchdog(watchdog, lambda: self._driver) if watchdog else None
        self._hard_exit = None if hard_exit_after is None else HardExit(hard_exit_after, lambda: self._driver)
        self._driver: Driver | None = None
        self._scope = trio.CancelScope()
        self._signalled = False
        self._watch_raised: BaseException | None = None  # only an exception that is no `Exception`

    @enable_ki_protection  # an interrupt as the block is left would leave a thread that ends the program later
    async def run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with ExitStack() as around:
            if self._watchdog is not None or self._hard_exit is not None:
                around.enter_context(alarms())
            if self._hard_exit is not None:
                around.enter_context(self._hard_exit.watching())
            if self._watchdog is not None:
                around.enter_context(self._watchdog.watching())
            hang_up = self._stop if self._reload is None else self._hang_up
            around.enter_context(_handlers(self._stop, hang_up, self._show))
            await self._run()

    async def _run(self) -> None:
        raised: BaseException | None = None
        async with trio.open_nursery() as nursery:

            def look(tree: Tree) -> None:
                self._driver = tree._driver
                tree.declare = self._reload
                if self._hard_exit is not None:
                    tree._driver.ending = self._hard_exit.begin
                for watch in self._watches:
                    nursery.start_soon(self._look_at, tree, watch)

            with self._scope:
                try:
                    async with opening(self._spec, self._sinks, look) as tree:
                        await tree.root.ended()
                except trio.Cancelled:
                    raise
                except BaseException as exc:  # noqa: BLE001 - raised below, outside of the nursery, which would wrap it
                    raised = exc
            nursery.cancel_scope.cancel("the tree has ended")
        if raised is None:
            raised = self._watch_raised
        if raised is not None:
            raise raised

    async def _look_at(self, tree: Tree, watch: Watch) -> None:
        """Run one of the views until the tree has ended: it also sees the ordered stop."""
        try:
            await watch(tree)
        except GeneratorExit:
            raise
        except BaseException as raised:  # of any kind: a nursery in it makes a group of a SystemExit
            exc = _without_cancelled(raised)
            if exc is None:
                raise
            if is_decidable(exc):
                text = "the function given as watch failed; the tree goes on"
                tree._driver.report(logging.ERROR, text, exc)
            else:
                self._watch_raised = exc
                tree._driver.stop_for(exc, f"the function given as watch raised {brief(exc)}")

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the arguments of a signal handler
        """The first signal stops the tree in order, the second one ends the program at once."""
        if self._signalled:
            leave(128 + number)
        self._signalled = True
        if self._hard_exit is not None:
            self._hard_exit.begin()
        self._soon(self._scope.cancel, f"{signal.Signals(number).name} asked the program to stop")

    def _hang_up(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the arguments of a signal handler
        self._soon(self._hung_up.set)

    async def _keep_reloading(self, tree: Tree) -> None:
        """Reload after each SIGHUP; several that arrive during one reload cause one more."""
        while True:
            await self._hung_up.wait()
            self._hung_up = trio.Event()
            await reload_or_log(tree, reason="SIGHUP")

    def _show(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the arguments of a signal handler
        self._soon(lambda: write(f"{stacks(tasks_below(trio.lowlevel.current_root_task()))}\n"))

    def _soon(self, function: Callable[..., object], *args: object) -> None:
        """Call it in the event loop: a signal handler may have interrupted any line of the tree."""
        with suppress(trio.RunFinishedError):  # the run is over: there is nothing to stop or to show
            self._token.run_sync_soon(function, *args)


async def reload_or_log(tree: Tree, *, reason: str) -> None:
    """Have the tree reload; if that fails, log why in one line, and go on."""
    try:
        await tree.reload(reason=reason)
    except Exception as problem:  # noqa: BLE001 - a user's module may raise anything when it is loaded
        complain(logging.ERROR, f"reload: {brief_text(problem)}")
        complain(logging.DEBUG, "the traceback of the failed reload", problem)


_Handler = Callable[[int, FrameType | None], None]


@contextmanager
def _handlers(stop: _Handler, hang_up: _Handler, show: _Handler) -> Generator[None, None, None]:
    """Receive the signals of the program during the block.

    Python's own handlers receive them, not a task: a task needs the event loop, which a child's code may block.
    """
    before: dict[signal.Signals, Any] = {}
    try:
        for number, handler in ((signal.SIGINT, stop), (signal.SIGTERM, stop), (signal.SIGHUP, hang_up)):
            # A program started with one of the others ignored is meant to outlive its terminal. A reload does not end it, so SIGHUP
            # is received even then if it reloads.
            ignored = number != signal.SIGTERM and signal.getsignal(number) is signal.SIG_IGN
            if not ignored or handler != stop:
                before[number] = signal.signal(number, handler)
        if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
            before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, show)
            with suppress(Exception):  # without a real standard error only the stacks of tasks are shown
                # faulthandler writes the stacks of all threads, in any state of the interpreter; then it calls `show`.
                faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True, chain=True)
        yield
    finally:
        if signal.SIGUSR1 in before:
            faulthandler.unregister(signal.SIGUSR1)
        for number, earlier in before.items():
            signal.signal(
                number, signal.SIG_DFL if earlier is None else earlier
            )  # None: it was not set from Python
