"""The runner that talks to a server. It imports httpx2.

Every wait for the server has a deadline of Trio's, which only tokens extend; httpx2's own timeout holds for connecting alone, since
its timeout for reading begins anew with every byte. An exception of httpx2 may quote the server, and the server our key. So it
becomes an error of ours with a redacted text, which is raised outside the `except` block and has no cause and no context.

All of it is protected from `KeyboardInterrupt` (R4), which between two lines would leave a connection open. None of it takes long.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import httpx2
import trio
from attrs import define, field
from trio.lowlevel import enable_ki_protection

from runners.brief import is_a
from runners.errors import (
    BadRequest,
    InferenceError,
    LoadFailed,
    NetworkError,
    NetworkTimeout,
    Unauthorized,
)
from runners.models.openai.answer import Answer, prompt_ids
from runners.models.openai.events import Event, EventReader
from runners.models.openai.refusal import MAX_BODY, Redactor, refusal
from runners.models.openai.request import Asked, asked
from runners.models.openai.settings import Settings
from runners.protect import protected
from runners.types import (
    ContinuingRunner,
    ExecuteBatch,
    FinishReason,
    RunnerInfo,
    SessionRebuildCause,
    TokenChunk,
)

Value = TypeVar("Value")

_REFUSAL_SECONDS = 5.0
"""The time for the body of a refusal."""
_AFTER_FINISH = 5.0
"""Seconds for the usage and the end, once the finish reason is there: without them the answer is whole as well."""
_AFTER_DONE = 0.1
"""Seconds for the end of the body behind `[DONE]`, so that its connection can be used again."""
_CLOSING = 1.0
_UNAUTHORIZED = 401
_OK = 200


def openai_runner(spec: Settings) -> ContinuingRunner:
    """The runner of a spec, with its first session.

    Raises:
        LoadFailed: see `OpenAIModel.build`.
    """
    if "{port}" in spec.url:
        raise LoadFailed(f"url must have a port, got {spec.url}: only an EngineHost replaces {{port}}")
    return _OpenAIRunner(spec)


@protected
class _OpenAIRunner:
    """See `OpenAIModel`."""

    def __init__(self, spec: Settings) -> None:
        self.info = RunnerInfo(
            streams=spec.streams,
            can_continue=spec.token_ids,
            runtime="openai",
            transport="network",
            limits=spec.limits,
            price=spec.price,
        )
        self._spec = spec
        # It takes 0.1 s to make, so the sessions share it. A server without TLS needs none.
        secure = spec.url.startswith("https:")
        self._verify = httpx2.create_ssl_context(trust_env=spec.trust_env) if secure else False
        self._session = self._new_session()

    def _new_session(self) -> _Session:
        spec, key = self._spec, _key(self._spec)
        headers = {**spec.headers, "accept": "text/event-stream", "accept-encoding": "identity"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=spec.streams)
        client = httpx2.AsyncClient(
            base_url=spec.url,
            headers=headers | {"content-type": "application/json"},
            # A server must not fill the memory with cookies.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            timeout=httpx2.Timeout(None, connect=spec.connect_timeout),
            transport=None if spec.trust_env else _Transport(verify=self._verify, limits=limits),
            verify=self._verify,
            limits=limits,
            trust_env=spec.trust_env,
        )
        return _Session(client, Redactor((*([] if key is None else [key]), *spec.headers.values())))

    def execute(self, batch: ExecuteBatch) -> AsyncIterator[TokenChunk]:
        """See `ModelRunner`."""
        return self.continue_from(batch, ())

    def continue_from(self, batch: ExecuteBatch, accepted: Sequence[int]) -> AsyncIterator[TokenChunk]:
        """See `ContinuingRunner`.

        Raises:
            BadRequest: the server cannot be asked this.
        """
        return self._chunks(batch, asked(self._spec, batch), tuple(accepted))

    async def rebuild(self, cause: SessionRebuildCause) -> None:  # noqa: ARG002 - each cause has the same cure
        """Make a new session, with the key that the variable has now. Open streams keep the old one, which the last of them closes.

        Raises:
            LoadFailed: the variable of the key is not set any more.
        """
        old, self._session = self._session, self._new_session()
        await old.retire()

    async def close(self) -> None:
        """Close the connections."""
        await self._session.retire()

    # --- one stream

    async def _chunks(
        self, batch: ExecuteBatch, request: Asked, accepted: tuple[int, ...]
    ) -> AsyncGenerator[TokenChunk, None]:
        spec, most = self._spec, batch.sampling.max_tokens
        answer = Answer(
            batch.request_id,
            most,
            request.is_chat,
            request.counts_ids,
            self._session.redact,
            before=len(accepted),
        )
        if len(accepted) >= most:
            yield answer.last(FinishReason.LENGTH)
            return
        deadline = trio.current_time() + spec.first_chunk_timeout
        if accepted:
            ids = await self._prompt_ids(request, deadline)
            request = request.behind((*ids, *accepted)).at_most(most - len(accepted), spec.length_field)
        async with self._exchange(request, deadline) as events:
            answer.redact = events.redact
            while (event := await events.next(deadline)) is not None:
                if event.data.strip() == "[DONE]":
                    await events.end()
                    break
                chunk = answer.take(event.data, is_error=event.name == "error")
                if chunk is not None:
                    yield chunk
                    deadline = trio.current_time() + spec.next_chunk_timeout
                elif answer.finish is not None and not events.is_whole:
                    events.is_whole = True
                    deadline = trio.current_time() + min(_AFTER_FINISH, spec.next_chunk_timeout)
            done = event is not None
            last = answer.last(FinishReason.STOP if done and spec.done_is_enough else None)
        yield last

    async def _prompt_ids(self, request: Asked, deadline: float) -> tuple[int, ...]:
        """Of a begun stream's prompt. If it was a text, the server is asked for its ids, with one token."""
        prompt: Any = request.body["prompt"]
        if is_a(prompt, list):
            return tuple(prompt)
        async with self._exchange(request.at_most(1, self._spec.length_field), deadline) as events:
            event = await events.next(deadline)
            ids = None if event is None else prompt_ids(event.data)
        if ids is None:
            raise BadRequest(
                "the server gives no ids of a prompt, so a stream with a text as its prompt cannot move"
            )
        return ids

    @asynccontextmanager
    @enable_ki_protection
    async def _exchange(self, request: Asked, deadline: float) -> AsyncGenerator[_Events, None]:
        """The events of one request.

        Raises:
            InferenceError: the server refuses it, or cannot be reached.
        """
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(self._used())
            response = await session.post(stack, request, deadline)
            if response.status_code == _UNAUTHORIZED and self._spec.key_env is not None:
                await response.aclose()
                # Of many streams that get a 401 the first one makes the new session, and the others use it.
                if self._session is session:
                    await self._rebuild_for_key()
                session = await stack.enter_async_context(self._used())
                response = await session.post(stack, request, deadline)
            if response.status_code != _OK:
                raise await session.refused(response)
            yield session.events(stack, response)

    async def _rebuild_for_key(self) -> None:
        lost = False
        try:
            await self.rebuild(SessionRebuildCause.REMOTE_AUTH_FAILURE)
        except LoadFailed:  # the context is sound, and has its old session
            lost = True
        if lost:
            error = Unauthorized(f"the server rejects the key, and {self._spec.key_env} has no other one")
            error.code = _UNAUTHORIZED
            raise error

    @asynccontextmanager
    @enable_ki_protection
    async def _used(self) -> AsyncGenerator[_Session, None]:
        session = self._session
        session.streams += 1
        try:
            yield session
        finally:
            session.streams -= 1
            await session.close_if_unused()


@protected
@define(eq=False)
class _Session:
    """Connections with one key. `streams`: how many use it. `retired`: whether no further one will."""

    client: httpx2.AsyncClient
    redact: Redactor
    streams: int = 0
    retired: bool = False

    async def retire(self) -> None:
        """Close it, now or with its last stream."""
        self.retired = True
        await self.close_if_unused()

    async def close_if_unused(self) -> None:
        """Close it if it is retired and no stream uses it."""
        if self.retired and not self.streams:
            with trio.move_on_after(_CLOSING, shield=True):  # TLS says goodbye, which a server may not take
                await self.client.aclose()

    async def post(self, stack: AsyncExitStack, request: Asked, deadline: float) -> httpx2.Response:
        """The head of the answer; the body is closed with the stack."""
        sending = self.client.build_request("POST", request.path, content=request.content())
        response = await self.waited(deadline, partial(self.client.send, sending, stream=True))
        stack.push_async_callback(response.aclose)
        return response

    async def waited(self, deadline: float, wait: Callable[[], Awaitable[Value]]) -> Value:
        """Wait for the server.

        Raises:
            NetworkTimeout: it does not answer in time.
            NetworkError: it is lost.
        """
        found: NetworkError = NetworkTimeout("the server gave no token in time")
        with trio.move_on_at(deadline):
            try:
                return await wait()
            except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
                kind = NetworkTimeout if isinstance(error, httpx2.TimeoutException) else NetworkError
                found = kind(f"{type(error).__name__}: {self.redact(_reason(error))}")
        raise found

    async def refused(self, response: httpx2.Response) -> InferenceError:
        """The error for a status other than 200; the body is read to its limits of time and size."""
        status = response.status_code
        if status < 400:  # noqa: PLR2004 - where the errors of HTTP begin
            return NetworkError(f"the server answered with the status {status} instead of 200")
        body = bytearray()
        parts = response.aiter_raw()
        try:
            with trio.move_on_after(_REFUSAL_SECONDS):
                while len(body) < MAX_BODY and (part := await anext(parts, None)) is not None:
                    body += part[: MAX_BODY - len(body)]
        except httpx2.HTTPError:
            body.clear()  # a refusal needs no text
        finally:
            await _leave(parts)
        return refusal(status, bytes(body), self.redact, retry_after=response.headers.get("retry-after"))

    def events(self, stack: AsyncExitStack, response: httpx2.Response) -> _Events:
        """The events of an answer, which are left with the stack.

        Raises:
            NetworkError: it is no stream of events.
        """
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream" or response.headers.get("content-encoding", "identity") != "identity":
            raise NetworkError(f"the server must answer with text/event-stream, got {self.redact(kind)!r}")
        parts = response.aiter_raw()
        stack.push_async_callback(_leave, parts)
        return _Events(self, parts)


@protected
@define(eq=False)
class _Events:
    """The events of one answer, each within a deadline. `is_whole`: whether its finish reason is there, so that its end may be anything."""

    session: _Session
    _parts: AsyncIterator[bytes]
    is_whole: bool = False
    _reader: EventReader = field(factory=EventReader)
    _events: Iterator[Event] = field(factory=lambda: iter(()))

    @property
    def redact(self) -> Redactor:
        """What takes the secrets of the session out of a text."""
        return self.session.redact

    async def next(self, deadline: float) -> Event | None:
        """The next event; None at the end.

        Raises:
            NetworkError: it does not come in time, or the connection is lost. Behind a finish reason that is an end too.
        """
        try:
            while (event := next(self._events, None)) is None:
                part = await self.session.waited(deadline, self._part)
                if part is None:
                    return None
                self._events = self._reader.feed(part)
        except NetworkError:
            if not self.is_whole:
                raise
            return None
        return event

    async def _part(self) -> bytes | None:
        await trio.lowlevel.checkpoint()  # a server without a pause must not keep other tasks from running
        return await anext(self._parts, None)

    async def end(self) -> None:
        """Wait a moment for the end of the body."""
        self.is_whole = True
        await self.next(trio.current_time() + _AFTER_DONE)


@enable_ki_protection
async def _leave(parts: AsyncIterator[bytes]) -> None:
    """End the iteration of a body. httpx2 nests async generators, and what closes the outermost one leaves the others open.

    So the next wait for the server is cancelled, which ends all of them. What has been received already comes before that.
    """
    with trio.CancelScope(shield=True) as scope:
        scope.cancel()
        try:
            while await anext(parts, None) is not None:
                pass
        except httpx2.HTTPError:
            return  # that ends them too


def _reason(error: Exception) -> str:
    """The text of an error, or of the one below it: that of a failed TLS handshake has none itself."""
    link: BaseException | None = error
    while link is not None and not str(link):
        link = link.__cause__ or link.__context__
    return "" if link is None else str(link)


class _Transport(httpx2.AsyncHTTPTransport):
    """Takes the server's own words out of the status line, which httpx2 logs."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        response.extensions.pop("reason_phrase", None)
        return response


def _key(spec: Settings) -> str | None:
    """The key that the variable has now.

    Raises:
        LoadFailed: it has none that a header can carry. The message does not quote it.
    """
    if spec.key_env is None:
        return None
    key = os.environ.get(spec.key_env, "").strip()
    if not key:
        raise LoadFailed(
            f"the environment variable {spec.key_env} must have the key of the server, and is not set"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise LoadFailed(
            f"the environment variable {spec.key_env} must have printable ASCII characters without spaces"
        )
    return key
