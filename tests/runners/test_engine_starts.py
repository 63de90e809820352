"""The start of an `EngineHost`: an engine that ends, refuses or gives no token, and a port that is taken (D17)."""

import re
import socket
import subprocess
from types import SimpleNamespace

import pytest
import trio
from stage import worker_leaves_nothing  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
from test_engine_host import PATIENCE, command, model

from runners import EngineHost, InlineHost
from runners.errors import (
    BadRequest,
    ContextDied,
    ContextHung,
    DeviceError,
    LoadFailed,
    NetworkError,
    NetworkTimeout,
    ServerError,
)
from runners.hosts import RequestFailed
from runners.hosts import engine as module
from runners.types import TokenChunk
from supervise.programs import Command
from supervise.testing import run_virtual


async def failure_of(host, spec=None):
    """The failure of a start."""
    with trio.fail_after(PATIENCE), pytest.raises(DeviceError) as raised:
        async with host.open(spec or model()):
            pass
    return raised.value


BEGIN = "import http.server, sys, threading, time\n"
REFUSES = """
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response({status}); self.end_headers()
        self.wfile.write(b'{{"error": {{"message": "no such model"}}}}')
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.parametrize(
    ("text", "seconds", "kind", "says"),
    [
        (
            "print('no memory', file=sys.stderr); sys.exit(3)",
            PATIENCE,
            ContextDied,
            "exited with status 3 before it was ready: no memory$",
        ),
        pytest.param(
            "time.sleep(1000)",
            4,
            ContextHung,
            r"was not ready within 4 s: port \d+: connection refused",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            REFUSES.format(status=503),
            6,
            ContextHung,
            "has given no token within 6 s: HTTP 503: no such model",
            marks=pytest.mark.slow,
        ),
        (
            REFUSES.format(status=404),
            PATIENCE,
            LoadFailed,
            "refuses a request for one token: HTTP 404: no such model",
        ),
    ],
    ids=["it ends", "it never listens", "it is never ready", "it refuses"],
)
@pytest.mark.trio
async def test_an_engine_that_gives_no_first_token_fails(text, seconds, kind, says):
    """D17: The failure comes in time, names the engine, and has the last lines of its output."""
    error = await failure_of(EngineHost(command("-c", BEGIN + text, "{port}"), load_timeout=seconds))
    assert type(error) is kind
    assert re.search(says, str(error))
    if "stderr" in text:
        assert error.__notes__ == ["the last lines of its output:\nno memory"]


@pytest.mark.trio
async def test_a_program_that_is_not_there_is_a_failed_load():
    """D3: A restart does not install it."""
    error = await failure_of(EngineHost(Command("engine", ["/no/such/program", "{port}"])))
    assert type(error) is LoadFailed
    assert "No such file or directory" in str(error)


@pytest.mark.parametrize("lacking", [(module, "socket"), (subprocess, "Popen")], ids=["port", "process"])
@pytest.mark.trio
async def test_an_engine_that_finds_no_port_or_process_is_a_failed_load(lacking, monkeypatch):
    """D3: The system may have some again at the next start; the tree goes on."""

    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    owner, name = lacking
    monkeypatch.setattr(owner, name, SimpleNamespace(socket=refuse) if name == "socket" else refuse)
    error = await failure_of(EngineHost(command("{port}")))
    assert type(error) is LoadFailed
    assert "Resource temporarily unavailable" in str(error)


@pytest.mark.trio
async def test_a_port_that_another_process_has_taken_is_refused(monkeypatch):
    """D17: Another server at that port would answer for the engine."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(module, "_free_port", lambda: port)
        error = await failure_of(EngineHost(command("-c", "import time; time.sleep(1000)", "{port}")))
    assert type(error) is ContextHung
    assert f"port {port} is served by another process" in str(error)


class Session:
    """Gives these outcomes, one for each canary."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)

    def begin(self, canary):
        assert canary.sampling.max_tokens == 1

    async def receive(self):
        await trio.sleep(1)
        outcome = self.outcomes.pop(0) if self.outcomes else NetworkError("not yet")
        if outcome is True:
            return [
                TokenChunk(request_id="canary", index=0, text="a"),
                TokenChunk(request_id="canary", index=1, finish_reason="stop"),
            ]
        return [RequestFailed("canary", outcome)]


@pytest.mark.parametrize(
    ("outcomes", "seconds", "error"),
    [
        ([True], 1, None),
        ([NetworkError("refused"), ServerError("HTTP 503"), NetworkTimeout("slow"), True], 4.095, None),
        ([], 20, ContextHung),
        ([NetworkError("refused"), BadRequest("HTTP 404")], 2.02, LoadFailed),
    ],
)
def test_an_engine_is_ready_when_it_has_given_a_token(outcomes, seconds, error):
    """D17: Errors of the network are asked again, until the time is up; a refusal is final."""
    host = EngineHost(command("{port}"), load_timeout=20)

    class Program:
        pid = 7
        output = SimpleNamespace(note=lambda error: error.add_note("the last lines"))

    async def main():
        begun, engine = trio.current_time(), module._Engine(host)
        engine.program = Program()
        waiting = engine.until_it_works(Session(*outcomes))
        if error is None:
            await waiting
        else:
            with pytest.raises(error, match=r"engine 'engine' \(pid 7\) ") as raised:
                await waiting
            assert raised.value.__notes__ == ["the last lines"]
        assert trio.current_time() - begun == pytest.approx(seconds)

    run_virtual(main)


@pytest.mark.trio
async def test_a_url_with_a_place_for_a_port_needs_an_engine_host():
    """D2: Another host does not fill it in."""
    error = await failure_of(InlineHost())
    assert (
        str(error)
        == "url must have a port, got http://127.0.0.1:{port}/v1: only an EngineHost replaces {port}"
    )
