"""A program that the page can look at: rows and events that a test writes, served over the operating app's routes."""

import json
import os
import threading
import time
from itertools import count

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from supervise.operate.page import HEADERS, page

KEPT = 10_000
_pids = count(os.getpid())


def row(path, state="up", **fields):
    """A row of the status, with what a test does not give as it is for a leaf that runs well."""
    return {
        "path": path, "kind": "child", "state": state, "incarnation": 1, "restarts": 0, "limit": None, "allowed": None,
        "failure": None, "due": None, "mailbox": None, "handled": None, "restart": "permanent", "strategy": None,
        "front": None, "since": time.time(), "ready_at": time.time(), "failures": 0, "decision": None, **fields,
    }  # fmt: skip


class StandIn:
    """Serves on a loopback port from a thread of its own, while its `with` block runs."""

    def __init__(self, *rows, token=None, port=0):
        self.rows = {each["path"]: each for each in rows}
        self.events = []
        self.token = token
        self.port = port
        self.acts = []
        self.statuses = 0
        self.pid = next(_pids)
        self.ended = self.stopping = None

    # --- what a test does

    def emit(self, kind, path, *, text=None, at=None, **fields):
        event = {
            "v": 1,
            "time": at or time.time(),
            "at": 0.0,
            "seq": len(self.events) + 1,
            "kind": kind,
            "path": path,
        }
        event |= {"incarnation": self.rows[path]["incarnation"] if path in self.rows else 1, **fields}
        self.events.append({**event, "text": text or kind})

    def set(self, path, state, **fields):
        self.rows[path] |= {"state": state, "since": time.time(), **fields}

    def fail(self, path, exc, tag=None, directive="Restart", at=None):
        """A failure and its decision; the next incarnation is up at once."""
        at = at or time.time()
        by = path.rpartition("/")[0]
        self.emit(
            "Failed",
            path,
            text=f"failed: {exc[0]}: {exc[1]}",
            at=at,
            exc={"type": exc[0], "text": exc[1], "traceback": f"Traceback\n{exc[0]}: {exc[1]}"},
        )
        decision = {"directive": directive, "tag": tag, "by": by, "because": "table"}
        self.emit(
            "Decided",
            path,
            text=f"→ {directive}, decided by {by}",
            at=at,
            exc={"type": exc[0], "text": exc[1]},
            **decision,
        )
        here = self.rows[path]
        here |= {
            "failure": {"type": exc[0], "text": exc[1]},
            "failures": here["failures"] + 1,
            "decision": {**decision, "at": at},
        }
        self.emit("Stopped", path, at=at + 0.01)
        if directive == "Restart":
            here["incarnation"] += 1
            self.emit("Starting", path, at=at + 0.02)
            self.emit("Ready", path, text=f"running again, incarnation {here['incarnation']}", at=at + 0.2)
            here["since"] = at + 0.2

    # --- what the page asks

    def _may_act(self, request):
        return self.token is not None and request.headers.get("authorization") == f"Bearer {self.token}"

    async def _page(self, request):
        media, content = page()[request.url.path]
        return Response(content, media_type=media, headers=HEADERS)

    async def _status(self, request):
        self.statuses += 1
        return JSONResponse({
            "v": 1, "time": time.time(), "seq": len(self.events), "name": next(iter(self.rows)), "pid": self.pid,
            "acts": self._may_act(request), "nodes": list(self.rows.values()),
        })  # fmt: skip

    async def _ready(self, _request):
        waits = [
            {"path": each["path"], "state": each["state"], "why": "it is condemned"}
            for each in self.rows.values()
            if each["state"] == "condemned"
        ]
        return JSONResponse({"ready": not waits, "waits_for": waits}, 503 if waits else 200)

    async def _events(self, request):
        after = int(request.headers.get("last-event-id", request.query_params.get("after", 0)))

        async def stream():
            sent = max(after, len(self.events) - KEPT)
            if sent > after:
                yield f'event: missed\ndata: {{"missed": {sent - after}}}\n\n'
            yield ": hello\n\n"
            while True:
                if ready := self.events[sent : sent + 500]:
                    yield "".join(f"id: {each['seq']}\ndata: {json.dumps(each)}\n\n" for each in ready)
                    sent += len(ready)
                await trio.sleep(0 if ready else 0.02)

        return StreamingResponse(
            stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def _text(self, request):
        path = request.path_params["path"]
        words = {
            "why": f"{path} is as it is because <b>of</b> a rule.",
            "stack": f"the stack of {path}\n  line 1\n  line 2",
        }
        return PlainTextResponse(
            words[request.url.path.split("/")[1]] if path in self.rows else f"{path} is not here"
        )

    async def _act(self, request):
        what, path = request.url.path.split("/")[1], request.path_params["path"]
        dry = request.query_params.get("dry_run") == "1"
        if self.token is None:
            return JSONResponse({"error": "This program is read-only: it was started without a token."}, 403)
        if not self._may_act(request):
            return JSONResponse({"error": "The token is missing or wrong."}, 401)
        if path == next(iter(self.rows)):
            return JSONResponse({"error": f"The root {path!r} cannot be changed while it runs."}, 409)
        body = await request.json()
        if not dry:
            self.acts.append((what, path, body["reason"], body["who"]))
            self.emit("Stopping", path, text=f"is being stopped: {body['reason']}", reason=body["reason"])
        steps = [{"do": each, "path": path} for each in {"restart": ("stop", "start")}.get(what, (what,))]
        return JSONResponse({"path": path, "dry_run": dry, "steps": steps})

    # --- the server

    def __enter__(self):
        started = threading.Event()
        self.thread = threading.Thread(target=trio.run, args=(self._serve, started))
        self.thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_):
        self.trio_token.run_sync_soon(self.stopping.cancel)
        self.thread.join(10)

    async def _serve(self, started):
        app = Starlette(routes=[
            Route("/", self._page), Route("/page/{name}", self._page), Route("/status", self._status),
            Route("/readyz", self._ready), Route("/events", self._events),
            *(Route(f"/{what}/{{path:path}}", self._text) for what in ("why", "stack")),
            *(Route(f"/{what}/{{path:path}}", self._act, methods=["POST"]) for what in ("restart", "stop", "start")),
        ])  # fmt: skip
        config = Config()
        config.bind = [f"127.0.0.1:{self.port}"]
        config.errorlog = None
        config.graceful_timeout = 0
        self.trio_token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self.stopping:
            async with trio.open_nursery() as nursery:
                (self.url,) = await nursery.start(serve, app, config)
                self.port = int(self.url.rpartition(":")[2])
                started.set()
