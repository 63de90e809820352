"""`runners.serve`: what can be declared, where it listens, and its command."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from functools import partial
from pathlib import Path

import openai
import pytest
import trio
from stage import worker_leaves_nothing  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.

from benchmarks.ports import free_port
from runners import InlineHost, device_worker
from runners.models.scripted import Scripted
from runners.models.torch_lm import TorchLM
from runners.serve import all_devices, main, runner_of, serve, worker
from supervise import StartFailed, Supervisor, open_tree

ROOT = Path(__file__).parents[2]


def test_what_cannot_be_served_is_refused():
    """One clear error."""
    spec = device_worker("llm", Scripted(), host=InlineHost())
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.org", ""):
        with pytest.raises(ValueError, match=r"host must be a loopback address .* unless there is a token"):
            serve({"m": spec}, host=host)
        serve({"m": spec}, host=host, token="secret")
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert isinstance(serve({"m": spec}, host=host), Supervisor)
    for wrong in ({}, {"m": "llm"}, {3: spec}):
        with pytest.raises(TypeError, match="workers"):
            serve(wrong)
    for port in (-1, 65536, "8000", True):
        with pytest.raises(ValueError, match="port"):
            serve({"m": spec}, port=port)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"token": ""}, "token must be None, or some printable ASCII characters without spaces"),
        ({"token": "a b"}, "token must be None, or some printable ASCII characters without spaces"),
        ({"token": 3}, "token must be None, or some printable ASCII characters without spaces"),
        ({"max_body": 0}, "max_body must be 1 byte or more, got 0"),
        ({"max_body": 1.5}, "max_body must be 1 byte or more, got 1.5"),
        ({"timeout": 0}, "timeout must be > 0 seconds or None, got 0"),
        ({"timeout": "3"}, "timeout must be > 0 seconds or None, got '3'"),
        ({"timeout": True}, "timeout must be > 0 seconds or None, got True"),
        ({"timeout": 10**400}, "timeout must be > 0 seconds or None, got 100000000000000000..."),
        ({"max_tokens": 0}, "max_tokens must be 1 or more, got 0"),
        ({"tokn": "x"}, "serve() got an unexpected keyword argument 'tokn'"),
    ],
)
def test_a_wrong_option_of_the_app_is_refused_where_it_is_declared(wrong, message, monkeypatch):
    """The error names it; the extra may be missing there."""
    monkeypatch.setitem(sys.modules, "runners.http", None)
    spec = device_worker("llm", Scripted(), host=InlineHost())
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        serve({"m": spec}, **wrong)


@pytest.mark.parametrize("host", ["a..b", "a\0b", "\ud800", 2130706433])
def test_a_host_that_no_name_can_be_is_refused_where_it_is_declared(host):
    """The error names it."""
    spec = device_worker("llm", Scripted(), host=InlineHost())
    with pytest.raises(ValueError, match="host must be an address, or a name that has one, got "):
        serve({"m": spec}, host=host, token="t")


@pytest.mark.trio
async def test_a_port_that_is_taken_fails_the_start():
    """The error names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        spec = device_worker("llm", Scripted(), host=InlineHost())
        with pytest.raises(
            StartFailed, match=f"cannot listen on 127.0.0.1 port {port}: {os.strerror(errno.EADDRINUSE)}"
        ):
            async with open_tree(serve({"m": spec}, port=port), sinks=[]):
                raise AssertionError


@pytest.mark.trio
async def test_over_version_6_and_by_name():
    """Of the address."""
    spec = device_worker("llm", Scripted(), host=InlineHost())
    for host, shown in (("::1", "[::1]"), ("localhost", "127.0.0.1")):
        if host == "::1" and not _has_version_6():
            continue
        async with open_tree(serve({"m": spec}, host=host, port=0), sinks=[]) as tree:
            (url,) = await tree["serve/http"].ready()
            assert url.startswith((f"http://{shown}:", "http://[::1]:"))


@pytest.mark.trio
async def test_a_name_that_takes_long_to_look_up_delays_no_other_task(monkeypatch):
    """The name of a machine may be asked of a server that does not answer."""
    turned, real = threading.Event(), socket.getaddrinfo

    def slow(host, port, *rest, **options):
        if not options.get("flags") and host == "localhost":
            assert turned.wait(20)
        return real(host, port, *rest, **options)

    async def turn():
        await trio.sleep(0.1)
        turned.set()

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    spec = device_worker("llm", Scripted(), host=InlineHost())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn)
        async with open_tree(serve({"m": spec}, host="localhost", port=0), sinks=[]) as tree:
            await tree["serve/http"].ready()


def _has_version_6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.trio
async def test_the_front_goes_on_when_a_worker_is_declared_anew():
    """R38: A restart would close the port for as long as begun requests may take."""

    def declared(**options):
        return serve({"m": device_worker("llm", Scripted(3), host=InlineHost(), **options)}, port=0)

    async with open_tree(declared()) as tree:
        urls = await tree["serve/http"].ready()
        changes = await tree.adopt(declared(queue=9, canary=50))
        assert [change.path for change in changes] == ["serve/llm/context"]
        assert await tree["serve/http"].ready() == urls
        client = openai.OpenAI(base_url=f"{urls[0]}/v1", api_key="none", max_retries=0)
        asked = await trio.to_thread.run_sync(partial(client.completions.create, model="m", prompt="x"))
        client.close()
        assert asked.usage.completion_tokens == 3


@pytest.mark.trio
async def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    """The tree can be declared all the same."""
    monkeypatch.setitem(sys.modules, "hypercorn.config", None)
    spec = device_worker("llm", Scripted(), host=InlineHost())
    with pytest.raises(StartFailed, match=r"install trio-supervise\[http\]"):
        async with open_tree(serve({"m": spec}, port=0), sinks=[]):
            raise AssertionError


def test_the_command_refuses_what_it_cannot_serve(capsys, monkeypatch):
    """One line, and the status 2."""
    monkeypatch.delenv("RUNNERS_TOKEN", raising=False)
    assert main(["--host", "0.0.0.0"]) == 2
    assert main(["/no/such/folder"]) == 2
    assert main(["x" * 300]) == 2
    assert main(["--port", "99999"]) == 2
    assert main(["--operate", "99999"]) == 2
    monkeypatch.setenv("RUNNERS_TOKEN", "")
    assert main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("runners.serve: ") for line in lines)
    assert runner_of(None) == TorchLM()


def test_a_folder_is_served_by_the_adapter_of_such_models(tmp_path, monkeypatch):
    """It is imported only then."""
    with pytest.raises(ValueError, match=r"must be an existing folder, got /.*/nope"):
        runner_of("nope")
    made = type(sys)("runners.models.transformers")
    made.TransformersLM = lambda folder: ("the model in", folder)
    monkeypatch.setitem(sys.modules, "runners.models.transformers", made)
    with pytest.raises(
        ValueError, match=r"must be a folder with a config\.json, as Transformers saves it, got /"
    ):
        runner_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert runner_of(str(tmp_path)) == ("the model in", str(tmp_path))


@pytest.mark.parametrize(
    ("there", "visible", "found"),
    [
        ([], None, ["cpu"]),
        (["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"], None, ["cuda:0", "cuda:1"]),
        (["nvidia0", "nvidia1", "nvidia2"], "2,0", ["cuda:0", "cuda:1"]),
        (["nvidia0"], "", ["cpu"]),
        (["nvidia0"], "-1", ["cpu"]),
    ],
)
def test_a_model_is_served_on_all_devices_that_are_there(there, visible, found, tmp_path, monkeypatch):
    """D12: A context for each that torch would see; and for those that are named, if some are."""
    for name in there:
        (tmp_path / name).touch()
    monkeypatch.setattr("runners.serve.Path", lambda _: tmp_path)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert all_devices() == found
    several = worker("llm", Scripted(), devices=["cuda:3", "cuda:4,5"])
    assert [child.name for child in several.children] == ["context-0", "context-1"]


PROMPTS, TOKENS = 16, 240
"""So many that the answer is not complete before its program is interrupted."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["-m", "runners.serve", "--port", "0", "--operate"], ["-m", "supervise", "run", "page.py", "--port"]],
    ids=["serve", "supervise"],
)
def test_the_command_serves_until_it_is_interrupted(command, tmp_path):
    """A Ctrl-C in mid-stream ends it in order; with nothing begun it ends at once. Metrics have a port of their own."""
    operated = free_port()
    (tmp_path / "page.py").write_text(
        "from runners.models.torch_lm import TorchLM\n"
        "from runners.serve import serve, worker\n"
        "tree = serve({'torch-lm': worker('llm', TorchLM())}, port=0)\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-u", *command, str(operated)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with program:
        lines = []
        for line in program.stderr:
            lines.append(line)
            if "Running on " in line:
                break
        url = lines[-1].split("Running on ")[1].split()[0]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = client.completions.create(
                model="torch-lm", prompt=["The "] * PROMPTS, max_tokens=TOKENS, stream=True
            )
            text = next(stream).choices[0].text
            with urllib.request.urlopen(f"http://127.0.0.1:{operated}/metrics", timeout=20) as answer:
                assert re.search(rb'runners_places{path="serve/llm",state="open"} [1-9]', answer.read())
            program.send_signal(signal.SIGINT)
            text += "".join(chunk.choices[0].text for chunk in stream)
        assert len(text) == PROMPTS * TOKENS
        assert program.wait(25) == 0, program.stderr.read()  # and not after its drain of 30 s
