"""`runners.serve`: real sockets, real processes, OpenAI's client and curl."""

import json
import shutil
import socket
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import openai
import pytest
import trio
from stage import strike, until, worker_leaves_nothing  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
from talkers import Talking

import runners.serve
from runners import InlineHost, ProcessHost, device_worker
from runners.http import gate
from runners.models.scripted import Fault, Scripted
from runners.serve import serve
from supervise import events, open_tree

JSON = {"content-type": "application/json"}


class Scene:
    def __init__(self, tree, url, seen):
        self.tree = tree
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.seen = seen

    @property
    def front(self):
        return self.tree["serve/http"]

    @property
    def worker(self):
        return self.tree["serve/llm"]

    @property
    def context(self):
        return self.worker.status().children[0]

    async def connect(self):
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def refused(self):
        """Whether the port is closed."""
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        except OSError:
            return True
        await stream.aclose()
        return False

    def client(self, **options):
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})


@asynccontextmanager
async def serving(runner, *, host=None, worker_options=None, patience=120, **options):
    spec = device_worker(
        "llm", runner, host=host or InlineHost(), **{"backoff": None, **(worker_options or {})}
    )
    seen = []
    with trio.fail_after(patience):
        async with open_tree(serve({"m": spec}, port=0, **options), sinks=[seen.append]) as tree:
            (url,) = await tree["serve/http"].ready()
            yield Scene(tree, url, seen)


def request(path="/v1/completions", body=None, *, method="POST", extra=()):
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: x", "content-type: application/json", *extra]
    return "\r\n".join([*lines, f"content-length: {len(data)}", "", ""]).encode() + data


async def read_until(stream, mark):
    data = b""
    while mark not in data:
        more = await stream.receive_some(65536)
        if not more:
            break
        data += more
    return data


TEXT = {"model": "m", "prompt": "x", "seed": 1, "max_tokens": 1000}


# --- with clients as people have them


async def fifty(scene, kill_while_open=None):
    """The texts of 50 streamed chats, 8 at a time."""
    texts = {}
    eight = trio.CapacityLimiter(8)

    def stream(client, number):
        parts, reasons = [], []
        with client.chat.completions.create(
            model="m",
            messages=[
                {"role": "system", "content": "The function"},
                {"role": "user", "content": f"returns {number}"},
            ],
            temperature=0.8 if number % 2 else 0,
            seed=number,
            max_tokens=150,
            stream=True,
            stream_options={"include_usage": True},
        ) as chunks:
            for chunk in chunks:
                if chunk.choices:
                    parts.append(chunk.choices[0].delta.content or "")
                    reasons.append(chunk.choices[0].finish_reason)
                else:
                    assert chunk.usage.completion_tokens == 150
        assert reasons[-1] == "length"
        assert set(reasons[:-1]) == {None}
        texts[number] = "".join(parts)

    with scene.client() as client:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(
                    lambda number=number: trio.to_thread.run_sync(stream, client, number, limiter=eight)
                )
            if kill_while_open is not None:
                nursery.start_soon(kill_while_open, lambda: len(texts) == 50)
    return texts


@pytest.mark.slow
@pytest.mark.trio
async def test_openais_client_notices_no_death_of_the_context():
    """D6: 50 streamed chats, while their context is killed twice a second: each text is whole, and that of an unhurt run."""
    killed = 0

    async def killing(over):
        nonlocal killed
        while not over():
            await scene.worker.ready()
            enough = scene.context.handled + 100
            await trio.sleep(0.5)
            while not over() and scene.context.handled < enough:  # noqa: ASYNC110 - the condition has no event
                await trio.sleep(0.002)
            if not over():
                state = await strike(scene.worker)
                killed += 1
                while scene.context.incarnation == state.incarnation:  # noqa: ASYNC110 - likewise
                    await trio.sleep(0.002)

    options = {"limit": None}
    host = ProcessHost("cpu", standby=1)
    async with serving(Talking(), host=host, worker_options=options, patience=600) as scene:
        unhurt = await fifty(scene)
        assert len(set(unhurt.values())) > 25
        assert await fifty(scene, killing) == unhurt
        assert killed  # how often depends on the machine
        assert scene.context.incarnation == killed + 1


@pytest.mark.trio
async def test_openais_client_gets_each_kind_of_answer_and_error():
    """Its own classes, of answers and of errors."""
    async with serving(Scripted(8), token="secret") as scene:

        def use():
            with scene.client(api_key="secret") as client:
                assert [model.id for model in client.models.list()] == ["m"]
                assert client.models.retrieve("m").owned_by == "trio-supervise"
                chat = client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "x"}], max_completion_tokens=3, seed=1
                )
                assert len(chat.choices[0].message.content) == 3
                assert chat.choices[0].finish_reason == "length"
                assert chat._request_id == chat.id
                text = client.completions.create(model="m", prompt=["a", "b"], seed=1)
                assert [len(choice.text) for choice in text.choices] == [8, 8]
                with pytest.raises(openai.NotFoundError) as missing:
                    client.completions.create(model="y", prompt="x")
                assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
                with pytest.raises(openai.BadRequestError, match="unrecognized"):
                    client.completions.create(model="m", prompt="x", extra_body={"temprature": 1})
            with scene.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
                client.models.list()

        await trio.to_thread.run_sync(use)


@pytest.mark.trio
async def test_openais_client_raises_what_ends_a_begun_stream():
    """And does not send again what it must not, although the status is 500."""
    async with serving(
        Scripted(8, faults=(Fault("error", at_token=3), Fault("error", at_token=0, model="n")))
    ) as scene:

        def use():
            with scene.client(max_retries=2) as client:
                with (
                    client.completions.create(**TEXT, stream=True) as stream,
                    pytest.raises(openai.APIError) as raised,
                ):
                    parts = list(stream)
                    raise AssertionError(parts)
                assert raised.value.code == "runner_error"
                before = time.monotonic()
                with pytest.raises(openai.InternalServerError) as failed:
                    client.completions.create(**TEXT)
                assert failed.value.code == "runner_error"
                return time.monotonic() - before

        handled = scene.context.handled
        await trio.to_thread.run_sync(use)
        taken = [event for event in scene.seen if isinstance(event, events.Failed)]
        assert taken == []
        # Two requests were taken, and three tokens were put into each of their streams.
        assert scene.context.handled - handled == 8


@pytest.mark.trio
async def test_curl():
    """Whole and streamed, as the page for users shows it."""
    if shutil.which("curl") is None:
        pytest.skip("this machine has no curl")
    async with serving(Scripted(8)) as scene:

        async def curl(*arguments):
            command = ["curl", "-sS", "-N", "-w", "\n%{http_code}", *arguments]
            done = await trio.run_process(command, capture_stdout=True)
            body, _, status = done.stdout.decode().rpartition("\n")
            return int(status), body

        body = ["-H", "content-type: application/json", "-d", json.dumps({**TEXT, "stream": True})]
        status, streamed = await curl(f"{scene.url}/v1/completions", *body)
        assert status == 200
        assert streamed.endswith("data: [DONE]\n\n")
        assert await curl(f"{scene.url}/health") == (200, '{"status":"ok","workers":{"m":"up"}}')
        status, refused = await curl(f"{scene.url}/v1/completions", "-d", json.dumps(TEXT))
        assert (status, "application/json" in refused) == (415, True)
        large = json.dumps({**TEXT, "prompt": "x" * 9_000_000}).encode()
        discard = ["-o", "/dev/null", "-w", "%{http_code}", *body[:2], "--data-binary", "@-"]
        done = await trio.run_process(
            ["curl", "-sS", *discard, f"{scene.url}/v1/completions"],
            stdin=large,
            capture_stdout=True,
            check=False,  # curl may report that it could not send all of it
        )
        assert done.stdout == b"413"


# --- Hypercorn, as the front uses it


@pytest.mark.trio
async def test_a_client_that_hangs_up_frees_its_place():
    """F18: Over a real socket."""
    async with serving(Scripted(10_000, delay=0.01, streams=1)) as scene:
        stream = await scene.connect()
        await stream.send_all(request(body={**TEXT, "stream": True}))
        assert b"data: " in await read_until(stream, b"data: ")
        await stream.aclose()
        async with await scene.connect() as other:
            await other.send_all(request(body={**TEXT, "max_tokens": 3}))
            assert b"200" in await read_until(other, b"\r\n")


@pytest.mark.slow
@pytest.mark.trio
async def test_a_refused_body_leaves_no_connection(monkeypatch):
    """Hypercorn has what came of the body in hand; an app that takes none of it would block the connection for ever."""
    monkeypatch.setattr(
        "hypercorn.config.Config.max_app_queue_size", 1
    )  # so that it is full whatever the schedule
    monkeypatch.setattr(gate, "LINGER_SECONDS", 0.05)
    entitled = ("authorization: Bearer secret",)
    async with serving(Scripted(), token="secret", max_body=1000, drain=0.1) as scene:
        for path, extra in (("/v1/x", ()), ("/health", ()), ("/v1/completions", entitled)) * 3:
            for body in (b"x" * 1_000_000, b"1\r\nx\r\n" * 10_000):
                length = b"transfer-encoding: chunked" if body[:1] == b"1" else b"content-length: 50000000"
                head = request(path, extra=extra).replace(b"content-length: 0", length)
                stream = await scene.connect()
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(head + body)
                    await read_until(stream, b"nothing")
                await stream.aclose()
        await until(lambda: not connections(scene.port))


@pytest.mark.trio
async def test_a_client_that_sends_its_whole_body_first_gets_the_refusal():
    """A connection that is closed with unread bytes is reset, and what was sent to it may be lost."""
    async with serving(Scripted(), max_body=1000) as scene:
        for _ in range(10):
            head = request("/v1/completions").replace(b"content-length: 0", b"content-length: 20000000")
            stream = await scene.connect()
            with trio.fail_after(60):
                await stream.send_all(head + b"x" * 20_000_000)
                assert b"413" in await read_until(stream, b"body_too_large")
            await stream.aclose()


def connections(port):
    """The connections of this process at a port: those on the side of the server."""
    ours = links("self")
    return [inode for inode in sockets(port, listening=False) if f"socket:[{inode}]" in ours]


def sockets(port, *, listening):
    """The inodes of the sockets that listen at a port, or of the connections there."""
    lines = map(str.split, Path("/proc/self/net/tcp").read_text().splitlines()[1:])
    return {line[9] for line in lines if line[1].endswith(f":{port:04X}") and (line[3] == "0A") == listening}


def links(pid):
    """What the descriptors of a process are open on."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the one with which this folder is read
            found.add(str(fd.readlink()))
    return found


WEBSOCKET = (
    b"GET /v1/models HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"


@pytest.mark.trio
@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(WEBSOCKET * 2, id="two handshakes"),
        pytest.param(
            HTTP_2 + b"\0\0\x09\x01\5\0\0\0\1\x82\x86\x04\x02/\xff\x41\x01x", id="a path of odd bytes"
        ),
    ],
)
async def test_a_client_that_breaks_the_protocol_ends_its_connection_alone(sent):
    """Hypercorn raises for such a client. The streams of others go on."""
    async with serving(Scripted(50, delay=0.01), drain=60) as scene, await scene.connect() as busy:
        await busy.send_all(request(body={**TEXT, "stream": True}))
        begun = await read_until(busy, b"data: ")
        async with await scene.connect() as stream:
            await stream.send_all(sent)
            await read_until(stream, b"nothing")
        begun += await read_until(busy, b"[DONE]")
        assert begun.count(b"data: ") == 51
        assert scene.front.status().incarnation == 1


@pytest.mark.trio
async def test_clients_leave_files_for_the_contexts(monkeypatch):
    """Further ones wait until another connection has ended."""
    monkeypatch.setattr("supervise.operate.connections.share_of_files", lambda _: 2)
    async with serving(Scripted(8), drain=0.1) as scene:
        streams = [await scene.connect() for _ in range(3)]
        for stream in streams:
            await stream.send_all(request("/health", method="GET"))
        for stream in streams[:2]:
            assert b'"ok"' in await read_until(stream, b'"up"}}')
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert len(connections(scene.port)) == 2
        await streams[0].aclose()
        assert b'"ok"' in await read_until(streams[2], b'"up"}}')
        for stream in streams[1:]:
            await stream.aclose()


@pytest.mark.trio
async def test_a_connection_serves_many_requests():
    """Also after one that was refused."""
    async with serving(Scripted(8)) as scene, await scene.connect() as stream:
        for number in range(20):
            wrong = number % 2
            await stream.send_all(request(body={**TEXT, "n": 1 + wrong}))
            assert await stream.receive_some(65536) != b""
            assert wrong in (0, 1)
            await stream.send_all(request("/health", method="GET"))
            assert b'"ok"' in await read_until(stream, b'"up"}}')


@pytest.mark.trio
async def test_a_connection_that_is_idle_after_a_request_is_closed(monkeypatch):
    """Hypercorn begins to count inside the last `send` of an answer, which must not be cancelled there."""
    monkeypatch.setattr("hypercorn.config.Config.keep_alive_timeout", 0.1)
    async with serving(Scripted(8)) as scene, await scene.connect() as stream:
        await stream.send_all(request("/health", method="GET"))
        await read_until(stream, b'"up"}}')
        with trio.fail_after(60):
            assert await stream.receive_some(100) == b""


@pytest.mark.slow
@pytest.mark.trio
async def test_begun_streams_get_time_to_finish():
    """The port is closed at once, and idle connections; a begun stream is finished, and then the worker stops."""
    async with serving(Scripted(100, delay=0.01)) as scene:
        idle, busy = await scene.connect(), await scene.connect()
        await idle.send_all(request("/health", method="GET"))
        await read_until(idle, b'"up"}}')
        await busy.send_all(request(body={**TEXT, "stream": True}))
        begun = await read_until(busy, b"data: ")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.tree.root.stop)
            assert await idle.receive_some(100) == b""
            assert await scene.refused()
            begun += await read_until(busy, b"[DONE]")
            begun += await read_until(busy, b"nothing")
            assert begun.count(b"data: ") == 101
            assert begun.endswith(b"0\r\n\r\n")
        await idle.aclose()
        await busy.aclose()


HEAD = request(body=TEXT)


@pytest.mark.slow
@pytest.mark.trio
@pytest.mark.parametrize("sent", [b"", HEAD[:30], HEAD[:-10]], ids=["nothing", "half a head", "half a body"])
async def test_what_has_not_arrived_does_not_delay_a_stop(sent):
    """Only a request whose body is there has begun."""
    async with serving(Scripted(8), drain=60) as scene, await scene.connect() as stream:
        await stream.send_all(sent)
        await trio.testing.wait_all_tasks_blocked(0.1)  # the server has read it
        before = trio.current_time()
        await scene.tree.root.stop()
        assert trio.current_time() - before < 45
        with suppress(trio.BrokenResourceError):
            answer = await read_until(stream, b"nothing")
            assert (b"worker_stopping" in answer) == (sent == HEAD[:-10])


@pytest.mark.trio
async def test_a_stream_that_needs_longer_is_cut_off():
    """Its client can tell, since neither the last event nor the last piece of the body comes."""
    async with serving(Scripted(10_000, delay=0.01), drain=0.2) as scene, await scene.connect() as busy:
        await busy.send_all(request(body={**TEXT, "max_tokens": 10_000, "stream": True}))
        await read_until(busy, b"data: ")
        before = trio.current_time()
        await scene.tree.root.stop()
        assert 0.15 < trio.current_time() - before < 60
        with suppress(trio.BrokenResourceError):
            rest = await read_until(busy, b"nothing")
            assert b"[DONE]" not in rest
            assert not rest.endswith(b"0\r\n\r\n")
    assert scene.seen[-1].path == "serve"


@pytest.mark.slow
@pytest.mark.trio
async def test_a_client_that_reads_nothing_does_not_keep_the_front(monkeypatch):
    """Hypercorn shields what it sends from being cancelled; the system ends such a connection."""
    monkeypatch.setattr(runners.serve, "STALLED_SECONDS", 1)
    worker = Scripted(2000)
    async with serving(worker, drain=0.1) as scene:
        stalled = await scene.connect()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = {**TEXT, "prompt": ["x"] * 100, "max_tokens": 2000, "stream": True}
        await stalled.send_all(request(body=body))
        before = 0
        while scene.context.handled > before or not before:  # until the buffers on the way are full
            before = scene.context.handled
            await trio.sleep(1)
        assert before < 100 * 2000
        with trio.move_on_after(60) as late:
            await scene.tree.root.stop()
        await stalled.aclose()
    assert not late.cancelled_caught


@pytest.mark.trio
@pytest.mark.parametrize("way", ["restart", "fail"])
async def test_a_front_that_is_restarted_listens_again(way):
    """Its port is free for its successor; its connections end, and the worker serves on."""
    async with serving(Scripted(10_000, delay=0.01), drain=0.1) as scene:
        busy = await scene.connect()
        await busy.send_all(request(body={**TEXT, "stream": True}))
        await read_until(busy, b"data: ")
        port = scene.port
        if way == "restart":
            await scene.front.restart()
        else:
            scene.front.inject(RuntimeError("a bug"))
            await until(lambda: scene.front.status().incarnation == 2)
        with suppress(trio.BrokenResourceError):
            await read_until(busy, b"nothing")
        await busy.aclose()
        (url,) = await scene.front.ready()
        async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
            await stream.send_all(request("/health", method="GET"))
            assert b'"ok"' in await read_until(stream, b'"up"}}')
        assert scene.context.incarnation == 1
        assert port > 0


@pytest.mark.trio
async def test_a_bug_while_answering_ends_its_connection_alone(monkeypatch, caplog):
    """It is logged, and the client gets 500."""
    async with serving(Scripted(8)) as scene:
        monkeypatch.setattr("runners.http.shape.Text.whole", lambda *_: 1 / 0)
        async with await scene.connect() as stream:
            await stream.send_all(request(body=TEXT))
            assert b"server_error" in await read_until(stream, b"server_error")
        async with await scene.connect() as stream:
            await stream.send_all(request("/health", method="GET"))
            assert b'"ok"' in await read_until(stream, b'"up"}}')
        assert "ZeroDivisionError" in caplog.text
