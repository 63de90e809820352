"""The ASGI app that shows a running tree and changes it: health, metrics, status, events, reasons, stacks, acts, and the page."""

from __future__ import annotations

import hmac
import json
import os
import sys
import time
from collections.abc import Callable, Collection
from contextlib import aclosing
from math import inf
from typing import Any, cast

import trio
from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from trio.lowlevel import enable_ki_protection

from .._core._brief import brief_text, printable
from .._core.changes import Change
from .._core.spec import Pool, Supervisor
from .._trio.ref import Ref
from .._trio.tree import Tree
from ..errors import Refused, StartFailed
from .history import Entry, History, as_json
from .page import HEADERS as PAGE_HEADERS
from .page import page
from .rows import Row, Rows, as_row, waits_for
from .why import why

VERBS = ("start", "stop", "restart")
_KEEP_ALIVE = 15.0
"""Seconds without an event after which a reader of events gets a comment, so that a proxy keeps the connection."""
_BATCH = 0.2
"""Seconds between two batches of events for one reader: a busy tree costs five writes a second, not a thousand."""
_LONGEST_BODY = 64 * 1024
"""Bytes."""
_BODY_SECONDS = 10.0
_FORM = 'the body must be JSON such as {"reason": "…", "who": "…"}'
_MOST_READERS = 100
"""Readers of events at a time."""
_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
}


def operating_app(
    tree: Tree,
    history: History,
    *,
    token: str | None = None,
    trusted: bool = True,
    required: Collection[str] = (),
    metrics: Callable[[str], tuple[bytes, str]] | None = None,
) -> Starlette:
    """The ASGI app for one running tree.

    Args:
        tree: that runs in this event loop.
        history: a sink of that tree.
        token: that a request must have to change anything, as `Authorization: Bearer TOKEN`; None: nothing can be changed.
        trusted: whether everyone who can connect may see stacks and tracebacks, as on a socket that only its owner can use.
            Otherwise these need the token, and the name of the host must be one of this machine's own, which keeps out a page
            of another site that has its name point here.
        required: the paths of nodes that have to be up for `/readyz`.
        metrics: gives the body and the content type for `/metrics`, for the value of the header `Accept`; None: there are none.
    """
    served = _Served(tree, history, token, trusted=trusted, required=required, metrics=metrics)
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1"])
    return Starlette(
        routes=[
            Route("/", served.page, methods=["GET"]),
            Route("/page/{name}", served.page, methods=["GET"]),
            Route("/healthz", served.healthz, methods=["GET"]),
            Route("/readyz", served.readyz, methods=["GET"]),
            Route("/metrics", served.metrics, methods=["GET"]),
            Route("/status", served.status, methods=["GET"]),
            Route("/events", served.events, methods=["GET"]),
            Route("/why/{path:node}", served.why, methods=["GET"]),
            Route("/stack/{path:node}", served.stack, methods=["GET"]),
            Route("/reload", served.reload, methods=["POST"]),
            *(Route(f"/{verb}/{{path:node}}", served.act, methods=["POST"], name=verb) for verb in VERBS),
        ],
        middleware=[] if trusted else [hosts],
        exception_handlers={HTTPException: _refusal},
    )


async def _refusal(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    text = exc.detail or "refused"
    return _Json({"error": text}, exc.status_code, {**_HEADERS, **(exc.headers or {})})


class _NodePath(PathConvertor):
    """The path of a node. Starlette's own path stops at a line feed, which a name may have."""

    regex = "(?s:.*)"


register_url_convertor("node", _NodePath())


class _Json(JSONResponse):
    """In ASCII: a text of the program may have characters that are not UTF-8."""

    def render(self, content: Any) -> bytes:
        """See `Response.render`."""
        return json.dumps(content, separators=(",", ":")).encode()


class _Text(PlainTextResponse):
    """Likewise, with such characters escaped."""

    def render(self, content: str) -> bytes:
        """See `Response.render`."""
        return content.encode(errors="backslashreplace")


class _Served:
    """The answers for one tree."""

    def __init__(
        self,
        tree: Tree,
        history: History,
        token: str | None,
        *,
        trusted: bool,
        required: Collection[str],
        metrics: Callable[[str], tuple[bytes, str]] | None,
    ) -> None:
        self._tree = tree
        self._read = Rows(tree)
        self.history = history
        self._token = token
        self._trusted = trusted
        self._required = required
        self._metrics = metrics
        self.readers = 0
        self._page = page()

    # --- looking

    async def page(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in self._page:
            raise HTTPException(404, f"the page has no part {printable(name)!r}")
        kind, content = self._page[name]
        return Response(content, media_type=kind, headers=PAGE_HEADERS)

    async def healthz(self, _: Request) -> Response:
        return _Text("ok\n", headers=_HEADERS)

    async def readyz(self, _: Request) -> Response:
        waiting = waits_for([row.data for row in self._rows()], self._required)
        return _Json({"ready": not waiting, "waits_for": waiting}, 503 if waiting else 200, _HEADERS)

    async def metrics(self, request: Request) -> Response:
        if self._metrics is None:
            raise HTTPException(404, "metrics need prometheus-client; install trio-supervise[prometheus]")
        body, kind = self._metrics(request.headers.get("accept", ""))
        return Response(body, headers={**_HEADERS, "content-type": kind})

    async def status(self, request: Request) -> Response:
        rows = self._rows()
        about = {
            "v": 1,
            "time": time.time(),
            "seq": self.history.last,
            "name": self._tree.root.path,
            "pid": os.getpid(),
            "acts": self._token is not None and self._has_token(request),
            "waits_for": waits_for([row.data for row in rows], self._required),
        }
        nodes = ",".join([row.json for row in rows])
        body = f'{as_json(about)[:-1]},"nodes":[{nodes}]}}'
        return Response(body, media_type="application/json", headers=_HEADERS)

    def _rows(self) -> list[Row]:
        return self._read.read(now=trio.current_time(), time=time.time())

    async def events(self, request: Request) -> Response:
        after = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
        if not (after.isascii() and after.isdecimal() and len(after) < 20):  # noqa: PLR2004 - No counter has more digits.
            raise HTTPException(400, f"after must be the number of an event, got {printable(after[:100])!r}")
        if self.readers >= _MOST_READERS:
            raise HTTPException(503, f"{_MOST_READERS} readers get the events already")
        follows = request.query_params.get("follow") != "0"
        return _Events(self, int(after), follows=follows, traced=self._trusted or self._has_token(request))

    async def why(self, request: Request) -> Response:
        ref = self._at(request.path_params["path"])
        path, row = ref.path, as_row(ref.status(), time.time() - trio.current_time())
        above = path.rpartition("/")[0] or path
        text = why(row, self.history.about(above), time=time.time())
        if "application/json" in request.headers.get("accept", ""):
            return _Json({"path": path, "text": text}, headers=_HEADERS)
        return _Text(text, headers=_HEADERS)

    async def stack(self, request: Request) -> Response:
        if not self._trusted:
            self._check_token(request, "on a port, a stack needs")
        return _Text(self._at(request.path_params["path"]).stack(), headers=_HEADERS)

    # --- acting

    async def act(self, request: Request) -> Response:
        self._check_token(request)
        verb = request.scope["route"].name
        who, reason = await _given(request)
        ref = self._at(request.path_params["path"])
        is_dry = _is_dry(request)
        try:
            steps = ref.plan(verb)
            if not is_dry:
                await getattr(ref, verb)(reason=f"{who}: {reason}")
        except Refused as refused:
            raise HTTPException(409, str(refused)) from refused
        except StartFailed as failed:
            raise HTTPException(500, str(failed)) from failed
        except RuntimeError as impossible:  # the app runs inside the node that it is to stop
            raise HTTPException(409, brief_text(impossible)) from impossible
        shown = [{"do": step.do, "path": step.path} for step in steps]
        return _Json({"path": ref.path, "dry_run": is_dry, "steps": shown}, headers=_HEADERS)

    async def reload(self, request: Request) -> Response:
        self._check_token(request)
        who, reason = await _given(request)
        declare = self._tree.declare
        if declare is None:
            raise HTTPException(
                409, "this program was started without reload: `supervise run --reload` allows it"
            )
        is_dry = _is_dry(request)
        try:
            declared = declare()
            expected = self._tree.changes(declared)
            changes = expected if is_dry else await self._adopted(declared, f"{who}: {reason}")
        except (StartFailed, ExceptionGroup) as failed:
            raise HTTPException(500, brief_text(failed)) from failed
        except Exception as refused:  # a user's module may raise anything when it is loaded
            raise HTTPException(409, brief_text(refused)) from refused
        shown = [
            {"kind": each.kind, "path": each.path, "restarts": each.restarts, "text": str(each)}
            for each in (expected if changes is None else changes)
        ]
        return _Json({"dry_run": is_dry, "changes": shown}, 202 if changes is None else 200, _HEADERS)

    async def _adopted(self, declared: Supervisor | Pool, reason: str) -> list[Change] | None:
        """Have the tree adopt it; returns the differences, of which another adoption may have taken some before this one.

        None: this server is being stopped first, perhaps for that, and the adoption waits for the answer.
        """
        changes, failed = None, None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_at_its_end, nursery.cancel_scope)
            try:
                changes = await self._tree.adopt(declared, reason=reason)
            except Exception as problem:  # noqa: BLE001 - It is raised below: the nursery would put it into a group.
                failed = problem
            nursery.cancel_scope.cancel("the adoption is over")
        if failed is not None:
            raise failed
        return changes

    async def _cancel_at_its_end(self, scope: trio.CancelScope) -> None:
        await self.history.more(sys.maxsize)
        scope.cancel("the server is being stopped")

    def _at(self, path: str) -> Ref:
        try:
            ref = self._tree[path]
            ref.status()
        except (KeyError, LookupError) as missing:
            shown = self._shown_as(path) if "\\" in path else None
            if shown is None:
                raise HTTPException(404, self._not_there(path)) from missing
            return shown
        return ref

    def _shown_as(self, path: str) -> Ref | None:
        """The node whose path is shown so: a URL cannot have each character of a name, and a terminal shows escapes for some."""
        paths = (node.path for node in self._tree.status().walk())
        return next((self._tree[each] for each in paths if printable(each) == printable(path)), None)

    def _not_there(self, path: str) -> str:
        try:
            self._tree[path]
        except KeyError as missing:
            return str(missing.args[0])
        return f"{path!r} has left the tree"

    def _check_token(self, request: Request, what_needs: str = "changes need") -> None:
        if self._token is None:
            raise HTTPException(
                403,
                f"{what_needs} a token, and this program was given none: set SUPERVISE_TOKEN, of 20 characters or more,"
                " for `supervise run` and for this command",
            )
        if not self._has_token(request):
            raise HTTPException(
                401,
                f"{what_needs} the right token, in SUPERVISE_TOKEN of a command or the header 'Authorization: Bearer TOKEN'",
            )

    def _has_token(self, request: Request) -> bool:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        expected = self._token
        return (
            expected is not None
            and kind.lower() == "bearer"
            and hmac.compare_digest(given.strip().encode(), expected.encode())
        )


def _is_dry(request: Request) -> bool:
    return request.query_params.get("dry_run", "0") not in ("0", "false")


class _Events(Response):
    """The events after a number, as server-sent events: those that are kept, then those that come.

    A class, not Starlette's response around a generator: a generator whose client leaves would be closed by the garbage collector.
    """

    media_type = "text/event-stream"

    def __init__(self, served: _Served, after: int, *, follows: bool, traced: bool) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._served = served
        self._history = served.history
        # A program that begins anew counts from 1 again, so a greater number belongs to an earlier one.
        self._after = after if after <= self._history.last else 0
        self._follows = follows
        self._traced = traced
        self._is_over = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI calls it with all three.
        """Answer a request."""
        self._served.readers += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._leave_with_the_client, receive, nursery.cancel_scope)
                await self._send_all(send)
                nursery.cancel_scope.cancel("all events are sent")
        finally:
            self._served.readers -= 1

    async def _send_all(self, send: Send) -> None:
        async def write(text: str, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": more})

        await write(": \n\n")  # the client need not wait for the first event to know that it is connected
        until = (
            inf if self._follows else self._history.last
        )  # a busy tree has a next event before the last one is sent
        while self._after < until:
            missed, entries = self._history.after(self._after)
            if missed:
                await write(f"event: missed\ndata: {json.dumps({'missed': missed})}\n\n")
            if entries:
                await write("".join([_sent(entry, traced=self._traced) for entry in entries]))
                self._after = entries[-1].number
                if self._after == self._history.last and not self._history.closed:
                    await trio.sleep(_BATCH if self._follows else 0)
            elif self._history.closed:
                break
            else:
                with trio.move_on_after(_KEEP_ALIVE) as waiting:
                    await self._history.more(self._after)
                if waiting.cancelled_caught:
                    await write(": \n\n")
        self._is_over = True
        await write("", more=False)

    @enable_ki_protection
    async def _leave_with_the_client(self, receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        # The server reports a disconnect also from inside the last `send`, whose rest must not be cancelled: it closes the connection.
        if not self._is_over:
            scope.cancel("the client has left")


def _sent(entry: Entry, *, traced: bool) -> str:
    return f"id: {entry.number}\ndata: {entry.line(traced=traced)}\n\n"


async def _given(request: Request) -> tuple[str, str]:
    """Who asks, and why."""
    body = b""
    with trio.move_on_after(_BODY_SECONDS) as scope:
        try:
            async with aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > _LONGEST_BODY:
                        raise HTTPException(413, f"a body may have {_LONGEST_BODY} bytes")
        except ClientDisconnect as left:
            raise HTTPException(400, "the client left before its body was complete") from left
    if scope.cancelled_caught:
        raise HTTPException(
            408, f"the body was not complete within {_BODY_SECONDS:g} s", {"connection": "close"}
        )
    try:
        given: Any = json.loads(body or b"{}")
    except (ValueError, RecursionError) as problem:
        raise HTTPException(400, _FORM) from problem
    if not isinstance(given, dict):
        raise HTTPException(400, _FORM)
    who, reason = (cast("dict[str, Any]", given).get(name, "") for name in ("who", "reason"))
    if not isinstance(who, str) or not isinstance(reason, str):
        raise HTTPException(400, f"{_FORM}, with texts")
    if not reason.strip():
        raise HTTPException(400, 'a change needs a reason: {"reason": "…"}')
    return printable(who.strip() or "somebody"), printable(reason.strip())
