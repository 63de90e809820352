"""A running program: the value of a `Command`'s resource, and what `ready()` at its address gives."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack
from functools import partial
from types import TracebackType

import trio
from attrs import evolve, frozen

from .._core._brief import brief
from .._trio.child import stop_requested
from .._trio.leaf import current
from .._trio.protect import protected
from .checks import every, line, notify, wait_until_ready
from .errors import CommandError, CommandMissing, CommandNotReady, CommandUnhealthy, is_signal
from .guarded import Guarded, Order
from .notify import Notifications
from .output import Output
from .ports import Listener

_NOT_FOR_CHILDREN = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
)
"""Variables that systemd has meant for this process."""


@frozen(eq=False)
class Conduct:
    """What the declaration of a program says of its life; `Command` explains the fields."""

    name: str
    ready: object
    alive: every | None
    ready_timeout: float
    reload: int | None
    longest_stop: float
    order: Callable[[Mapping[str, str]], Order]
    """Makes the order for the guardian from the environment of this process."""


@protected
class Running:
    """A program that is ready; `await tree["app/redis"].ready()` gives it."""

    def __init__(self, conduct: Conduct, order: Order, path: str) -> None:
        self.port: int | None = None
        """Where it serves, if its `ready` knows that, else None."""
        self._conduct = conduct
        self._path = path
        self._asked = False
        self._error: Exception | None = None
        self._notifications: Notifications | None = None
        with ExitStack() as if_it_fails:  # the traceback of the error would keep the descriptors
            if isinstance(conduct.ready, notify):
                self._notifications = Notifications(self._speaks)
                if_it_fails.callback(self._notifications.close)
                order = evolve(order, env={**order.env, "NOTIFY_SOCKET": self._notifications.address})
            self._order = order
            self.output = Output(conduct.name, path)
            if_it_fails.pop_all()
        self.guarded = Guarded(order, self.output)

    def __repr__(self) -> str:
        return f"<program {self._order.name!r} pid={self.pid} port={self.port}>"

    @property
    def pid(self) -> int:
        """The pid of its main process."""
        return self.guarded.pid

    def send_signal(self, number: int) -> None:
        """Send the signal with this `number` to its main process; without effect if that has ended.

        Raises:
            ValueError: `number` is not a signal.
        """
        if not is_signal(number):
            raise ValueError(f"number must be a signal such as signal.SIGTERM, got {brief(number)}")
        self.guarded.order(f"signal {int(number)}")

    def reload(self) -> None:
        """Send the signal that the declaration names as `reload`.

        Raises:
            RuntimeError: it names none.
        """
        if self._conduct.reload is None:
            raise RuntimeError(f"command {self._conduct.name!r} has no signal for a reload: declare reload=…")
        self.send_signal(self._conduct.reload)

    async def ended(self) -> CommandError:
        """Wait until the program and all its processes have ended. Returns how it ended, as an error also after exit status 0."""
        await self.guarded.ended.wait()
        return self.guarded.how()

    # --- for the checks, see `Checked`

    def listen_to_lines(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call `listener` with each further line of output, until the returned function is called."""
        self.output.listeners.append(listener)
        return partial(self.output.listeners.remove, listener)

    @property
    def runs(self) -> bool:
        """Whether its main process still runs."""
        return self.guarded.runs

    async def started(self) -> None:
        """Wait until it runs."""
        await self.guarded.started.wait()

    async def owns(self, port: Listener) -> bool:
        """Whether the listening socket belongs to it."""
        return await self.guarded.owns(port)

    @property
    def notifications(self) -> Notifications:
        """Its notify socket."""
        assert self._notifications is not None
        return self._notifications

    async def run_beside(self, argv: tuple[str, ...]) -> str | None:
        """Run a further program to its end, below a guardian of its own. Returns None after status 0, else what happened."""
        try:
            output = Output(self._conduct.name, self._path, log=False)
            one = Guarded(evolve(self._order, argv=argv, files=(), stop=(), isolation="group"), output)
            one.start()
        except OSError as error:  # no process or descriptor is available just now
            return f"could not be started: {error.strerror or error}"
        try:
            await one.ended.wait()
        finally:
            await one.end()
        problem = one.problem()
        if isinstance(problem, CommandMissing) and not one.lacks_guardian:
            raise problem
        last = f": {output.last[-1]}" if output.last else ""
        return None if problem is None else f"{str(problem).partition(' ')[2]}{last}"

    # --- its life

    async def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            CommandError: it could not be started, has ended, or was not ready in time.
        """
        self.guarded.start()
        ready, problem = False, None
        reasons = deque([""], maxlen=1)  # the last one alone: a wait may have no end
        with trio.move_on_after(self._conduct.ready_timeout):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_at_end, nursery.cancel_scope)
                try:
                    self.port = await wait_until_ready(self._conduct.ready, self, reasons.append)
                    ready = True
                except Exception as raised:  # noqa: BLE001 - raised below, without the group that the nursery would make
                    problem = raised
                nursery.cancel_scope.cancel("its start is over")
        if ready:
            return
        if self.guarded.ended.is_set():
            problem = self.guarded.problem(" before it was ready")
        elif problem is None:
            problem = self._late(reasons[-1])
        assert problem is not None
        if isinstance(problem, CommandNotReady):
            self.output.note(problem)
        raise problem

    async def _speaks(self, pid: int) -> bool:
        # A program may send thousands of messages while it starts, and to look up all processes takes milliseconds.
        return pid == self.pid or pid in await self.guarded.pids()

    async def _cancel_at_end(self, scope: trio.CancelScope) -> None:
        await self.guarded.ended.wait()
        scope.cancel("the program has ended")

    def _late(self, why: str) -> CommandNotReady:
        hint = ""
        if isinstance(self._conduct.ready, line):
            hint = "no line has matched; a program may hold back lines that it writes into a pipe, which `stdbuf -oL` prevents"
        text = f"{self._order.name} was not ready within {self._conduct.ready_timeout:g} s"
        return CommandNotReady(": ".join(filter(None, (text, why or hint))))

    async def until_it_ends(self) -> None:
        """Watch it: its end, a request to stop, and until then its `alive`. Returns if it exits with status 0, or after a request to stop.

        Raises:
            CommandError: it has ended in another way, or was unhealthy.
        """
        async with trio.open_nursery() as nursery:
            checks = trio.CancelScope()
            nursery.start_soon(self._stop_when_asked, checks)
            nursery.start_soon(self._check_health, checks)
            await self.guarded.ended.wait()
            nursery.cancel_scope.cancel("the program has ended")
        problem = self._error or (None if self._asked else self.guarded.problem())
        if problem is not None:
            raise problem

    async def _stop_when_asked(self, checks: trio.CancelScope) -> None:
        await stop_requested()
        self._asked = True
        # A server closes its port before it has served its clients.
        checks.cancel("the program is asked to stop")
        self.guarded.order("stop")

    async def _check_health(self, checks: trio.CancelScope) -> None:
        alive = self._conduct.alive
        if alive is None:
            return
        with checks:
            try:
                why = await alive.until_it_fails(self)
                self._error = CommandUnhealthy(f"{self._order.name} is not healthy: {why}")
                self.output.note(self._error)
            except Exception as raised:  # noqa: BLE001 - `until_it_ends` raises it, without the group of its nursery.
                self._error = raised
            self.guarded.order("stop")

    async def close(self, *, steps: float | None = None) -> None:
        """End it, see `Guarded.end`."""
        if self._notifications is not None:
            self._notifications.close()
        await self.guarded.end(steps=steps)


@protected
class Opening(AbstractAsyncContextManager[Running]):
    """Starts the program when it is entered, and has ended all of it when it is left."""

    def __init__(self, conduct: Conduct) -> None:
        self._conduct = conduct
        self._running: Running | None = None

    async def __aenter__(self) -> Running:
        conduct, child = self._conduct, current.get(None)
        running = Running(
            conduct, conduct.order(_environment()), conduct.name if child is None else child.path
        )
        try:
            await running.start()
        except BaseException:
            await running.close(steps=conduct.longest_stop)
            raise
        self._running = running
        return running

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._running is not None
        await self._running.close()
        defect = self._running.guarded.defect
        if defect is not None and defect is not exc and not isinstance(defect, Exception):
            raise defect  # R4: it came while the program was ending


def _environment() -> dict[str, str]:
    return {
        "PYTHONUNBUFFERED": "1",  # otherwise the lines of a Python program come only when many have gathered
        **{name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN},
    }


async def watch(
    program: Running, *, task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED
) -> None:
    """The body of a `Command`: it is over when the program is. See `Running.until_it_ends`."""
    task_status.started(program)
    await program.until_it_ends()
