"""`TransformersLM`: a small model with random weights and a tokenizer, both made here. Nothing is downloaded."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from runners import ExecuteBatch, ProcessHost, Sampling, device_worker
from runners.errors import BadRequest, ContextLengthExceeded, LoadFailed
from runners.hosts.turns import NOTHING
from runners.models.scripted import Fault, Faulty
from runners.models.transformers import TransformersLM, _preloaded
from runners.types import (
    ContinuingRunner,
    FinishReason,
    PreloadingSpec,
    PreparingSpec,
    RunnerStart,
    SessionRebuildCause,
    TokenUsage,
)
from supervise import open_tree

transformers = pytest.importorskip(
    "transformers", reason="needs trio-supervise[transformers]: transformers is not installed"
)
tokenizers = pytest.importorskip("tokenizers")
torch = pytest.importorskip("torch")

START = RunnerStart(incarnation=1)
END, WORDS = 0, 300
LINES = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"]
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'fool' %}{{ raise_exception('no fools') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if tools %}{{ tools }}{% endif %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 300,
    "eos_token_id": END,
    "bos_token_id": None,
    "pad_token_id": END,
}


def saved(folder, config, template=TEMPLATE):
    """A model with random weights of this configuration, and a byte-level tokenizer trained on a few lines."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=["<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for weight in model.parameters():
            if weight.dim() > 1:  # large weights: the best token is clearly the best, and changes
                torch.nn.init.normal_(weight, std=0.4)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def _environment():
    """What a build sets for its process is set for these tests alone."""
    before, threads = dict(os.environ), torch.get_num_threads()
    yield
    os.environ.clear()
    os.environ.update(before)
    torch.set_num_threads(threads)
    _preloaded.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("llama"), transformers.LlamaConfig(**SMALL))


@pytest.fixture(scope="module")
def runner(folder):
    return TransformersLM(folder, streams=4).build(START)


def request(name="r", prompt="the quick", *, payload=None, options=None, **sampling):
    return ExecuteBatch(
        name,
        prompt,
        payload=payload,
        options=options,
        sampling=Sampling(**{"max_tokens": 24, "temperature": 0, "seed": 1, **sampling}),
    )


def tokens_of(chunks):
    return [token for chunk in chunks for token in chunk.token_ids]


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


def generated(folder, prompt, count=24):
    """What transformers itself generates, greedily."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count)
    new = made[0, ids.shape[1] :].tolist()
    return new, tokenizer.decode(new, skip_special_tokens=True)


# ---- the spec -------------------------------------------------------------------------------------------------------


def test_the_spec_imports_neither_torch_nor_transformers():
    """D2: A parent that names a runner does not pay for it."""
    code = (
        "import sys; from runners.models.transformers import TransformersLM; TransformersLM('a');"
        "sys.exit(bool({'torch', 'numpy', 'transformers'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_spec_is_a_value_that_refuses_nonsense():
    """D2: One clear error that names the argument."""
    assert TransformersLM("a") == TransformersLM("a")
    assert isinstance(TransformersLM("a"), PreloadingSpec)
    assert isinstance(TransformersLM("a"), PreparingSpec)
    for wrong in (
        {"model": ""},
        {"streams": 0},
        {"dtype": "int8"},
        {"context": 0},
        {"threads": 0},
        {"revision": 1},
    ):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            TransformersLM(**{"model": "a", **wrong})


def test_the_runner_declares_what_it_can_do(runner):
    """D6: Its streams may move, but their logits are not promised to the bit."""
    assert isinstance(runner, ContinuingRunner)
    assert (runner.info.streams, runner.info.can_continue, runner.info.reproducible) == (4, True, False)
    assert runner.info.runtime == "transformers"


def test_a_model_that_is_not_there_is_not_built(tmp_path):
    """D2: The error of transformers, which names it; the preload leaves it to the start."""
    spec = TransformersLM(str(tmp_path / "none"), local_files_only=True)
    with pytest.raises((OSError, ValueError), match="none"):
        spec.build(START)
    spec.preload()
    assert spec not in _preloaded


# ---- the same tokens as transformers --------------------------------------------------------------------------------

KINDS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "sliding": lambda: transformers.MistralConfig(**SMALL, sliding_window=6),
    "mixed": lambda: transformers.Gemma3TextConfig(
        **SMALL, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_streams_that_join_and_leave_have_the_tokens_that_transformers_generates(tmp_path, kind):
    """D6: Whatever other streams are in a step: prompts of any length, one fed in pieces, one that leaves early."""
    folder = saved(tmp_path, KINDS[kind]())
    prompts = ["the quick", "a", "pack my box with five dozen liquor jugs and the lazy dog", "fox"]
    runner = TransformersLM(folder, streams=3, prefill=5).build(START)
    streams, found, waiting = {}, {prompt: [] for prompt in prompts}, list(prompts)
    leaver = runner.execute(request("leaver", "over"))
    for turn in range(400):
        if turn == 5:
            leaver.close()
        while waiting and len(runner._streams) < 3 and turn % 3 == 0:
            prompt = waiting.pop(0)
            streams[prompt] = runner.execute(request(prompt, prompt))
        if turn < 5:
            next(leaver)
        for prompt, stream in list(streams.items()):
            if (chunk := next(stream, None)) is None:
                del streams[prompt]
            elif chunk is not NOTHING:
                found[prompt].append(chunk)
        if not streams and not waiting:
            break
    for prompt in prompts:
        tokens, text = generated(folder, prompt)
        assert (tokens_of(found[prompt]), text_of(found[prompt])) == (tokens, text)


def test_streams_with_a_gap_between_their_slots_have_their_own_tokens(folder, monkeypatch):
    """The one between them has left: their keys and values do not lie together any more."""
    prompts = ["the quick", "a", "fox and dog", "jugs"]
    runner = TransformersLM(folder).build(START)
    streams = [runner.execute(request(prompt, prompt)) for prompt in prompts]
    found = [[next(stream)] for stream in streams]
    streams[1].close()
    passes, run = [], runner.model._pass
    with monkeypatch.context() as patch:
        patch.setattr(runner.model, "_pass", lambda feeds: passes.append(len(feeds)) or run(feeds))
        for at in (0, 2, 3, 0, 2, 3):
            found[at].append(next(streams[at]))
    assert passes == [3, 3]
    found[1] = [
        *runner.execute(request("again", prompts[1]))
    ]  # in the slot that is free, while the others wait
    for at in (3, 2, 0):
        found[at] += streams[at]
    for prompt, chunks in zip(prompts, found, strict=True):
        assert tokens_of(chunks) == generated(folder, prompt)[0]


def test_layers_that_keep_another_state_are_refused(tmp_path):
    """A model whose cache is no cache of keys and values would serve wrong texts."""
    folder = saved(tmp_path, transformers.Lfm2Config(**SMALL, full_attn_idxs=[1]))
    with pytest.raises(
        LoadFailed, match="must be of the kinds full_attention and sliding_attention, got conv, full"
    ):
        TransformersLM(folder).build(START)


def test_a_cut_stream_continues_after_its_accepted_tokens(folder, runner):
    """D6: Here the tokens are the same too, greedy or drawn, since none of them is a close decision."""
    for options in ({}, {"temperature": 0.7}):
        batch = request(**options)
        uncut = list(runner.execute(batch))
        tokens = tokens_of(uncut)
        for cut in range(0, len(tokens), 5):
            rest = list(runner.continue_from(batch, tokens[:cut]))
            assert tokens[:cut] + tokens_of(rest) == tokens
            assert text_of(uncut[:cut]) + text_of(rest) == text_of(uncut)
            assert rest[0].index == cut
            assert rest[-1].usage.replayed == cut


def test_a_rebuild_makes_the_caches_anew_and_disturbs_no_stream(runner):
    """D7: All tokens are fed again."""
    stream = runner.execute(request())
    got = [next(stream) for _ in range(7)]
    runner.rebuild(SessionRebuildCause.MANUAL)
    assert tokens_of([*got, *stream]) == tokens_of(runner.execute(request()))


def test_a_step_without_memory_leaves_the_streams_as_they_were(runner, monkeypatch):
    """D5: The keys and values of half a step are overwritten by the next one."""
    cache = runner.model._cache
    expected = tokens_of(runner.execute(request(max_tokens=8)))
    one, other = runner.execute(request("one")), runner.execute(request(max_tokens=8))
    got = [next(other), next(one)][:1]
    real, calls = cache.update, []

    def update(keys, values, layer, *rest, **more):
        calls.append(layer)
        if layer == 1:
            raise torch.OutOfMemoryError("no room")
        return real(keys + 1, values + 1, layer, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "update", update)
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            next(one)
    assert calls == [0, 1]
    assert tokens_of([*got, *other]) == expected


def test_the_memory_of_the_cache_grows_with_the_longest_stream_and_is_released_with_the_last(runner):
    """It has room for the streams that are open together, not for all that may be."""
    cache = runner.model._cache
    assert not cache._stores
    long = runner.execute(request(payload=[5] * 280, prompt="", max_tokens=3))
    next(long)
    assert cache._stores[0][0].shape[:3] == (1, 2, 512)
    others = [runner.execute(request(f"{number}")) for number in range(2)]
    for stream in (long, *others):
        next(stream)
    assert cache._stores[0][0].shape[:3] == (4, 2, 512)
    for stream in (long, *others):
        stream.close()
    assert not cache._stores


# ---- requests -------------------------------------------------------------------------------------------------------


def test_chat_messages_go_through_the_tokenizers_template(folder, runner):
    """D11: Messages, and tools if there are any; what the template refuses is the request's own error."""
    messages = [{"role": "user", "content": "the fox"}]
    tokens, text = generated(folder, "<|user|>the fox<|assistant|>")
    chunks = list(runner.execute(request(prompt="", payload=messages)))
    assert (tokens_of(chunks), text_of(chunks)) == (tokens, text)
    more = list(runner.execute(request(prompt="", payload=messages, options={"tools": [{"a": 1}]})))
    assert more[-1].usage.input > chunks[-1].usage.input
    fool = runner.execute(request(prompt="", payload=[{"role": "fool", "content": ""}]))
    with pytest.raises(BadRequest, match=r"^the chat template refuses the messages: no fools$"):
        next(fool)


def test_a_tokenizer_without_a_template_refuses_messages(tmp_path):
    """D5: It says what a request may have instead."""
    runner = TransformersLM(saved(tmp_path, transformers.LlamaConfig(**SMALL), template=None)).build(START)
    with pytest.raises(BadRequest, match="the model has no chat template"):
        next(runner.execute(request(prompt="", payload=[{"role": "user", "content": "a"}])))


def test_a_stop_string_ends_a_stream_wherever_it_lies_in_its_tokens(runner):
    """The text ends before it; nothing of it was shown."""
    whole = text_of(runner.execute(request(max_tokens=60)))
    stop = whole[9:12]
    chunks = list(runner.execute(request(max_tokens=60, stop=(stop,))))
    assert text_of(chunks) == whole[: whole.index(stop)]
    assert chunks[-1].finish_reason is FinishReason.STOP


def test_the_end_token_of_the_generations_configuration_ends_a_stream(tmp_path, folder, runner):
    """Of several, each does. It is counted, and has no text."""
    tokens = tokens_of(runner.execute(request()))
    end = next(token for at, token in enumerate(tokens) if at > 3 and token not in tokens[:at])
    other = Path(saved(tmp_path, transformers.LlamaConfig(**SMALL)))
    generation = transformers.GenerationConfig(eos_token_id=[END, end], pad_token_id=END)
    generation.save_pretrained(other)
    chunks = list(TransformersLM(str(other)).build(START).execute(request()))
    assert tokens_of(chunks) == tokens[: tokens.index(end) + 1]
    assert chunks[-1].finish_reason is FinishReason.STOP
    assert chunks[-1].usage == TokenUsage(input=chunks[-1].usage.input, output=len(tokens_of(chunks)))


def test_the_context_is_that_of_the_model_or_less(folder, runner):
    """A prompt that leaves no room is refused; a context that the model does not have fails the load."""
    with pytest.raises(ContextLengthExceeded, match=r"^a prompt may have 299 tokens, got 300$"):
        next(runner.execute(request(prompt="", payload=[5] * 300)))
    short = TransformersLM(folder, context=10).build(START)
    assert len(tokens_of(short.execute(request(prompt="", payload=[5] * 7)))) == 3
    with pytest.raises(LoadFailed, match=r"^context must be at most 300, which the model has, got 301$"):
        TransformersLM(folder, context=301).build(START)


def test_the_dtype_is_that_of_the_files_or_the_given_one(folder, runner):
    """Weights and cache have it."""
    assert runner.model._model.dtype is torch.float32
    half = TransformersLM(folder, dtype="bfloat16").build(START)
    assert half.model._model.dtype is torch.bfloat16
    stream = half.execute(request(options={"logprobs": 2}))
    (logprob,) = next(stream).data["logprobs"]
    assert logprob["top"][0]["logprob"] == logprob["logprob"] <= 0
    assert half.model._cache._stores[0][0].dtype is torch.bfloat16


# ---- ahead of the start, and through a death ------------------------------------------------------------------------


def test_what_was_loaded_ahead_is_taken_once_and_only_of_the_same_files(tmp_path):
    """D15: A forked process has its model; files that have changed since are loaded again."""
    spec = TransformersLM(saved(tmp_path, transformers.LlamaConfig(**SMALL)))
    spec.preload()
    (ready, _) = _preloaded[spec]
    first = spec.build(START)
    assert first.model._model is ready.model
    assert spec.build(START).model._model is not ready.model
    assert spec.prepare("cuda:0") is spec
    ready, _ = _preloaded[spec]
    saved(tmp_path, transformers.LlamaConfig(**SMALL))
    assert spec.build(START).model._model is not ready.model


@pytest.mark.slow
def test_a_preload_leaves_one_thread(folder):
    """D15: No thread of torch, of tokenizers or of a progress bar, in a process of its own."""
    code = (
        "import os, sys; from runners.hosts.process.child.forkserver import Threads\n"
        "from runners.models.transformers import TransformersLM, _preloaded\n"
        "spec = TransformersLM(sys.argv[1], threads=2)\n"
        "with Threads() as threads:\n"
        "    spec.preload()\n"
        "    threads.check()\n"
        "assert spec in _preloaded\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "OPENBLAS", "TOKEN"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code, folder], check=True, capture_output=True, text=True, env=clean
    )
    assert done.stdout == "1\n"


@pytest.mark.slow
@pytest.mark.trio
@pytest.mark.parametrize("start", ["forkserver", "spawn"])
async def test_a_killed_stream_goes_on_without_losing_or_repeating_a_token(folder, start, caplog):
    """D6: The process is really killed, in mid-stream, while it serves two streams."""
    slow = Fault("slow", "one", 15, 1, seconds=5)  # so that it is not over before it is struck
    spec = Faulty(TransformersLM(folder, streams=2, threads=2), (slow,))
    worker = device_worker("llm", spec, host=ProcessHost("cpu", start=start), backoff=None)
    found = {}

    async def ask(name, prompt, *, kill):
        chunks = found[name] = []
        async with tree[worker].stream(request(name, prompt, max_tokens=40)) as stream:
            async for chunk in stream:
                chunks.append(chunk)
                if kill and chunk.index == 10 and chunk.incarnation == 1:
                    os.kill(context.pid, signal.SIGKILL)

    async with open_tree(worker, sinks=[]) as tree:
        context = await tree[worker].ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: ask("one", "the quick", kill=True))
            nursery.start_soon(lambda: ask("two", "a lazy dog", kill=False))
    for name, prompt in (("one", "the quick"), ("two", "a lazy dog")):
        chunks = found[name]
        positions = [chunk.index for chunk in chunks if chunk.token_ids]
        assert positions == list(range(len(positions)))
        assert (tokens_of(chunks), text_of(chunks)) == generated(folder, prompt, 40)
    assert {chunk.incarnation for chunk in found["one"]} == {1, 2}
    assert "preload" not in caplog.text
