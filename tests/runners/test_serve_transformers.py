"""A model of Hugging Face behind the HTTP API of OpenAI, used by its own client while contexts are killed.

`COMPLETIONS=200` in the environment makes as many; the default is a short form.
"""

import os
import random

import pytest
import trio
from stage import (
    strike,
    worker_leaves_nothing,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
)

from runners import ProcessHost, TransformersLM, device_worker
from runners.serve import serve
from supervise import open_tree

openai = pytest.importorskip("openai", reason="needs OpenAI's client, which is in trio-supervise[dev]")
pytest.importorskip("hypercorn", reason="needs trio-supervise[http]: hypercorn is not installed")
transformers = pytest.importorskip(
    "transformers", reason="needs trio-supervise[transformers]: transformers is not installed"
)

COMPLETIONS = int(os.environ.get("COMPLETIONS", "48"))
AT_ONCE, TOKENS = 16, 220


@pytest.mark.slow
@pytest.mark.trio
async def test_every_chat_is_whole_while_contexts_of_a_transformer_die(tmp_path):
    """D6, D12: Streamed chats, sixteen at a time, over two contexts, one of which is killed from time to time."""
    from test_transformers import SMALL, saved

    folder = saved(tmp_path / "model", transformers.LlamaConfig(**SMALL))
    model = TransformersLM(folder, streams=AT_ONCE)
    worker = device_worker("llm", model, hosts=[ProcessHost(), ProcessHost()], limit=None, backoff=None)
    texts, killed, parts_seen = {}, [], 0
    sixteen = trio.CapacityLimiter(AT_ONCE)

    def chat(client, number):
        nonlocal parts_seen
        parts = []
        with client.chat.completions.create(
            model="small",
            messages=[{"role": "user", "content": f"the quick brown {number}"}],
            seed=number,
            temperature=0.8,
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
        ) as chunks:
            for chunk in chunks:
                if chunk.choices:
                    parts.append(chunk.choices[0].delta.content or "")
                    parts_seen += 1
                    finish = chunk.choices[0].finish_reason
                else:
                    tokens = chunk.usage.completion_tokens
        assert tokens == TOKENS if finish == "length" else 0 < tokens <= TOKENS
        texts[number] = "".join(parts)

    async def kill_one_now_and_then(tree):
        chance = random.Random(1)
        while True:
            enough = parts_seen + 30 * AT_ONCE
            while parts_seen < enough:  # noqa: ASYNC110 - The threads set no event.
                await trio.sleep(0.01)
            context = tree[f"serve/llm/context-{chance.randrange(2)}/context"]
            if context.status().state == "up":
                await strike(context)
                killed.append(context.path)

    with trio.fail_after(600):
        async with open_tree(serve({"small": worker}, port=0), sinks=[]) as tree:
            (url,) = await tree["serve/http"].ready()
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                async with trio.open_nursery() as killing:
                    killing.start_soon(kill_one_now_and_then, tree)
                    async with trio.open_nursery() as chats:
                        for number in range(COMPLETIONS):
                            chats.start_soon(
                                lambda number=number: trio.to_thread.run_sync(
                                    chat, client, number, limiter=sixteen
                                )
                            )
                    killing.cancel_scope.cancel()
    assert sorted(texts) == list(range(COMPLETIONS))
    assert all(texts.values())
    assert killed
