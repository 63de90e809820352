"""Small programs that use the system: `python -m tests.fault_injection.programs NAME` runs one and prints how it ended, as JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from tempfile import mkdtemp

import trio

from benchmarks.loopback import serving
from benchmarks.ports import free_port
from runners import (
    EngineHost,
    ExecuteBatch,
    OpenAIModel,
    Sampling,
    ThreadHost,
    device_worker,
    rebuild,
    replace,
)
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
KILLED = (Fault("kill", at_token=3, incarnation=1),)
"""The first context is killed in its first stream."""
IN_TIME = 60.0
"""Seconds after which a request is taken for lost."""

UP = "import time\nwhile True:\n    print('up', flush=True)\n    time.sleep(0.02)\n"
NOTIFIES = """
import os, socket, time
link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
link.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\\0"))
time.sleep(1000)
"""
ASKED = b'{"model": "m", "prompt": "x", "seed": 0, "temperature": 0, "max_tokens": 8, "stream": true}'
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
APP = """
from pathlib import Path
import trio
from supervise import Child, Supervisor

async def idle(*, task_status):
    task_status.started()
    Path("ready").touch()
    await trio.sleep_forever()

tree = Supervisor("app", [Child("idle", idle)])
"""
ENGINES = str(Path(__file__).parents[1] / "runners" / "engines.py")
LISTENS = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    server.accept()[0].close()
"""


def program(fn: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Have it tried. It returns when all is as it is without a fault."""
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
        Command("it", command, ready=tcp(port), alive=every(0.05, tcp(port)), grace=5, ready_timeout=10)
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
    """A device worker that is asked for a stream over HTTP, while its process is killed."""
    worker = device_worker("worker", Scripted(8, delay=0.002, faults=KILLED), backoff=None)
    async with open_tree(serve({"m": worker}, port=0, drain=5)) as tree:
        with trio.fail_after(IN_TIME):
            (url,) = await tree["serve/http"].ready()
            async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as client:
                await client.send_all(QUESTION)
                answer = b"".join([data async for data in client])
            if b'"error"' in answer or b"data: [DONE]" not in answer:
                raise ConnectionError(answer)
            events = [json.loads(event) for event in re.findall(rb"^data: (\{.*)", answer, re.MULTILINE)]
            assert len([each for event in events for each in event["choices"] if each["text"]]) == 8


@program
async def engined() -> None:
    """A device worker whose engine is a server program with a worker of its own, which is left when the server is killed."""
    engine = Command("engine", [sys.executable, ENGINES, "{port}", "sums"])
    model = OpenAIModel("http://127.0.0.1:{port}/v1", "m", token_ids=True)
    worker = device_worker("worker", model, host=EngineHost(engine, load_timeout=20), backoff=None)
    async with open_tree(Supervisor("app", [worker])) as tree:
        ref = tree["app/worker"]
        with trio.fail_after(IN_TIME):
            first = await ref.ready()
            os.kill(first.pid, signal.SIGKILL)
            while (await ref.ready()).incarnation == first.incarnation:  # noqa: ASYNC110 - The change has no event here.
                await trio.sleep(0.01)
            async with ref.stream(ExecuteBatch("stream", payload=[1, 2], sampling=TOKENS)) as stream:
                assert [chunk.index async for chunk in stream] == list(range(8))


@program
async def far() -> None:
    """A device worker over SSH, with a fork server there."""
    with serving(Path(mkdtemp(dir=Path.cwd()))) as server:
        await _served(server.host(start="forkserver", lease=10))


@program
async def commanded() -> None:
    """A tree that the command runs, and that other commands ask and change over its socket."""
    await trio.Path("app.py").write_text(APP)
    os.environ["SUPERVISE_TOKEN"] = "0" * 32
    command = [sys.executable, "-m", "supervise"]
    ran = await trio.lowlevel.open_process(
        [*command, "run", "app.py", "--socket", "socket"], stdout=subprocess.DEVNULL
    )
    try:
        with trio.fail_after(IN_TIME):
            while not await trio.Path("ready").exists() and ran.poll() is None:  # noqa: ASYNC110 - Another process makes it.
                await trio.sleep(0.01)
            for asked in (["status"], ["restart", "app/idle", "--reason", "test"]):
                await trio.run_process([*command, *asked, "--socket", "socket"], stdout=subprocess.DEVNULL)
    finally:
        ran.terminate()
        with trio.CancelScope(shield=True):
            await ran.wait()
    if ran.returncode:
        raise RuntimeError(f"the tree ended with status {ran.returncode}")


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
                else:
                    raise ConnectionError("the tree gives no answer")
                await tree["app/idle"].restart()


async def _answered(path: str) -> bool:
    try:
        async with await trio.open_unix_socket(path) as client:
            await client.send_all(b"GET /status HTTP/1.1\r\nhost: it\r\n\r\n")
            return b" 200 " in await client.receive_some()
    except (OSError, trio.BrokenResourceError):
        return False


async def _served(host: Host, *, killed: bool = True) -> None:
    runner = Scripted(8, delay=0.002, faults=KILLED if killed else ())
    worker = device_worker("worker", runner, host=host, backoff=None)
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
