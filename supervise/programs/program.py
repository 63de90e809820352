"""The declaration of an external program as a child of the tree."""

from __future__ import annotations

import os
import resource
import shlex
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, Literal, cast

from attrs import field, frozen

from .._core._brief import brief
from .._core._check import check_choice, check_number, did_you_mean, is_a, plain, refuse
from .._core._code import Code
from .._core.spec import Child
from .checks import READY, checked_argv, every, http, line, notify, probe, tcp
from .errors import CommandMissing, is_signal
from .guarded import Order
from .running import Conduct, Opening, watch

Isolation = Literal["group", "namespace", "cgroup"]
Amount = float | tuple[float, float]
_ISOLATIONS = ("group", "namespace", "cgroup")
_OWN_OPTIONS = {
    "body": "it waits for the end of the program",
    "resource": "it is the running program",
    "args": "those of the program belong to argv",
    "mailbox": "a program takes no messages",
    "drain": "it is the sum of the seconds of stop",
}
_LIMITS = tuple(sorted(name[7:].lower() for name in dir(resource) if name.startswith("RLIMIT_")))
_LARGEST_UMASK = 0o777
_AS_LIST = {"as list": True}


def _signal(value: Any) -> Any:
    """The signal with this number; any other value stays as it is, and is refused."""
    number = plain(value)
    return signal.Signals(number) if type(number) is int and number in set(signal.Signals) else number


def _steps(stop: Any) -> Any:
    if not is_a(stop, (list, tuple)):
        return stop
    return tuple((_signal(step[0]), plain(step[1])) if _is_pair(step) else step for step in stop)


def _is_pair(value: Any) -> bool:
    return is_a(value, (list, tuple)) and len(value) == 2  # noqa: PLR2004 - a pair has two


def _listed(value: Any) -> Any:
    return tuple(value) if is_a(value, (list, tuple)) else value


def _copied(value: Any) -> Any:
    return dict(value) if is_a(value, Mapping) else value


def _path(value: Any) -> Any:
    return cast("Any", os.fspath(value)) if is_a(value, os.PathLike) else plain(value)


@frozen(eq=False, repr=False)
class Program(Code):
    """How a program is started, judged and stopped: the resource of a `Command`, which explains the fields.

    A call gives an async context manager, whose value is the running program.
    """

    name: str = field(converter=plain)
    argv: tuple[str, ...] = field(converter=_listed, metadata=_AS_LIST)
    ready: tcp | http | line | notify | probe | None = field(default=None, kw_only=True)
    alive: every | None = field(default=None, kw_only=True)
    stop: tuple[tuple[int, float], ...] = field(
        default=((signal.SIGTERM, 10.0),), kw_only=True, converter=_steps
    )
    env: Mapping[str, str | None] = field(factory=dict[str, str | None], kw_only=True, converter=_copied)
    cwd: str | None = field(default=None, kw_only=True, converter=_path)
    user: str | int | None = field(default=None, kw_only=True, converter=plain)
    umask: int | None = field(default=None, kw_only=True, converter=plain)
    limits: Mapping[str, Amount] = field(factory=dict[str, Amount], kw_only=True, converter=_copied)
    files: tuple[Any, ...] = field(default=(), kw_only=True, converter=_listed, metadata=_AS_LIST)
    ready_timeout: float = field(default=30.0, kw_only=True, converter=plain)
    isolation: Isolation = field(default="group", kw_only=True, converter=plain)
    reload: int | None = field(default=signal.SIGHUP, kw_only=True, converter=_signal)

    def __attrs_post_init__(self) -> None:
        what = f"command {brief(self.name)}"
        if sys.platform != "linux" or not sys.executable:
            refuse(RuntimeError(f"{what} needs Linux, and a Python at sys.executable for its guardian"))
        self._put("argv", checked_argv(what, self.argv))
        self._check_checks(what)
        self._check_stop(what)
        self._check_surroundings(what)
        self._check_limits(what)
        self._check_files(what)
        if not check_number(f"{what}: ready_timeout", self.ready_timeout, least=0, more=True):
            self._put("ready_timeout", 30.0)
        if not check_choice(f"{what}: isolation", self.isolation, _ISOLATIONS):
            self._put("isolation", "group")

    def _put(self, name: str, value: object) -> None:
        """Set a field during the construction: a check that notes problems goes on with this value instead."""
        object.__setattr__(self, name, value)

    def _check_checks(self, what: str) -> None:
        if self.ready is not None and not is_a(self.ready, READY):
            kinds = "tcp(…), http(…), line(…), notify(), probe(…) or None"
            refuse(TypeError(f"{what}: ready must be {kinds}, got {brief(self.ready)}"))
            self._put("ready", None)
        if self.alive is not None and not is_a(self.alive, every):
            example = "every(10, tcp(6379), timeout=2, failures=3)"
            refuse(
                TypeError(
                    f"{what}: alive must be every(…) or None, got {brief(self.alive)}, such as {example}"
                )
            )
            self._put("alive", None)

    def _check_stop(self, what: str) -> None:
        if not is_a(self.stop, tuple):
            refuse(TypeError(f"{what}: stop must be pairs of a signal and seconds, got {brief(self.stop)}"))
            self._put("stop", ())
        for step in self.stop:
            if not is_a(step, tuple):
                refuse(
                    TypeError(f"{what}: each step of stop must be a signal and seconds, got {brief(step)}")
                )
                self._put("stop", ())
                return
            if not _is_signal(f"{what}: a signal of stop", step[0]) or not check_number(
                f"{what}: the seconds of a step of stop", step[1], least=0, finite=True
            ):
                self._put("stop", ())
                return
        if self.reload is not None and not _is_signal(f"{what}: reload", self.reload):
            self._put("reload", None)

    def _check_surroundings(self, what: str) -> None:
        if not is_a(self.env, dict):
            refuse(
                TypeError(f"{what}: env must be a mapping of names to strings or None, got {brief(self.env)}")
            )
            self._put("env", {})
        for name, value in self.env.items():
            wrong = not _is_text(name) or not name or "=" in name
            if wrong or not (value is None or _is_text(value)):
                entry = brief(name) if wrong else f"{brief(value)} for {name!r}"
                refuse(TypeError(f"{what}: env must be a mapping of names to strings or None, got {entry}"))
                self._put("env", {})
                break
        if self.cwd is not None and not _is_text(self.cwd):
            refuse(TypeError(f"{what}: cwd must be a path or None, got {brief(self.cwd)}"))
            self._put("cwd", None)
        if not (self.user is None or (_is_text(self.user) and self.user) or _is_within(self.user, inf)):
            refuse(TypeError(f"{what}: user must be a name, a number >= 0 or None, got {brief(self.user)}"))
            self._put("user", None)
        if not (self.umask is None or _is_within(self.umask, _LARGEST_UMASK)):
            refuse(ValueError(f"{what}: umask must be from 0 to 0o777 or None, got {brief(self.umask)}"))
            self._put("umask", None)

    def _check_limits(self, what: str) -> None:
        if not is_a(self.limits, dict):
            refuse(
                TypeError(
                    f"{what}: limits must be a mapping such as {{'nofile': 4096}}, got {brief(self.limits)}"
                )
            )
            self._put("limits", {})
        for name, amount in self.limits.items():
            if name not in _LIMITS:
                known = f"{what}: limits must name {', '.join(_LIMITS)}, got {brief(name)}"
                refuse(ValueError(known + did_you_mean(name, _LIMITS)))
                self._put("limits", {})
                return
            soft, hard = _both(amount)
            if not (_is_within(soft, inf) and _is_within(hard, inf) and soft <= hard):
                allowed = "an integer >= 0, inf, or a pair of a soft and a hard one"
                refuse(ValueError(f"{what}: the limit {name!r} must be {allowed}, got {brief(amount)}"))
                self._put("limits", {})
                return

    def _check_files(self, what: str) -> None:
        if not is_a(self.files, tuple) or not all(map(_is_file, self.files)):
            refuse(
                TypeError(
                    f"{what}: files must be open files, sockets or descriptors, got {brief(self.files)}"
                )
            )
            self._put("files", ())

    def __call__(self) -> Opening:
        """The program, started when the block is entered, and ended with all below it when the block is left."""
        return Opening(
            Conduct(
                name=self.name,
                ready=self.ready,
                alive=self.alive,
                ready_timeout=self.ready_timeout,
                reload=self.reload,
                longest_stop=self.longest_stop,
                order=self.order,
            )
        )

    def __str__(self) -> str:
        return shlex.join(self.argv)

    @property
    def longest_stop(self) -> float:
        """The seconds that the steps of `stop` take at most, before SIGKILL."""
        return float(sum(seconds for _, seconds in self.stop))

    def order(self, environment: Mapping[str, str]) -> Order:
        """What the guardian is to start, in this environment.

        Raises:
            CommandMissing: one of `files` is not open.
        """
        env = {**environment, **self.env}
        limits = {name: tuple(map(_amount, _both(amount))) for name, amount in self.limits.items()}
        return Order(
            argv=self.argv,
            env={name: value for name, value in env.items() if value is not None},
            given=tuple(self.env),
            cwd=self.cwd,
            user=self.user,
            umask=self.umask,
            limits=cast("dict[str, tuple[int, int]]", limits),
            files=tuple(map(self._descriptor, self.files)),
            stop=tuple((int(number), seconds) for number, seconds in self.stop),
            isolation=self.isolation,
        )

    def _descriptor(self, file: Any) -> int:
        try:
            descriptor: int = file if isinstance(file, int) else file.fileno()
            os.fstat(descriptor)
        except (OSError, ValueError, TypeError, OverflowError) as problem:  # a closed file raises ValueError
            program = Path(self.argv[0]).name
            why = f"{brief(file)}, one of its files, is not open"
            raise CommandMissing(f"{program} could not be started: {why}") from problem
        return descriptor


def _is_signal(what: str, number: object) -> bool:
    return is_signal(number) or refuse(
        ValueError(f"{what} must be a signal such as signal.SIGTERM, got {brief(number)}")
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_within(value: object, most: float) -> bool:
    return value == inf == most or (type(value) is int and 0 <= value <= most)


def _is_file(value: object) -> bool:
    return _is_within(value, inf) or callable(getattr(value, "fileno", None))


def _both(amount: Any) -> tuple[Any, Any]:
    """The soft and the hard limit."""
    return (amount[0], amount[1]) if _is_pair(amount) else (amount, amount)


def _amount(amount: float) -> int:
    return resource.RLIM_INFINITY if amount == inf else int(amount)


def Command(  # noqa: N802 - it makes a spec, and stands beside `Child` and `Supervisor` in a declaration
    name: str,
    argv: Sequence[str],
    *,
    ready: tcp | http | line | notify | probe | None = None,
    alive: every | None = None,
    stop: Iterable[tuple[int, float]] = ((signal.SIGTERM, 10.0),),
    env: Mapping[str, str | None] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    user: str | int | None = None,
    umask: int | None = None,
    limits: Mapping[str, Amount] | None = None,
    files: Sequence[Any] = (),
    ready_timeout: float = 30.0,
    isolation: Isolation = "group",
    reload: int | None = signal.SIGHUP,
    **options: Any,
) -> Child:
    """A leaf that is an external program, which must stay in the foreground.

    Its resource is the running program, and its ready value has `pid`, `port`, `send_signal` and `reload`. Its body waits for the
    end of the program, and raises a `CommandError` whose tag says how it ended; a program that exits with status 0 has returned (R7).
    When a start, a restart or a stop is over, no process of the program is left.

    Args:
        name: of the child. Its output goes to the logger `supervise.programs.NAME`.
        argv: the program and its arguments; no shell reads them.
        ready: when the program is ready: `tcp(port)`, `http(url)`, `line(pattern)`, `notify()` or `probe(argv)`; None: as soon as
            it runs.
        alive: `every(seconds, check)`: after too many failed checks in a row it is stopped, and `CommandUnhealthy` is raised.
        stop: how it is stopped: each signal goes to the main process, which then has so many seconds; after the last step all its
            processes get SIGKILL. Their sum is the `drain` of the child (R20).
        env: variables that are set for it besides those of this process; None as a value removes one.
        cwd: its folder; None is that of this process.
        user: the name or number of the user it runs as, with the groups and the home of that user; None is that of this process.
        umask: its umask; None is that of this process.
        limits: resource limits by their names in lower case, such as `{"nofile": 4096, "core": 0}`; a pair is a soft and a hard
            limit, and `inf` is none.
        files: open files or sockets that it gets as descriptors 3, 4, …, with `LISTEN_FDS` as systemd has it.
        ready_timeout: seconds on Trio's clock in which it must be ready; may be `inf`.
        isolation: what keeps its processes together, `group`, `namespace` or `cgroup`; docs/howto/programs.md compares them.
        reload: the signal that `reload()` of the ready value sends; None: it has none.
        options: further options of the `Child`: restart, significant, start_timeout, start_warning, grace, limit, backoff, decider.
            `grace` is by default 5 seconds more than `stop` takes, since a start that is cancelled stops the program by these steps.

    Raises:
        TypeError, ValueError: for an argument of another type, or out of range.
    """
    program = Program(
        name,
        cast("tuple[str, ...]", argv),
        ready=ready,
        alive=alive,
        stop=stop,
        env={} if env is None else env,
        cwd=cwd,
        user=user,
        umask=umask,
        limits={} if limits is None else limits,
        files=files,
        ready_timeout=ready_timeout,
        isolation=isolation,
        reload=reload,
    )
    for option, why in _OWN_OPTIONS.items():
        if option in options:
            refuse(TypeError(f"command {brief(name)} has no option {option}: {why}"))
            del options[option]
    options.setdefault("grace", program.longest_stop + _GRACE)
    return Child(name, watch, resource=program, drain=program.longest_stop, **options)


_GRACE = 5.0
