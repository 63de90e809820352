"""Clients and programs that mean harm, or break: the tree does not notice, and the others are served."""

from __future__ import annotations

import gc
import json
import os
import resource
import socket
import subprocess
import sys
import weakref
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trio
from hypercorn.config import Config

from supervise import Child, StartFailed, Supervisor, events, open_tree
from supervise.operate import connections, operate
from supervise.operate.client import Client, OperateError
from supervise.operate.history import History
from supervise.operate.sockets import default_path, found, listening_at
from tests.operate.test_operating_app import TOKEN, bearer, operated
from tests.tree.scene import Puppet


def connected(path, sent=b""):
    """A connection that has sent something, and reads nothing."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.send(sent)
    return client


@pytest.mark.slow
@pytest.mark.trio
async def test_a_client_that_does_not_read_its_answer_does_not_keep_the_tree(tmp_path):
    """R21: The answer is longer than what the socket holds, so the server is still sending it when the tree stops."""
    many = [Child(f"c{number}", trio.sleep_forever) for number in range(2000)]
    async with operated(tmp_path, *many) as (_, http):
        stalled = [connected(tmp_path / "s", b"GET /status HTTP/1.1\r\nhost: x\r\n\r\n") for _ in range(3)]
        await trio.sleep(0.2)
        assert (await http.get("/healthz")).status_code == 200
    for client in stalled:
        client.close()


@pytest.mark.trio
async def test_what_is_stuck_ends_some_time_after_its_client_has_left(monkeypatch):
    """R31: Hypercorn waits for ever for a client that has left in the middle of a stream of HTTP/2, say."""
    monkeypatch.setattr(connections, "LEFT_SECONDS", 0.1)
    monkeypatch.setattr(connections, "_LOOK", 0.01)
    began, ended = trio.Event(), trio.Event()

    async def stuck(*_):
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    with trio.fail_after(20), socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        served = connections.Connections(stuck, Config(), most=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run, listener)
            async with await trio.open_tcp_stream(*listener.getsockname()) as client:
                await client.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                await began.wait()
                await trio.sleep(0.3)
                assert not ended.is_set()
            await ended.wait()
            served.end()


@pytest.mark.trio
@pytest.mark.parametrize("more", [b"", b"more", b"\x81\x85abcdhello", b"\x81\x05hello" * 99])
async def test_a_websocket_is_refused_without_a_word_in_the_log(capfd, more):
    """Also one whose client does not wait for the answer: with its traceback, such a client could fill the log."""
    shake = b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    key = b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    with trio.fail_after(20), socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        served = connections.Connections(None, Config(), most=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run, listener)
            async with await trio.open_tcp_stream(*listener.getsockname()) as client:
                await client.send_all(shake + key + more)
                assert b" 101 " not in await client.receive_some()
            served.end()
    assert capfd.readouterr().err == ""


@pytest.mark.trio
async def test_connections_leave_files_for_the_tree(tmp_path):
    """Further clients wait; idle ones are sent away after five seconds, so everyone's turn comes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * 10, hard))
    try:
        if in_use > 3 * 10:
            pytest.skip("this process has too many files open")
        async with operated(tmp_path, Puppet("a")) as (tree, _):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            clients = [connected(tmp_path / "s") for _ in range(60)]
            await trio.sleep(0.2)
            served = len(os.listdir("/proc/self/fd")) - in_use - len(clients)
            assert served < 10 + 10  # beside its connections the tree has some files of its own
            await tree["app/a"].restart()
            for client in clients:
                client.close()
            async with Client(str(tmp_path / "s")) as client:
                assert (await client.status())["name"] == "app"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Text(Exception):
    """An exception whose text is given."""

    def __str__(self):
        return self.args[0]


class Hostile(str):
    """A text that cannot be put into another one."""

    __slots__ = ()

    def __format__(self, spec):
        raise ValueError(spec)


class Disguised(Exception):
    """An exception that does not say what it is."""

    @property
    def __class__(self):
        raise ValueError


Homeless = type("Homeless\x1b[31m", (Exception,), {"__module__": 7})


@pytest.mark.trio
async def test_an_operating_child_that_cannot_start_again_harms_no_tree(tmp_path):
    """R10: The folder of its socket is gone. It is reported once, and the others are not restarted."""
    folder, seen = tmp_path / "folder", []
    folder.mkdir()
    child, a, b = operate(folder / "s"), Puppet("a"), Puppet("b")
    tree_of = Supervisor("app", [child, a.spec, b.spec], strategy="rest_for_one")
    with trio.fail_after(60):
        async with open_tree(tree_of, sinks=[seen.append]) as tree:
            (folder / "s").unlink()
            folder.rmdir()
            with pytest.raises(StartFailed, match="cannot make the socket"):
                await tree[child].restart()
            await tree[a.spec].restart()
            assert {each.path: each.state for each in tree.status().children} == {
                "app/operate": "condemned",
                "app/a": "up",
                "app/b": "up",
            }
            assert len([event for event in seen if isinstance(event, events.Failed)]) == 1


FAILURES = {
    "no UTF-8": lambda: Text("\ud800"),
    "control characters": lambda: Text("\x1b[31mred\r\nx\x00"),
    "a text that raises": lambda: Text(Hostile("x")),
    "no class": lambda: Disguised("x"),
    "no module": lambda: Homeless("x"),
}


@pytest.mark.trio
@pytest.mark.parametrize("failure", FAILURES)
async def test_every_answer_copes_with_a_hostile_failure(tmp_path, failure):
    """R31, R33: No sink is dropped, every answer is UTF-8, and none can control a terminal."""
    a, seen = Puppet("a \ud800\x1b#?%41"), []
    async with operated(tmp_path, a, sinks=[seen.append]) as (tree, http):
        a.fail(FAILURES[failure]())
        await tree[a.spec].ready()
        for url in ("/status", "/events?follow=0", "/metrics", "/stack/app", "/readyz", "/why/app"):
            answer = await http.get(url)
            assert answer.status_code == 200, url
            assert answer.content.decode()
            assert "\x1b[" not in answer.text
        dry = await http.post("/restart/app/operate?dry_run", json={"reason": "x"}, headers=bearer())
        assert dry.json()["dry_run"] is True
        assert not [event for event in seen if isinstance(event, events.SinkFailed)]


@pytest.mark.trio
async def test_why_cannot_control_a_terminal(tmp_path):
    """R33: Neither by a failure's text nor by its class."""
    a = Puppet("a")
    async with operated(tmp_path, a) as (tree, http):
        a.fail(Homeless("\x1b[2J\n"))
        await tree["app/a"].ready()
        assert "Homeless\\x1b[31m: \\x1b[2J\\n" in (await http.get("/why/app/a")).text


def test_a_history_that_fails_gives_its_readers_no_number_that_it_does_not_keep(monkeypatch):
    """R31: Otherwise a reader would ask for that event again and again, without end."""
    history = History()
    history(events.Starting(0.0, "app", 1))
    monkeypatch.setattr("supervise.operate.history.describe", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        history(events.Ready(0.0, "app", 1))
    assert history.last == 1
    assert history.after(1) == (0, [])


@pytest.mark.trio
async def test_a_reader_follows_after_a_restart_of_the_operating_child(tmp_path):
    """The readers of the stopped one have ended; those that come later wait for events again."""
    got = []
    async with trio.open_nursery() as nursery, operated(tmp_path, Puppet("a")) as (tree, _):
        await tree["app/operate"].restart()

        async def read():
            async with Client(str(tmp_path / "s")) as client:
                async for event in client.events():
                    got.append((event["kind"], event["path"]))  # noqa: PERF401 - The test looks at the list while it grows.

        nursery.start_soon(read)
        while not got:  # noqa: ASYNC110 - the reader has no event for this
            await trio.sleep(0.01)
        await trio.sleep(0.2)
        await tree["app/a"].stop()
    assert ("Stopped", "app/a") in got


@pytest.mark.trio
async def test_events_that_are_not_followed_end_though_the_tree_is_busy(tmp_path):
    """Each event is followed by the next before a reader has it."""
    async with operated(tmp_path, Puppet("a")) as (tree, http):
        history = next(sink for sink in tree._driver._sinks if isinstance(sink, History))

        async def busy():
            while True:
                history(events.Starting(0.0, "app/x", 1))
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy)
            with trio.fail_after(60):
                assert (await http.get("/events?follow=0")).status_code == 200
            nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_the_connection_of_events_that_are_not_followed_is_closed_if_the_client_asks_for_that(tmp_path):
    """It reads until the connection ends, as simple clients do."""
    async with operated(tmp_path, Puppet("a")):
        stream = await trio.open_unix_socket(tmp_path / "s")
        async with stream:
            await stream.send_all(
                b"GET /events?follow=0 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            )
            with trio.fail_after(60):
                assert b"".join([some async for some in stream]).endswith(b"0\r\n\r\n")


@pytest.mark.trio
async def test_a_tree_that_has_ended_is_not_kept_by_its_operating_child(tmp_path):
    """The declaration of a program lives as long as the program, and may be opened many times."""
    child, trees = operate(tmp_path / "s"), []
    for _ in range(2):
        async with open_tree(Supervisor("app", [child]), sinks=[]) as tree:
            trees.append(weakref.ref(tree))
            async with Client(str(tmp_path / "s")) as client:
                numbers = [event["seq"] async for event in client.events(follow=False)]
                assert numbers[0] == 1
        del tree
    gc.collect()
    assert [each() for each in trees] == [None, None]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_not_searched(tmp_path, monkeypatch):
    """In `/tmp` anyone may make the folder first, and would get the token of the next command."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = default_path("app")
    with listening_at(path):
        os.chown(path.parent, 65534, 65534)
        with pytest.raises(OSError, match="must be a folder that only you can enter"):
            found()


def test_a_socket_is_removed_though_the_program_has_changed_its_folder(tmp_path, monkeypatch):
    """A relative path is that of the start."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with listening_at(Path("s")):
        monkeypatch.chdir(tmp_path / "other")
    assert not (tmp_path / "s").exists()


def test_a_socket_whose_folder_is_gone_ends_quietly(tmp_path):
    """Someone has put a file there."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with listening_at(folder / "s"):
        (folder / "s").unlink()
        folder.rmdir()
        folder.write_text("x")


@pytest.mark.parametrize("where", ["http://", "http://a:b", "https://:1"])
def test_a_client_refuses_what_is_not_a_url(where):
    """In one line."""
    with pytest.raises(OperateError, match="is not the URL of a port"):
        Client(where)


@pytest.mark.trio
@pytest.mark.parametrize("host", ["two..dots", "a" * 300])
async def test_a_host_that_cannot_be_looked_up_does_not_answer(host):
    """In one line, for each kind of request."""
    async with Client(f"http://{host}") as client:
        with pytest.raises(OperateError, match="no program answers"):
            await client.status()
        with pytest.raises(OperateError, match="no program answers"):
            await client.events().__anext__()


@pytest.mark.parametrize("token", ["tök", "a\nb"])
def test_a_client_refuses_a_token_that_cannot_be_sent(token):
    """Likewise; the token is not printed."""
    with pytest.raises(OperateError, match="the token has characters") as refused:
        Client("s", token=token)
    assert token not in str(refused.value)


@pytest.mark.trio
@pytest.mark.parametrize(
    "body",
    [
        b"hello",
        b"[]",
        b"{}",
        b'{"nodes": 7, "steps": 7}',
        b"\xff",
        b"[" * 100_000,
        b"data: []",
        b"data: [" * 9,
        b'{"nodes": [{}], "steps": [{}], "changes": [{}]}',
        b'{"nodes": [], "time": 1, "seq": 1, "name": "a", "pid": 1, "acts": true, "waits_for": [], "steps": [7]}',
        b'data: {"kind": "Failed"}',
        b'data: {"kind": "Ready", "seq": 1, "time": 1e300, "path": "a", "incarnation": 1, "text": "is up"}',
        b'data: {"kind": "Missed", "seq": 1, "time": 1, "path": "a", "incarnation": 1, "text": "is up"}',
        b'event: missed\ndata: {"kind": "Ready"}',
    ],
)
async def test_a_client_says_that_another_program_answers(tmp_path, body):
    """Some server of HTTP, or one of another version, whose answers have another form."""
    async with trio.open_nursery() as nursery:
        with listening_at(tmp_path / "s") as listener:

            async def answer(stream):
                asked = b""
                while b"\r\n\r\n" not in asked or (b"POST" in asked and b"}" not in asked):
                    asked += await stream.receive_some()
                await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\n" + body)
                await stream.aclose()

            listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
            nursery.start_soon(trio.serve_listeners, answer, listeners)
            async with Client(str(tmp_path / "s"), token=TOKEN) as client:

                async def follow():
                    async for _ in client.events():
                        pass

                asks = (
                    client.status,
                    lambda: client.act("stop", "app", reason="x", who="\udcff"),
                    lambda: client.reload(reason="x", who="me"),
                )
                for ask in (*asks, follow) if b"data:" in body else asks:
                    with pytest.raises(OperateError, match="is not a tree of `supervise`"):
                        await ask()
            nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_client_does_not_wait_for_ever_for_a_program_that_is_blocked(tmp_path, monkeypatch):
    """It listens, and its event loop does not run."""
    monkeypatch.setattr("supervise.operate.client._LONGEST_LOOK", 0.1)
    with listening_at(tmp_path / "s"), trio.fail_after(60):
        async with Client(str(tmp_path / "s")) as client:

            async def read():
                async for _ in client.events(follow=False):
                    pass

            for ask in (client.status, read):
                with pytest.raises(
                    OperateError, match=r"did not answer within 0\.1 s: is its event loop blocked"
                ) as slow:
                    await ask()
                assert slow.value.status is None


@pytest.mark.trio
@pytest.mark.parametrize("begins", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 No\r\n\r\n"])
async def test_a_client_does_not_wait_for_ever_for_an_answer_that_comes_drop_by_drop(
    tmp_path, monkeypatch, begins
):
    """Each byte comes in time, and the last one never does."""
    monkeypatch.setattr("supervise.operate.client._LONGEST_LOOK", 0.3)

    async def drip(stream):
        with suppress(trio.BrokenResourceError):  # the client has left
            await stream.send_all(begins)
            while True:
                await stream.send_all(b"x")
                await trio.sleep(0.01)

    with listening_at(tmp_path / "s") as listener, trio.fail_after(60):
        listener.setblocking(False)
        async with trio.open_nursery() as nursery, Client(str(tmp_path / "s")) as client:
            listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
            nursery.start_soon(trio.serve_listeners, drip, [listening])
            looks = [
                client.status(),
                client.why("app"),
                client.stack("app"),
                anext(client.events(follow=False)),
            ]
            for look in looks:
                with pytest.raises(OperateError, match=r"did not answer within 0\.3 s"):
                    await look
            nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_client_asks_for_any_path_and_gives_any_reason(tmp_path):
    """The arguments of a command need not be UTF-8."""
    async with operated(tmp_path, Puppet("a")) as (tree, _):
        async with Client(str(tmp_path / "s"), token=TOKEN) as client:
            with pytest.raises(OperateError, match="has no node") as refused:
                await client.why("app/\udcff?#%41")
            assert refused.value.status == 404
            await client.act("stop", "app/a", reason="\udcff\x1b", who="\udcff")
        assert tree["app/a"].status().state == "down"


@pytest.mark.trio
@pytest.mark.parametrize("name", ["\udcff", "x\ud800\x1b", "é\\"])
async def test_a_name_is_reached_by_what_it_is_and_by_what_is_shown(tmp_path, name):
    """A name may be that of a file, which need not be UTF-8; a terminal shows escapes for what cannot be printed."""
    shown = f"app/{name}" if name.isprintable() else "app/" + repr(name)[1:-1]
    async with operated(tmp_path, Puppet(name)) as (tree, http):
        assert (await http.get("/metrics")).status_code == 200
        async with Client(str(tmp_path / "s"), token=TOKEN) as client:
            assert f"app/{name}" in [row["path"] for row in (await client.status())["nodes"]]
            for path in (f"app/{name}", shown):
                assert (await client.why(path)).startswith(f"{shown} is up")
                assert await client.act("restart", path, reason="x", who="y")
            with pytest.raises(OperateError, match="has no node"):
                await client.why(f"{shown}\udcff")
        assert tree[f"app/{name}"].status().incarnation == 3


@pytest.mark.trio
async def test_a_name_with_control_characters_is_reached(tmp_path):
    """Only `/`, and spaces at either end, are refused in a name."""
    odd = ["a\nb", "\x00\x1b\r\u2028b", "a"]
    async with operated(tmp_path, *map(Puppet, odd)) as (tree, _):
        async with Client(str(tmp_path / "s"), token=TOKEN) as client:
            for name in odd[:2]:
                assert "is up" in await client.why(f"app/{name}")
                assert "_body" in await client.stack(f"app/{name}")
                await client.act("stop", f"app/{name}", reason="r", who="w")
        states = {node.path: node.state for node in tree.status().children}
        assert [states[f"app/{name}"] for name in odd] == ["down", "down", "up"]


@pytest.mark.trio
@pytest.mark.parametrize("path", ["app/.", "app/a/..", ".", "app/../x"])
async def test_a_client_asks_for_no_path_that_a_url_would_shorten(tmp_path, path):
    """Otherwise `supervise stop app/a/..` would stop the whole tree."""
    async with Client(str(tmp_path / "socket")) as client:
        with pytest.raises(OperateError, match=r"no node has '\.' or '\.\.' in its path, got "):
            await client.act("stop", path, reason="r", who="w")
        with pytest.raises(OperateError, match=r"no node has"):
            await client.why(path)


def test_a_full_disk_under_the_log_is_reported_once_and_harms_nothing(tmp_path):
    """R31: Neither the run nor its exit status; the file is closed without another report."""
    (tmp_path / "app.py").write_text(
        "import trio\nfrom supervise import *\n"
        "async def once(): await trio.sleep(0.1)\n"
        "tree = Supervisor('app', [Child('a', once, restart='temporary', significant=True)], auto_shutdown='any_significant')\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-m", "supervise", "run", "app.py", "--log", "/dev/full"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "Traceback" not in done.stderr.partition("gets no further events")[2].partition("[app")[2]
    assert (
        len([line for line in done.stderr.splitlines() if "JsonLinesSink" in line and "failed:" in line]) == 1
    )


@pytest.mark.trio
async def test_two_children_of_one_declaration_do_not_mix_their_trees():
    """Each tree has a history of its own."""
    child = operate(port=0)
    with trio.fail_after(60):
        async with (
            open_tree(Supervisor("one", [child]), sinks=[]) as one,
            open_tree(Supervisor("two", [child]), sinks=[]) as two,
        ):
            for tree in (one, two):
                async with httpx.AsyncClient(base_url=await tree[child].ready(), trust_env=False) as http:
                    lines = (await http.get("/events?follow=0")).text.splitlines()
                    paths = {json.loads(line[6:])["path"] for line in lines if line.startswith("data: ")}
                    assert paths <= {tree.root.path, tree[child].path}
