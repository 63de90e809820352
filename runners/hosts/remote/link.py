"""The near end of a context process on another machine: its records, its lease, and the report of its end.

The connection is a `Peer` of what carries it: the program `ssh`, or an actor of Ray. A task, `FarPeer.pump`, reads it all the
time, because the guardian's questions must be answered also while no task waits for the session.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import trio
from attrs import asdict, frozen
from trio.lowlevel import enable_ki_protection

from runners.brief import brief, one_line, text_of
from runners.diagnosis.nvml import Nvml
from runners.errors import ContextDied, ContextUnreachable
from runners.hosts.process.host import BACKLOG, DYING
from runners.hosts.process.parent.output import Output, log_event
from runners.hosts.process.parent.peer import Peer
from runners.hosts.process.parent.processes import fate, within
from runners.hosts.remote import children, guardian, seeking

_FILES = (seeking.__file__, children.__file__, guardian.__file__)
SOURCE = b"\0".join(Path(file).read_bytes() for file in _FILES)
"""The program of the far side: the sources of these modules."""
BOOT = (
    "import os,sys;sys.path[:]=filter(None,sys.path);"
    f"[exec(text,globals())for text in b''.join(os.read(0,1)for _ in range({len(SOURCE)})).split(b'\\0')]"
)
"""The command of the far Python: it reads `SOURCE` from its standard input, not a byte more, and runs it. Nothing is imported from the
present folder, such as that of the login: a script of the user's there may have the name of a module of Python's."""

MARGIN = 2.0
"""Seconds that are added to a lease before it counts as over: the guardian needs a moment to kill, and clocks differ."""
_READ = 65_536
_LONGEST = 2**20
"""Bytes of the longest record from the far side; a guardian sends shorter ones."""
_SHOWN = 100
"""Bytes that an error shows of what is no record, such as the greeting of a login shell."""
_WRITTEN = (guardian.OUTPUT, guardian.ERRORS)
_KINDS = (
    *_WRITTEN,
    *(guardian.DATA, guardian.ASK, guardian.BORN, guardian.REFUSED, guardian.ENDED, guardian.COLD),
)
_CARRIER = 5.0
"""Seconds for the program that carries the connection to die of SIGKILL."""


@frozen(kw_only=True)
class Fork:
    """How a fork server on the far machine takes part in a start.

    Args:
        name: that of the server; starts of one user with the same name share the server.
        preload: what it does before it forks, a `wire.Preload` in base64.
        timeout: seconds that this may take.
        patience: seconds that the start waits for it; 0 if it does not.
    """

    name: str
    preload: str
    timeout: float
    patience: float


@frozen(kw_only=True)
class Order:
    """What a guardian must start.

    Args:
        place: the far machine, as texts name it.
        path: folders in front of the far `sys.path`.
        version: of the package here.
        protocol: the number of the protocol here.
        lease: seconds that a guardian keeps the context process alive without an answer from here.
        device: that of the runner, as torch names it.
        nvml: seconds that NVML there has for an answer about the device; None if it is not asked.
        fork: how a fork server there may take part; None if none may.
    """

    place: str
    path: tuple[str, ...]
    version: str
    protocol: int
    lease: float
    device: str
    nvml: float | None
    fork: Fork | None = None

    def data(self) -> bytes:
        """The first bytes to the far side: the guardian's program, and its order."""
        order = {
            "path": self.path,
            "version": self.version,
            "protocol": self.protocol,
            "lease": self.lease,
            "device": self.device,
            "nvml": self.nvml,
            "fork": None if self.fork is None else asdict(self.fork),
        }
        return SOURCE + _record(guardian.OPEN, json.dumps(order).encode())


class FarPeer:
    """A context process on another machine; a `Connection`. It needs the task `pump`."""

    def __init__(self, carrier: Peer, order: Order, who: str) -> None:
        self.pid = 0
        self.output = Output(who, piped=False)
        self.cold = False  # whether the guardian has reported that no fork server took part in the start
        self.on_cold: Callable[[str, str], None] = self._ignore_cold
        self._carrier = carrier
        self._order = order
        self._records = bytearray()  # what has come, and is no whole record yet
        self._data = bytearray()  # what the context process has sent, and the session has not read yet
        self._reads = True  # whether a session still reads what the context process sends
        self._last_came: float | None = None  # when the last byte has come
        self._answered = trio.current_time()
        self._fate: str | None = None  # how the context process has ended, as its guardian reports
        # Why its device cannot be used again, empty if it can be; None if NVML has not answered there.
        self._nvml: str | None = ""
        self._lost: str | None = None  # why the connection is lost
        self._refused: str | None = None
        self._started = trio.Event()  # or will never start
        self._over = trio.Event()
        self._changed = trio.Event()
        self._pumping = trio.Lock()
        self._mark = -1  # of the last answer
        self._carrier.send(order.data())

    @property
    def name(self) -> str:
        """See `Connection.name`."""
        return f"the context process {self.pid} on {self._order.place}"

    async def start(self, seconds: float) -> None:
        """Wait so many seconds until the far side has started the context process.

        Raises:
            OSError: it has not, for the reason in the text.
        """
        place = self._order.place
        if not await within(seconds, self._started.wait):
            raise OSError(f"{place} has started no context process within {seconds:g} s")
        if self._refused is not None:
            raise OSError(f"{place} cannot run it: {self._refused}")
        if not self.pid:
            raise OSError(f"{place} could not be reached, or runs no Python: {self._lost or self._fate}")

    # --- a session's calls

    def send(self, data: bytes) -> None:
        """See `Connection.send`."""
        self._carrier.send(_record(guardian.DATA, data))

    def send_marked(self, frames: Mapping[int, bytes]) -> None:
        """See `Connection.send_marked`."""
        self._carrier.send_marked({mark: _record(guardian.DATA, data) for mark, data in frames.items()})

    def withdraw(self, mark: int) -> bool:
        """See `Connection.withdraw`."""
        return self._carrier.withdraw(mark)

    def read(self) -> bytes | None:
        """See `Connection.read`. The end of the connection shows as the death of the process."""
        data = bytes(self._data[:_READ])
        del self._data[:_READ]
        if len(self._data) < BACKLOG <= len(self._data) + len(data):
            self._change()  # `pump` has room again
        return data or None

    async def wait(self) -> None:
        """See `Connection.wait`."""
        if not self._data and not self.dead:
            await self._changed.wait()
        else:
            await trio.lowlevel.checkpoint()

    @property
    def dead(self) -> bool:
        """See `Connection.dead`."""
        return self._over.is_set()

    @property
    def waits(self) -> bool:
        """See `Connection.waits`."""
        return not self.dead and not self._data

    def go_on(self) -> None:
        """See `Connection.go_on`. A process that was stopped there does not load, and its deadline ends it."""

    async def drained(self) -> None:
        """See `Connection.drained`."""
        while not self.dead:
            self.read()
            await self.wait()

    async def fate(self, seconds: float) -> str:
        """See `Connection.fate`."""
        await within(seconds, self._over.wait)
        if self._fate is None and self._lost is not None:
            return f"lost its connection: {self._lost}"
        return self._fate or "closed its connection"

    @property
    def death(self) -> type[ContextDied]:
        """See `Connection.death`."""
        return ContextDied if self._fate is not None else ContextUnreachable

    def kill(self, poisoned: bool = False, /) -> None:
        """See `Connection.kill`. Its guardian does it, or its lease if that cannot be reached."""
        if not self.dead:
            self._carrier.send(_record(guardian.KILL, b"poisoned" if poisoned else b""))

    async def trouble(self, nvml: Nvml, _device: str, /) -> str | None:
        """See `Connection.trouble`. The guardian reports it with the end of the process; nothing is known if it cannot be reached."""
        self._ignore_data()
        await within(self._order.lease + MARGIN + nvml.timeout, self._over.wait)
        return nvml.silence if self._nvml is None else self._nvml or None

    def _ignore_data(self) -> None:
        """Read nothing more of what the context process sends, so that its end, which comes behind that, is found."""
        self._reads, self._data = False, bytearray()
        self._change()

    @enable_ki_protection
    async def reap(self, seconds: float) -> bool:
        """See `Connection.reap`.

        The device is free when the guardian has reported the end of the process. If the guardian cannot be reached, it is free
        when the lease is over, counted from the last answer to it.
        """
        self._ignore_data()
        try:
            self.kill()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.pump)  # if no task runs it any more
                # A connection that is silently cut shows within a lease; a guardian that goes on asking is reached. It may report
                # the end only when NVML has answered.
                patience = max(seconds, self._order.lease + MARGIN) + (self._order.nvml or 0)
                lives = not await within(patience, self._over.wait)
                nursery.cancel_scope.cancel("the context process is dead, or does not die")
            if self._fate is None and self.pid and not lives:
                await self._outlast_lease()
            return lives
        finally:
            self._end()
            self._carrier.kill()
            with trio.CancelScope(shield=True):
                async with self._pumping:  # no task may read the connection when it is closed
                    await self._carrier.reap(_CARRIER)
            self.output.close()

    async def _outlast_lease(self) -> None:
        end = self._answered + self._order.lease + MARGIN
        log_event(
            logging.WARNING,
            "%s may be alive for another %.1f s: its device is not used before",
            self.name,
            max(0, end - trio.current_time()),
        )
        await trio.sleep_until(end)

    # --- the connection

    @enable_ki_protection  # it runs below a system task: a KeyboardInterrupt in it would end the whole Trio run
    async def pump(self) -> None:
        """Read the connection until the context process has ended, or the connection is lost."""
        async with self._pumping:
            while not self.dead:
                await self._step()

    async def _step(self) -> None:
        """Read once, or wait."""
        if len(self._data) >= BACKLOG:  # no session reads it
            await self._changed.wait()
            return
        dead = self._carrier.dead  # checked before reading, so that no byte sent before the death is missed
        if data := self._carrier.read():
            self._last_came = trio.current_time()
            self._records += data
            await self._take_records()
            await trio.lowlevel.checkpoint()
        elif data is not None or dead:
            how = await self._carrier.fate(DYING)
            last = self._carrier.output.last_lines().rpartition("\n")[2]
            self._lose(f"{self._carrier.output.who} {how}" + (f" ({last})" if last else ""))
        elif self._last_came is None:
            await self._carrier.wait()
        elif trio.current_time() >= self._last_came + self._order.lease:
            self._lose(f"it was silent for {self._order.lease:g} s")
        else:
            with trio.move_on_at(self._last_came + self._order.lease):
                await self._carrier.wait()

    def _lose(self, why: str) -> None:
        self._lost = why
        self._carrier.kill()
        self._end()

    def _end(self) -> None:
        self._over.set()
        self._started.set()
        self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _take_records(self) -> None:
        """Take the whole records that have come. Other tasks run after each that is logged, since many lines take time."""
        header = guardian.HEADER
        question: bytes | None = None
        while len(self._records) >= header.size and not self.dead:
            kind, length = header.unpack_from(self._records)
            if length > (guardian.LINES if kind in _WRITTEN else _LONGEST) or kind not in _KINDS:
                self._lose(f"it sent no record of a guardian, but {brief(bytes(self._records[:_SHOWN]))}")
                return
            end = header.size + length
            if len(self._records) < end:
                break
            content = bytes(self._records[header.size : end])
            del self._records[:end]
            if kind == guardian.ASK:
                question = content
                continue
            try:
                self._take(kind, content)
            except (ValueError, TypeError, RecursionError) as error:
                self._lose(f"it sent a record of kind {kind} that cannot be read: {text_of(error)}")
            if kind in _WRITTEN:
                await trio.lowlevel.checkpoint()
        if question is not None:  # the last one is enough
            self._answer(question)
        if self._data:
            self._change()

    def _answer(self, question: bytes) -> None:
        """Extend the lease. An answer that is still unsent is replaced, so that they do not pile up behind a full socket.

        Once the first of two marks cannot be taken back, all before it is sent, so the other one is free.
        """
        self._answered = trio.current_time()
        if not self._carrier.withdraw(self._mark):
            self._mark = -1 if self._mark == -2 else -2  # noqa: PLR2004 - These two marks are ours alone: those of streams are not negative.
        self._carrier.send_marked({self._mark: _record(guardian.ANSWER, question)})

    def _take(self, kind: int, content: bytes) -> None:
        if kind == guardian.DATA:
            if self._reads:
                self._data += content
        elif kind in _WRITTEN:
            self.output.feed(content, errors=kind == guardian.ERRORS)
        elif kind == guardian.BORN:
            self.pid = self.output.pid = int(content)
            self._started.set()
        elif kind == guardian.REFUSED:
            self._refused = one_line(content.decode("utf-8", "backslashreplace"))
            self._started.set()
        elif kind == guardian.COLD:
            self._take_cold(**json.loads(content))
        else:
            self._take_end(**json.loads(content))

    def _take_cold(self, *, kind: str, why: str) -> None:
        if not isinstance(why, str):
            raise TypeError(f"why must be a text, got {brief(why)}")
        self.cold = True
        self.on_cold(kind, one_line(why))

    def _ignore_cold(self, _kind: str, _why: str) -> None:
        pass

    def _take_end(self, *, killed: bool, status: int | None, nvml: str | None = "") -> None:
        if not (nvml is None or isinstance(nvml, str)):
            raise TypeError(f"nvml must be a text or null, got {brief(nvml)}")
        self._fate = one_line(fate(killed=killed, status=status))
        self._nvml = nvml and one_line(nvml)
        self._end()


def _record(kind: int, content: bytes) -> bytes:
    return guardian.HEADER.pack(kind, len(content)) + content
