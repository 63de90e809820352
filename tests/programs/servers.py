"""Redis, PostgreSQL and nginx, each with a folder and a port of its own, and the question whether it works."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGQUIT, SIGTERM
from stat import S_IMODE

from attrs import define, field

from benchmarks.ports import free_port
from supervise import Backoff
from supervise.programs import Command, every, http, probe, tcp

AS_ROOT = os.geteuid() == 0
TIMES = {"timeout": 2.5, "failures": 2}


def processes_in(folder: Path) -> set[int]:
    """The living processes whose working folder is in here: no server leaves its own, whatever becomes of its parents."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended
                if entry.joinpath("cwd").readlink().is_relative_to(folder):
                    found.add(int(entry.name))
    return found


def refuses(port: int) -> bool:
    """Whether nothing listens at the port."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


def answered(port: int, question: bytes, seconds: float) -> bytes:
    """The first bytes of an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as one:
        one.sendall(question)
        return one.recv(4096)


@define
class Server:
    """One server. Its folder is the working folder of all its processes."""

    folder: Path
    port: int = field(factory=free_port)
    patience: float = 1.0
    """Seconds that an answer may take. One that is stopped gives none."""
    program = ""
    stands_still = True
    """Whether it answers no more when its main process is stopped by SIGSTOP."""

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot run here."""
        return None if shutil.which(cls.program) else f"{cls.program} is not installed"

    def prepare(self) -> None:
        """Make its files, once."""

    def command(self, *more, **options):
        """Its declaration, with more arguments."""
        return Command(
            self.program,
            [*self.argv(), *more],
            cwd=self.folder,
            backoff=Backoff(initial=0.05, maximum=0.5),
            limits={"core": 0},
            **{**self.options(), **options},
        )

    def works(self) -> bool:
        """Whether it answers, with all that it has promised to keep."""
        try:
            return self.asked()
        except OSError:
            return False

    def write(self) -> None:
        """Have it promise to keep one more thing, if it can."""


class Redis(Server):
    program = "redis-server"

    def argv(self):
        return [self.program, "--port", str(self.port), "--daemonize", "no", "--save", ""]

    def options(self):
        ping = tcp(self.port, send=b"PING\r\n", expect=b"+PONG")
        return {"ready": ping, "alive": every(0.3, ping, **TIMES)}

    def asked(self):
        return answered(self.port, b"PING\r\n", self.patience).startswith(b"+PONG")


class Nginx(Server):
    program = "nginx"
    stands_still = False  # its workers serve on
    CONF = """
        daemon off; worker_processes 2; pid {folder}/pid; error_log stderr warn;
        events {{}}
        http {{
            access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
            fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
            server {{ listen 127.0.0.1:{port}; location / {{ return 200 "here\\n"; }} }}
        }}
    """

    def prepare(self):
        user = "user root;" if AS_ROOT else ""
        (self.folder / "conf").write_text(user + self.CONF.format(folder=self.folder, port=self.port))

    def argv(self):
        return ["nginx", "-p", str(self.folder), "-c", str(self.folder / "conf"), "-e", "stderr"]

    def options(self):
        get = http(f"http://127.0.0.1:{self.port}/")
        return {"ready": get, "alive": every(0.3, get, **TIMES), "stop": ((SIGQUIT, 2.0), (SIGTERM, 5.0))}

    def asked(self):
        return b"here" in answered(self.port, b"GET / HTTP/1.0\r\n\r\n", self.patience)


@define
class Postgres(Server):
    program = "postgres"
    rows: int = 0
    QUESTION = b"\0\0\0\x08\x04\xd2\x16\x2f"  # whether it speaks TLS; it does not

    @staticmethod
    def folder_of_programs() -> Path | None:
        return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)

    @classmethod
    def missing(cls):
        return None if cls.folder_of_programs() else "PostgreSQL is not installed in /usr/lib/postgresql"

    def tool(self, name):
        return str(self.folder_of_programs() / name)

    @property
    def user(self):
        return "postgres" if AS_ROOT else None

    def prepare(self):
        if AS_ROOT:
            shutil.chown(self.folder, "postgres")
            for folder in self.folder.parents[:2]:  # pytest makes them for this user alone
                folder.chmod(S_IMODE(folder.stat().st_mode) | 0o055)
        command = [
            self.tool("initdb"),
            "-N",
            "-A",
            "trust",
            "-U",
            "postgres",
            "-D",
            str(self.folder / "data"),
        ]
        subprocess.run(command, check=True, capture_output=True, user=self.user, cwd=self.folder)

    def argv(self):
        data = str(self.folder / "data")
        options = ["-h", "127.0.0.1", "-p", str(self.port), "-k", str(self.folder)]
        return [self.tool("postgres"), "-D", data, *options]

    def options(self):
        ready = probe([self.tool("pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)])
        alive = every(0.3, tcp(self.port, send=self.QUESTION, expect=b"N"), **TIMES)
        return {"ready": ready, "alive": alive, "user": self.user, "stop": ((SIGINT, 10.0),)}

    def sql(self, text: str, seconds: float = 60.0) -> str:
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]
        command = [self.tool("psql"), *address, "-X", "-Atq", "-v", "ON_ERROR_STOP=1", "-c", text]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode:
            raise ConnectionError(done.stderr)
        return done.stdout.strip()

    def asked(self):
        try:
            self.sql("create table if not exists kept (number int primary key)", 5 * self.patience)
            kept = self.sql("select count(*) || ' ' || coalesce(max(number), 0) from kept", 5 * self.patience)
        except subprocess.TimeoutExpired:
            return False
        assert kept == f"{self.rows} {self.rows}", f"{self.rows} rows were committed, and {kept} are there"
        return True

    def write(self):
        self.sql(f"insert into kept values ({self.rows + 1})")
        self.rows += 1


SERVERS = {"redis": Redis, "postgres": Postgres, "nginx": Nginx}
