r"""How a program shows that it is ready, and that it still works: the values of `ready=` and `alive=`.

Each has lower-case letters as it is read in a declaration, such as `ready=tcp(6379, send=b"PING\r\n", expect=b"+PONG")`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from socket import gaierror
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

import trio
from attrs import field, frozen

from .._core._brief import as_group, brief, members, printable, shortened
from .._core._check import check_number, is_a, plain, refuse
from .._core._code import Code
from .._core._value import Value
from .errors import CommandNotReady
from .notify import Notifications
from .ports import Listener, addresses, listeners

_FIRST, _LONGEST, _FACTOR = 0.02, 0.5, 1.5
"""The seconds between two attempts, at first and at most: a program gives no event when it opens its port."""
_PATIENCE = 5.0
"""Seconds of one attempt."""
_SHORT = 0.25
"""Seconds for a connection to an address if there are further ones: as in RFC 8305, a route that swallows all delays the others little."""
_MOST = 65536
"""Bytes of an answer that are read at most; `expect` must be among them."""


class Checked(Protocol):
    """What a check needs of the running program."""

    @property
    def notifications(self) -> Notifications:
        """Its notify socket."""
        ...

    @property
    def runs(self) -> bool:
        """Whether its main process still runs: otherwise a process that it has left may answer for it."""
        ...

    async def started(self) -> None:
        """Wait until it runs. None of its lines is read before."""
        ...

    def listen_to_lines(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call `listener` with each further line of output, until the returned function is called."""
        ...

    async def owns(self, port: Listener) -> bool:
        """Whether the listening socket belongs to it."""
        ...

    async def run_beside(self, argv: tuple[str, ...]) -> str | None:
        """Run a further program to its end. Returns None after status 0, else what happened."""
        ...


class Check(Protocol):
    """One attempt to find out whether the program works."""

    async def attempt(self, program: Checked) -> str | None:
        """Return None if it works, else the reason why not in a few words."""
        ...


async def until_it_passes(check: Check, program: Checked, note: Callable[[str], None]) -> None:
    """Attempt the check again and again, at growing intervals; `note` gets the reason of each failure."""
    interval = _FIRST
    while True:
        why: str | None = f"no answer within {_PATIENCE:g} s"
        with trio.move_on_after(_PATIENCE):  # a connection that was made too early may get no answer ever
            why = await check.attempt(program)
        if why is None:
            return
        note(why)
        await trio.sleep(interval)
        interval = min(interval * _FACTOR, _LONGEST)


def _put(value: object, name: str, instead: object) -> None:
    object.__setattr__(value, name, instead)


def _check_bytes(what: str, value: object) -> None:
    if not is_a(value, bytes):
        refuse(TypeError(f"{what} must be bytes, got {brief(value)}"))


# --- over a port


@frozen(repr=False, eq=False)
class tcp(Code, Value):  # noqa: N801 - see the first lines of this file
    """The program answers at a port.

    Of an address of this machine the port must belong to the program: it is not ready if another process listens there.

    Args:
        port: from 1 to 65535.
        host: the address or name to connect to.
        send: what to send first.
        expect: what the answer must contain within its first 64 KiB. An open port is not enough for many servers: Redis and
            PostgreSQL open it before they can be used.
    """

    port: int = field(converter=plain)
    host: str = field(default="127.0.0.1", kw_only=True, converter=plain)
    send: bytes = field(default=b"", kw_only=True)
    expect: bytes = field(default=b"", kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not check_number("tcp: port", self.port, least=1, kind=int) or not _is_port(self.port):
            _put(self, "port", 1)
        if not is_a(self.host, str) or not self.host:
            refuse(TypeError(f"tcp: host must be an address or a name, got {brief(self.host)}"))
        _check_bytes("tcp: send", self.send)
        _check_bytes("tcp: expect", self.expect)

    async def attempt(self, program: Checked) -> str | None:  # noqa: ARG002 - other checks need it
        """See `Check.attempt`."""
        answer = await _asked(self.host, self.port, self.send, lambda data: self.expect in data)
        if isinstance(answer, str):
            return answer
        if self.expect not in answer:
            return f"port {self.port} answered {brief(bytes(answer[:80]))}"
        return None


def _is_port(number: int) -> bool:
    return number <= 65535 or refuse(ValueError(f"a port must be <= 65535, got {number}"))  # noqa: PLR2004 - it says itself


async def _asked(host: str, port: int, send: bytes, enough: Callable[[bytes], bool]) -> bytes | str:
    """What comes back from a port, until it is enough; a text is the reason why nothing did."""
    data = b""
    try:
        async with await _connected(host, port) as stream:
            if send:
                await stream.send_all(send)
            while not enough(data) and len(data) < _MOST:
                more = await stream.receive_some(_MOST)
                if not more:
                    break
                data += more
    except (OSError, UnicodeError, trio.BrokenResourceError) as problem:
        # Some names of hosts cannot be encoded.
        return f"port {port}: {_reason(problem)}"
    return data


async def _connected(host: str, port: int) -> trio.SocketStream:
    *others, last = await addresses(host, port)
    for address in others:
        with suppress(OSError), trio.move_on_after(_SHORT):
            return await trio.open_tcp_stream(address, port)
    return await trio.open_tcp_stream(last, port)


def _reason(problem: BaseException) -> str:
    """The reason in a few words. Trio gives the failure of a stream as a cause, that of a connection as a group of one."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
        if (group := as_group(problem)) is not None:
            problem = members(group)[0]
    if isinstance(problem, OSError) and problem.errno:
        known = problem.strerror if isinstance(problem, gaierror) else None  # it has numbers of its own
        return (known or os.strerror(problem.errno)).lower()
    return printable(shortened(str(problem), 200))


@frozen(repr=False, eq=False)
class http(Code, Value):  # noqa: N801 - see the first lines of this file
    """A GET of a URL gives a status. As with `tcp`, the port must belong to the program.

    Args:
        url: beginning with `http://`.
        status: from 100 to 599.
    """

    url: str = field(converter=plain)
    status: int = field(default=200, kw_only=True, converter=plain)

    def __attrs_post_init__(self) -> None:
        if _split(self.url) is None:
            refuse(
                ValueError(f"http: url must be a URL like 'http://127.0.0.1:8080/', got {brief(self.url)}")
            )
            _put(self, "url", "http://127.0.0.1/")
        if check_number("http: status", self.status, least=100, kind=int) and self.status > 599:  # noqa: PLR2004 - HTTP's own
            refuse(ValueError(f"http: status must be <= 599, got {self.status}"))

    @property
    def host(self) -> str:
        """The name or address in the URL."""
        return _parts(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port in the URL, or 80."""
        return _parts(self.url).port or 80

    async def attempt(self, program: Checked) -> str | None:  # noqa: ARG002 - as above
        """See `Check.attempt`."""
        url = _parts(self.url)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        lines = f"GET {target} HTTP/1.1", f"Host: {url.netloc}", "Connection: close", "Accept: */*", "", ""
        answer = await _asked(self.host, self.port, "\r\n".join(lines).encode(), lambda data: b"\r\n" in data)
        if isinstance(answer, str):
            return answer
        line = answer.partition(b"\r\n")[0]
        status = re.fullmatch(rb"HTTP/1\.[01] (\d{3})(?: .*)?", line)
        if status is None:
            return f"port {self.port} does not speak HTTP: it answered {brief(line[:80])}"
        if int(status[1]) != self.status:
            return f"{self.url} gave status {int(status[1])}"
        return None


def _parts(url: str) -> SplitResult:
    found = _split(url)
    assert found is not None
    return found


def _split(url: object) -> SplitResult | None:
    if not isinstance(url, str) or not url.isprintable() or " " in url:
        return None
    try:
        found = urlsplit(url)
        good = found.scheme == "http" and found.hostname and (found.port is None or found.port > 0)
    except ValueError:
        return None
    return found if good else None


def checked_argv(what: str, argv: Any) -> tuple[str, ...]:
    """A program and its arguments as a tuple; the check refuses everything else."""
    if not is_a(argv, (list, tuple)):
        as_list = f"; write {shlex.split(argv)!r}" if isinstance(argv, str) and _is_plain_line(argv) else ""
        refuse(TypeError(f"{what}: argv must be a list of strings, got {brief(argv)}{as_list}"))
        return ("?",)
    items: tuple[Any, ...] = tuple(argv)
    for item in items:
        if not isinstance(item, str) or "\0" in item:
            refuse(TypeError(f"{what}: argv must be a list of strings without NUL, got {brief(item)} in it"))
            return ("?",)
    if not items or not items[0]:
        refuse(ValueError(f"{what}: argv must begin with the name of a program, got {brief(list(items))}"))
        return ("?",)
    return tuple(map(str, items))


def _is_plain_line(text: str) -> bool:
    return text.isprintable() and not set(text) & set("\"'\\$`|&;<>*?~(){}")


def _probe_argv(argv: Any) -> tuple[str, ...]:
    return checked_argv("probe", argv)


# --- in the program's own words


@frozen(repr=False, eq=False)
class line(Code, Value):  # noqa: N801 - see the first lines of this file
    """The program prints a line, on either stream, in which a regular expression is found.

    Programs write into a pipe in blocks rather than lines, unless they are made not to: `PYTHONUNBUFFERED=1` is set for Python,
    and `stdbuf -oL` before the program helps with many others.

    Args:
        pattern: the expression; a group `port` in it is the port of the program.
    """

    pattern: str | re.Pattern[str] = field(converter=plain)

    def __attrs_post_init__(self) -> None:
        try:
            re.compile(self.pattern).search("")  # one of bytes finds nothing in a line
        except (re.error, TypeError, OverflowError, RecursionError) as problem:
            refuse(
                ValueError(
                    f"line: pattern must be a regular expression, got {brief(self.pattern)}: {problem}"
                )
            )
            _put(self, "pattern", "")


@frozen(repr=False, eq=False)
class notify(Code, Value):  # noqa: N801 - see the first lines of this file
    """The program sends `READY=1` to its `NOTIFY_SOCKET`, as `man sd_notify` describes.

    Only the messages of processes below the program's guardian count.
    """


@frozen(repr=False, eq=False)
class probe(Code, Value):  # noqa: N801 - see the first lines of this file
    """A further program exits with status 0. It has the environment, the folder, the user and the limits of the first one.

    Args:
        argv: the program and its arguments, such as `["pg_isready", "-p", "5432"]`.
    """

    argv: tuple[str, ...] = field(converter=_probe_argv, metadata={"as list": True})

    async def attempt(self, program: Checked) -> str | None:
        """See `Check.attempt`."""
        why = await program.run_beside(self.argv)
        return None if why is None else f"{shortened(shlex.join(self.argv), 80)} {why}"


# --- again and again


@frozen(repr=False, eq=False)
class every(Code, Value):  # noqa: N801 - see the first lines of this file
    """A check that is repeated as long as the program is ready. Its times run on Trio's clock.

    Args:
        seconds: between the end of one check and the start of the next.
        check: `tcp(…)`, `http(…)` or `probe(…)`.
        timeout: seconds after which one check has failed.
        failures: how many checks in a row must fail for the program to be unhealthy. Time for which the event loop is blocked
            counts in the timeout, so with 1 a healthy program may be stopped for that.
    """

    seconds: float = field(converter=plain)
    check: tcp | http | probe
    timeout: float = field(default=2.0, kw_only=True, converter=plain)
    failures: int = field(default=3, kw_only=True, converter=plain)

    def __attrs_post_init__(self) -> None:
        for name, instead in (("seconds", 10.0), ("timeout", 2.0)):
            if not check_number(f"every: {name}", getattr(self, name), least=0, more=True, finite=True):
                _put(self, name, instead)
        if not check_number("every: failures", self.failures, least=1, kind=int):
            _put(self, "failures", 3)
        if not is_a(self.check, CHECKS):
            refuse(TypeError(f"every: check must be tcp(…), http(…) or probe(…), got {brief(self.check)}"))

    async def until_it_fails(self, program: Checked) -> str:
        """Check again and again. Returns the reasons of the failures, once there are too many."""
        count = 0
        while True:
            await trio.sleep(self.seconds)
            why: str | None = f"no answer within {self.timeout:g} s"
            with trio.move_on_after(self.timeout):
                why = await self.check.attempt(program)
            count = 0 if why is None else count + 1
            if why is not None and count >= self.failures:
                return f"{count} checks in a row have failed; the last one: {why}"


CHECKS = (tcp, http, probe)
READY = (*CHECKS, line, notify)


# --- the wait for a start


async def wait_until_ready(how: object, program: Checked, note: Callable[[str], None]) -> int | None:
    """Wait until the program has started and is ready. Returns its port, if that is known.

    Args:
        how: one of `READY`, or None, which is ready at once.
        program: the program.
        note: gets the reason of each attempt that has failed.

    Raises:
        CommandNotReady: another process serves the port.
    """
    if isinstance(how, line):
        return await _line(how, program)
    await program.started()
    if isinstance(how, notify):
        await program.notifications.ready(note)
    elif isinstance(how, CHECKS):
        await until_it_passes(how, program, note)
        if isinstance(how, tcp | http):
            while not (program.runs and await _is_its_own(how.host, how.port, program)):
                await until_it_passes(how, program, note)
            return how.port
    return None


async def _line(how: line, program: Checked) -> int | None:
    found: list[re.Match[str]] = []
    seen = trio.Event()

    def look(text: str) -> None:
        match = None if found else re.search(how.pattern, text)
        if match is not None:
            found.append(match)
            seen.set()

    end = program.listen_to_lines(look)  # before it has started, so that no line is missed
    await seen.wait()
    end()
    await program.started()  # if its guardian was lost before it said so, its lines are read at its end
    port = found[0].groupdict().get("port")
    return int(port) if port is not None and port.isdecimal() else None


async def _is_its_own(host: str, port: int, program: Checked) -> bool:
    """Whether the port belongs to the program; False if the process that held it has just closed it, or if that cannot be seen.

    Raises:
        CommandNotReady: another process holds it, and is the one that has answered.
    """
    try:
        found = await listeners(host, port)
        for one in found:
            if await program.owns(one):
                return True
        is_still_held = set(found) & set(await listeners(host, port))
    except OSError:
        # The name of the host could not be looked up a second time, or no descriptor is left.
        return False
    if is_still_held:
        raise CommandNotReady(f"port {port} is served by another process{await found[0].holder()}")
    return not found
