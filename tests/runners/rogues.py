"""Runners that break the rules of the house, importable by a context process."""

import ctypes
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import attrs

from runners import errors
from runners.errors import ContextPoisoned, RateLimited
from runners.types import FinishReason, RunnerInfo, TokenChunk


def connection():
    """The descriptor on which the context process talks to its parent: the only socket it has."""
    (found,) = [int(entry.name) for entry in Path("/proc/self/fd").iterdir() if entry.is_socket()]
    return found


@attrs.frozen
class Nested:
    values: tuple
    table: dict


class Base:
    """Two chunks, with `meanwhile` in between."""

    info = RunnerInfo(streams=4)

    def __init__(self, spec):
        self.spec = spec

    def execute(self, batch):
        yield TokenChunk(request_id=batch.request_id, index=0, token_ids=(1,), text="a")
        self.meanwhile(batch)
        yield TokenChunk(
            request_id=batch.request_id, index=1, token_ids=(2,), finish_reason=FinishReason.STOP
        )

    def meanwhile(self, batch):
        pass

    def rebuild(self, cause):
        pass

    def close(self):
        pass


@attrs.frozen
class Says:
    """Writes bytes of its own to the connection, and may then end the process or wait for ever."""

    said: str
    then: str = "exit"

    def build(self, start):
        return _Says(self)


class _Says(Base):
    def meanwhile(self, batch):
        os.write(connection(), self.spec.said.encode("latin-1"))
        if self.spec.then == "exit":
            os._exit(9)
        while self.spec.then == "wait":
            time.sleep(3600)


@attrs.frozen
class SaysWhenAsked(Says):
    """Writes `before`, waits until the parent sends something, and writes the rest; it never comes to a chunk of its own."""

    before: str = ""

    def build(self, start):
        return _SaysWhenAsked(self)


class _SaysWhenAsked(_Says):
    def execute(self, batch):
        os.write(connection(), self.spec.before.encode("latin-1"))
        select.select([connection()], [], [])
        self.meanwhile(batch)
        yield from super().execute(batch)


@attrs.frozen
class Yields:
    """Its streams yield something that is no chunk, or one that cannot be sent, or nothing."""

    what: str

    def build(self, start):
        return _Yields(self)


class _Yields(Base):
    def execute(self, batch):
        match self.spec.what:
            case "text":
                yield "hello"
            case "object":
                yield TokenChunk(request_id=batch.request_id, index=0, token_ids=(object(),))
            case "huge":
                yield TokenChunk(request_id=batch.request_id, index=0, token_ids=(2**64,))
            case "surrogate":
                yield TokenChunk(request_id=batch.request_id, index=0, token_ids=(1,), text="\ud800")
            case "nothing":
                return
            case "another's":
                for chunk in super().execute(batch):
                    yield attrs.evolve(chunk, request_id="other")
            case "mute":
                yield TokenChunk(request_id=batch.request_id, index=0, token_ids=(1,), text=None)
            case "list":
                yield TokenChunk(request_id=batch.request_id, index=0, token_ids=[1])
            case "half":
                yield TokenChunk(request_id=batch.request_id, index=0, token_ids=(0.5,))
            case "true":
                yield TokenChunk(request_id=batch.request_id, index=True, token_ids=(1,))
            case "ended":
                yield TokenChunk(request_id=batch.request_id, index=0, finish_reason="bored")
            case "used":
                yield TokenChunk(request_id=batch.request_id, index=0, token_ids=(1,), usage=1)


@attrs.frozen
class Verbose:
    """One chunk of so many characters, and a second that ends."""

    characters: int

    def build(self, start):
        return _Verbose(self)


class _Verbose(Base):
    def execute(self, batch):
        text = "x" * self.spec.characters
        yield TokenChunk(request_id=batch.request_id, index=0, token_ids=(1,), text=text)
        yield TokenChunk(
            request_id=batch.request_id, index=1, token_ids=(2,), finish_reason=FinishReason.STOP
        )


@attrs.frozen
class Ponders:
    """Begins no stream without having thought about it."""

    seconds: float

    def build(self, start):
        return _Ponders(self)


class _Ponders(Base):
    def execute(self, batch):
        time.sleep(self.spec.seconds)
        return super().execute(batch)


@attrs.frozen
class Clings:
    """It yields what cannot be sent, and closing it shows that the context is lost."""

    def build(self, start):
        return _Clings(self)


class _Clings(Base):
    def execute(self, batch):
        try:
            yield TokenChunk(request_id=batch.request_id, index=0, token_ids=(1,), text="\ud800")
        finally:
            raise ContextPoisoned("cannot let go")


@attrs.frozen
class OnePlace:
    """One stream at a time, whose place only closing frees, also of one that has ended; and none may be open at the end."""

    tokens: int = 2

    def build(self, start):
        return _OnePlace(self)


class _OnePlace(Base):
    info = RunnerInfo(streams=1)

    def execute(self, batch):
        return _Held(self, self.stream(batch))

    def stream(self, batch):
        for index in range(self.spec.tokens):
            last = FinishReason.STOP if index == self.spec.tokens - 1 else None
            yield TokenChunk(request_id=batch.request_id, index=index, token_ids=(index,), finish_reason=last)

    def close(self):
        assert not hasattr(self, "place"), "a stream is still open"


@attrs.frozen
class CannotClose:
    """Closing it fails with an error of ours, of this name."""

    error: str

    def build(self, start):
        return _CannotClose(self)


class _CannotClose(Base):
    def close(self):
        raise getattr(errors, self.spec.error)("in closing")


@attrs.frozen
class LacksInEnding:
    """Closing a stream of its takes memory that is not there."""

    def build(self, start):
        return _LacksInEnding(self)


class _LacksInEnding(Base):
    def execute(self, batch):
        try:
            for index in range(10_000):
                time.sleep(0.001)
                yield TokenChunk(request_id=batch.request_id, index=index, token_ids=(1,), text="a")
        finally:
            raise MemoryError("in ending")


@attrs.frozen
class FailsAgain:
    """Its streams lack memory, and do so again each time that they are asked."""

    def build(self, start):
        return _FailsAgain(self)


class _FailsAgain(Base):
    def execute(self, batch):
        return iter(lambda: bytearray(2**62), None)


@attrs.frozen
class Holds:
    """One stream at a time, whose place only closing frees; it yields something that is no chunk, once."""

    def build(self, start):
        return _Holds(self)


class _Holds(Base):
    info = RunnerInfo(streams=1)
    held = 0

    def execute(self, batch):
        self.held += 1
        return _Held(self, super().execute(batch) if self.held == 2 else iter(["no chunk"]))


class _Held:
    def __init__(self, runner, chunks):
        self.runner, self.chunks = runner, chunks
        assert not hasattr(runner, "place"), "the place is taken"
        runner.place = self

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.chunks)

    def close(self):
        del self.runner.place


@attrs.frozen
class Talks:
    """Prints, spawns a process that outlives it, writes its environment into a file."""

    folder: str

    def build(self, start):
        print("a runner prints")
        sleeper = subprocess.Popen(["sleep", "3600"])
        found = f"{sleeper.pid} {os.environ.get('PYTHONPATH')}"
        Path(self.folder, "found").write_text(found)
        return Base(self)


@attrs.frozen
class ClosesAndLives:
    """Closes its end of the connection, and lives on."""

    def build(self, start):
        return _ClosesAndLives(self)


class _ClosesAndLives(Base):
    def meanwhile(self, batch):
        os.close(connection())
        while True:
            time.sleep(3600)


@attrs.frozen
class Remembers:
    """Carries nested values, and writes what arrived to a file; closing leaves a mark."""

    folder: str
    nested: Nested

    def build(self, start):
        Path(self.folder, "loaded").write_text(f"{self.nested!r} {start!r}")
        return _Remembers(self)


class _Remembers(Base):
    def rebuild(self, cause):
        Path(self.spec.folder, "rebuilt").write_text(cause.value)

    def close(self):
        Path(self.spec.folder, "closed").write_text("")


class Foreign(Exception):
    """Not ours, but tagged."""

    def __init__(self, tag):
        super().__init__("tagged from outside")
        self.tag = tag


class MyPoison(ContextPoisoned):
    code = 700


class TooEarly(RateLimited):
    code = 429


@attrs.frozen
class Raises:
    """Its streams raise in mid-stream."""

    what: str

    def build(self, start):
        return _Raises(self)


class _Raises(Base):
    def meanwhile(self, batch):
        if self.spec.what == "subclass":
            raise MyPoison("my own")
        if self.spec.what == "sys.exit":
            sys.exit(5)
        if self.spec.what == "429":
            raise TooEarly("slow down", retry_after=2.5)
        raise Foreign(self.spec.what)


def factory():
    @attrs.frozen
    class Local:
        def build(self, start):
            raise AssertionError

    return Local()


@attrs.frozen
class Witness:
    """Writes down each of its starts: its pid, incarnation and cause, and whether the one before was still there."""

    folder: str

    def build(self, start):
        log = Path(self.folder, "starts")
        before = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        alone = not any(Path("/proc", str(one["pid"])).exists() for one in before)
        told = {"pid": os.getpid(), "incarnation": start.incarnation, "cause": start.cause, "alone": alone}
        with log.open("a") as file:
            file.write(json.dumps(told) + "\n")
        return Base(self)


@attrs.frozen
class Miscounts:
    """The second chunk of its streams is not the one that is next."""

    what: str

    def build(self, start):
        return _Miscounts(self)


class _Miscounts(Base):
    def execute(self, batch):
        first = TokenChunk(request_id=batch.request_id, index=0, token_ids=(1,), text="a")
        yield first
        match self.spec.what:
            case "again":
                yield first
            case "skips":
                yield attrs.evolve(first, index=2)
            case "nothing":
                yield attrs.evolve(first, index=1, token_ids=(), text="")
            case "too many":
                yield attrs.evolve(first, index=1, token_ids=(1,) * batch.sampling.max_tokens)


@attrs.frozen
class Preloads:
    """Tells in a file where it was preloaded, prepared and built, and misbehaves while preloading or preparing.

    A preload goes on for as long as there is a file `hold`.
    """

    folder: str
    preloading: str = ""
    preparing: str = ""

    def preload(self):
        self._tell("preload")
        _PRELOADING[self.preloading]()
        while Path(self.folder, "hold").exists():
            time.sleep(0.01)

    def prepare(self, device):
        self._tell("prepare")
        _PRELOADING[self.preparing]()
        return self

    def build(self, start):
        self._tell("build")
        return Base(self)

    def _tell(self, what):
        with Path(self.folder, "told").open("a") as file:
            file.write(f"{what} {os.getpid()}\n")

    def told(self):
        """Pairs of what and where."""
        path = Path(self.folder, "told")
        lines = path.read_text().splitlines() if path.exists() else []
        return [(what, int(pid)) for what, pid in (line.split() for line in lines)]


def _fail():
    raise ValueError("nothing to preload")


def _leave_a_thread():
    threading.Thread(target=time.sleep, args=(3600,), daemon=True, name="the lazy one").start()


def _touch_cuda():
    cuda = types.SimpleNamespace(is_initialized=lambda: True)
    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)


def _forbid_forks():
    def fork():
        raise BlockingIOError("no more processes")

    os.fork = fork


def _forbid_reports():
    def send_fds(*_arguments):
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    socket.send_fds = send_fds


_PRELOADING = {
    "": lambda: None,
    "fails": _fail,
    "leaves a thread": _leave_a_thread,
    "touches CUDA": _touch_cuda,
    "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hangs": lambda: time.sleep(3600),
    "imports a thread": lambda: __import__("lazybar"),
    "imports a native thread": lambda: __import__("lazynative"),
    "closes what it writes to": lambda: os.closerange(0, 3),
    "signals what it forks": lambda: os.register_at_fork(
        after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM)
    ),
    "waits for any child": lambda: signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, 0)),
    "ignores its children": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    "sets a default timeout": lambda: socket.setdefaulttimeout(0.05),
    "forbids forks": _forbid_forks,
    "forbids reports": _forbid_reports,
    "babbles": lambda: os.write(connection(), b"junk"),
    "sends a descriptor": lambda: socket.send_fds(socket.socket(fileno=os.dup(connection())), [b"junk"], [2]),
}


@attrs.frozen
class Writes:
    """Writes to its standard output and error in mid-stream, by whatever means."""

    how: str

    def build(self, start):
        return _Writes(self)


@attrs.frozen
class Redirects(Writes):
    """Its preload puts a writer of its own in place of `sys.stderr`, as applications do that log all they print."""

    def preload(self):
        sys.stderr = _Writer()


class _Writer:
    def write(self, text):
        os.write(1, text.encode())

    def flush(self):
        pass


class _Writes(Base):
    def meanwhile(self, batch):
        match self.spec.how:
            case "both":
                print("to output")
                print("to error", file=sys.stderr)
            case "last words":
                sys.stdout.write("no end of line")
                sys.stderr.write("neither here")
                os.kill(os.getpid(), signal.SIGKILL)
            case "many last words":
                os.write(2, b"".join(b"%059d\n" % number for number in range(1000)))
                os.kill(os.getpid(), signal.SIGKILL)
            case "flood":
                for i in range(100_000):
                    print(i)
            case "long":
                print("x" * 10_000)
            case "C":
                libc = ctypes.CDLL(None)
                libc.puts(b"from C")
            case "lets another write on":
                subprocess.Popen(["yes"], start_new_session=True)
            case "as if it crashed":
                report = "Fatal Python error: so it says", "", "Current thread 0x1:", '  File "here"'
                print("  indented", *report, "something else", "  indented", sep="\n", file=sys.stderr)
            case "segfault":
                ctypes.string_at(0)


@attrs.frozen
class Starts:
    """Starts a process of its own, perhaps in a session of its own, and writes its pid into a file."""

    folder: str
    session: bool = False
    bare: bool = False

    def build(self, start):
        environment = {} if self.bare else None
        sleeper = subprocess.Popen(["sleep", "3600"], start_new_session=self.session, env=environment)
        Path(self.folder, "sleeper").write_text(str(sleeper.pid))
        return Base(self)


@attrs.frozen
class Terminates:
    """Starts a process in each of the ways that there are, terminates it, and writes into a file how it ended."""

    folder: str
    number: int

    def build(self, start):
        sleeper = subprocess.Popen(["sleep", "3600"])
        sleeper.send_signal(self.number)
        reading, writing = os.pipe()
        forked = os.fork()
        if not forked:
            try:
                os.write(writing, b"x")
                while True:  # a signal that comes just before a sleep does not shorten it
                    time.sleep(0.01)
            finally:
                os._exit(3)
        os.read(reading, 1)
        os.kill(forked, self.number)
        ends = {"exec": sleeper.wait(), "fork": os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])}
        Path(self.folder, "ends").write_text(json.dumps(ends))
        os.kill(os.getpid(), self.number)  # its own death is the parent's business
        return Base(self)


@attrs.frozen
class Looks:
    """Tells in a file what surrounds it at its load."""

    folder: str

    def preload(self):
        os.environ["LOOKS_PRELOADED"] = "yes"
        os.chdir("/")
        os.umask(0o123)

    def build(self, start):
        umask = os.umask(0)
        os.umask(umask)
        environment = {name: value for name, value in os.environ.items() if name.startswith("LOOKS_")}
        seen = {"environment": environment, "folder": str(Path.cwd()), "umask": umask, "pid": os.getpid()}
        Path(self.folder, "seen").write_text(json.dumps(seen))
        return Base(self)


@attrs.frozen
class Long:
    """A spec that is as long as its text."""

    text: str

    def build(self, start):
        return Base(self)


@attrs.frozen
class Reads:
    """Loads what a path leads to, which need not be UTF-8."""

    path: str

    def build(self, start):
        if Path(self.path).read_text() != "weights":
            raise ValueError(self.path)
        return Base(self)


@attrs.frozen
class Lacks:
    """Its rebuild runs out of memory."""

    def build(self, start):
        return _Lacks(self)


class _Lacks(Base):
    def rebuild(self, cause):
        raise MemoryError("no room for another session")


@attrs.frozen
class Closes:
    """Its `close` does not go well."""

    how: str

    def build(self, start):
        return _Closes(self)


class _Closes(Base):
    def close(self):
        match self.spec.how:
            case "raises":
                raise ValueError("cannot close")
            case "exits":
                sys.exit(3)
            case "segfaults":
                ctypes.string_at(0)
            case "hangs":
                time.sleep(3600)
