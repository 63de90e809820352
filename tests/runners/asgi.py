"""An ASGI server in the test's own process, as strict as Hypercorn, and runners whose answers a test prescribes."""

import itertools
import json

import trio
from attrs import field, frozen

from runners import InlineHost, device_worker
from runners.http import openai_app
from runners.models.scripted import expected, letter
from runners.types import ExecuteBatch, FinishReason, RunnerInfo, Sampling, TokenChunk, TokenUsage
from supervise import Decider, Stop, Supervisor, open_tree
from supervise.testing import run_virtual

QUEUE = 10
"""So many messages Hypercorn holds for an app; then it reads no further."""
JSON = {"content-type": "application/json"}


class Answer:
    """What a client got of one exchange."""

    def __init__(self):
        self.status = None
        self.headers = {}
        self.parts = []
        self.times = []
        self.whole = False

    @property
    def body(self):
        return b"".join(self.parts)

    def json(self):
        assert self.headers["content-type"] == "application/json"
        assert int(self.headers["content-length"]) == len(self.body)
        return json.loads(self.body)

    @property
    def error(self):
        (error,) = self.json().values()
        assert set(error) == {"message", "type", "param", "code"}
        return error

    def data(self):
        """The events, each as it stands behind `data: `."""
        assert self.headers["content-type"].startswith("text/event-stream")
        *events, end = self.body.decode().split("\n\n")
        assert end == ""
        assert all(event.startswith("data: ") for event in events)
        return [event.removeprefix("data: ") for event in events]

    def events(self):
        """The events of a whole stream, without the one that ends it."""
        *events, done = self.data()
        assert done == "[DONE]"
        return list(map(json.loads, events))

    def text(self):
        """The text of a stream."""
        return "".join(
            choice.get("text") or choice.get("delta", {}).get("content", "")
            for event in self.events()
            for choice in event["choices"]
        )


class Client:
    """Sends requests to an app.

    The app finds what it finds with Hypercorn: a queue of ten messages, which is never closed; and a disconnect that is put
    into it inside the last `send`, which then has the connection still to make ready.
    """

    def __init__(self, app, **headers):
        self.app = app
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    async def post(self, path, body, **options):
        return await self.ask("POST", path, body, **options)

    async def get(self, path, **options):
        return await self.ask("GET", path, b"", **options)

    async def ask(self, method, path, body, *, headers=JSON, query=b"", leave=None, piece=1000, pause=0.0):
        """One exchange. `leave`: a client leaves when this event is set. `pause`: seconds between two pieces of a body."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer, connection = Answer(), trio.Event()
        put, taken = trio.open_memory_channel(QUEUE)
        pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
        iter_pieces = iter(pieces)
        if not pause:  # the app may come late
            for part in itertools.islice(iter_pieces, QUEUE):
                put.send_nowait({"type": "http.request", "body": part, "more_body": True})
        scope = {
            "type": "http",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": method,
            "path": path,
            "query_string": query,
            "scheme": "http",
            "headers": [
                (name.encode(), each.encode())
                for name, value in {**self.headers, **headers}.items()
                for each in ([value] if isinstance(value, str) else value)
            ],
        }

        async def read():
            for part in iter_pieces:
                await trio.sleep(pause)
                if connection.is_set():
                    return
                await put.send({"type": "http.request", "body": part, "more_body": True})
            if not connection.is_set():
                await put.send({"type": "http.request", "body": b"", "more_body": False})

        async def watch():
            await leave.wait()
            connection.set()
            await put.send({"type": "http.disconnect"})

        async def send(message):
            await trio.lowlevel.checkpoint()
            if connection.is_set():
                return
            if message["type"] == "http.response.start":
                assert answer.status is None
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                return
            answer.parts.append(message.get("body", b""))
            answer.times.append(trio.current_time())
            if not message.get("more_body", False):
                connection.set()
                await put.send({"type": "http.disconnect"})
                await trio.sleep(0.001)  # the connection is made ready for the next request
                answer.whole = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            if leave is not None:
                nursery.start_soon(watch)
            with trio.fail_after(10_000):
                await self.app(scope, taken.receive, send)
            nursery.cancel_scope.cancel()
        if leave is None or not leave.is_set():
            assert answer.whole, "the last message was cancelled, or is missing"
        return answer


@frozen
class Recording:
    """Answers each request with `letters` tokens, notes it in `seen`, and raises `error` instead of one of its chunks."""

    seen: list[ExecuteBatch] = field(factory=list)
    letters: int = 2
    error: Exception | None = None
    at: int = 0
    data: object = None
    logprobs: bool = False

    def build(self, start):
        return RecordingRunner(self)


class RecordingRunner:
    info = RunnerInfo(streams=100, runtime="recording")

    def __init__(self, spec):
        self.spec = spec

    async def execute(self, batch):
        spec = self.spec
        spec.seen.append(batch)
        if spec.data is not None:
            first = batch.payload[0] if batch.payload else len(batch.prompt)
            number = float(len(first) if isinstance(first, dict) else first)
            data = spec.data(number) if callable(spec.data) else spec.data
            usage = TokenUsage(input=int(number))
            yield TokenChunk(
                request_id=batch.request_id, index=0, data=data, finish_reason=FinishReason.STOP, usage=usage
            )
            return
        for index in range(spec.letters):
            if spec.error is not None and index == spec.at:
                raise spec.error
            await trio.sleep(0.1)
            last = index == spec.letters - 1
            letter = chr(ord("a") + index)
            yield TokenChunk(
                request_id=batch.request_id,
                index=index,
                token_ids=(index,),
                text=letter,
                finish_reason=FinishReason.STOP if last else None,
                usage=TokenUsage(input=3, output=spec.letters, cached=1) if last else None,
                data={"logprobs": [self.entry(letter, batch)]} if spec.logprobs else None,
            )

    @staticmethod
    def entry(letter, batch):
        top = [{"token": letter, "logprob": -0.5}, {"token": "é", "logprob": float("-inf")}]
        return {"token": letter, "logprob": -0.5, "top": top[: batch.options["logprobs"]]}

    async def rebuild(self, cause):
        pass

    async def close(self):
        pass


# --- the app in front of one worker

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
CHAT = {"model": "m", "messages": MESSAGES, "seed": 1}
TEXT = {"model": "m", "prompt": "hello", "seed": 1}
CHATS, TEXTS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def served(runner, use, *, token=None, **options):
    """The result of `use(client, worker)`, with the app in front of one worker for the model `m`."""
    of_app = {name: options.pop(name) for name in ("max_body", "timeout", "max_tokens") if name in options}
    worker = device_worker("m", runner, host=InlineHost(), **{"backoff": None, **options})
    root = Supervisor("app", [worker], decider=Decider({"limit": Stop}))

    async def main():
        async with open_tree(root, sinks=[]) as tree:
            app = openai_app({"m": tree[worker]}, token=token, **of_app)
            return await use(Client(app), tree[worker])

    return run_virtual(main)


def asked(runner, path, body, **options):
    """The answer to one request."""

    async def use(client, _):
        return await client.post(path, body)

    return served(runner, use, **options)


def text_of(prompt="hello", tokens=8, seed=1):
    batch = ExecuteBatch("r", prompt, sampling=Sampling(seed=seed, max_tokens=1000))
    return "".join(map(letter, expected(batch, tokens)))
