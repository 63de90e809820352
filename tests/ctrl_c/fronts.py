"""Trees that answer requests over HTTP, as programs like those of `devices`: the client is in the same run."""

from __future__ import annotations

import json
import tempfile

import trio

from runners import ThreadHost, device_worker
from runners.models.scripted import Scripted
from runners.serve import serve
from supervise import Child, Supervisor
from supervise.operate import operate

from .verdict import Program, Scene

TOKEN = "for-the-tests-of-ctrl-c"


async def operated(scene: Scene) -> None:
    """At a socket and at a port: looks, a change, and events that are followed."""
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/socket"
        other = Child("other", trio.sleep_forever)
        spec = Supervisor("app", [operate(socket, token=TOKEN), operate(port=0, name="port"), other])
        async with scene.tree(spec) as tree:
            url = await tree["app/port"].ready()
            for path in ("/status", "/why/app/other", "/stack/app/other"):
                assert (await _asked(socket, path)).startswith(b"HTTP/1.1 200")
            assert b" 200 " in await _asked(socket, "/restart/app/other", {"reason": "a test"})
            await _asked(socket, "/events?follow=1", leaves=True)
            for path in ("/", "/metrics", "/readyz"):
                assert (await _asked(url, path)).startswith(b"HTTP/1.1 200")


async def served(scene: Scene) -> None:
    """OpenAI's API: an answer, a refusal, two streams, one of them left."""
    worker = device_worker("llm", Scripted(8, delay=0.002), host=ThreadHost())
    async with scene.tree(Supervisor("app", [serve({"m": worker}, port=0)])) as tree:
        (url,) = await tree["app/serve/http"].ready()
        two = {"model": "m", "prompt": ["a", "b"], "max_tokens": 4}
        assert (await _asked(url, "/health")).startswith(b"HTTP/1.1 200")
        assert (await _asked(url, "/v1/completions", two)).startswith(b"HTTP/1.1 200")
        assert (await _asked(url, "/v1/completions", {"model": "m"})).startswith(b"HTTP/1.1 400")
        assert b"[DONE]" in await _asked(url, "/v1/completions", {**two, "stream": True})
        await _asked(url, "/v1/completions", {**two, "stream": True}, leaves=True)


async def _asked(where: str, path: str, body: object = None, *, leaves: bool = False) -> bytes:
    """The answer as it comes over the wire, or its first part if the client `leaves` then.

    Not by httpx: a KeyboardInterrupt in its user leaves its generators open, and that would be reported.
    """
    host, _, port = where.removeprefix("http://").rpartition(":")
    is_port = port.isdigit()
    # Not by `trio.open_tcp_stream`, which has a nursery.
    with trio.socket.socket(trio.socket.AF_INET if is_port else trio.socket.AF_UNIX) as connection:
        await connection.connect((host, int(port)) if is_port else where)
        content = b"" if body is None else json.dumps(body).encode()
        head = [
            f"{'GET' if body is None else 'POST'} {path} HTTP/1.1",
            "host: localhost",
            "connection: close",
            f"authorization: Bearer {TOKEN}",
            "content-type: application/json",
            f"content-length: {len(content)}",
        ]
        await connection.send("\r\n".join([*head, "", ""]).encode() + content)
        answer = b""
        while part := await connection.recv(65_536):
            answer += part
            if leaves:
                break
        return answer


FRONTS: dict[str, Program] = {"operated": operated, "served": served}
