"""The outermost layer of the app: it checks the token, reads the body, and cancels a request whose client has left.

An app may answer before it has read the body. Hypercorn keeps the parts of the body in a queue of ten; if that is full, the
last `send` of the answer waits for ever, with a task and a descriptor, even after the client has left. So every body is read
here. While a refusal is sent, the rest of the body is read and dropped.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

import trio
from attrs import define
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from trio.lowlevel import enable_ki_protection

from ..errors import WorkerStopping
from .refusal import Refusal, refusal_of

_OPEN_PATHS = frozenset(("/health",))
"""What a load balancer asks has no token."""

_BODY_SECONDS = 60.0
"""The time in which a body must arrive: a client that sends none must not hold a connection for ever."""

LINGER_SECONDS = 2.0
"""The time that a client has to notice that its body is not wanted."""


class Gate:
    """See the module.

    Args:
        app: the app behind it. It finds the whole body in its first message, and is cancelled if the client leaves.
        token: what a request must have as its bearer token; None asks for none.
        max_body: bytes that a body may have.
        stopping: returns when the server is being stopped; what has not arrived by then is refused.
    """

    def __init__(
        self, app: ASGIApp, *, token: str | None, max_body: int, stopping: Callable[[], Awaitable[object]]
    ) -> None:
        self._app = app
        self._token = None if token is None else token.encode()
        self._max_body = max_body
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        incoming = _Incoming(receive)
        try:
            self._check(scope)
            body = await self._body(incoming.receive)
        except Refusal as refusal:
            await self._refuse(refusal, scope, incoming, send)
        else:
            if body is not None:
                await self._serve(body, scope, incoming, send)

    def _check(self, scope: Scope) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given = {name.lower(): value for name, value in headers}
        if self._token is not None and _path(scope) not in _OPEN_PATHS:
            credentials = [value for name, value in headers if name.lower() == b"authorization"]
            scheme, _, token = (credentials[0] if len(credentials) == 1 else b"").partition(b" ")
            # The comparison takes the same time wherever the first difference is.
            if not hmac.compare_digest(token.strip(), self._token) or scheme.lower() != b"bearer":
                raise Refusal(
                    401,
                    "there must be one header Authorization, 'Bearer', a space and the token of this server",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
        length = given.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body:
            raise self._too_large()

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body may have {self._max_body} bytes", code="body_too_large")

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client left meanwhile."""
        refusal = Refusal(408, f"the body must arrive within {_BODY_SECONDS:.0f} seconds")

        @enable_ki_protection
        async def give_up(scope: trio.CancelScope) -> None:
            nonlocal refusal
            await self._stopping()
            refusal = refusal_of(WorkerStopping("the server is being stopped, and the body has not arrived"))
            scope.cancel("the server is being stopped")

        read: list[bytes | Refusal | None] = []
        with trio.move_on_after(_BODY_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(give_up, nursery.cancel_scope)
                read.append(await self._read(receive))
                nursery.cancel_scope.cancel("the body has arrived")
        body = read[0] if read else refusal
        if isinstance(body, Refusal):
            raise body
        return body

    async def _read(self, receive: Receive) -> bytes | Refusal | None:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body:
                return self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _refuse(self, refusal: Refusal, scope: Scope, incoming: _Incoming, send: Send) -> None:
        """Answer, and take what comes of the body until the server reports that the exchange is over.

        The exchange stays open until the body has come, for some seconds at most: a server that closes a connection with
        unread bytes resets it, and the client may never see its answer.
        """

        async def send_and_linger(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "more_body": True})
                with trio.move_on_after(LINGER_SECONDS):
                    while not incoming.is_whole:
                        await incoming.receive()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
                nursery.start_soon(incoming.until_disconnect)
            await send(message)

        async with trio.open_nursery() as nursery:
            await refusal.response()(scope, incoming.receive, send_and_linger)

    async def _serve(self, body: bytes, scope: Scope, incoming: _Incoming, send: Send) -> None:
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        over = False

        async def receive_body() -> Message:
            if not messages:
                await trio.sleep_forever()  # until the app ends, or is cancelled because its client left
            return messages.pop()

        async def noting_the_end(message: Message) -> None:
            nonlocal over
            over = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        @enable_ki_protection
        async def leave_with_the_client(scope: trio.CancelScope) -> None:
            await incoming.until_disconnect()
            # The server reports a disconnect also from inside the last `send`, whose rest must not be cancelled: it makes
            # the connection ready for the next request.
            if not over:
                scope.cancel("the client left")

        raised: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_with_the_client, nursery.cancel_scope)
            try:
                await self._app(scope, receive_body, noting_the_end)
            except Exception as error:  # noqa: BLE001 - it is raised below, where no nursery wraps it
                raised = error
            nursery.cancel_scope.cancel("the request is answered")
        if raised is not None:
            raise raised


@define(eq=False)
class _Incoming:
    """What comes of one exchange. `is_whole`: whether the body is over. `is_over`: whether the exchange is."""

    _receive: Receive
    is_whole: bool = False
    is_over: bool = False

    async def receive(self) -> Message:
        """The next message."""
        message = await self._receive()
        self.is_over = message["type"] == "http.disconnect"
        self.is_whole = self.is_over or not message.get("more_body", False)
        return message

    @enable_ki_protection
    async def until_disconnect(self) -> None:
        """Take all messages up to the one that ends the exchange, which comes once."""
        while not self.is_over:
            await self.receive()


def _path(scope: Scope) -> str:
    """The path as this app has it: it may be mounted in another one, below a path of its own."""
    path, root = scope["path"], scope.get("root_path", "")
    below: str = path[len(root) :] if path.startswith(f"{root}/") else path
    return below
