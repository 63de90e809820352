"""An engine of two processes as vLLM has them: a server that speaks OpenAI's API, and a worker that makes the tokens.

    python engines.py PORT MODEL [interrupts] [FILE]

MODEL is `sums`, whose next token follows from all tokens before it, or `torch-lm`. If FILE is given, each
stream is slow behind `SLOW_BEHIND` tokens until that file exists, so that a test can strike it before it is over. Its traps are those of vLLM:

- When the worker is killed, each stream gets an error event, `[DONE]`, and a good end of its body; the server ends a moment later, with
  status 0.
- While the worker is stopped, streams stall, and `/health` gives 200.
- When the server is killed, the worker lives on, in a session of its own.

A prompt that begins with `fail` gets an error event although the worker is sound, and one that begins with `break` has its
connection cut. One that begins with `long` gets a stream without an event, as from `llama_cpp.server` if it is longer than the
context. With `interrupts` a request ends the streams before it with `[DONE]`, as in that server.
"""

import json
import os
import select
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import trio
from hostile_server import Peer

LINGER = 3.0
"""Seconds between the death of the worker and the end of the server; vLLM 0.32 takes 5."""
PAUSE = 0.004
"""Seconds of a step of the worker."""
SLOW, SLOW_BEHIND = 0.25, 28
"""Seconds of a slow step, and the tokens of a stream before it."""


# --- the model


def next_sum(ids):
    return (sum(ids) * 7 + len(ids) * 13) % 97


def sums(ids, most):
    """What the model `sums` makes."""
    made = []
    while len(made) < most:
        made.append(next_sum([*ids, *made]))
    return tuple(made)


def letters(ids):
    return "".join(chr(97 + token % 26) for token in ids)


class Sums:
    """A stream of the model `sums`."""

    def __init__(self, ids, most):
        self.ids, self.left = list(ids), most

    def __next__(self):
        token = next_sum(self.ids)
        self.ids.append(token)
        self.left -= 1
        return [token], letters([token]), None if self.left else "length"


class Language:
    """A stream of `TorchLM`."""

    def __init__(self, runner, ids, most):
        from runners import ExecuteBatch, Sampling

        sampling = Sampling(max_tokens=most, temperature=0, seed=1)
        self.chunks = runner.execute(ExecuteBatch("a", payload=ids, sampling=sampling))

    def __next__(self):
        chunk = next(self.chunks)
        return list(chunk.token_ids), chunk.text, chunk.finish_reason and chunk.finish_reason.value


def maker(model):
    if model == "sums":
        return Sums
    from runners import TorchLM
    from runners.types import RunnerStart

    return partial(Language, TorchLM().build(RunnerStart(incarnation=1)))


# --- the worker


def work(model, file=""):
    """Take requests from standard input, and make a token for each of them in turn. It outlives the process that wrote them."""
    make, streams, made, rest = maker(model), {}, {}, b""
    print("{}", flush=True)
    while True:
        while select.select([0], [], [], 0 if streams else None)[0]:
            data = os.read(0, 65536)
            if not data:
                time.sleep(10_000)  # an orphan
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                streams.pop(order["of"], None)
                if "ids" in order:
                    streams[order["of"]], made[order["of"]] = make(order["ids"], order["most"]), 0
        for name, stream in list(streams.items()):
            ids, text, finish = next(stream)
            made[name] += 1
            print(json.dumps({"of": name, "ids": ids, "text": text, "finish": finish}), flush=True)
            if finish:
                del streams[name]
        late = max((made[name] for name in streams), default=0) > SLOW_BEHIND
        time.sleep(SLOW if late and file and not Path(file).exists() else PAUSE)


# --- the server

ERROR = {"error": {"message": "EngineCore encountered an issue", "code": 500}}


class Server:
    def __init__(self, model, *how):
        self.interrupts = "interrupts" in how
        files = [each for each in how if each != "interrupts"]
        self.worker = subprocess.Popen(
            [sys.executable, __file__, "worker", model, *files],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.answers = {}
        self.count = 0
        self.dead = False

    async def listen_to_worker(self, *, task_status):
        rest = b""
        while data := await self._read():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                if not answer:
                    task_status.started()
                elif answer["of"] in self.answers:
                    self.answers[answer["of"]].send_nowait(answer)
        self.dead = True
        for answers in self.answers.values():
            answers.close()
        print("the worker is dead", file=sys.stderr, flush=True)
        await trio.sleep(LINGER)
        os._exit(0)

    async def _read(self):
        await trio.lowlevel.wait_readable(self.worker.stdout)
        return os.read(self.worker.stdout.fileno(), 65536)

    def order(self, **order):
        if not self.dead:
            os.write(self.worker.stdin.fileno(), json.dumps(order).encode() + b"\n")

    async def serve(self, stream):
        async with stream:
            try:
                while await self.answer_one(stream):
                    pass
            except trio.BrokenResourceError:
                pass  # the client has left

    async def answer_one(self, stream):
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(65536)
            if not more:
                return False
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        peer = Peer(stream, head, None)
        if head.startswith(b"GET /health "):
            await peer.answer("200 OK")
            return True
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += await stream.receive_some(65536)
        peer.body = json.loads(body)
        return await self.complete(peer)

    async def complete(self, peer):
        prompt, most = peer.body["prompt"], peer.body["max_tokens"]
        ids = [byte % 97 for byte in prompt.encode()] if isinstance(prompt, str) else prompt
        await peer.begin()
        if isinstance(prompt, str) and prompt.startswith("break"):
            return False
        if isinstance(prompt, str) and prompt.startswith("long"):
            await peer.end()
            return True
        while self.interrupts and self.answers:
            self.answers.popitem()[1].close()
        self.count += 1
        name = self.count
        out, answers = trio.open_memory_channel(1000)
        self.answers[name] = out
        if self.dead or (isinstance(prompt, str) and prompt.startswith("fail")):
            out.close()
        else:
            self.order(of=name, ids=ids, most=most)
        try:
            first, finish = True, None
            async for answer in answers:
                choice = {"index": 0, "text": answer["text"], "token_ids": answer["ids"]}
                if first:
                    choice["prompt_token_ids"] = ids
                first, finish = False, answer["finish"]
                await peer.event({"choices": [{**choice, "finish_reason": finish}]})
                if finish:
                    break
        finally:
            self.answers.pop(name, None)
            self.order(of=name)
        if not finish and not self.interrupts:
            await peer.event(ERROR)
        await peer.event("[DONE]")
        await peer.end()
        return True


async def main(port, *model):
    async with trio.open_nursery() as nursery:
        server = Server(*model)
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        await nursery.start(server.listen_to_worker)
        print("ready", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        work(*sys.argv[2:])
    trio.run(main, int(sys.argv[1]), *sys.argv[2:])
