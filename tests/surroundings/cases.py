"""What may surround a program, and what is to be expected of it there: by default that the stream survives."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipapp
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PROGRAM = str(HERE / "program.py")


class NotHere(Exception):
    """These surroundings cannot be made on this machine; the text has the reason."""


@attrs.define
class Setting:
    """How the program is started. A case changes it.

    Args:
        folder: an empty one, for what the case needs.
        python: the interpreter and its options.
        program: what it runs.
        stdin: what it reads.
        setup: code that the program runs before it imports anything of ours.
        run: how it runs Trio.
        inherited: done in the new process before the interpreter starts.
        result: the name of the file with the result.
        freeze: stops and continues everything, once the program is ready for it.
    """

    folder: Path
    environment: dict[str, str]
    python: list[str] = attrs.field(factory=lambda: [sys.executable])
    program: list[str] = attrs.field(factory=lambda: [PROGRAM])
    stdin: bytes | None = None
    setup: str = ""
    run: str = "plain"
    cwd: str = "/"
    inherited: Callable[[], object] | None = None
    result: str = "result"
    freeze: str | None = None
    cgroup: Path | None = None


@attrs.frozen
class Case:
    """Surroundings.

    Args:
        refused: what the one line says, where it cannot work.
        silent: whether nothing may be on standard error.
        hosts: of those that there are, which ones make a difference here.
    """

    name: str
    make: Callable[[Setting], object]
    refused: str | None = None
    silent: bool = False
    hosts: tuple[str, ...] = ("fork", "standby", "spawn")


CASES: list[Case] = []


def case(name: str, **options: Any) -> Callable[[Callable[[Setting], object]], Callable[[Setting], object]]:
    def add(make: Callable[[Setting], object]) -> Callable[[Setting], object]:
        CASES.append(Case(name, make, **options))
        return make

    return add


@case("nothing in particular", silent=True)
def _plain(setting: Setting) -> None:
    pass


# --- signals


def ignored(number: signal.Signals) -> Callable[[Setting], None]:
    def make(setting: Setting) -> None:
        setting.inherited = lambda: signal.signal(number, signal.SIG_IGN)

    return make


def blocked(numbers: set[signal.Signals]) -> Callable[[Setting], None]:
    def make(setting: Setting) -> None:
        setting.inherited = lambda: signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    return make


SIGNALS = [
    *(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGHUP, signal.SIGUSR1),
    *(signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT, signal.SIGABRT, signal.SIGQUIT),
]
for number in SIGNALS:
    CASES.append(Case(f"{number.name} is ignored", ignored(number)))
    CASES.append(Case(f"{number.name} is blocked", blocked({number}), hosts=("standby",)))
CASES.append(Case("all signals are blocked", blocked(set(signal.valid_signals()))))


@case("all signals are ignored")
def _all_ignored(setting: Setting) -> None:
    def ignore() -> None:
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)

    setting.inherited = ignore


# --- limits


def limited(kind: int, value: int) -> Callable[[Setting], None]:
    def make(setting: Setting) -> None:
        setting.inherited = lambda: resource.setrlimit(kind, (value, value))

    return make


CASES += [
    Case("64 descriptors", limited(resource.RLIMIT_NOFILE, 64)),
    Case("16 descriptors", limited(resource.RLIMIT_NOFILE, 16), refused="Too many open files"),
    Case("1 GiB of addresses", limited(resource.RLIMIT_AS, 2**30)),
    Case("no stack to speak of", limited(resource.RLIMIT_STACK, 2**18)),
    Case("no file may grow", limited(resource.RLIMIT_FSIZE, 2**12)),
    Case("no memory may be locked", limited(resource.RLIMIT_MEMLOCK, 0)),
]


@case("no more processes", refused="Resource temporarily unavailable")
def _processes(setting: Setting) -> None:
    """RLIMIT_NPROC does not bind root, so it is the control group of the number of processes."""
    group = cgroup(setting, "pids")
    (group / "pids.max").write_text("1")


def cgroup(setting: Setting, controller: str) -> Path:
    """A group of our own, which the program is born into."""
    group = Path(f"/sys/fs/cgroup/{controller}/runners-{os.getpid()}-{setting.folder.name}")
    try:
        group.mkdir()
    except OSError as error:
        raise NotHere(f"no control group of {controller}: {error.strerror}") from error
    setting.cgroup = group
    setting.inherited = lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    return group


# --- standard streams


def closed(numbers: tuple[int, ...]) -> Callable[[Setting], None]:
    def make(setting: Setting) -> None:
        def close() -> None:
            for number in numbers:
                os.close(number)

        setting.inherited = close

    return make


for count in (1, 2, 3):
    for numbers in combinations((0, 1, 2), count):
        names = " and ".join(("stdin", "stdout", "stderr")[number] for number in numbers)
        CASES.append(Case(f"closed {names}", closed(numbers)))


@case("standard streams that are closed in the middle of a run")
def _closing(setting: Setting) -> None:
    setting.run = "closing"


# --- where it is, and what it is called


@case("its folder is deleted")
def _folder_deleted(setting: Setting) -> None:
    gone = setting.folder / "gone"
    gone.mkdir()
    setting.cwd = str(gone)
    setting.inherited = gone.rmdir


def copied(setting: Setting, name: bytes) -> None:
    """All of ours in a folder with an odd name, from which it is imported."""
    folder = os.fsdecode(os.fsencode(setting.folder) + b"/" + name)
    Path(folder).mkdir()
    for package in ("runners", "supervise"):
        shutil.copytree(ROOT / package, f"{folder}/{package}", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROGRAM, folder)
    setting.program = [f"{folder}/program.py"]


for what, name in {
    "that is not UTF-8": b"\xff\xfe",
    "with a colon": b"a:b",
    "with a space": b"a b",
    "with a newline": b"a\nb",
    "with a quote": b"a'\"$b",
    "like an option": b"-c",
}.items():
    CASES.append(Case(f"a path {what}", lambda setting, name=name: copied(setting, name)))


@case("site-packages that shadow the standard library")
def _shadows(setting: Setting) -> None:
    copied(setting, b"site-packages")
    (folder,) = setting.folder.iterdir()
    for name in ("enum", "typing", "uuid", "pathlib", "dataclasses", "contextlib", "socket", "struct"):
        (folder / f"{name}.py").write_text("raise ImportError('an old backport')\n")
    setting.program = [PROGRAM]
    # Otherwise ours would be imported from there, and not from the folder with the backports.
    setting.environment.pop("PYTHONPATH", None)
    at = sysconfig.get_paths()["purelib"]
    setting.setup = f"import sys; sys.path.insert(sys.path.index({at!r}), {str(folder)!r})"


@case("a folder of that name in front, later")
def _namesake(setting: Setting) -> None:
    (setting.folder / "runners").mkdir()
    (setting.folder / "runners" / "__init__.py").write_text("raise ImportError('not the one')\n")
    setting.setup = (
        f"import sys, runners.hosts.process.host, supervise; sys.path.insert(0, {str(setting.folder)!r})"
    )


@case("a relative PYTHONPATH, and another folder later")
def _another_folder(setting: Setting) -> None:
    folder = setting.folder / "shadows"
    folder.mkdir()
    for name in ("runners", "select", "signal", "socket", "struct", "supervise", "typing"):
        (folder / f"{name}.py").write_text("raise ImportError('not the one')\n")
    setting.environment["PYTHONPATH"] = f".{os.pathsep}{ROOT}"
    setting.setup = f"import os, runners.hosts.process.host, supervise, typing; os.chdir({str(folder)!r})"


# --- how it is started


@case("python -c")
def _dash_c(setting: Setting) -> None:
    setting.program = ["-c", "from tests.surroundings.program import main; main()"]
    setting.cwd = str(ROOT)


@case("python -m")
def _dash_m(setting: Setting) -> None:
    setting.program = ["-m", "tests.surroundings.program"]
    setting.cwd = str(ROOT)


@case("from standard input")
def _stdin(setting: Setting) -> None:
    setting.program = ["-"]
    setting.stdin = Path(PROGRAM).read_bytes()


for options in (["-I"], ["-O"], ["-OO"], ["-E", "-s"], ["-P"], ["-B"], ["-u"], ["-W", "error"]):
    CASES.append(
        Case(
            " ".join(["python", *options]),
            lambda setting, options=options: setting.python.extend(options),
            silent=True,
            hosts=("standby", "spawn"),
        )
    )


@case("python -X dev", silent=True)
def _dev(setting: Setting) -> None:
    setting.python += ["-X", "dev", "-W", "error"]


@case("python -S, with a path of its own")
def _no_site(setting: Setting) -> None:
    setting.python += ["-S"]
    setting.setup = f"import sys; sys.path += {sys.path!r}"


@case("zipapp")
def _zipapp(setting: Setting) -> None:
    folder = setting.folder / "app"
    folder.mkdir()
    for package in ("runners", "supervise"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROGRAM, folder / "__main__.py")
    zipapp.create_archive(folder, setting.folder / "app.pyz")
    setting.program = [str(setting.folder / "app.pyz")]


@case("sys.frozen", refused="cannot start a Python from a frozen application")
def _frozen(setting: Setting) -> None:
    setting.setup = "import sys; sys.frozen = True"


@case("sys.executable is no Python", refused="must start a Python, but sys.executable is '/bin/true'")
def _executable(setting: Setting) -> None:
    setting.setup = "import sys; sys.executable = '/bin/true'"


@case("no sys.executable")
def _no_executable(setting: Setting) -> None:
    setting.setup = "import sys; sys.executable = ''"


@case("not Linux", refused="needs Linux")
def _not_linux(setting: Setting) -> None:
    setting.setup = "import trio, sys; sys.platform = 'darwin'"


# --- what it is


@case("process 1")
def _process_1(setting: Setting) -> None:
    command = ["unshare", "-pf", "--mount-proc", "--kill-child"]
    try:
        tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotHere(f"no unshare: {error}") from error
    if tried.returncode:
        raise NotHere(tried.stderr.strip())
    setting.python = [*command, *setting.python]


@case("a subreaper")
def _subreaper(setting: Setting) -> None:
    setting.setup = "import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)"


@case("several threads")
def _threads(setting: Setting) -> None:
    setting.setup = (
        "import threading, time\n"
        "for _ in range(5): threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()"
    )


@case("in a thread")
def _in_a_thread(setting: Setting) -> None:
    setting.run = "thread"


@case("guest of asyncio")
def _guest(setting: Setting) -> None:
    setting.run = "guest"


@case("SIGCHLD has a handler that reaps every child")
def _reaps_all(setting: Setting) -> None:
    setting.setup = (
        "import os, signal\n"
        "def reap(*_):\n"
        "    try:\n"
        "        while os.waitpid(-1, os.WNOHANG)[0]: pass\n"
        "    except ChildProcessError: pass\n"
        "signal.signal(signal.SIGCHLD, reap)"
    )


@case("a thread that waits for any child")
def _waits_for_any(setting: Setting) -> None:
    setting.setup = (
        "import os, threading, time\n"
        "def wait():\n"
        "    while True:\n"
        "        try: os.wait()\n"
        "        except ChildProcessError: time.sleep(0.001)\n"
        "threading.Thread(target=wait, daemon=True).start()"
    )


@case("descriptors beyond those of select")
def _many_descriptors(setting: Setting) -> None:
    setting.setup = (
        "import os, resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n"
        "for _ in range(1500): os.open(os.devnull, os.O_RDONLY)"
    )


@case("handlers of forks that raise")
def _fork_handlers(setting: Setting) -> None:
    setting.setup = (
        "import os\n"
        "def refuse(): raise RuntimeError('no fork')\n"
        "os.register_at_fork(before=refuse, after_in_parent=refuse, after_in_child=refuse)"
    )


def in_namespace(*command: str) -> Callable[[Setting], None]:
    """Started by this command, if this machine permits it."""

    def make(setting: Setting) -> None:
        tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
        if tried.returncode:
            raise NotHere(tried.stderr.strip())
        setting.python = [*command, *setting.python]

    return make


_MOUNTED = ("unshare", "-m", "--propagation", "private", "sh", "-c")
CASES += [
    Case("no network", in_namespace("unshare", "-n")),
    Case("no user of its own", in_namespace("unshare", "-U")),
    Case(
        "other clocks", in_namespace("unshare", "-T", "--boottime", "100000000", "--monotonic", "100000000")
    ),
    Case(
        "processes of others are hidden",
        in_namespace(*_MOUNTED, 'mount -o remount,hidepid=2 /proc && exec "$@"', "sh"),
    ),
    Case(
        "no room for shared memory",
        in_namespace(*_MOUNTED, 'mount -t tmpfs -o ro none /dev/shm && exec "$@"', "sh"),
    ),
]


@case("stopped and continued, all of it, the parent first")
def _stopped(setting: Setting) -> None:
    setting.freeze = "signals"
    setting.result = "freeze"


@case("a frozen control group")
def _freezer(setting: Setting) -> None:
    group = cgroup(setting, "freezer")
    if not (group / "freezer.state").exists():
        raise NotHere("no freezer of the first version")
    setting.freeze = "cgroup"
    setting.result = "freeze"


# --- settings that the program makes itself


@case("socket.setdefaulttimeout")
def _timeout(setting: Setting) -> None:
    setting.setup = "import socket; socket.setdefaulttimeout(0.05)"


@case("LD_PRELOAD of nothing")
def _preload(setting: Setting) -> None:
    setting.environment["LD_PRELOAD"] = "/nowhere/junk.so"


def environment(**changes: str | None) -> Callable[[Setting], None]:
    def make(setting: Setting) -> None:
        for name, value in changes.items():
            setting.environment.pop(name, None)
            if value is not None:
                setting.environment[name] = value

    return make


CASES += [
    Case("TMPDIR is nowhere", environment(TMPDIR="/nowhere")),
    Case("TMPDIR is a device", environment(TMPDIR="/dev/full")),
    Case("PYTHONPYCACHEPREFIX is nowhere", environment(PYTHONPYCACHEPREFIX="/nowhere")),
    Case("PYTHONIOENCODING=utf-16", environment(PYTHONIOENCODING="utf-16")),
    Case("PYTHONMALLOC=debug", environment(PYTHONMALLOC="debug")),
    Case("PYTHONINSPECT, PYTHONSAFEPATH", environment(PYTHONINSPECT="1", PYTHONSAFEPATH="1")),
    Case("no HOME", environment(HOME=None)),
    Case("LANG=C", environment(LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")),
    Case("PYTHONPATH with colons and junk", environment(PYTHONPATH="::/nowhere:\udcff:")),
    Case("PYTHONWARNINGS=error", environment(PYTHONWARNINGS="error")),
    Case("PYTHONUNBUFFERED, PYTHONDEVMODE", environment(PYTHONUNBUFFERED="1", PYTHONDEVMODE="1")),
]


@case("an empty environment")
def _empty(setting: Setting) -> None:
    for name in set(setting.environment) - {MARK}:
        del setting.environment[name]


MARK = "SURROUNDED_BY"
"""Whose a process is, for the driver."""

for umask in (0o777, 0):
    CASES.append(
        Case(
            f"umask {umask:03o}",
            lambda setting, umask=umask: setattr(setting, "inherited", lambda: os.umask(umask)),
            hosts=("standby",),
        )
    )
