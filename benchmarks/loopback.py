"""An `sshd` of our own on the loopback interface, with its own keys, and hosts that reach it. Tests use it too."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from benchmarks.ports import free_port
from runners.hosts.remote.ssh import SshHost

ROOT = Path(__file__).parents[1]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
_PATIENCE = 60.0


def missing() -> str | None:
    """Why no sshd can be started here."""
    if SSHD is None or shutil.which("ssh") is None:
        return "OpenSSH's sshd and ssh are not installed (package openssh-server)"
    return None


@attrs.frozen
class Server:
    """A running sshd."""

    folder: Path
    port: int
    address: str
    process: subprocess.Popen[bytes] | None = None

    def host(self, **settings: Any) -> SshHost:
        """A host on its machine, with this Python and these packages."""
        options = {
            "Port": str(self.port),
            "User": getpass.getuser(),
            "IdentityFile": str(self.folder / "user"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.folder / "known"),
            "StrictHostKeyChecking": "yes",
            "PreferredAuthentications": "publickey",
            **settings.pop("options", {}),
        }
        settings = {"python": sys.executable, "path": (str(ROOT),), **settings}
        return SshHost(self.address, options=options, **settings)


def _keys(folder: Path, *names: str) -> None:
    for name in names:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)],
            check=True,
            stdin=subprocess.DEVNULL,
        )


@contextmanager
def serving(
    folder: Path, *, address: str = "127.0.0.1", port: int | None = None, inside: Sequence[str] = ()
) -> Generator[Server]:
    """An sshd, possibly `inside` a network namespace. Afterwards it and its sessions are gone."""
    _keys(folder, "host", "user", "wrong")
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    port = port or free_port()
    (folder / "known").write_text(f"[{address}]:{port} {(folder / 'host.pub').read_text()}")
    settings = {
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "ListenAddress": f"{address}:{port}",
        "PidFile": "none",
        "UsePAM": "no",
        "StrictModes": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "MaxStartups": "100",
        # The files that the user's shell reads at home might start programs of their own.
        "SetEnv": f"HOME={folder}",
    }
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd separates its privileges there
    log = folder / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*inside, SSHD, "-D", "-e", "-f", str(folder / "config")],
            stdin=subprocess.DEVNULL,
            stderr=errors,
            env={
                "PATH": os.environ["PATH"]
            },  # without the mark of our tests, which ask for far processes in another way
        )
    try:
        end = time.monotonic() + _PATIENCE
        while "Server listening" not in log.read_text():
            if process.poll() is not None or time.monotonic() > end:
                raise ChildProcessError(f"sshd does not listen: {log.read_text()}")
            time.sleep(0.01)  # an sshd does not tell when it listens
        yield Server(folder, port, address, process)
    finally:
        for pid in below(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def below(pid: int) -> set[int]:
    """The descendants of a process."""
    found = set[int]()
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found |= {int(child)} | below(child)
    return found
