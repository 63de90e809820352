"""`EngineHost`: an engine server as a program of its own, with the runner that asks it (D10, D17).

The runner lives in the Trio task, as with an `InlineHost`; `owned` judges the errors of its streams. It needs Linux, as every
`Command` does.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, cast

import attrs
import trio
from attrs import evolve, field, frozen
from attrs.validators import instance_of
from trio.lowlevel import enable_ki_protection

from runners.brief import brief, is_a, one_line, text_of
from runners.checks import above, plain_number
from runners.diagnosis.nvml import Nvml
from runners.diagnosis.probe import check_device
from runners.errors import ContextDied, ContextHung, DeviceError, InferenceError, LoadFailed, NetworkError
from runners.hosts import RequestFailed, Session
from runners.hosts.inline import InlineHost, InlineSession
from runners.hosts.owned import OwnedRunner
from runners.hosts.packing import class_of
from runners.nursery import bare_nursery
from runners.protect import Entered, protected
from runners.types import CANARY, RunnerSpec
from supervise import Child
from supervise.programs import (
    Command,
    CommandError,
    CommandExited,
    CommandNotReady,
    GuardianLost,
    Program,
    Running,
    tcp,
)

PORT = "{port}"
"""Stands for the port in the command and in the runner spec."""

_FIRST, _LONGEST, _FACTOR = 0.02, 0.5, 1.5
"""The pauses between two requests for the first token: the seconds of the first and of the longest, and the factor from each to the next."""

_KEPT = ("stop", "env", "cwd", "user", "umask", "limits", "files", "isolation")
_REFUSED = {
    "ready": "an engine is ready when it has given one token",
    "ready_timeout": "the host has load_timeout",
    "alive": "the streams show whether an engine works, and device_worker(canary=…) asks one that is idle",
}


def _check_command(_host: object, _field: object, command: Any) -> None:
    """A validator."""
    if not isinstance(command, Child) or not isinstance(command.resource, Program):
        raise TypeError(f"command must be a Command(…), got {brief(command)}")
    program = command.resource
    plain = Command(command.name, program.argv, **{name: getattr(program, name) for name in _KEPT})
    for given, usual in ((program, plain.resource), (command, plain)):
        for each in attrs.fields(type(given)):
            if each.name != "resource" and getattr(given, each.name) != getattr(usual, each.name):
                why = _REFUSED.get(each.name, "an engine is restarted and stopped by its device_worker")
                raise ValueError(f"the command of an engine must not have {each.name}: {why}")
    if not any(PORT in text for text in (*program.argv, *filter(None, program.env.values()))):
        raise ValueError(
            f"command must have {PORT} in its arguments or env, where the host puts a free port, "
            f"as in ['vllm', 'serve', 'model', '--port', '{PORT}'], got {brief(list(program.argv))}"
        )


@frozen(kw_only=True)
class EngineHost:
    """An engine server, such as vLLM, as a program of its own for each incarnation, and the runner that asks it (D17).

    Each incarnation has a port that was free just before. It takes the place of `{port}` in the arguments and the `env` of the
    command, and in the texts of the runner spec, such as `OpenAIModel("http://127.0.0.1:{port}/v1")`. The engine must listen
    on 127.0.0.1. It is ready when it has given one token.

    Its end is `ContextDied`, also with exit status 0. A stream that gets no token in time is `ContextHung`, unless the engine gives
    tokens to another one; the runner's timeouts count. After another error of the server the engine is asked for one
    token: if it gives one, only the request fails, otherwise the failure is `ContextDied`, or `ContextHung` if nothing comes in time.
    After a failure all processes of the engine are killed. When it is stopped in order, it is stopped by the `stop` steps of its command.

    Args:
        command: a `Command` without `ready` and `alive`, and without options of a `Child`, which `device_worker` has instead.
        device: the device that the engine holds, as torch names it; passed to the runner. The command itself must choose it.
        load_timeout: seconds from the start of the program to its first token.
        nvml: asks after a failure whether the device can be used again (D4).

    Raises:
        ValueError: `load_timeout` is not above 0, `device` is not a valid name, or the command lacks `{port}` or has an option that an
            engine cannot have.
        TypeError: an argument has a wrong type.
    """

    command: Child = field(kw_only=False, validator=_check_command)
    device: str = field(default="cpu", validator=[instance_of(str), check_device])
    load_timeout: float = field(default=300.0, converter=plain_number, validator=above(0))
    nvml: Nvml = field(factory=Nvml, validator=instance_of(Nvml))

    def open(
        self, runner: RunnerSpec, *, incarnation: int = 1, cause: str | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """See `Host.open`.

        Raises:
            TypeError, ValueError: see `check`.
        """
        self.check(runner)
        return Entered(self._open(runner, incarnation, cause))

    def check(self, runner: object) -> None:
        """See `CheckingHost.check`.

        Raises:
            TypeError: `runner` is not an attrs value with a build method.
            ValueError: none of its texts has `{port}`.
        """
        InlineHost().check(runner)
        if not attrs.has(type(runner)):
            raise TypeError(f"a runner of an EngineHost must be an attrs value, got {brief(runner)}")
        if not _texts_with_port(runner):
            raise ValueError(
                f"a runner of an EngineHost must have {PORT} in a text, where the host puts the port of its engine, "
                f"as in OpenAIModel('http://127.0.0.1:{PORT}/v1'), got {brief(runner)}"
            )

    def _program(self, port: int) -> Program:
        program = self.command.resource
        assert isinstance(program, Program)
        return evolve(
            program,
            argv=[_filled(text, port) for text in program.argv],
            env={name: text and _filled(text, port) for name, text in program.env.items()},
            ready=tcp(port),  # this also refuses the port of another process
            ready_timeout=self.load_timeout,
        )

    @asynccontextmanager
    @enable_ki_protection
    async def _open(
        self, spec: RunnerSpec, incarnation: int, cause: str | None
    ) -> AsyncGenerator[Session, None]:
        port, engine = _free_port(), _Engine(self)
        owned = OwnedRunner(_with_port(spec, port), engine)
        inline = InlineHost(self.device).open(cast("RunnerSpec", owned), incarnation=incarnation, cause=cause)
        # The runner is built first: a missing key costs no start of an engine.
        async with inline as session, _started(self._program(port)) as engine.program:
            assert isinstance(session, InlineSession)
            in_order = True
            try:
                async with bare_nursery() as nursery:
                    nursery.start_soon(engine.fail_at_end, session)
                    await engine.until_it_works(session)
                    owned.works, session.pid = True, engine.program.pid
                    session.lives = lambda: engine.runs
                    yield session
            except Exception:
                in_order = False  # leaving the program kills it
                raise
            finally:
                if in_order:
                    await engine.program.close(steps=self.command.drain)


@protected
class _Engine:
    """An engine server. Its `program` is set once it runs."""

    program: Running

    def __init__(self, host: EngineHost) -> None:
        self._host = host
        self._deadline = trio.current_time() + host.load_timeout

    @property
    def name(self) -> str:
        """See `owned.Server`."""
        return f"engine {self._host.command.name!r} (pid {self.program.pid})"

    @property
    def runs(self) -> bool:
        """See `owned.Server`."""
        return self.program.runs

    async def ended(self) -> CommandError:
        """See `owned.Server`."""
        return await self.program.ended()

    async def judged(self, error: DeviceError) -> DeviceError:
        """See `owned.Server`. The error has the last lines that the program wrote as a note."""
        self.program.output.note(error)
        return await self._host.nvml.judge(error, self._host.device)

    async def fail_at_end(self, session: InlineSession) -> None:
        """Wait for the end of the program, and fail the session with it."""
        how = await self.ended()
        session.condemn(await self.judged(ContextDied(f"{self.name} {_fate(how)}")))

    async def until_it_works(self, session: Session) -> None:
        """Ask for one token until it comes.

        Raises:
            ContextDied: the engine has ended.
            ContextHung: no token has come within `load_timeout`.
            LoadFailed: the engine refuses the request.
        """
        wait, last = _FIRST, ""
        with trio.move_on_at(self._deadline):
            while (error := await _one_token(session)) is not None:
                if not is_a(error, NetworkError):
                    text = f"{self.name} refuses a request for one token: {text_of(error)}"
                    raise await self.judged(LoadFailed(text)) from error
                last = f": {text_of(error)}"
                await trio.sleep(wait)
                wait = min(wait * _FACTOR, _LONGEST)
            return
        text = f"{self.name} has given no token within {self._host.load_timeout:g} s{last}"
        raise await self.judged(ContextHung(text))


async def _one_token(session: Session) -> InferenceError | None:
    """Returns None if the session answers a canary, else the error."""
    session.begin(CANARY)
    while True:
        for item in await session.receive():
            if isinstance(item, RequestFailed):
                return item.error
            if item.finish_reason is not None:
                return None


@asynccontextmanager
async def _started(program: Program) -> AsyncGenerator[Running, None]:
    """A context manager: the running program. It is killed when the block is left, if it still runs.

    Raises:
        ContextDied: it has ended before it listened.
        ContextHung: it has not listened in time.
        LoadFailed: it could not be started.
    """
    async with AsyncExitStack() as stack:
        try:
            running = await stack.enter_async_context(program())
        except CommandError as error:
            raise _start_error(error) from None
        except OSError as error:
            raise LoadFailed(f"the engine could not be started: {error}") from error
        yield running


def _start_error(error: CommandError) -> DeviceError:
    kind: type[DeviceError] = LoadFailed
    if isinstance(error, CommandExited | GuardianLost):
        kind = ContextDied
    elif isinstance(error, CommandNotReady):
        kind = ContextHung
    text = str(error)
    notes: list[str] = getattr(error, "__notes__", [])  # each is a headline and lines of the output
    if isinstance(error, CommandExited):
        # A program that cannot start usually writes the reason last, as a traceback does.
        lines = [line for note in notes for line in note.splitlines()[1:] if line.strip()]
        text = ": ".join([text, *map(one_line, lines[-1:])])
    made = kind(text)
    for note in notes:
        made.add_note(note)
    return made


def _fate(how: CommandError) -> str:
    if isinstance(how, CommandExited):
        return f"was killed by {how.signal}" if how.signal else f"exited with status {how.status}"
    return f"was lost: {how}"


def _texts_with_port(runner: Any) -> dict[str, str]:
    """The arguments of a runner spec that have `{port}` in them."""
    fields = [each for each in attrs.fields(class_of(runner)) if each.init]
    values = {each.alias: getattr(runner, each.name) for each in fields}
    return {name: value for name, value in values.items() if isinstance(value, str) and PORT in value}


def _with_port(runner: Any, port: int) -> RunnerSpec:
    texts = {name: _filled(text, port) for name, text in _texts_with_port(runner).items()}
    made: RunnerSpec = evolve(runner, **texts)
    return made


def _filled(text: str, port: int) -> str:
    return text.replace(PORT, str(port))


def _free_port() -> int:
    try:
        with socket.socket() as one:
            one.bind(("", 0))
            return int(one.getsockname()[1])
    except OSError as error:
        raise LoadFailed(f"no port could be found for the engine: {error}") from error
