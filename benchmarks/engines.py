"""How long a real engine server is missed after its death, beside the time that its program takes to give a first token at all.

    python -m benchmarks.engines                 three rounds with `transformers serve` and a small Llama of random weights
    python -m benchmarks.engines --rounds 10
    python -m benchmarks.engines --trial         what it does when it is killed, stopped, left, and asked too much; see engine_trial.py

    python -m benchmarks.engines --model MODEL --command 'vllm serve MODEL --host 127.0.0.1 --port {port}' --token-ids
    python -m benchmarks.engines --command 'python -m llama_cpp.server --model MODEL.gguf --host 127.0.0.1 --port {port}' --streams 1

A round starts the program by hand, asks it for a token until it gives one, and kills it. That is the floor. Then it does the same with an
`EngineHost`, kills the program in the middle of a stream, and waits for the next token. The ratios are the medians of those within one
round. Exit status 1 if the next token takes more than twice the floor, or the trial finds a fault, and 2 if `transformers serve` is not
installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, sleep

import trio
from attrs import field, frozen

from benchmarks.engine_trial import trial
from benchmarks.ports import free_port
from runners import EngineHost, ExecuteBatch, OpenAIModel, Sampling
from runners.errors import ContextDied
from runners.types import CANARY
from supervise.programs import Command

MOST = 2.0
"""The ratio of the time to the next token to the floor that must be reached."""


@frozen
class Engine:
    """A server, and the runner that asks it; `{port}` stands for its port in both."""

    argv: tuple[str, ...]
    model: OpenAIModel
    env: dict[str, str] = field(factory=dict[str, str])
    load_timeout: float = 300.0

    def host(self) -> EngineHost:
        """The host that starts this server."""
        return EngineHost(Command("engine", self.argv, env=self.env), load_timeout=self.load_timeout)


def missing() -> str | None:
    """Why `transformers serve` cannot be measured here; None if it can be."""
    modules = [name for name in ("transformers", "fastapi", "uvicorn", "httpx2") if not _is_there(name)]
    return (
        f"needs transformers[serving] and trio-supervise[openai]: {', '.join(modules)}" if modules else None
    )


def _is_there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def little_llama(folder: Path) -> str:
    """A Llama of 2 layers with random weights, and a tokenizer of bytes."""
    import tokenizers  # noqa: PLC0415 - Without this package `missing` still has to run and name it.
    import transformers  # noqa: PLC0415 - Without this package `missing` still has to run and name it.

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([__doc__ or ""], trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(
        folder
    )
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def transformers_serve(folder: str, arguments: argparse.Namespace) -> Engine:
    """The server that is measured if no command is given."""
    program = str(Path(sys.executable).with_name("transformers"))
    argv = (program, "serve", folder, "--device", "cpu", "--host", "127.0.0.1", "--port", "{port}")
    return Engine(argv, _model(folder, arguments), {"HF_HUB_OFFLINE": "1"}, arguments.load_timeout)


def _model(name: str, arguments: argparse.Namespace) -> OpenAIModel:
    return OpenAIModel(
        "http://127.0.0.1:{port}/v1",
        name,
        chat=arguments.chat,
        token_ids=arguments.token_ids,
        streams=arguments.streams,
        next_chunk_timeout=arguments.next_chunk_timeout,
    )


def by_hand(engine: Engine) -> float:
    """Seconds from the start of the program to its first token."""
    port = str(free_port())
    prompt: dict[str, object] = {"prompt": CANARY.prompt}
    if engine.model.chat:
        prompt = {"messages": [{"role": "user", "content": CANARY.prompt}]}
    question = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1{'/chat' if engine.model.chat else ''}/completions",
        json.dumps({"model": engine.model.model, **prompt, "max_tokens": 1}).encode(),
        {"content-type": "application/json"},
    )
    began = perf_counter()
    with subprocess.Popen(
        [text.replace("{port}", port) for text in engine.argv],
        env=os.environ | engine.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as program:
        while program.poll() is None:
            try:
                with urllib.request.urlopen(question, timeout=60) as answer:
                    answer.read()
                    took = perf_counter() - began
                    program.terminate()  # so that an engine of several processes can end them all
                    return took
            except urllib.error.URLError:
                sleep(0.1)
    raise RuntimeError(f"the server has ended with {program.returncode}")


async def by_host(engine: Engine) -> dict[str, float]:
    """The same with an `EngineHost`, and what its death costs."""
    host, model = engine.host(), engine.model
    found: dict[str, float] = {}
    began = killed = perf_counter()
    try:
        async with host.open(model) as session:
            found["first token after the start"] = perf_counter() - began
            session.begin(ExecuteBatch("a", "a", sampling=Sampling(max_tokens=1000)))
            await session.receive()
            assert session.pid is not None
            os.kill(session.pid, signal.SIGKILL)
            killed = perf_counter()
            while True:
                await session.receive()
    except ContextDied:
        found["death reported, and nothing left"] = perf_counter() - killed
    async with host.open(model, incarnation=2):
        found["next token after the death"] = perf_counter() - killed
    return found


def _measure(engine: Engine, rounds: int) -> int:
    floors: list[float] = []
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        floors.append(by_hand(engine))
        found.append(trio.run(by_host, engine))
    rows = {}
    print(f"{'the program by hand, to its first token':40} {statistics.median(floors):8.2f} s")
    for name in found[0]:
        ratio = statistics.median(each[name] / floor for each, floor in zip(found, floors, strict=True))
        seconds = statistics.median(each[name] for each in found)
        rows[name] = {"seconds": round(seconds, 3), "ratio": round(ratio, 3)}
        print(f"{name:40} {seconds:8.2f} s   × {ratio:.2f}")
    print(json.dumps({"rounds": rounds, "load": os.getloadavg()[0], "floor": floors, "rows": rows}))
    return 0 if rows["next token after the death"]["ratio"] <= MOST else 1


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trial", action="store_true", help="try what the engine does instead of measuring")
    parser.add_argument("--command", help="the command of an engine, with {port} where its port belongs")
    parser.add_argument("--model", default="m", help="the name of the model at that engine")
    parser.add_argument("--chat", action="store_true", help="the engine has no /completions")
    parser.add_argument("--token-ids", action="store_true", help="the engine takes and gives token ids")
    parser.add_argument("--streams", type=int, default=64, help="how many streams are open at once")
    parser.add_argument("--load-timeout", type=float, default=300.0, help="seconds until the first token")
    parser.add_argument("--next-chunk-timeout", type=float, default=10.0, help="seconds between two tokens")
    parser.add_argument(
        "--too-long", type=int, metavar="WORDS", help="a prompt beyond the context, in the trial"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = _parsed(arguments)
    logging.getLogger("supervise.programs").setLevel(logging.CRITICAL)  # what the engine writes
    with tempfile.TemporaryDirectory() as place:
        if parsed.command is not None:
            argv = tuple(shlex.split(parsed.command))
            engine = Engine(argv, _model(parsed.model, parsed), load_timeout=parsed.load_timeout)
        elif (why := missing()) is None:
            engine = transformers_serve(little_llama(Path(place)), parsed)
        else:
            print(why, file=sys.stderr)
            return 2
        if parsed.trial:
            return 1 if trio.run(trial, engine.host(), engine.model, parsed.too_long) else 0
        return _measure(engine, parsed.rounds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
