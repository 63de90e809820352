"""A real engine, `transformers serve`, with a small model of random weights: it is killed in the middle of a stream (D17)."""

import sys
from pathlib import Path

import pytest
import trio
from stage import (
    kill,
    serving,
    worker_leaves_nothing,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
)

from runners import EngineHost, ExecuteBatch, OpenAIModel, Sampling
from runners.errors import ContextDied, ContextLost
from supervise.events import Failed
from supervise.programs import Command
from supervise.programs.guardian import below

transformers = pytest.importorskip(
    "transformers", reason="needs trio-supervise[transformers]: transformers is not installed"
)
for name in ("fastapi", "uvicorn"):
    pytest.importorskip(name, reason=f"needs transformers[serving]: {name} is not installed")
pytest.importorskip("httpx2", reason="needs trio-supervise[openai]: httpx2 is not installed")


@pytest.mark.slow
@pytest.mark.trio
async def test_a_real_server_is_replaced(tmp_path):
    """D6, D17: The stream without ids is lost, a request that waits gets its answer from the next one, and nothing is left."""
    from test_transformers import SMALL, saved

    endless = {**SMALL, "eos_token_id": None, "max_position_embeddings": 6000}
    folder = saved(tmp_path / "model", transformers.LlamaConfig(**endless))
    program = str(Path(sys.executable).with_name("transformers"))
    host = EngineHost(
        Command(
            "engine",
            [program, "serve", folder, "--device", "cpu", "--port", "{port}"],
            env={"HF_HUB_OFFLINE": "1"},
        )
    )
    model = OpenAIModel("http://127.0.0.1:{port}/v1", folder, streams=1)

    def request(name, most=20):
        return ExecuteBatch(name, "the quick", sampling=Sampling(max_tokens=most, temperature=0, seed=1))

    async with serving(model, host=host, patience=240) as scene:
        state = await scene.incarnation(1)
        before = await scene.worker.call(request("before"))
        assert (before.usage.output, before.finish_reason) == (20, "length")
        after = []

        async def wait():
            after.append(await scene.worker.call(request("after")))

        async with trio.open_nursery() as nursery:
            with pytest.raises(ContextLost):
                async with scene.worker.stream(request("lost", most=5000)) as chunks:
                    await anext(chunks)
                    nursery.start_soon(wait)
                    await trio.sleep(0.05)
                    kill(state.pid)
                    async for _ in chunks:
                        pass
        assert after[0].text == before.text
        assert [type(event.exc) for event in scene.of(Failed)] == [ContextDied]
        assert not below(state.pid)
        assert not exists(state.pid)


def exists(pid):
    return Path(f"/proc/{pid}").exists()
