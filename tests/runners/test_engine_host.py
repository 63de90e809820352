"""`EngineHost`: an engine of two processes as vLLM has them, which are killed and stopped under open streams (D17)."""

import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
import trio
from engines import letters, sums
from stage import (
    Caller,
    kill,
    serving,
    until,
    worker_leaves_nothing,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
)

from runners import EngineHost, ExecuteBatch, InlineHost, OpenAIModel, Sampling, TorchLM, device_worker
from runners.diagnosis.nvml import Nvml
from runners.errors import (
    ContextDied,
    ContextHung,
    ContextLost,
    NetworkError,
    ServerError,
    Unrecoverable,
    WorkerDown,
)
from supervise import Backoff, Child, open_tree
from supervise.events import Failed
from supervise.programs import Command, every, http, line
from supervise.programs.guardian import below

pytest.importorskip("httpx2", reason="needs trio-supervise[openai]: httpx2 is not installed")

ENGINES = str(Path(__file__).with_name("engines.py"))
PATIENCE = 60
NEXT = 4.0
"""Seconds for a further token. A busy machine may need some of them."""


def command(*argv, name="engine", **options):
    return Command(name, [sys.executable, *argv], **options)


def engine(model="sums", *struck):
    """Streams of this engine are slow behind a few tokens until the file `struck` is there, if one is given."""
    return EngineHost(command(ENGINES, "{port}", model, *map(str, struck)), load_timeout=PATIENCE)


def model(**options):
    times = {"first_chunk_timeout": 2 * NEXT, "next_chunk_timeout": NEXT}
    return OpenAIModel("http://127.0.0.1:{port}/v1", "m", **{"token_ids": True, **times, **options})


def request(name, ids=(1, 2, 3), most=60, **options):
    return ExecuteBatch(
        name, payload=list(ids), sampling=Sampling(max_tokens=most, temperature=0, seed=1), **options
    )


class Processes:
    """The server and the worker of an engine."""

    def __init__(self, pid):
        self.server = pid
        (self.worker,) = [each for each in below(pid) if "worker" in _argv(each)]
        self.port = int(_argv(pid)[2])

    def living(self):
        return list(filter(exists, (self.server, self.worker)))

    def assert_gone(self):
        """Both have ended and been reaped, and nothing listens at their port."""
        assert self.living() == []
        with socket.socket() as one:
            # Connections in TIME_WAIT have no process.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", self.port))


def exists(pid):
    return Path(f"/proc/{pid}").exists()


def _argv(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


async def health(port):
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        return int((await stream.receive_some(100)).split()[1])


FAULTS = {
    "the server is killed": (
        "server",
        signal.SIGKILL,
        ContextDied,
        r"engine 'engine' \(pid \d+\) was killed by SIGKILL",
    ),
    "the worker is killed": (
        "worker",
        signal.SIGKILL,
        ContextDied,
        "has failed: HTTP 500: EngineCore encountered an issue; and then",
    ),
    "the worker is stopped": ("worker", signal.SIGSTOP, ContextHung, r"has given no token for \d"),
    "the server is stopped": ("server", signal.SIGSTOP, ContextHung, r"has given no token for \d"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.trio
async def test_streams_go_on_in_the_next_engine(fault, tmp_path):
    """D6, D17: Each has the tokens of an undisturbed run; the next engine starts when no process of the last one is left."""
    whom, number, kind, text = FAULTS[fault]
    file = tmp_path / "struck"
    async with serving(model(), host=engine("sums", file), limit=None, patience=PATIENCE) as scene:
        first = Processes((await scene.incarnation(1)).pid)
        struck, seen = trio.Event(), []

        def look(chunk):
            if chunk.incarnation == 1 and chunk.index == 20 and not struck.is_set():
                struck.set()
                os.kill(getattr(first, whom), number)
                file.touch()
            if chunk.incarnation == 2 and not seen:
                seen.append(first.living())

        callers = [Caller(request(f"{each}", [each, 5], 40 + each), look) for each in range(8)]
        async with trio.open_nursery() as nursery:
            for caller in callers:
                nursery.start_soon(caller.run, scene.worker)
            await struck.wait()
            if fault == "the worker is stopped":
                await trio.sleep(NEXT / 2)
                assert await health(first.port) == 200
        for each, caller in enumerate(callers):
            assert caller.error is None
            assert caller.ids == sums([each, 5], 40 + each)
            assert caller.text == letters(caller.ids)
            assert caller.incarnations() <= {1, 2}
        assert any(caller.incarnations() == {1, 2} for caller in callers)
        assert seen == [[]]
        (failed,) = scene.of(Failed)
        assert type(failed.exc) is kind
        assert re.search(text, str(failed.exc))
        first.assert_gone()
        second = Processes((await scene.worker.ready()).pid)
    second.assert_gone()


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["server", "worker"])
@pytest.mark.trio
async def test_a_language_model_goes_on_as_if_undisturbed(whom, tmp_path):
    """D6, D17: The reference is the same model without a server."""
    requests = [request(f"{each}", [10, 20, 30 + each], 60) for each in range(4)]
    plain, expected = device_worker("plain", TorchLM(), host=InlineHost()), {}
    async with open_tree(plain, sinks=[]) as tree:
        for each in requests:
            expected[each.request_id] = (await tree[plain].call(each)).token_ids
    struck = tmp_path / "struck"
    host = engine("torch-lm", struck)
    async with serving(model(), host=host, limit=None, patience=2 * PATIENCE) as scene:

        def look(chunk):
            if chunk.index == 25 and not struck.exists():
                kill(getattr(processes, whom))
                struck.touch()

        processes = Processes((await scene.worker.ready()).pid)
        callers = [Caller(each, look) for each in requests]
        async with trio.open_nursery() as nursery:
            for caller in callers:
                nursery.start_soon(caller.run, scene.worker)
        assert {caller.request.request_id: caller.ids for caller in callers} == expected
        assert scene.context.incarnation == 2
    processes.assert_gone()


@pytest.mark.slow
@pytest.mark.trio
async def test_an_engine_that_ends_with_status_0_has_died():
    """D17: Its worker is killed while it is idle, and it closes in good order. The failure has the last lines that it wrote."""
    async with serving(model(), host=engine(), limit=None, patience=PATIENCE) as scene:
        first = Processes((await scene.incarnation(1)).pid)
        kill(first.worker)
        state = await scene.incarnation(2)
        assert state.pid != first.server
        (failed,) = scene.of(Failed)
        assert type(failed.exc) is ContextDied
        assert str(failed.exc) == f"engine 'engine' (pid {first.server}) exited with status 0"
        assert "the worker is dead" in failed.exc.__notes__[0]
        first.assert_gone()
        assert (await scene.worker.call(request("a"))).token_ids == sums([1, 2, 3], 60)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_canary_finds_an_idle_engine_that_hangs():
    """D9: `/health` answers all the time, but a canary gets no token."""
    async with serving(
        model(first_chunk_timeout=NEXT), host=engine(), limit=None, canary=0.2, patience=PATIENCE
    ) as scene:
        first = Processes((await scene.incarnation(1)).pid)
        await trio.sleep(1)  # several canaries, which are answered
        assert scene.context.incarnation == 1
        os.kill(first.worker, signal.SIGSTOP)
        assert await health(first.port) == 200
        await scene.incarnation(2)
        assert [type(event.exc) for event in scene.of(Failed)] == [ContextHung]
        first.assert_gone()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "error"), [("fail", ServerError), ("break", NetworkError), ("long", NetworkError)]
)
@pytest.mark.trio
async def test_a_request_that_fails_alone_costs_no_context(prompt, error, tmp_path):
    """D5, D17: The engine still gives tokens, so an error event, or a stream that ends early, is that of its request."""
    failed = tmp_path / "failed"
    async with serving(model(), host=engine("sums", failed), patience=PATIENCE) as scene:
        beside = Caller(request("beside", most=150))
        async with trio.open_nursery() as nursery:
            await nursery.start(beside.run, scene.worker)
            for number in range(2):
                with pytest.raises(NetworkError) as raised:
                    await scene.worker.call(ExecuteBatch(f"{number}", prompt))
                assert type(raised.value) is error
            assert not beside.over.is_set()
            failed.touch()
        assert beside.ids == sums([1, 2, 3], 150)
        assert scene.context.incarnation == 1
        assert scene.of(Failed) == []


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.trio
async def test_a_stream_that_another_request_interrupts_is_no_short_answer(streams):
    """D5, D17: It is an error of its request, and costs no context. With one stream at a time none is interrupted."""
    host = EngineHost(command(ENGINES, "{port}", "sums", "interrupts"), load_timeout=PATIENCE)
    async with serving(model(streams=streams), host=host, patience=PATIENCE) as scene:
        callers = [Caller(request(f"{each}", [each])) for each in range(4)]
        async with trio.open_nursery() as nursery:
            for caller in callers:
                nursery.start_soon(caller.run, scene.worker)
        interrupted = [caller.error for caller in callers if caller.error is not None]
        assert bool(interrupted) == (streams > 1)
        for error in interrupted:
            assert type(error) is NetworkError
            assert "ended the stream without a finish reason" in str(error)
        for each, caller in enumerate(callers):
            assert caller.error is not None or caller.ids == sums([each], 60)
        assert (await scene.worker.call(request("after"))).token_ids == sums([1, 2, 3], 60)
        assert scene.context.incarnation == 1


@pytest.mark.slow
@pytest.mark.trio
async def test_a_stream_of_text_is_lost_with_its_engine():
    """D6: Without token ids it cannot continue; one that has not begun waits for the next engine."""
    async with serving(model(token_ids=False), host=engine(), limit=None, patience=PATIENCE) as scene:
        pid = (await scene.incarnation(1)).pid
        with pytest.raises(ContextLost):
            async with scene.worker.stream(request("begun", most=10_000)) as chunks:
                async for chunk in chunks:
                    if chunk.index == 5:
                        kill(pid)
        assert (await scene.worker.call(request("waits"))).text == letters(sums([1, 2, 3], 60))


@pytest.mark.slow
@pytest.mark.trio
async def test_two_engines_serve_one_queue(tmp_path):
    """D12: Each has a port of its own, and another engine continues the streams of one that was killed."""
    struck = tmp_path / "struck"
    hosts = [engine("sums", struck), engine("sums", struck)]
    async with serving(model(), host=None, hosts=hosts, patience=PATIENCE) as scene:
        paths = [f"app/llm/context-{number}/context" for number in range(2)]
        engines = [Processes((await scene.tree[path].ready()).pid) for path in paths]
        assert engines[0].port != engines[1].port

        def look(chunk):
            if chunk.index == 15 and not struck.exists():
                kill(engines[0].server)
                struck.touch()

        callers = [Caller(request(f"{each}", [each]), look) for each in range(8)]
        async with trio.open_nursery() as nursery:
            for caller in callers:
                nursery.start_soon(caller.run, scene.worker)
        for each, caller in enumerate(callers):
            assert caller.error is None
            assert caller.ids == sums([each], 60)
    for each in engines:
        each.assert_gone()


def _killed(pid):
    """Kill a process, and return when it is dead; no task runs meanwhile."""
    os.kill(pid, signal.SIGKILL)
    with suppress(FileNotFoundError, ProcessLookupError):
        while ") Z " not in Path(f"/proc/{pid}/stat").read_text():
            time.sleep(0.001)


@pytest.mark.trio
async def test_an_engine_that_is_dead_already_takes_no_stream():
    """D6: Two engines that are killed at once are noticed one after the other, and a stream of the first must not be convicted."""
    with trio.fail_after(PATIENCE), pytest.raises(ContextDied, match="was killed by SIGKILL"):
        async with engine().open(model()) as session:
            session.begin(request("taken"), confirm=True)
            _killed(session.pid)
            session.begin(request("late"), confirm=True)
            assert session.has_taken("taken")
            assert not session.has_taken("late")
            while True:
                await session.receive()


# --- the end

SAYS = """
import json, os, signal, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
def left(*_):
    open(sys.argv[2], "w").close()
    os._exit(0)
signal.signal(signal.SIGTERM, left)
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200); self.send_header("content-type", "text/event-stream"); self.end_headers()
        event = {"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]}
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")
    def log_message(self, *_): pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.parametrize("poisoned", [False, True])
@pytest.mark.trio
async def test_an_engine_is_stopped_in_order_but_killed_after_a_failure(tmp_path, poisoned):
    """D17: A stop takes the steps of its command; a failed engine is killed at once."""
    file = tmp_path / "left"
    host = EngineHost(command("-c", SAYS, "{port}", str(file)))
    async with serving(model(token_ids=False), host=host, patience=PATIENCE) as scene:
        state = await scene.incarnation(1)
        if poisoned:
            from runners import report_poison

            report_poison(scene.worker, "a test", 1)
            await scene.incarnation(2)
            assert not file.exists()
        assert not file.exists()
    assert file.exists()
    assert not exists(state.pid)


OPENED = """
import sys, trio
from runners import EngineHost, OpenAIModel
from supervise.programs import Command
async def main():
    host = EngineHost(Command("engine", [sys.executable, sys.argv[1], "{port}", "sums"]))
    async with host.open(OpenAIModel("http://127.0.0.1:{port}/v1", "m")) as session:
        print(session.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


@pytest.mark.slow
def test_a_killed_parent_leaves_no_engine():
    """D10, D17: Its guardian ends all its processes, also the worker in a session of its own."""
    command_line = [sys.executable, "-c", OPENED, ENGINES]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True) as parent:
        processes = Processes(int(parent.stdout.readline()))
        parent.kill()
    end = time.monotonic() + PATIENCE
    while processes.living() and time.monotonic() < end:
        time.sleep(0.01)
    processes.assert_gone()


@pytest.mark.trio
async def test_nvml_is_asked_about_the_device_of_a_dead_engine():
    """D4: If it cannot be used again, no other engine is started on it."""
    from test_nvml import Fake

    host = attrs.evolve(
        EngineHost(command("-c", SAYS, "{port}", "/dev/null")), device="cuda:0", nvml=Nvml(module=Fake(1))
    )
    async with serving(model(token_ids=False), host=host, patience=PATIENCE) as scene:
        state = await scene.incarnation(1)
        kill(state.pid)
        await until(lambda: scene.of(Failed))
        assert type(scene.of(Failed)[0].exc) is Unrecoverable
        assert "cuda:0 cannot be used again: it needs a reset of the device" in str(scene.of(Failed)[0].exc)
        with pytest.raises(WorkerDown):
            await scene.worker.call(request("a"))
        assert scene.context.incarnation == 1


# --- what is refused


@attrs.frozen
class Elsewhere:
    """A runner spec without a text for the port."""

    url: str = "http://127.0.0.1:8000"

    def build(self, start):
        raise AssertionError


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: EngineHost("vllm serve"), TypeError, r"command must be a Command\(…\), got 'vllm serve'"),
        (
            lambda: EngineHost(Child("a", trio.sleep_forever)),
            TypeError,
            r"command must be a Command\(…\), got",
        ),
        (
            lambda: EngineHost(command("--port", "8000")),
            ValueError,
            r"must have \{port\} in its arguments or env",
        ),
        (
            lambda: EngineHost(command("{port}", ready=http("http://127.0.0.1/health"))),
            ValueError,
            "must not have ready: an engine is ready when it has given one token",
        ),
        (lambda: EngineHost(command("{port}", ready=line("up"))), ValueError, "must not have ready: "),
        (
            lambda: EngineHost(command("{port}", ready_timeout=90)),
            ValueError,
            "ready_timeout: the host has load_timeout",
        ),
        (
            lambda: EngineHost(command("{port}", alive=every(1, http("http://127.0.0.1/health")))),
            ValueError,
            r"must not have alive: the streams show .*, and device_worker\(canary=…\) asks",
        ),
        (
            lambda: EngineHost(command("{port}", backoff=Backoff(initial=1))),
            ValueError,
            "must not have backoff: an engine is restarted and stopped by its device_worker",
        ),
        (lambda: EngineHost(command("{port}", restart="transient")), ValueError, "must not have restart: "),
        (lambda: EngineHost(command("{port}", reload=None)), ValueError, "must not have reload: "),
        (lambda: EngineHost(command("{port}"), load_timeout=0), ValueError, "load_timeout"),
        (lambda: EngineHost(command("{port}"), device="cuda:x"), ValueError, "a CUDA device is cuda, cuda:N"),
        (
            lambda: device_worker("a", OpenAIModel("http://127.0.0.1:8000/v1"), host=engine()),
            ValueError,
            r"must have \{port\} in a text, .* as in OpenAIModel\('http://127\.0\.0\.1:\{port\}/v1'\), got OpenAIModel",
        ),
        (lambda: device_worker("a", Elsewhere(), host=engine()), ValueError, r"must have \{port\} in a text"),
        (
            lambda: device_worker("a", OpenAIModel, host=engine()),
            TypeError,
            "must be a value with a build method",
        ),
        (
            lambda: device_worker("a", type("Bare", (), {"build": print})(), host=engine()),
            TypeError,
            "must be an attrs value",
        ),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_declared(make, error, text):
    """D2: One error names it."""
    with pytest.raises(error, match=text):
        make()


def test_the_port_may_stand_in_the_environment_and_other_braces_stay():
    """D17: Only `{port}` is replaced, so that an argument may be JSON."""
    host = EngineHost(command("--config", '{"a": {}}', env={"PORT": "{port}", "HOME": None}))
    program = host._program(4711)
    assert program.argv == (sys.executable, "--config", '{"a": {}}')
    assert program.env == {"PORT": "4711", "HOME": None}
    assert program.ready.port == 4711


# --- anything, at any time

STRIKES = int(os.environ.get("STRIKES", "5"))


def guardian_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
@pytest.mark.trio
async def test_every_stream_is_whole_while_engines_are_struck():
    """D6, D10, D17: Server, worker or guardian is killed or stopped, again and again; no token is lost, doubled or wrong.

    `STRIKES=100` in the environment strikes as often; the default is a short form.
    """
    chance, whole, newest = random.Random(5), [], {}
    async with serving(model(), host=engine(), limit=None, patience=PATIENCE + 10 * STRIKES) as scene:

        async def ask(number):
            for turn in itertools.count():
                ids, most = [number, turn % 50], 20 + (number + turn) % 60
                caller = Caller(
                    request(f"{number}-{turn}", ids, most),
                    lambda chunk: newest.__setitem__(number, chunk.incarnation),
                )
                await caller.run(scene.worker)
                assert caller.error is None
                assert caller.ids == sums(ids, most)
                whole.append(caller)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(ask, number)
            for strike in range(STRIKES):
                processes = Processes((await scene.incarnation(strike + 1)).pid)
                # A stream that dies twice before its first token is taken for the cause.
                await until(lambda: len(newest) == 6 and set(newest.values()) == {strike + 1})  # noqa: B023 - it is over by the next turn
                await trio.sleep(chance.random() / 5)
                whom, number = STRUCK[strike % len(STRUCK)]
                os.kill(
                    guardian_of(processes.server) if whom == "guardian" else getattr(processes, whom), number
                )
                await until(lambda: scene.context.incarnation == strike + 2)  # noqa: B023 - it is over by the next turn
                processes.assert_gone()
            await scene.worker.ready()
            nursery.cancel_scope.cancel()
        assert len(scene.of(Failed)) == STRIKES
    assert len(whole) > STRIKES


STRUCK = [
    ("guardian", signal.SIGKILL),
    ("worker", signal.SIGKILL),
    ("server", signal.SIGSTOP),
    ("server", signal.SIGKILL),
    ("worker", signal.SIGSTOP),
]
