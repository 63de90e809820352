"""Small programs that use the system: `python -m tests.refusals.programs NAME` runs one and prints how it ended, as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import trio

from benchmarks.ports import free_port
from runners import ExecuteBatch, InlineHost, Sampling, ThreadHost, device_worker, rebuild, replace
from runners.hosts import Host
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Fault, Scripted
from runners.serve import serve
from supervise import Child, Limit, Supervisor, open_tree
from supervise.operate import operate
from supervise.programs import Command, Running, every, line, notify, tcp
from supervise.sinks.jsonl import JsonLinesSink

from ..programs.little import started_again

PROGRAMS: dict[str, Callable[[], Awaitable[None]]] = {}
TOKENS = Sampling(max_tokens=8, temperature=0, seed=0)
IN_TIME = 30.0
"""Seconds after which a request is taken for lost."""

UP = "import time\nwhile True:\n    print('up', flush=True)\n    time.sleep(0.02)\n"
NOTIFIES = """
import os, socket, time
link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
link.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\\0"))
time.sleep(1000)
"""
ASKED = b'{"model": "m", "prompt": "x", "seed": 0, "temperature": 0, "max_tokens": 8}'
QUESTION = b"\r\n".join(
    [
        b"POST /v1/completions HTTP/1.1",
        b"host: it",
        b"content-type: application/json",
        b"connection: close",
        b"content-length: %d" % len(ASKED),
        b"",
        ASKED,
    ]
)
LISTENS = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    server.accept()[0].close()
"""


def program(fn: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Have it tried. It returns when all is as it is without a refusal."""
    PROGRAMS[fn.__name__] = fn
    return fn


@program
async def forked() -> None:
    """A device worker with a fork server and a standby."""
    await _served(ProcessHost(standby=1))


@program
async def spawned() -> None:
    """A device worker, cold."""
    await _served(ProcessHost(start="spawn"))


@program
async def threaded() -> None:
    """A device worker in a thread."""
    await _served(ThreadHost(), killed=False)


@program
async def printing() -> None:
    """A program that is ready when it prints a line."""
    await _started_again(Command("it", [sys.executable, "-c", UP], ready=line("^up$"), grace=5))


@program
async def notifying() -> None:
    """A program that is ready when it says so over a socket."""
    await _started_again(Command("it", [sys.executable, "-c", NOTIFIES], ready=notify(), grace=5))


@program
async def listening() -> None:
    """A program that is ready when its port answers, and is asked again and again."""
    port = free_port()
    command = [sys.executable, "-c", LISTENS, str(port)]
    await _started_again(
        Command("it", command, ready=tcp(port), alive=every(0.05, tcp(port)), grace=5, ready_timeout=5)
    )


@program
async def isolated() -> None:
    """A program in a namespace of its own."""
    command = [sys.executable, "-c", UP]
    await _started_again(Command("it", command, ready=line("^up$"), isolation="namespace", grace=5))


@program
async def replaced() -> None:
    """A device worker that gets another runner while it serves."""
    hosts = [ProcessHost(), ProcessHost()]
    worker = device_worker("worker", Scripted(8, delay=0.002), hosts=hosts, backoff=None)
    async with open_tree(Supervisor("app", [worker])) as tree:
        ref = tree["app/worker"]
        with trio.fail_after(IN_TIME):
            async with ref.stream(ExecuteBatch("stream", "s", sampling=TOKENS)) as stream:
                await replace(ref, Scripted(6, delay=0.002))
                assert [chunk.index async for chunk in stream] == list(range(8))
            done = await ref.call(ExecuteBatch("call", "c", sampling=TOKENS))
            assert len(done.token_ids) == 6


@program
async def fronted() -> None:
    """A device worker that is asked over HTTP."""
    worker = device_worker("worker", Scripted(8, delay=0.002), host=InlineHost(), backoff=None)
    async with open_tree(serve({"m": worker}, port=0, drain=5)) as tree:
        with trio.fail_after(IN_TIME):
            (url,) = await tree["serve/http"].ready()
            async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as client:
                await client.send_all(QUESTION)
                answer = b"".join([data async for data in client])
            assert b'"completion_tokens":8' in answer.replace(b" ", b"")


@program
async def operated() -> None:
    """A tree that is asked over a socket, and whose events go to a file."""
    socket = f"{Path.cwd()}/socket"
    spec = Supervisor("app", [operate(socket=socket), Child("idle", trio.sleep_forever)])
    with closing(JsonLinesSink("events")) as sink:
        async with open_tree(spec, sinks=[sink]) as tree:
            with trio.fail_after(IN_TIME):
                for _ in range(20):  # a server that takes no connection is not lost
                    if await _answered(socket):
                        break
                    await trio.sleep(0.05)
                await tree["app/idle"].restart()


async def _answered(path: str) -> bool:
    try:
        async with await trio.open_unix_socket(path) as client:
            await client.send_all(b"GET /status HTTP/1.1\r\nhost: it\r\n\r\n")
            return b" 200 " in await client.receive_some()
    except (OSError, trio.BrokenResourceError):
        return False


async def _served(host: Host, *, killed: bool = True) -> None:
    faults = (Fault("kill", "stream", 3, incarnation=1),) if killed else ()
    worker = device_worker("worker", Scripted(8, delay=0.002, faults=faults), host=host, backoff=None)
    async with open_tree(Supervisor("app", [worker])) as tree:
        ref = tree["app/worker"]
        with trio.fail_after(IN_TIME):
            async with ref.stream(ExecuteBatch("stream", "s", sampling=TOKENS)) as stream:
                assert [chunk.index async for chunk in stream] == list(range(8))
            done = await ref.call(ExecuteBatch("call", "c", sampling=TOKENS))
            assert len(done.token_ids) == 8
            await rebuild(ref)
            await ref.ready()


async def _started_again(spec: Child) -> None:
    # It is not tried for ever: where each start takes as long as it may, no default limit ends it.
    async with open_tree(Supervisor("app", [spec], limit=Limit(3, within=3600))) as tree:
        with trio.fail_after(IN_TIME):
            running: Running = await tree[spec].ready()
            os.kill(running.pid, signal.SIGKILL)
            await started_again(tree, spec, running)


def main(name: str) -> None:
    try:
        trio.run(PROGRAMS[name])
        raised = None
    except Exception as exc:
        raised = exc
    causes = []
    while raised is not None and len(causes) < 20:
        causes.append([type(raised).__name__, str(raised)[:200]])
        raised = raised.__cause__ or raised.__context__
    print(json.dumps(causes))


if __name__ == "__main__":
    main(sys.argv[1])
