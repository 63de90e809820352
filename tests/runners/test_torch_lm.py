import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.errors import BadRequest, ContextLengthExceeded, LoadFailed, WeightsCorrupt
from runners.models.causal.sampling import draw, uniform
from runners.models.torch_lm import PACKAGED, PACKAGED_SHA256, TorchLM, _preloaded
from runners.models.torch_lm.vocabulary import START, UNKNOWN, Vocabulary
from runners.types import (
    ContinuingRunner,
    ExecuteBatch,
    FinishReason,
    RunnerSpec,
    RunnerStart,
    Sampling,
    SessionRebuildCause,
    TokenUsage,
    WeightsFile,
    WeightsRepository,
)

torch = pytest.importorskip("torch")

START_ONE = RunnerStart(incarnation=1)
PROMPT = "The import statement"
few = settings(max_examples=12, deadline=None)


@pytest.fixture(scope="module")
def runner():
    return TorchLM().build(START_ONE)


def request(name="r", prompt=PROMPT, **sampling):
    return ExecuteBatch(name, prompt, sampling=Sampling(**{"max_tokens": 40, "seed": 7, **sampling}))


def alone(batch):
    """The stream that nothing ever disturbed."""
    return list(TorchLM(streams=1).build(START_ONE).execute(batch))


def tokens_of(chunks):
    return [token for chunk in chunks for token in chunk.token_ids]


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


def unreplayed(chunks):
    """The chunks without the fields that show whether they come from a replay."""
    return [(c.index, c.token_ids, c.text, c.finish_reason, c.usage and c.usage.output) for c in chunks]


# ---- the spec -------------------------------------------------------------------------------------------------------


def test_the_spec_imports_no_torch():
    """D2: A parent that names a runner does not pay for it."""
    code = "import sys, runners.models.torch_lm; runners.models.torch_lm.TorchLM(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_spec_is_a_value_that_refuses_nonsense():
    """D2: A spec is a frozen value, and its constructor refuses wrong values at once."""
    assert TorchLM() == TorchLM()
    assert isinstance(TorchLM(), RunnerSpec)
    for wrong in ({"streams": 0}, {"weights": 1}, {"weights": WeightsRepository("a/b")}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            TorchLM(**wrong)


def test_the_runner_declares_what_it_can_do(runner):
    """D6: On the CPU it is reproducible, so its streams may move."""
    assert isinstance(runner, ContinuingRunner)
    assert runner.info.streams == 16
    assert runner.info.reproducible
    assert runner.info.can_continue
    assert runner.info.runtime == "torch"


def test_building_draws_nothing_from_torchs_generator():
    """A model in an application's process leaves that process's random numbers as they were."""
    before = torch.get_rng_state()
    TorchLM().build(START_ONE)
    assert torch.equal(before, torch.get_rng_state())


# ---- reproducible ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@few
@given(random=st.randoms(use_true_random=True), count=st.integers(1, 20))
def test_logits_are_bitwise_the_same_whatever_the_batch_the_slot_and_the_replay(random, count):
    """D6: A token's logits depend on the tokens before it and on nothing else, to the last bit."""
    from runners.models.torch_lm.checkpoint import load
    from runners.models.torch_lm.kernel import Kernel, Row

    model = load(PACKAGED, PACKAGED_SHA256).model
    single, shared = (Kernel(model, slots, torch.device("cpu")) for slots in (1, 40))
    for cache in (shared._keys, shared._values):
        cache.normal_()  # what earlier streams left behind
    slots = random.sample(range(40), count)
    streams = {slot: random.choices(range(104), k=random.choice([3, 17, 33, 140])) for slot in slots}
    found = {slot: [] for slot in slots}
    while behind := [slot for slot in slots if len(found[slot]) < len(streams[slot])]:
        rows = []
        for slot in random.sample(behind, random.randint(1, len(behind))):
            begin = len(found[slot])
            end = random.choice([begin + 1, random.randint(begin + 1, len(streams[slot]))])
            rows += [Row(streams[slot][at], at, slot) for at in range(begin, end)]
        for row, logits in zip(rows, shared.logits(rows), strict=True):
            found[row.slot].append(logits)
    for slot in slots[:4]:
        expected = [single.logits([Row(token, at, 0)]) for at, token in enumerate(streams[slot])]
        assert torch.equal(torch.cat(expected), torch.stack(found[slot]))


@pytest.mark.slow
@few
@given(data=st.data())
def test_a_stream_is_the_same_whatever_other_streams_run_beside_it(data):
    """D6: Which other streams are served, when they come and when they leave, changes no token, no text and no end."""
    runner = TorchLM(streams=5).build(START_ONE)
    watched = request("watched", temperature=0.8)
    expected, got, others = alone(watched), [], []
    stream = None
    while len(got) < len(expected):
        act = data.draw(st.sampled_from(["step", "step", "join", "leave", "begin"]))
        if act == "join" and len(others) < 4:
            prompt = data.draw(st.text("abc \n", max_size=60))
            others.append(runner.execute(request(f"o{len(others)}", prompt, max_tokens=200)))
        elif act == "leave" and others:
            others.pop(data.draw(st.integers(0, len(others) - 1))).close()
        elif stream is None:
            stream = runner.execute(watched)
        else:
            turn = data.draw(st.permutations([stream, *others]))
            got += [chunk for each in turn for chunk in [next(each, None)] if each is stream]
    assert got == expected


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_stream_goes_on_from_any_cut_as_if_there_had_been_none(runner, temperature):
    """D6: Tokens, text, indexes and the end are those of the uncut stream; replayed tokens are counted apart."""
    batch = request(temperature=temperature)
    uncut = alone(batch)
    tokens = tokens_of(uncut)
    for cut in range(len(tokens)):
        rest = list(runner.continue_from(batch, tokens[:cut]))
        assert unreplayed(rest) == unreplayed(uncut[cut:])
        assert rest[-1].usage == TokenUsage(input=len(PROMPT) + 1, output=40, replayed=cut)


def test_text_held_back_for_a_stop_string_survives_every_cut(runner):
    """D6: Stop strings count from position 0, across cuts; text that was released is not repeated."""
    whole = text_of(alone(request(max_tokens=60)))
    stops = (whole[10:14] + "\x00", whole[11:13] + "\x00", whole[30:38], whole[32:40])
    batch = request(max_tokens=60, stop=stops)
    uncut = alone(batch)
    assert text_of(uncut) == whole[: whole.index(whole[30:38])]
    assert uncut[-1].finish_reason is FinishReason.STOP
    tokens = tokens_of(uncut)
    for cut in range(len(tokens)):
        rest = list(runner.continue_from(batch, tokens[:cut]))
        assert unreplayed(rest) == unreplayed(uncut[cut:])


@pytest.mark.parametrize("sampling", [{"max_tokens": 5}, {"stop": ("e",)}])
def test_a_stream_whose_accepted_tokens_satisfy_an_end_ends_without_a_step(runner, monkeypatch, sampling):
    """D6: The only chunk that is left has the finish reason, and adds nothing."""
    batch = request(**sampling)
    uncut = alone(batch)
    monkeypatch.setattr(runner, "step", lambda: pytest.fail("a step"))
    (end,) = runner.continue_from(batch, tokens_of(uncut))
    count = len(uncut)
    assert (end.index, end.token_ids, end.text) == (count, (), "")
    assert end.finish_reason is uncut[-1].finish_reason
    assert end.usage == TokenUsage(input=len(PROMPT) + 1, output=count, replayed=count)


def test_a_rebuild_disturbs_no_open_stream():
    """D7: The session is new, but the streams go on with the same tokens."""
    runner, batch = TorchLM().build(START_ONE), request()
    stream = runner.execute(batch)
    got = [next(stream) for _ in range(9)]
    runner.rebuild(SessionRebuildCause.MANUAL)
    assert got + list(stream) == alone(batch)


# ---- streams --------------------------------------------------------------------------------------------------------


def test_one_turn_is_one_step_for_all_open_streams(monkeypatch):
    """The first `next` of a turn computes for all streams; those that have not taken their chunk wait for nothing."""
    runner, fed = TorchLM().build(START_ONE), []
    logits = runner.model.kernel.logits
    monkeypatch.setattr(runner.model.kernel, "logits", lambda rows: fed.append(len(rows)) or logits(rows))
    streams = [runner.execute(request(f"r{n}")) for n in range(16)]
    for _ in range(3):
        for stream in streams:
            next(stream)
    assert fed == [16 * (len(PROMPT) + 1), 16, 16]
    next(streams[0])
    next(streams[0])
    assert fed[3:] == [16, 1]


def test_closing_a_stream_frees_its_place_at_once():
    """More streams than declared are refused; a place is free after a close, an end or an error."""
    runner = TorchLM(streams=2).build(START_ONE)
    first, second = runner.execute(request("a")), runner.execute(request("b", max_tokens=1))
    with pytest.raises(RuntimeError, match=r"^at most 2 streams may be open, 'c' is one more$"):
        runner.execute(request("c"))
    first.close()
    first.close()
    assert list(first) == []
    third = runner.execute(request("c"))
    assert len(list(second)) == 1
    fourth = runner.execute(request("d"))
    assert text_of(third) == text_of(fourth) == text_of(alone(request()))


def test_a_step_that_fails_fails_for_one_stream_and_can_be_taken_again(monkeypatch):
    """D5: The error passes as it is, and the other begun streams go on as if nothing had happened."""

    def out_of_memory(_):
        raise torch.OutOfMemoryError("no room")

    runner = TorchLM(streams=2).build(START_ONE)
    one, other = runner.execute(request("one")), runner.execute(request())
    got = [next(stream) for stream in (one, other)][1:]
    with monkeypatch.context() as patch:
        patch.setattr(runner.model.kernel, "_by_head", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError, match=r"^no room$"):
            next(one)
    assert next(one, None) is None
    assert got + list(other) == alone(request())
    assert not runner._streams


def test_at_temperature_0_the_best_token_comes_and_the_first_of_equals(monkeypatch):
    """D6: Nothing is drawn, so no seed makes a difference."""
    runner = TorchLM().build(START_ONE)
    logits = torch.zeros(1, runner.model.vocabulary_size)
    logits[0, [5, 9]] = 2.0
    monkeypatch.setattr(runner.model.kernel, "logits", lambda rows: logits.expand(len(rows), -1))
    for seed in (1, 2):
        batch = request(temperature=0.0, seed=seed)
        assert [next(runner.execute(batch)).token_ids for _ in range(2)] == [(5,), (5,)]


def test_logits_that_are_not_finite_are_an_error_and_never_text():
    """D8: A broken cache raises until the session is rebuilt; nothing counts as an answer."""
    runner = TorchLM().build(START_ONE)
    runner.model.kernel._values.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        next(runner.execute(request()))
    runner.rebuild(SessionRebuildCause.CONTEXT_POISONED)
    assert list(runner.execute(request())) == alone(request())


def test_a_stream_of_a_closed_runner_raises():
    """D8: A stream ends in a finish reason or an error."""
    runner = TorchLM().build(START_ONE)
    stream = runner.execute(request())
    runner.close()
    with pytest.raises(RuntimeError, match=r"^the runner is closed$"):
        next(stream)


# ---- ends -----------------------------------------------------------------------------------------------------------


def test_a_full_context_ends_with_length(runner):
    """D6: The longest prompt leaves room for one token; the context, not `max_tokens`, is the limit."""
    (only,) = runner.execute(request(prompt="x" * 254, max_tokens=500))
    assert only.finish_reason is FinishReason.LENGTH
    chunks = list(runner.execute(request(prompt="x" * 240, max_tokens=500)))
    assert len(tokens_of(chunks)) == 15
    assert chunks[-1].finish_reason is FinishReason.LENGTH
    assert chunks[-1].usage == TokenUsage(input=241, output=15)


def test_a_prompt_that_does_not_fit_concerns_its_own_stream(runner):
    """D5: The first `next` raises, and no place is taken."""
    stream = runner.execute(request(prompt="x" * 255))
    with pytest.raises(ContextLengthExceeded, match=r"^a prompt may have 255 tokens, got 256$"):
        next(stream)
    assert not runner._streams


@pytest.mark.parametrize(
    ("batch", "accepted", "message"),
    [
        (request(stop=("a", "")), (), "stop string must not be empty"),
        (request(stop=("a",) * 65), (), "at most 64 stop strings of 4096 characters in all .* got 65 of 65"),
        (request(stop=("a" * 4097,)), (), "got 1 of 4097"),
        (request(seed=None), (), "needs a seed, got None"),
        (request(), (5, 104), "from 0 to 103, got 104"),
        (request(), (-1,), "from 0 to 103, got -1"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(runner, batch, accepted, message):
    """D5: It is refused before anything reaches the device."""
    with pytest.raises(BadRequest, match=message):
        next(runner.continue_from(batch, accepted))
    assert not runner._streams


def test_an_empty_prompt_and_unknown_characters_work(runner):
    """The start token stands before every prompt; an unknown character is U+FFFD, and greedy needs no seed."""
    assert len(list(runner.execute(request(prompt="", temperature=0, seed=None)))) == 40
    unknown, stood_for = (request(prompt=text) for text in ("漢字", UNKNOWN * 2))
    assert list(runner.execute(unknown)) == list(runner.execute(stood_for))


# ---- the text -------------------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from(Vocabulary().characters)))
def test_the_vocabulary_gives_back_what_it_was_given(text):
    """One token is one character."""
    vocabulary = Vocabulary()
    tokens = vocabulary.encode(text)
    assert vocabulary.decode(tokens) == text
    assert len(tokens) == len(text)


def test_a_vocabulary_begins_with_unknown_and_start():
    """Token 0 stands for what is unknown, token 1 for the start; no character has two tokens."""
    assert Vocabulary().encode("漢" + START) == [0, 1]
    for wrong in ("", "ab", UNKNOWN + START + "aa"):
        with pytest.raises(ValueError, match="a vocabulary is U\\+FFFD, newline"):
            Vocabulary(wrong)


# ---- sampling -------------------------------------------------------------------------------------------------------


def test_the_number_of_a_seed_and_a_position_never_changes():
    """D6: A stream that moves to another version of this library must find the same numbers."""
    assert [uniform(0, 0), uniform(7, 3), uniform(2**80, 10**6)] == [
        0.8336885269740499,
        0.6666092004987639,
        0.11189378311589804,
    ]


@given(
    seed=st.integers(0, 2**70),
    position=st.integers(0, 2**40),
    logits=st.lists(st.floats(-50, 50), min_size=1),
)
def test_sampling_is_a_function_of_logits_seed_and_position(seed, position, logits):
    """D6: There is no generator state: earlier draws make no difference."""
    token = draw(logits, 0.7, seed=seed, position=position)
    uniform(seed + 1, position)
    assert 0 <= uniform(seed, position) < 1
    assert draw(logits, 0.7, seed=seed, position=position) == token
    assert 0 <= token < len(logits)


def test_the_frequencies_of_tokens_follow_the_logits():
    """The sampling is by inverse CDF: 3 to 1 in the logits is 3 to 1 in the stream; temperature sharpens it."""
    from math import log

    logits = [log(1.0), log(3.0), -1000.0]
    count = [draw(logits, 1, seed=1, position=at) for at in range(4000)].count
    assert count(2) == 0
    assert abs(count(1) / 4000 - 0.75) < 0.02
    assert {draw(logits, 1e-300, seed=1, position=at) for at in range(99)} == {1}


# ---- the weights ----------------------------------------------------------------------------------------------------


def one_line_error(kind, spec):
    with pytest.raises(kind) as caught:
        spec.build(START_ONE)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(spec.weights.path) in message
    return message


def test_weights_that_differ_from_their_checksum_are_corrupt(tmp_path):
    """A flipped bit is found at load, not in the text."""
    data = bytearray(PACKAGED.read_bytes())
    data[-1000] ^= 1
    bent = tmp_path / "bent"
    bent.write_bytes(data)
    message = one_line_error(WeightsCorrupt, TorchLM(WeightsFile(str(bent), sha256=PACKAGED_SHA256)))
    assert f"must have the sha256 {PACKAGED_SHA256}, got " in message


@pytest.mark.parametrize("size", [0, 5, 200, 500_000])
def test_weights_that_are_cut_short_are_corrupt_even_without_a_checksum(tmp_path, size):
    """One clear line, wherever the file ends."""
    short = tmp_path / "short"
    short.write_bytes(PACKAGED.read_bytes()[:size])
    assert "is not one of this model: " in one_line_error(WeightsCorrupt, TorchLM(str(short)))


def test_weights_of_another_model_are_refused(tmp_path):
    """A sound file of another model is refused at load."""
    from safetensors.torch import load_file, save_file

    foreign = tmp_path / "foreign"
    shape = {"vocabulary": 104, "context": 256, "width": 96, "heads": 4, "layers": 2}
    for description in (
        None,
        {"shape": [], "vocabulary": Vocabulary().characters},
        {"shape": {**shape, "layers": 3}, "vocabulary": Vocabulary().characters},
        {"shape": {**shape, "heads": 5}, "vocabulary": Vocabulary().characters},
        {"shape": shape, "vocabulary": UNKNOWN + START},
    ):
        save_file(load_file(PACKAGED), foreign, {"model": json.dumps(description)})
        assert "is not one of this model: " in one_line_error(WeightsCorrupt, TorchLM(str(foreign)))


def test_weights_that_are_not_there_fail_the_load(tmp_path):
    """One clear line, with the path; a folder is no file either."""
    for missing in (tmp_path / "nowhere", tmp_path):
        message = one_line_error(LoadFailed, TorchLM(str(missing)))
        assert message == f"there is no weights file {str(missing)!r}"


# ---- training -------------------------------------------------------------------------------------------------------


def test_the_packaged_model_is_the_one_that_the_script_trains_and_it_has_learnt():
    """The shape, the vocabulary, and under 1.8 nats a character on pages it has not seen."""
    from runners.models.torch_lm.checkpoint import load
    from runners.models.torch_lm.train import SHAPE, VOCABULARY, measured, text

    checkpoint = load(PACKAGED, PACKAGED_SHA256)
    assert (checkpoint.model.shape, checkpoint.vocabulary) == (SHAPE, VOCABULARY)
    unseen = torch.tensor(VOCABULARY.encode(text()[1]))
    assert measured(checkpoint.model, unseen) < 1.8


@pytest.mark.slow
def test_training_is_a_function_of_the_seed(tmp_path):
    """The same seed gives the same file, byte for byte."""
    from runners.models.torch_lm.checkpoint import Checkpoint, load, save
    from runners.models.torch_lm.train import SHAPE, VOCABULARY, initialised, settle, text, train

    learn = torch.tensor(VOCABULARY.encode(text()[0][:50_000]))
    digests, path, threads = [], tmp_path / "weights", torch.get_num_threads()
    try:
        for _ in range(2):
            settle(3)
            model = initialised(SHAPE)
            assert len(list(train(model, learn, 2))) == 2
            digests.append(save(Checkpoint(model, VOCABULARY), path))
    finally:
        torch.use_deterministic_algorithms(mode=False)
        torch.set_num_threads(threads)
    assert digests[0] == digests[1]
    assert load(path, digests[0]).vocabulary == VOCABULARY


# ---- ahead of the start ---------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A spec of its own, preloaded in this process, and its file."""
    for name in ("OPENBLAS_NUM_THREADS", "PYTORCH_NVML_BASED_CUDA_CHECK"):
        monkeypatch.setenv(name, "1")
    path, threads = tmp_path / "weights", torch.get_num_threads()
    path.write_bytes(PACKAGED.read_bytes())
    spec = TorchLM(str(path))
    spec.preload()
    yield spec, path
    _preloaded.pop(spec, None)
    torch.set_num_threads(threads)


def test_a_preloaded_runner_is_taken_once_and_gives_the_same_tokens(copied):
    """A forked process has its runner; a second one in the same process is really loaded."""
    spec, _ = copied
    ready, _checksum = _preloaded[spec]
    first, second = spec.build(START_ONE), spec.build(START_ONE)
    assert first is ready
    assert second is not ready
    assert unreplayed(first.execute(request())) == unreplayed(alone(request()))


def test_a_preloaded_runner_of_another_file_is_not_taken(copied):
    """The weights are checked at every load: a file that has changed since is loaded and checked again."""
    spec, path = copied
    path.write_bytes(PACKAGED.read_bytes()[:1000])
    with pytest.raises(WeightsCorrupt):
        spec.build(START_ONE)


def test_weights_that_are_not_sound_do_not_fail_the_preload(tmp_path):
    """D2: The load reports what is wrong, in the context whose failure it is."""
    for spec in (TorchLM(str(tmp_path / "none")), TorchLM(WeightsFile(str(PACKAGED), sha256="0" * 64))):
        spec.preload()
        assert spec not in _preloaded


def test_a_prepared_runner_is_built_and_free(copied):
    """On the CPU nothing is left to do, and no stream is left open."""
    spec, _ = copied
    ready = spec.prepare("cpu")
    runner = ready.build(START_ONE)
    assert runner is ready.build(RunnerStart(incarnation=2))
    streams = [runner.execute(request(f"{number}")) for number in range(spec.streams)]
    assert [next(stream).index for stream in streams] == [0] * spec.streams


def test_a_preparation_for_another_device_is_dropped(copied):
    """D2: A runner that was built on the CPU is dropped, and the start builds on its device."""
    spec, _ = copied
    assert spec.prepare("cuda:0") is spec
    assert spec not in _preloaded
