"""Unix sockets that only their owner can use: where they lie, how they are made, and how they are found."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from .._core._brief import printable

_LONGEST = 107
"""Bytes of a path: `sockaddr_un` of Linux has room for them and a final zero."""


def folder() -> Path:
    """The folder for sockets whose path is not given: in `$XDG_RUNTIME_DIR`, or in `/tmp` under the number of the user."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "supervise" if runtime else Path(f"/tmp/supervise-{os.getuid()}")  # noqa: S108 - `_checked_folder` refuses a folder that another user has made.


def default_path(name: str) -> Path:
    """The path for the tree of this name in this process; its folder is made if it is missing.

    Raises:
        OSError: the folder cannot be made, or belongs to another user.
    """
    return _own_folder(folder()) / f"{printable(name)}.{os.getpid()}.sock"


def _own_folder(where: Path) -> Path:
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise OSError(problem.errno, f"cannot make the folder {where}: {problem.strerror}") from problem
    return _checked_folder(where)


def _checked_folder(where: Path) -> Path:
    found = where.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise OSError(errno.EPERM, f"{where} must be a folder that only you can enter")
    return where


def found() -> list[Path]:
    """The sockets in `folder()` at which a program listens, in the order of their names.

    Raises:
        OSError: the folder belongs to another user, who would get the token.
    """
    where = folder()
    if not os.path.lexists(where):
        return []
    return sorted(path for path in _checked_folder(where).glob("*.sock") if _is_served(path))


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError as problem:
            # A program that has no room for one more connection is there too.
            return isinstance(problem, TimeoutError | BlockingIOError)
    return True


@contextmanager
def listening_at(path: Path) -> Generator[socket.socket, None, None]:
    """A socket that listens at `path` during the block; only the owner of this process can connect to it.

    A socket there that no program serves any more is replaced. The file is removed at the end, unless another one has taken its
    place.

    Raises:
        OSError: the path is in use, is no socket, is too long, or cannot be written; the message names it.
    """
    if len(os.fsencode(path)) > _LONGEST:
        raise OSError(errno.ENAMETOOLONG, f"the path of a socket may have {_LONGEST} bytes, got {path}")
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            # On Linux the file gets the mode of the socket, so it never has another, whatever the umask is.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(path))
        except OSError as problem:
            raise OSError(problem.errno, f"cannot make the socket {path}: {problem.strerror}") from problem
        path = path.absolute()  # the program may change its folder
        made = path.lstat()
        try:
            listener.listen(100)
            listener.setblocking(False)
            # Another program took a socket that did not listen yet for a stale one.
            if not _is_same(path.lstat(), made):
                raise OSError(errno.EADDRINUSE, f"another program listens at {path}")
            yield listener
        finally:
            _remove(path, made)


def _remove_stale(path: Path) -> None:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return
    except OSError as problem:
        raise OSError(problem.errno, f"cannot make the socket {path}: {problem.strerror}") from problem
    if not stat.S_ISSOCK(there.st_mode):
        raise OSError(errno.EEXIST, f"{path} is there already, and is not a socket")
    if _is_served(path):
        raise OSError(errno.EADDRINUSE, f"another program listens at {path}")
    _remove(path, there)


def _remove(path: Path, made: os.stat_result) -> None:
    """Remove the file that was seen there, and no other."""
    try:
        if _is_same(path.lstat(), made):
            path.unlink()
    except OSError:  # its folder has been removed, or closed to this user
        pass


def _is_same(there: os.stat_result, made: os.stat_result) -> bool:
    return (there.st_dev, there.st_ino) == (made.st_dev, made.st_ino)


@contextmanager
def listening_on(port: int) -> Generator[socket.socket, None, None]:
    """A socket that listens on a port of the loopback address during the block; 0 takes a free one.

    Raises:
        OSError: the port cannot be taken; the message names it.
    """
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except OSError as problem:
        raise OSError(
            problem.errno, f"cannot listen on 127.0.0.1 port {port}: {problem.strerror}"
        ) from problem
    with listener:
        listener.setblocking(False)
        yield listener
