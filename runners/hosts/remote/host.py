"""What all hosts of contexts on other machines have in common; `ssh` and `ray` have the hosts themselves."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, get_args

from attrs import field, frozen
from attrs.validators import in_, instance_of

from runners.brief import brief, one_line
from runners.checks import at_least, plain_number
from runners.diagnosis.nvml import Nvml
from runners.errors import Unrecoverable
from runners.hosts import Session
from runners.hosts.packing import check_runner, pack
from runners.hosts.process import wire
from runners.hosts.process.host import StartMethod, lived
from runners.hosts.process.terms import Terms
from runners.hosts.remote.reserve import FarPlan, FarReserve
from runners.protect import Entered
from runners.types import RunnerSpec


def _folders(path: Iterable[str]) -> tuple[str, ...]:
    if isinstance(path, str) or not isinstance(path, Iterable):
        raise TypeError(f"path must be several folders, got {brief(path)}")
    return tuple(path)


def _check_path(_host: object, _field: object, path: tuple[str, ...]) -> None:
    for entry in path:
        if type(entry) is not str or not entry.startswith("/"):
            raise ValueError(f"path must have absolute folders of the far machine, got {brief(entry)}")


def _check_nvml(_host: object, _field: object, nvml: Nvml) -> None:
    if nvml.module is not None:
        raise ValueError(
            f"nvml must have no module, which cannot be sent to another machine, got {brief(nvml.module)}"
        )


@frozen(kw_only=True)
class FarHost(Terms):
    """The base of `SshHost` and `RayHost`, with the arguments that both have.

    `SshHost` describes them.
    """

    path: tuple[str, ...] = field(default=(), converter=_folders, validator=_check_path)
    lease: float = field(default=10.0, converter=plain_number, validator=at_least(1))
    start: StartMethod = field(default="spawn", validator=in_(get_args(StartMethod)))
    nvml: Nvml = field(factory=Nvml, validator=[instance_of(Nvml), _check_nvml])

    _reserve: ClassVar[type[FarReserve]]
    """The reserve for a plan of this host."""

    def open(
        self, runner: RunnerSpec, *, incarnation: int = 1, cause: str | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """See `Host.open`.

        Raises:
            TypeError, ValueError: see `check`.
            Unrecoverable: this machine does not run Linux, or lacks what starts a far process, such as the program `ssh`.
        """
        if why := self._refusal():
            raise Unrecoverable(why)
        start = wire.Start(incarnation, None if cause is None else one_line(cause))
        return Entered(lived(self, self._checked(runner), self._reserve, start))

    def check(self, runner: object) -> None:
        """Refuse a runner spec that cannot be sent to another process (D2). That needs neither `ssh` nor Ray here.

        Raises:
            TypeError: see `check_runner`.
            ValueError: see `check_runner`; or the spec is too long to be sent.
        """
        self._checked(runner)

    def _checked(self, runner: object) -> FarPlan:
        check_runner(runner)
        common = {
            "name": type(runner).__name__,
            "path": self.path,
            "runner": pack(runner),
            "device": self.device,
            "forks": False,
            "standby": self.standby,
            "preload_timeout": self.load_timeout,
            "kill_timeout": self.kill_timeout,
            "linger": self.linger,
            "lease": self.lease,
            "forks_there": self.start == "forkserver",
            "nvml_timeout": self.nvml.timeout if self.device.startswith("cuda") else None,
        }
        return self._plan(common).checked()

    def _plan(self, common: dict[str, Any]) -> FarPlan:
        """The plan of a reserve with these settings and those of the subclass."""
        raise NotImplementedError

    def _refusal(self) -> str | None:
        """The reason why no far process can be started from this machine; None if one can."""
        raise NotImplementedError
