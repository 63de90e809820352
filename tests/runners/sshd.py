"""An `sshd` of our own on a loopback port, with its own keys, and hosts that reach it."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import pytest
from contexts import PATIENCE, command, processes, title

from runners.hosts.remote.ssh import SshHost

ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
LEASE = 3.0


def missing():
    """Why no sshd can be started here."""
    if SSHD is None or shutil.which("ssh") is None:
        return "OpenSSH's sshd and ssh are not installed (package openssh-server)"
    return None


needs_sshd = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@attrs.frozen
class Server:
    """A running sshd."""

    folder: Path
    port: int
    address: str
    process: subprocess.Popen

    def host(self, **settings):
        """A host on its machine, with short times."""
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
        times = {"lease": LEASE, "load_timeout": 60, "first_chunk_timeout": 60, "next_chunk_timeout": 60}
        path = (str(ROOT), str(ROOT / "tests/runners"))
        return SshHost(
            self.address,
            **{"python": sys.executable, "path": path, "options": options, **times, **settings},
        )


def keys(folder, *names):
    for name in names:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)],
            check=True,
            stdin=subprocess.DEVNULL,
        )


@contextmanager
def serving(folder, *, address="127.0.0.1", port=None, inside=()):
    """An sshd, possibly `inside` a network namespace. Afterwards it and its sessions are gone."""
    keys(folder, "host", "user", "wrong")
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
        end = time.monotonic() + PATIENCE
        while "Server listening" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.01)  # an sshd does not tell when it listens
        yield Server(folder, port, address, process)
    finally:
        for pid in below(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def below(pid):
    """The descendants of a process."""
    found = set()
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found |= {int(child)} | below(child)
    return found


def far(server, *titles):
    """The pids of the processes that were started over this sshd, of those `titles` if any are given."""
    mark = f" {server.port}".encode()
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(
                line.startswith(b"SSH_CONNECTION=") and line.endswith(mark)
                for line in (entry / "environ").read_bytes().split(b"\0")
            ):
                found.add(int(entry.name))
    return {pid for pid in found if not titles or title(pid) in titles}


def signalled(server, title, number):
    """Send a signal to each far process with this title; returns their pids."""
    found = far(server, title)
    for pid in found:
        os.kill(pid, number)
    return found


def carriers(server):
    """The pids of the `ssh` programs that are connected to this server from here."""
    found = {pid for pid in processes() if f"Port={server.port}".encode() in command(pid).split(b"\0")}
    return {pid for pid in found if title(pid) == "ssh"}
