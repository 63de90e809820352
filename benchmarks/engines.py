"""How long a real engine server is missed after its death, beside the time that its program takes to give a first token at all.

    python -m benchmarks.engines                 three rounds with `transformers serve` and a small Llama of random weights
    python -m benchmarks.engines --rounds 10

A round starts the program by hand, asks it for a token until it gives one, and kills it. That is the floor. Then it does the same with an
`EngineHost`, kills the program in the middle of a stream, and waits for the next token. The ratios are the medians of those within one
round. Exit status 1 if the next token takes more than twice the floor, and 2 if `transformers serve` is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import socket
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

from runners import EngineHost, ExecuteBatch, OpenAIModel, Sampling
from runners.errors import ContextDied
from runners.types import CANARY
from supervise.programs import Command

MOST = 2.0
"""The ratio of the time to the next token to the floor that must be reached."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}


def missing() -> str | None:
    """Why this cannot be measured here; None if it can be."""
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


def argv(folder: str, port: str) -> list[str]:
    """The command of the server."""
    program = str(Path(sys.executable).with_name("transformers"))
    return [program, "serve", folder, "--device", "cpu", "--host", "127.0.0.1", "--port", port]


def by_hand(folder: str) -> float:
    """Seconds from the start of the program to its first token."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    body = {"model": folder, "prompt": CANARY.prompt, "max_tokens": 1}
    question = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    began = perf_counter()
    with subprocess.Popen(
        argv(folder, str(port)),
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as program:
        while program.poll() is None:
            try:
                with urllib.request.urlopen(question, timeout=60) as answer:
                    answer.read()
                    took = perf_counter() - began
                    program.kill()
                    return took
            except urllib.error.URLError:
                sleep(0.1)
    raise RuntimeError(f"the server has ended with {program.returncode}")


async def by_host(folder: str) -> dict[str, float]:
    """The same with an `EngineHost`, and what its death costs."""
    host = EngineHost(Command("engine", argv(folder, "{port}"), env=ENVIRONMENT))
    model = OpenAIModel("http://127.0.0.1:{port}/v1", folder)
    found: dict[str, float] = {}
    began = killed = perf_counter()
    try:
        async with host.open(model) as session:
            found["first token after the start"] = perf_counter() - began
            session.begin(ExecuteBatch("a", "a", sampling=Sampling(max_tokens=100)))
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


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args(arguments).rounds
    if why := missing():
        print(why, file=sys.stderr)
        return 2
    floors: list[float] = []
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = little_llama(Path(place))
        for _ in range(rounds):
            floors.append(by_hand(folder))
            found.append(trio.run(by_host, folder))
    rows = {}
    print(f"{'the program by hand, to its first token':40} {statistics.median(floors):8.2f} s")
    for name in found[0]:
        ratio = statistics.median(each[name] / floor for each, floor in zip(found, floors, strict=True))
        seconds = statistics.median(each[name] for each in found)
        rows[name] = {"seconds": round(seconds, 3), "ratio": round(ratio, 3)}
        print(f"{name:40} {seconds:8.2f} s   × {ratio:.2f}")
    print(json.dumps({"rounds": rounds, "load": os.getloadavg()[0], "floor": floors, "rows": rows}))
    return 0 if rows["next token after the death"]["ratio"] <= MOST else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
