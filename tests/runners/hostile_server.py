"""A server on real sockets that speaks OpenAI's API, or pretends to: each behaviour is one way to answer a request."""

import json
from contextlib import asynccontextmanager

import trio

KEY = "0123456789abcdefghijklmnopqrstuvwxyz"
SAID = f"your key {KEY} is bad, as in 'Authorization: Bearer {KEY}'"
"""What a server may say: it quotes the key."""

BEHAVIOURS = {}


def behaviour(function):
    BEHAVIOURS[function.__name__] = function
    return function


class Peer:
    """One request, and the connection that it came on."""

    def __init__(self, stream, head, body):
        self.stream = stream
        self.head = head
        self.body = body

    async def send(self, data):
        await self.stream.send_all(data if isinstance(data, bytes) else data.encode())

    async def answer(self, status, body="", *extra, kind="application/json"):
        await self.send(
            "\r\n".join(
                [
                    f"HTTP/1.1 {status} {SAID[:30]}",
                    f"content-type: {kind}",
                    f"content-length: {len(body)}",
                    *extra,
                ]
            )
            + f"\r\n\r\n{body}"
        )

    async def begin(self, kind="text/event-stream", *extra):
        """The head of a stream of events."""
        lines = ["HTTP/1.1 200 OK", f"content-type: {kind}", "transfer-encoding: chunked", *extra]
        await self.send("\r\n".join(lines) + "\r\n\r\n")

    async def part(self, data):
        """A part of the body."""
        data = data if isinstance(data, bytes) else data.encode()
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def event(self, event):
        await self.part(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n")

    async def end(self):
        """The end of a body, as it should be."""
        await self.send("0\r\n\r\n")

    async def closes(self):
        """Wait until the client has closed the connection."""
        while await self.stream.receive_some(65536):
            pass


def text(piece, finish=None, **more):
    return {"choices": [{"index": 0, "text": piece, "finish_reason": finish, **more}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 20, "total_tokens": 23}}
ERROR = {"error": {"message": f"EngineCore encountered an issue, {SAID}", "code": 500}}


# --- refusals


def refusing(status, *extra, body=None):
    content = json.dumps({"error": {"message": SAID}}) if body is None else body

    async def refuse(peer):
        await peer.answer(status, content, *extra)

    BEHAVIOURS[f"refuses_{status}"] = refuse


for status in (400, 401, 403, 404, 408, 413, 422, 425, 500, 502, 503, 529):
    refusing(status)
refusing(429, "retry-after: 7")


@behaviour
async def refuses_with_html(peer):
    await peer.answer(502, f"<html>{SAID}</html>", kind="text/html")


@behaviour
async def refuses_without_end(peer):
    await peer.begin("application/json")


@behaviour
async def refuses_with_an_endless_body(peer):
    await peer.send("HTTP/1.1 400 Bad\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await peer.part(SAID * 1000)


@behaviour
async def refuses_with_a_body_that_stalls(peer):
    await peer.send(f"HTTP/1.1 400 Bad\r\ncontent-length: 100000\r\n\r\n{SAID}")
    await peer.closes()


@behaviour
async def refuses_with_a_body_that_is_cut(peer):
    await peer.send(f"HTTP/1.1 400 Bad\r\ncontent-length: 100000\r\n\r\n{SAID}")


@behaviour
async def refuses_a_long_context(peer):
    await peer.answer(400, json.dumps({"error": {"message": SAID, "code": "context_length_exceeded"}}))


@behaviour
async def refuses_without_credit(peer):
    await peer.answer(429, json.dumps({"error": {"message": SAID, "code": "insufficient_quota"}}))


@behaviour
async def refuses_with_nonsense_as_its_time(peer):
    await peer.answer(429, "{}", "retry-after: Wed, 99 Oct 99999999 07:28:00 GMT")


@behaviour
async def redirects(peer):
    await peer.answer(302, "", f"location: http://127.0.0.1:1/{KEY}")


@behaviour
async def has_no_content(peer):
    await peer.send("HTTP/1.1 204 No Content\r\n\r\n")


# --- streams that break off


@behaviour
async def hangs_up(peer):
    """At once."""


@behaviour
async def speaks_no_http(peer):
    await peer.send(peer.head)


@behaviour
async def cuts_the_stream(peer):
    await peer.begin()
    await peer.event(text("one"))


@behaviour
async def cuts_an_event(peer):
    await peer.begin()
    await peer.event(text("one"))
    await peer.part('data: {"choices": [{"text": "tw')


@behaviour
async def ends_early(peer):
    await peer.begin()
    await peer.event(text("one"))
    await peer.end()


@behaviour
async def ends_early_with_done(peer):
    await peer.begin()
    await peer.event(text("one"))
    await peer.event("[DONE]")
    await peer.end()


@behaviour
async def ends_with_the_connection(peer):
    event = f"data: {json.dumps(text('one'))}\n\n"
    await peer.send(f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{event}")


@behaviour
async def ends_empty(peer):
    await peer.begin()
    await peer.end()


@behaviour
async def aborts(peer):
    await peer.begin()
    await peer.event(text("one", "abort"))
    await peer.event("[DONE]")
    await peer.end()


# --- what is no stream of this API


@behaviour
async def sends_html(peer):
    await peer.answer(200, f"<html>{SAID}</html>", kind="text/html")


@behaviour
async def sends_events_as_html(peer):
    await peer.begin("text/html")
    await peer.event(text("one", "stop"))
    await peer.end()


@behaviour
async def names_the_key_as_its_kind(peer):
    await peer.answer(200, "{}", kind=f"text/{KEY}")


@behaviour
async def sends_no_json(peer):
    await peer.begin()
    await peer.event(text("one"))
    await peer.event(SAID)
    await peer.end()


@behaviour
async def sends_a_list(peer):
    await peer.begin()
    await peer.event([SAID])
    await peer.end()


@behaviour
async def sends_a_deep_event(peer):
    await peer.begin()
    await peer.event("[" * 100_000)
    await peer.end()


@behaviour
async def sends_a_number_as_text(peer):
    await peer.begin()
    await peer.event(text(7))
    await peer.end()


@behaviour
async def compresses(peer):
    await peer.begin("text/event-stream", "content-encoding: gzip")
    await peer.part(b"\x1f\x8b")
    await peer.closes()


@behaviour
async def reports_an_error(peer):
    await peer.begin()
    await peer.event(text("one"))
    await peer.event(ERROR)
    await peer.event("[DONE]")
    await peer.end()


@behaviour
async def reports_an_error_behind_the_end(peer):
    await peer.begin()
    await peer.event(text("one", "stop"))
    await peer.event(ERROR)
    await peer.event("[DONE]")
    await peer.end()


@behaviour
async def reports_a_named_error(peer):
    await peer.begin()
    await peer.part(f"event: error\ndata: {json.dumps({'message': SAID})}\n\n")
    await peer.closes()


@behaviour
async def reports_a_limit(peer):
    await peer.begin()
    await peer.event({"error": {"message": SAID, "code": 429}})
    await peer.end()


# --- what never ends


@behaviour
async def says_nothing(peer):
    await peer.closes()


@behaviour
async def says_nothing_behind_its_head(peer):
    await peer.begin()
    await peer.closes()


@behaviour
async def stalls(peer):
    await peer.begin()
    await peer.event(text("one"))
    await peer.closes()


@behaviour
async def comments(peer):
    await peer.begin()
    while True:
        await peer.part(": keep-alive\n\n")
        await trio.sleep(0.01)


@behaviour
async def comments_without_a_pause(peer):
    await peer.begin()
    while True:
        await peer.part(": keep-alive\n\n" * 1000)


@behaviour
async def sends_roles(peer):
    await peer.begin()
    while True:
        await peer.event({"choices": [{"index": 0, "delta": {"role": "assistant"}, "text": ""}]})


@behaviour
async def sends_an_endless_head(peer):
    await peer.send("HTTP/1.1 200 OK\r\n")
    while True:
        await peer.send(f"x-more: {'x' * 1000}\r\n")


@behaviour
async def sends_an_endless_line(peer):
    await peer.begin()
    await peer.part("data: ")
    while True:
        await peer.part("x" * 60_000)


@behaviour
async def sends_an_endless_comment(peer):
    await peer.begin()
    await peer.part(":")
    while True:
        await peer.part("x" * 60_000)


@behaviour
async def sends_an_endless_event(peer):
    await peer.begin()
    while True:
        await peer.part("data: x\n" * 8_000)


@behaviour
async def sends_tokens_for_ever(peer):
    await peer.begin()
    while True:
        await peer.event(text("x" * 10_000))


# --- answers that are whole


@behaviour
async def is_good(peer):
    await peer.begin()
    for piece in ("one", " two", ""):
        await peer.event(text(piece))
    await peer.event(text(" three", "length"))
    await peer.event(USAGE)
    await peer.event("[DONE]")
    await peer.end()


@behaviour
async def is_good_without_done(peer):
    await peer.begin()
    await peer.event(text("one"))
    await peer.event({**text(" two three", "length"), "usage": USAGE["usage"]})
    await peer.end()


@behaviour
async def is_cut_behind_its_finish_reason(peer):
    await peer.begin()
    await peer.event(text("one two"))
    await peer.event({**text(" three", "length"), "usage": USAGE["usage"]})


@behaviour
async def is_silent_behind_its_finish_reason(peer):
    await is_cut_behind_its_finish_reason(peer)
    await peer.closes()


@behaviour
async def comes_byte_by_byte(peer):
    await peer.begin()
    events = [text("one"), text(" two"), {**text(" three", "length"), "usage": USAGE["usage"]}]
    data = "".join(f": x\r\ndata:{json.dumps(event, ensure_ascii=False)}\r\n\r\n" for event in events)
    for byte in data.encode():
        await peer.part(bytes([byte]))
    await peer.end()


@behaviour
async def keeps_its_connection_open_behind_done(peer):
    await peer.begin()
    await peer.event({**text("one two three", "length"), "usage": USAGE["usage"]})
    await peer.event("[DONE]")
    await peer.closes()


@asynccontextmanager
async def serving(answer, tls=None):
    """The URL of a server that answers each request so, and what it got; each connection is closed behind its answer.

    With the SSL context `tls` it speaks TLS, and its name is localhost.
    """
    peers = []

    async def serve(stream):
        async with stream:
            try:
                data = b""
                while b"\r\n\r\n" not in data:
                    more = await stream.receive_some(65536)
                    if not more:
                        return
                    data += more
                head, _, body = data.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                while len(body) < length:
                    body += await stream.receive_some(65536)
                peer = Peer(stream, head, json.loads(body))
                peers.append(peer)
                await answer(peer)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client has left

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        listeners = [listener if tls is None else trio.SSLListener(listener, tls, https_compatible=True)]
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"http://127.0.0.1:{port}/v1" if tls is None else f"https://localhost:{port}/v1", peers
        nursery.cancel_scope.cancel()
