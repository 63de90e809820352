"""What `RayHost` refuses, what the reports of Ray mean, and who may connect: without a cluster."""

import secrets
import socket
import subprocess
import sys
import threading

import pytest
import trio
from contexts import (
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
)

from runners.errors import (
    ContextDied,
    ContextPreempted,
    ContextUnreachable,
    DeviceError,
    LoadFailed,
    NoPlace,
    Unrecoverable,
)
from runners.hosts.remote import ray
from runners.hosts.remote.actor import Actor, Ask, death, described, load_error
from runners.hosts.remote.launcher import Launcher
from runners.hosts.remote.ray import RayHost, with_token
from runners.models.scripted import Scripted


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"cluster": "auto"}, "cluster must be the address of a Ray head, such as 10.0.0.1:6379, got 'auto'"),
        ({"cluster": "ray://head:10001"}, "cluster must be"),
        ({"cluster": ":6379"}, "cluster must be"),
        ({"cluster": 6379}, "cluster"),
        ({"num_gpus": -1}, "num_gpus must be a number >= 0, got -1"),
        ({"num_cpus": "all"}, "num_cpus must be a number >= 0, got 'all'"),
        ({"linger": True}, "linger must be a number >= 0, got True"),
        ({"load_timeout": None}, "load_timeout must be a number > 0, got None"),
        ({"next_chunk_timeout": 0}, "next_chunk_timeout must be a number > 0, got 0"),
        ({"resources": [1]}, "resources must be a mapping"),
        ({"resources": {"GPU": 1}}, "resources must have names of custom resources"),
        ({"resources": {"leaf": 0}}, "resources must have amounts above 0, got leaf=0"),
        ({"resources": {"leaf": True}}, "resources must have amounts"),
        ({"address": ""}, "address must be a name or number of this machine, or None, got ''"),
        ({"address": 5}, "address must be a name or number of this machine, or None, got 5"),
        ({"path": ("a",)}, "path must have absolute folders"),
        ({"path": 3}, "path must be several folders, got 3"),
        ({"device": "cuda:x"}, "cuda"),
        ({"lease": 0.5}, "lease must be a number >= 1, got 0.5"),
        ({"start_timeout": float("nan")}, "start_timeout must be a number >= 1, got nan"),
    ],
)
def test_a_wrong_argument_is_named(wrong, says):
    """D2: One error says which argument, what is allowed, and what came."""
    with pytest.raises((ValueError, TypeError), match=says):
        RayHost(**{"cluster": "head:6379", **wrong})


def test_a_machine_without_ray_is_named_when_a_context_starts(monkeypatch):
    """D2, D16: A declaration may be checked elsewhere."""
    monkeypatch.setattr(ray.importlib.util, "find_spec", lambda _name: None)
    RayHost("head:6379").check(Scripted(1))
    with pytest.raises(Unrecoverable, match="needs `ray`"):
        RayHost("head:6379").open(Scripted(1))


def test_a_declaration_imports_no_ray():
    """D16: Only a program that opens a context needs it."""
    program = """
import sys
from runners import RayHost
from runners.models.scripted import Scripted
RayHost("head:6379").check(Scripted(1))
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_asked_for_has_rays_names():
    """D16: As in an error about a place that cannot be given."""
    ask = Ask(cluster="head:6379", num_cpus=0, num_gpus=0.5, resources={"leaf": 2})
    assert str(ask) == "GPU: 0.5, leaf: 2"
    assert str(Ask(cluster="head:6379", num_cpus=0, num_gpus=0, resources={})) == "nothing"


# --- what the reports of Ray mean


def ray_exception(name, *bases, **values):
    """An exception as Ray has it: it is known by the name and the module of its class."""
    return type(name, bases or (Exception,), {"__module__": "ray.exceptions", **values})


ACTOR_ERROR = ray_exception("RayActorError")
ENDS = [
    (ray_exception("ActorDiedError", ACTOR_ERROR), ContextDied),
    (ray_exception("ActorDiedError", ACTOR_ERROR, preempted=True), ContextPreempted),
    (ray_exception("ActorUnavailableError", ACTOR_ERROR), ContextUnreachable),
    (ray_exception("OutOfMemoryError"), ContextDied),
    (type("ActorUnavailableError", (Exception,), {}), ContextDied),
]


@pytest.mark.parametrize(("cls", "means"), ENDS)
def test_an_end_of_an_actor_has_its_error(cls, means):
    """D3, D16: What the guardian reports is certain; a report of Ray only makes the error more exact."""
    assert death(cls("x"), ContextDied) is means
    assert death("its guardian ended", ContextUnreachable) is ContextUnreachable


@pytest.mark.parametrize(
    ("error", "means"),
    [
        (ray_exception("ActorUnschedulableError", ACTOR_ERROR)("x"), NoPlace),
        (ray_exception("ActorDiedError", ACTOR_ERROR)("x"), LoadFailed),
        (ray_exception("RuntimeEnvSetupError")("x"), LoadFailed),
        (ConnectionError("no such cluster"), LoadFailed),
        (ray_exception("RaySystemError")("x"), DeviceError),
    ],
)
def test_a_start_that_ray_refuses_has_its_error(error, means):
    """D3, D16: A failure of the cluster itself is escalated, since no leaf can repair it."""
    assert type(load_error(error)) is means


def test_rays_words_are_one_line():
    """D16: Ray's own texts have many."""
    assert described(ray_exception("ActorDiedError")("a\nb")) == "Ray reports ActorDiedError: a"
    assert described(ray_exception("RayTaskError", cause=OSError("no"))("x\ny")) == "OSError: no"
    assert described("its guardian ended with status 1") == "its guardian ended with status 1"


# --- who may connect


@pytest.mark.trio
async def test_only_a_connection_with_the_token_is_taken():
    """D16: Others that connect are closed, and those that send nothing delay no other connection."""
    token = secrets.token_bytes(32)
    listener = trio.socket.socket()
    with listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()
        with trio.fail_after(5):
            silent, short, wrong, right = [socket.create_connection(address) for _ in range(4)]
            with silent, short, wrong, right:
                short.sendall(token[:31])
                short.shutdown(socket.SHUT_WR)
                wrong.sendall(token[:31] + bytes([token[31] ^ 1]))
                right.sendall(token + b"more")
                taken = await with_token(listener, token)
                with taken:
                    assert taken.getpeername() == right.getsockname()
                    assert not taken.getblocking()
                    assert taken.recv(100) == b"more"
                for refused in (silent, short, wrong):
                    refused.settimeout(5)
                    with pytest.raises((ConnectionError, AssertionError)):
                        assert refused.recv(1)  # it is closed, or reset


@pytest.mark.parametrize("seconds", [1e10, float("inf")])
def test_an_actor_connects_however_long_it_may_take(seconds):
    """D16: A `start_timeout` may have more seconds than a socket counts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        end = Launcher().serve(listener.getsockname(), seconds, b"token", "print('started')")
        with listener.accept()[0] as connection, connection.makefile() as came:
            assert came.read() == "tokenstarted\n"
    assert end == "its guardian ended with status 0"


@pytest.mark.trio
async def test_an_actor_is_left_without_a_thread_too(monkeypatch):
    """D10, D16: Its connection is closed, at which its guardian ends the context, and no descriptor is left here."""

    def refused(_):
        raise RuntimeError("can't start new thread")

    ours, theirs = socket.socketpair()
    with theirs:
        actor = Actor(Ask(cluster="head:6379", num_cpus=1, num_gpus=0, resources={}), trio.CapacityLimiter(1))
        actor.connected(ours)
        monkeypatch.setattr(threading.Thread, "start", refused)
        actor.discard()
        assert theirs.recv(1) == b""
