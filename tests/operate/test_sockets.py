"""Unix sockets of the owner: mode, stale files, paths in use, and what is found."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys

import pytest

from supervise.operate import checked_token, operate
from supervise.operate.sockets import default_path, found, listening_at, listening_on


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_only_the_owner_can_connect_whatever_the_umask(tmp_path, mask):
    """Its file has the mode 0600 from the moment at which it is there."""
    path, before = tmp_path / "s", os.umask(mask)
    try:
        with listening_at(path) as listener:
            os.umask(before)
            assert stat.S_IMODE(path.lstat().st_mode) & ~0o600 == 0
            assert not listener.get_inheritable()
    finally:
        os.umask(before)
    assert not path.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_cannot_connect(tmp_path):
    """The kernel refuses it."""
    tmp_path.chmod(0o755)
    for above in tmp_path.parents:
        if above.stat().st_uid == os.getuid() and above != above.parent and above.name.startswith("pytest"):
            above.chmod(0o755)
    path = tmp_path / "s"
    with listening_at(path):
        code = f"""
import os, socket
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as probe:
    try:
        probe.connect({str(path)!r})
    except OSError as problem:
        print(problem.errno)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(errno.EACCES)


def test_a_socket_that_no_program_serves_any_more_is_replaced(tmp_path):
    """A program that was killed leaves its file behind."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening_at(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize(
    "what", ["in use", "a file", "a link to a file", "a folder", "too long", "in no folder"]
)
def test_a_path_that_cannot_be_taken_is_refused_in_one_line_and_left_alone(tmp_path, what):
    """Neither a program that listens there loses its socket, nor anyone a file."""
    path, other = tmp_path / "s", tmp_path / "other"
    other.write_text("precious")
    if what == "in use":
        with listening_at(path):
            with pytest.raises(OSError, match="another program listens at"), listening_at(path):
                pass
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        return
    if what == "a file":
        path.write_text("precious")
    elif what == "a link to a file":
        path.symlink_to(other)
    elif what == "a folder":
        path.mkdir()
    elif what == "too long":
        path = tmp_path / ("x" * 120)
    else:
        path = tmp_path / "missing" / "s"
    with (
        pytest.raises(OSError, match=r"is not a socket|may have 107 bytes|cannot make the socket") as refused,
        listening_at(path),
    ):
        pass
    assert str(path) in str(refused.value)
    assert other.read_text() == "precious"


def test_a_socket_that_took_its_place_is_left_alone(tmp_path):
    """At the end only the own file is removed."""
    path = tmp_path / "s"
    with listening_at(path):
        path.unlink()
        path.write_text("another")
    assert path.read_text() == "another"


def test_the_default_path_lies_in_a_folder_of_ones_own(tmp_path, monkeypatch):
    """`$XDG_RUNTIME_DIR/supervise/NAME.PID.sock`; a folder that others can enter is refused; dead sockets are not found."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert found() == []
    path = default_path("app")
    assert path == tmp_path / "supervise" / f"app.{os.getpid()}.sock"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path.parent / "dead.1.sock"))
    with listening_at(path):
        assert found() == [path]
    assert found() == []
    path.parent.chmod(0o755)
    with pytest.raises(OSError, match="must be a folder that only you can enter"):
        default_path("app")


def test_the_default_path_has_a_name_as_it_is_shown(tmp_path, monkeypatch):
    """No path of a file has a zero byte."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with listening_at(default_path("a\0b")):
        assert [path.name for path in found()] == [rf"a\x00b.{os.getpid()}.sock"]


def test_a_port_that_is_taken_is_named():
    """Likewise for a port of the loopback address."""
    with listening_on(0) as listener:
        address, port = listener.getsockname()
        assert address == "127.0.0.1"
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}"), listening_on(port):
            pass


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"port": 70_000}, ValueError, "port must be 0 to 65535, got 70000"),
        ({"port": "80"}, TypeError, "port must be"),
        ({"socket": 7}, TypeError, "socket must be a path or None, got 7"),
        ({"socket": "s", "port": 1}, ValueError, "give a socket or a port, not both"),
        ({"token": "short"}, ValueError, "token must have 20 printable ASCII characters or more"),
        ({"token": "x" * 19 + " y"}, ValueError, "no space"),
        (
            {"required": "app/db"},
            TypeError,
            r"required must be a list of paths such as \['app/db'\], got 'app/db'",
        ),
        ({"required": [7]}, TypeError, "required must be a list of paths"),
        ({"required": None}, TypeError, "required must be a list of paths"),
        ({"required": (path for path in ["app/db"])}, TypeError, "required must be a list of paths"),
        ({"token": 7}, TypeError, "token must be a str or None, got 7"),
    ],
)
def test_a_wrong_argument_of_operate_is_refused(arguments, error, message):
    """When it is declared, not when it starts."""
    with pytest.raises(error, match=message):
        operate(**arguments)


def test_a_token_is_not_printed():
    """Neither by the child nor in a tree."""
    assert "y" * 20 not in repr(operate(token="y" * 20))
    assert checked_token(None) is None
