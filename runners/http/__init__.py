"""An ASGI app in front of device workers that speaks OpenAI's API. Needs the extra `http`.

`openai_app(workers)` gives the app; any ASGI server that runs on Trio can serve it, and `runners.serve` does. `gate` checks
tokens, reads bodies and cancels the requests of clients that leave; `ask` makes requests to a worker out of bodies, `shape`
makes answers out of chunks, and `refusal` makes them out of errors.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import trio
from attrs import define, field, frozen
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from trio.lowlevel import enable_ki_protection

from supervise import ChildStopped, Ref, Stream, SuperviseError

from ..brief import brief
from ..errors import InferenceError
from ..options import MAX_BODY, MAX_TOKENS, TIMEOUT, check_options
from ..types import ExecuteBatch, TokenChunk
from .ask import Asked, Reader
from .gate import Gate
from .refusal import Refusal, answer_bug, answer_http, answer_refusal, as_json, json_response, refusal_of
from .shape import Chat, Choice, Shape, Text, embeddings, total

__all__ = ["openai_app"]

AT_ONCE = 32
"""How many inputs of one request are in the hands of its worker at once: one client must not fill the queue."""


def openai_app(
    workers: Mapping[str, Ref],
    *,
    token: str | None = None,
    max_body: int = MAX_BODY,
    timeout: float | None = TIMEOUT,
    max_tokens: int = MAX_TOKENS,
    stopping: Callable[[], Awaitable[object]] = trio.sleep_forever,
) -> Starlette:
    """An ASGI app that speaks OpenAI's API, in front of device workers.

    It has chat completions, text completions, embeddings and models below `/v1`, and `/health`. A request whose client leaves is
    cancelled, and its place in the runner is free at once. The status of a stream is decided by its first chunk: an error
    before that has its own status, and one behind it is the last event, without a `[DONE]`.

    Args:
        workers: the address of a device worker for the name of each model.
        token: what each request must have as its bearer token, but for `/health`; None serves everybody who can connect.
        max_body: bytes that the body of a request may have.
        timeout: seconds that a request may take, from its arrival; it ends with 504, or with an error as its last event. None is
            any time.
        max_tokens: tokens of a chat completion whose request names no limit. A text completion has 16, as in OpenAI's API.
        stopping: an async function that returns when the server is being stopped: a request whose body has not arrived by then
            gets 503, since a server waits for what has begun.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range.
    """
    if not workers or not all(type(name) is str and isinstance(ref, Ref) for name, ref in workers.items()):
        raise TypeError(
            f"workers must map at least one name to the address of its worker, got {brief(workers)}"
        )
    check_options(token=token, max_body=max_body, timeout=timeout, max_tokens=max_tokens)

    def deadline() -> float | None:
        return None if timeout is None else trio.current_time() + timeout

    front = _Front(dict(workers), Reader(max_tokens=max_tokens, deadline=deadline))
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", front.chat, methods=["POST"]),
            Route("/v1/completions", front.completion, methods=["POST"]),
            Route("/v1/embeddings", front.embedding, methods=["POST"]),
            Route("/v1/models", front.models, methods=["GET"]),
            Route("/v1/models/{name:path}", front.model, methods=["GET"]),
            Route("/health", front.health, methods=["GET"]),
        ],
        middleware=[Middleware(Gate, token=token, max_body=max_body, stopping=stopping)],
        exception_handlers={
            HTTPException: answer_http,
            Refusal: answer_refusal,
            InferenceError: answer_refusal,
            SuperviseError: answer_refusal,
            Exception: answer_bug,
        },
    )
    app.router.redirect_slashes = (
        False  # it would send the client, with its token, to whatever host its request names
    )
    return app


@frozen
class _Front:
    """The endpoints."""

    workers: dict[str, Ref]
    reader: Reader
    created: int = field(factory=lambda: int(time.time()))

    async def chat(self, request: Request) -> Response:
        asked = self.reader.chat(await _json_body(request))
        return await self._completion(asked, Chat(asked))

    async def completion(self, request: Request) -> Response:
        asked = self.reader.completion(await _json_body(request))
        return await self._completion(asked, Text(asked))

    async def _completion(self, asked: Asked, shape: Shape) -> Response:
        worker = self._worker(asked.model)
        if asked.stream:
            return _Events(worker, asked, shape)
        return json_response(shape.whole(await _choices(worker, asked.batches)), headers=_named(asked))

    async def embedding(self, request: Request) -> Response:
        asked = self.reader.embedding(await _json_body(request))
        choices = await _choices(self._worker(asked.model), asked.batches, is_text=False)
        return json_response(embeddings(asked, choices), headers=_named(asked))

    async def models(self, _: Request) -> Response:
        return json_response({"object": "list", "data": list(map(self._described, self.workers))})

    async def model(self, request: Request) -> Response:
        name: str = request.path_params["name"]
        self._worker(name)
        return json_response(self._described(name))

    async def health(self, _: Request) -> Response:
        states = {name: _state(worker) for name, worker in self.workers.items()}
        good = all(state == "up" for state in states.values())
        content = {"status": "ok" if good else "unavailable", "workers": states}
        return json_response(content, status=200 if good else 503)

    def _described(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self.created, "owned_by": "trio-supervise"}

    def _worker(self, model: str) -> Ref:
        worker = self.workers.get(model)
        if worker is None:
            message = (
                f"the model {brief(model)} does not exist; there are {', '.join(map(brief, self.workers))}"
            )
            raise Refusal(404, message, param="model", code="model_not_found")
        return worker


def _state(worker: Ref) -> str:
    """`up` if the worker is, and one of its contexts; or the state of what is not."""
    try:
        status = worker.status()
    except ChildStopped:
        return "down"
    contexts = [node.state for node in status.walk() if node.kind == "child"]
    return status.state if status.state != "up" or "up" in contexts else ", ".join(sorted(set(contexts)))


async def _json_body(request: Request) -> bytes:
    """The body, if it claims to be JSON. A page of a foreign site can send a browser's forms here, but no JSON (CORS)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, f"the header Content-Type must be application/json, got {brief(kind)}")
    return await request.body()


def _named(asked: Asked) -> dict[str, str]:
    return {"x-request-id": asked.id}


# --- requests to a worker

Take = Callable[[int, TokenChunk], Awaitable[object]]


async def _choices(worker: Ref, batches: Sequence[ExecuteBatch], *, is_text: bool = True) -> list[Choice]:
    """The whole answers to some requests."""
    choices = [Choice(is_text=is_text) for _ in batches]

    async def add(index: int, chunk: TokenChunk) -> None:
        choices[index].add(chunk)

    await _serve(worker, batches, add)
    return choices


async def _serve(worker: Ref, batches: Sequence[ExecuteBatch], take: Take) -> None:
    """Have requests served side by side; `take` gets each chunk with the number of its request. The first error ends all.

    The first request is refused if the queue is full. The others wait for room there: they come from a client that
    has been admitted.
    """
    places = trio.CapacityLimiter(AT_ONCE)
    raised: Exception | None = None

    @enable_ki_protection
    async def one(index: int, opening: AbstractAsyncContextManager[Stream], scope: trio.CancelScope) -> None:
        nonlocal raised
        try:
            async with places, opening as chunks:
                await _consume(index, chunks, take)
        except Exception as error:  # noqa: BLE001 - it is raised below, where no nursery wraps it
            raised = raised or error
            scope.cancel("another request of the same client failed")

    async with worker.stream_nowait(batches[0]) as chunks:
        if len(batches) == 1:
            await _consume(0, chunks, take)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 0, nullcontext(chunks), nursery.cancel_scope)
            for index, batch in enumerate(batches[1:], start=1):
                nursery.start_soon(one, index, worker.stream(batch), nursery.cancel_scope)
    if raised is not None:
        raise raised


async def _consume(index: int, chunks: Stream, take: Take) -> None:
    async for chunk in chunks:
        await take(index, chunk)


class _Events(Response):
    """A stream of server-sent events, which begins with the first chunk."""

    def __init__(self, worker: Ref, asked: Asked, shape: Shape) -> None:
        super().__init__(
            headers={"cache-control": "no-cache", **_named(asked)}, media_type="text/event-stream"
        )
        del self.headers["content-length"]  # that of an empty body, which Starlette has set
        self._worker = worker
        self._asked = asked
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the signature is ASGI's
        events = _Sender(send, self.raw_headers)
        choices = [Choice() for _ in self._asked.batches]

        async def add(index: int, chunk: TokenChunk) -> None:
            choice = choices[index]
            made = [] if choice.texts else self._shape.begin(index)
            choice.texts.append("")  # only that it has begun: the text is on its way
            choice.usage = chunk.usage or choice.usage
            await events.send([*made, *self._shape.events(index, chunk)])

        try:
            await _serve(self._worker, self._asked.batches, add)
        except (InferenceError, SuperviseError) as error:
            if not events.begun:
                raise
            await events.send([refusal_of(error).content()])
        else:
            if self._asked.include_usage:
                await events.send([self._shape.usage_event(total(choices))])
            await events.finish()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@define(eq=False)
class _Sender:
    """Sends events; the status and the headers go out before the first one."""

    _send: Send
    _headers: list[tuple[bytes, bytes]]
    begun: bool = False
    _one_at_a_time: trio.Lock = field(factory=trio.Lock)

    async def send(self, events: Sequence[object]) -> None:
        """Send some events in one piece."""
        await self._write(b"".join(b"data: %s\n\n" % as_json(event) for event in events))

    async def finish(self) -> None:
        """Send the event that ends a complete answer."""
        await self._write(b"data: [DONE]\n\n")

    async def _write(self, data: bytes) -> None:
        async with self._one_at_a_time:
            if not self.begun:
                self.begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            if data:
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
