"""The adapter of causal models: whatever is the same for every model."""

import subprocess
import sys
from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Bytes, Chat, Pieces, Sentences, Toy, runner_of

from runners.errors import BadRequest, ContextLengthExceeded, OutOfMemory, RunnerError
from runners.hosts.turns import NOTHING
from runners.models.causal import ReloadingModel, causal_runner
from runners.models.causal.text import Detokenizer, Transcript
from runners.types import (
    ContinuingRunner,
    ExecuteBatch,
    FinishReason,
    Sampling,
    SessionRebuildCause,
    TokenUsage,
)

np = pytest.importorskip("numpy")
few = settings(max_examples=40)


def request(name="r", prompt="Hello", payload=None, options=None, **sampling):
    return ExecuteBatch(
        name,
        prompt,
        payload=payload,
        options=options,
        sampling=Sampling(**{"max_tokens": 30, "seed": 7, "temperature": 0.8, **sampling}),
    )


def tokens_of(chunks):
    return [token for chunk in chunks for token in chunk.token_ids]


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


def unreplayed(chunks):
    return [
        (c.index, c.token_ids, c.text, c.data, c.finish_reason, c.usage and c.usage.output) for c in chunks
    ]


def refused(batch, runner=None, accepted=()):
    runner = runner or runner_of()
    with pytest.raises((BadRequest, ContextLengthExceeded)) as caught:
        next(runner.continue_from(batch, accepted))
    assert not runner._streams
    assert not runner.model.caches
    return str(caught.value)


# ---- the runner -----------------------------------------------------------------------------------------------------


def test_the_adapter_imports_neither_numpy_nor_torch():
    """D2: The module of a spec imports it, in the parent and before the fork server has set its environment."""
    code = "import sys, runners.models.causal, runners.models.batched; sys.exit({'numpy', 'torch'} & sys.modules.keys() != set())"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_adapter_makes_a_runner_that_can_continue():
    """D6: What it declares is what the author of the model says."""
    runner = causal_runner(Toy(), streams=3, reproducible=True, runtime="toy")
    assert isinstance(runner, ContinuingRunner)
    assert (runner.info.streams, runner.info.reproducible, runner.info.can_continue) == (3, True, True)
    assert runner.info.runtime == "toy"
    assert not causal_runner(Toy()).info.reproducible
    with pytest.raises(ValueError, match=r"^prefill must be >= 1, got 0$"):
        causal_runner(Toy(), prefill=0)
    for wrong in (1.5, "3", True):
        with pytest.raises(TypeError, match=rf"^prefill must be an integer or None, got {wrong!r}$"):
            causal_runner(Toy(), prefill=wrong)


options = st.fixed_dictionaries(
    {},
    optional={
        "top_p": st.sampled_from([0.3, 0.9, 1]),
        "top_k": st.sampled_from([1, 3, 20, 1000]),
        "frequency_penalty": st.sampled_from([-0.5, 1.5]),
        "presence_penalty": st.sampled_from([-1, 0.5]),
        "repetition_penalty": st.sampled_from([0.8, 1.3]),
        "logprobs": st.sampled_from([0, 2]),
    },
)


@pytest.mark.slow
@given(
    options=options,
    temperature=st.sampled_from([0, 0.7, 2.0]),
    stop=st.sampled_from([(), ("ab", "ccc"), ("d",)]),
    prompt=st.text(max_size=6).map(lambda text: text or "x"),
    prefill=st.sampled_from([None, 1, 3]),
)
def test_a_stream_that_is_cut_anywhere_goes_on_to_the_same_text_and_tokens(
    options, temperature, stop, prompt, prefill
):
    """D6: Tokens, text, data, indexes and the end are those of the uncut stream, whatever the sampling."""
    batch = request(prompt=prompt, options=options, temperature=temperature, stop=stop, max_tokens=12)
    uncut = list(runner_of().execute(batch))
    tokens = tokens_of(uncut)
    for cut in range(len(tokens)):
        runner = runner_of(prefill=prefill)
        rest = [chunk for chunk in runner.continue_from(batch, tokens[:cut]) if chunk is not NOTHING]
        assert unreplayed(rest) == unreplayed(uncut[cut:])
        assert rest[-1].usage == TokenUsage(input=len(prompt.encode()), output=len(tokens), replayed=cut)
        assert not runner.model.caches
    (end,) = runner_of().continue_from(batch, tokens)
    assert (end.index, end.token_ids, end.text, end.data) == (len(tokens), (), "", None)
    assert end.finish_reason is uncut[-1].finish_reason


@pytest.mark.slow
@few
@given(data=st.data(), prefill=st.sampled_from([None, 2]))
def test_streams_join_and_leave_between_steps_and_notice_nothing_of_one_another(data, prefill):
    """D6: Which other streams are served, fail, come and leave, changes no token of a stream."""
    watched = request("watched", max_tokens=15, options={"repetition_penalty": 1.2})
    expected = list(runner_of().execute(watched))

    def fail(feed):
        if feed.tokens[-1] == 0:
            raise ValueError("a bad token")

    model = Toy(fail=fail)
    runner, got, others, stream = runner_of(model, prefill=prefill), [], [], None
    while len(got) < len(expected):
        act = data.draw(st.sampled_from(["turn", "turn", "join", "leave", "begin", "rebuild"]))
        if act == "join" and len(others) < 3:
            payload = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=9))
            others.append(runner.execute(request(f"o{len(others)}", "", payload)))
        elif act == "leave" and others:
            others.pop(data.draw(st.integers(0, len(others) - 1))).close()
        elif act == "rebuild":
            runner.rebuild(SessionRebuildCause.MANUAL)
        elif stream is None:
            stream = runner.execute(watched)
        else:
            for each in data.draw(st.permutations([stream, *others])):
                try:
                    chunk = next(each, None)
                except ValueError:
                    assert each is not stream
                    chunk = None
                if each is stream and chunk and chunk is not NOTHING:
                    got.append(chunk)
        assert model.caches == len(runner._streams)
    assert got == expected


def test_one_turn_is_one_step_for_all_streams_and_a_long_prompt_is_fed_in_pieces():
    """Every stream is in each step, and gets its chunk between the pieces of the others; `prefill` bounds those of one stream."""
    runner = runner_of(prefill=4)
    streams = [runner.execute(request(f"{n}", "x" * n)) for n in (3, 10, 6)]
    turns = [[next(stream) is not NOTHING for stream in streams] for _ in range(4)]
    assert runner.model.steps == [[3, 4, 4], [1, 4, 2], [1, 2, 1], [1, 1, 1]]
    assert turns == [[True, False, False], [True, False, True], [True, True, True], [True, True, True]]


def test_a_place_is_free_however_its_stream_ends():
    """A stream that is closed before it began gives back its place and its cache; so does one that ends, or fails."""
    runner = runner_of(streams=2)
    first, second = runner.execute(request("a")), runner.execute(request("b", max_tokens=1))
    with pytest.raises(RuntimeError, match=r"^at most 2 streams may be open, 'c' is one more$"):
        runner.execute(request("c"))
    first.close()
    first.close()
    assert list(first) == []
    assert len(list(second)) == 1
    assert (len(runner._streams), runner.model.caches) == (0, 0)
    runner.close()
    with pytest.raises(RuntimeError, match=r"^the runner is closed$"):
        runner.execute(request())


def test_a_rebuild_makes_the_caches_anew_and_reloads_a_model_that_can():
    """D7: No cache is in use while the model is loaded again; open streams go on with the same tokens."""

    class Reloading(Toy):
        reloads = 0

        def reload(self):
            assert not self.caches
            self.reloads += 1

    model = Reloading()
    assert isinstance(model, ReloadingModel)
    runner = runner_of(model)
    stream = runner.execute(request())
    got = [next(stream) for _ in range(5)]
    runner.rebuild(SessionRebuildCause.MANUAL)
    assert (model.reloads, model.caches) == (1, 1)
    assert got + list(stream) == list(runner_of().execute(request()))


# ---- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MemoryError, OutOfMemory])
def test_a_lack_of_memory_leaves_the_other_streams_as_they_were(kind):
    """D5: It fails for one stream, is not tried singly, and the next step feeds the same tokens again."""
    model, failing = Toy(), [True]
    runner = runner_of(model)
    one, other = runner.execute(request("one")), runner.execute(request())
    got = [next(stream) for stream in (one, other)][1:]

    def fail(feed):
        if failing:
            failing.clear()
            raise kind("no room")

    model.fail = fail
    with pytest.raises(kind, match=r"^no room$"):
        next(one)
    assert model.steps[1:] == [[1, 1]]
    assert got + list(other) == list(runner_of().execute(request()))


def test_an_error_of_one_stream_in_a_step_fails_that_stream_alone():
    """D5: After another exception each stream is fed alone, so it is raised where it belongs."""

    def fail(feed):
        if 0 in feed.cache:
            raise ValueError("a bad token")

    runner = runner_of(Toy(fail=fail))
    good, bad = runner.execute(request()), runner.execute(request("bad", "", [1, 0]))
    got = [next(good)]
    with pytest.raises(ValueError, match=r"^a bad token$"):
        next(bad)
    assert runner.model.steps == [[5, 2], [5], [2]]
    assert got + list(good) == list(runner_of().execute(request()))


def test_a_model_may_reuse_the_array_of_its_logits():
    """It is read before the next step, also where each stream is fed alone."""

    class Reusing(Toy):
        array = np.zeros((4, 258), np.float32)

        def step(self, feeds):
            rows = super().step(feeds)
            self.array[: len(rows)] = rows
            return self.array[: len(rows)]

    def fail(feed):
        if 0 in feed.cache:
            raise ValueError("a bad token")

    runner = runner_of(Reusing(fail=fail))
    batches = [request("a"), request("b", "other"), request("bad", "", [1, 0])]
    *good, bad = map(runner.execute, batches)
    with pytest.raises(ValueError, match="bad"):
        next(bad)
    assert [tokens_of(stream) for stream in good] == [
        tokens_of(runner_of().execute(batch)) for batch in batches[:2]
    ]


@pytest.mark.parametrize("wrong", [np.zeros((1, 5)), np.zeros(258)])
def test_logits_of_a_wrong_shape_are_an_error_that_names_both(monkeypatch, wrong):
    """D5: The mistake of a model is one line."""
    monkeypatch.setattr(Toy, "step", lambda self, feeds: wrong)
    with pytest.raises(RunnerError, match=r"must give the logits \(1, 258\), got the shape"):
        next(runner_of().execute(request()))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_of_their_stream_and_never_a_token(broken):
    """D8: The other streams of the step go on."""

    class Broken(Toy):
        def logits(self, tokens):
            logits = super().logits(tokens)
            if tokens[0] == 0:
                logits[5] = broken
            return logits

    runner = runner_of(Broken())
    good, bad = runner.execute(request()), runner.execute(request("bad", "", [0]))
    got = [next(good)]
    with pytest.raises(FloatingPointError, match="not finite"):
        next(bad)
    assert got + list(good) == list(runner_of().execute(request()))


def test_tokens_that_a_model_rules_out_are_never_drawn():
    """A logit of minus infinity is a probability of 0."""

    class Strict(Toy):
        def logits(self, tokens):
            logits = np.full(258, -np.inf, np.float32)
            logits[97:99] = 0.0
            return logits

    for options in ({}, {"top_p": 0.99}, {"top_k": 50}, {"logprobs": 3, "presence_penalty": 2}):
        chunks = list(runner_of(Strict()).execute(request(options=options)))
        assert set(tokens_of(chunks)) <= {97, 98}
    (entry,) = chunks[0].data["logprobs"]
    assert [each["token"] for each in entry["top"]] == ["a", "b"]
    assert {round(2 ** (each["logprob"] / np.log(2)), 6) for each in entry["top"]} == {0.5}


# ---- requests -------------------------------------------------------------------------------------------------------


def test_token_ids_texts_and_messages_are_prompts():
    """D11: A prompt, its token ids and the messages whose template it is give the same stream."""
    runner = runner_of()
    ids = list(b"<user>Hi<assistant>")
    messages = [{"role": "user", "content": "Hi"}]
    texts = request(prompt="<user>Hi<assistant>"), request(prompt="", payload=ids)
    one, other = (list(runner.execute(batch)) for batch in texts)
    assert one == other == list(runner.execute(request(prompt="", payload=messages)))
    with_tools = list(runner.execute(request(prompt="", payload=messages, options={"tools": [1]})))
    assert with_tools[-1].usage.input == len(ids) + len("[1]")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (request(payload=[1]), "a request must have a prompt or a payload, got both: 'Hello'"),
        (request(prompt=""), "a prompt must have at least one token, got none"),
        (request(prompt="", payload=[]), "a prompt must have at least one token, got none"),
        (
            request(prompt="", payload=[1, True]),
            "a payload must be a list of token ids or of chat messages, got",
        ),
        (request(prompt="", payload=[{"content": ""}]), "a payload must be a list of token ids or of chat"),
        (request(prompt="", payload={"a": 1}), "a payload must be a list of token ids or of chat messages"),
        (request(prompt="", payload=[3, 258]), "token ids must be from 0 to 257, got 258"),
        (request(prompt="x" * 200), "a prompt may have 199 tokens, got 200"),
        (request(seed=None), "a request with a temperature above 0 needs a seed, got None"),
        (request(stop=("a", "")), "a stop string must not be empty"),
        (
            request(stop=("a",) * 65),
            "at most 64 stop strings of 4096 characters in all may be asked for, got 65",
        ),
        (request(options={"topp": 1}), "an option must be one of top_p, top_k, frequency_penalty,"),
        (request(options={"top_p": 0}), "the option top_p must be a number above 0 and at most 1, got 0"),
        (request(options={"top_p": float("nan")}), "the option top_p must be a number above 0 and at most 1"),
        (request(options={"top_k": 0}), "the option top_k must be an integer >= 1, got 0"),
        (request(options={"top_k": True}), "the option top_k must be an integer >= 1, got True"),
        (request(options={"presence_penalty": 2.1}), "the option presence_penalty must be a number from -2"),
        (request(options={"frequency_penalty": "1"}), "the option frequency_penalty must be a number from"),
        (
            request(options={"repetition_penalty": 5e-324}),
            "the option repetition_penalty must be a number from 0.01 to 100, got 5e-324",
        ),
        (
            request(options={"repetition_penalty": 1e300}),
            "the option repetition_penalty must be a number from 0.01 to 100, got 1e+300",
        ),
        (request(options={"logprobs": 21}), "the option logprobs must be an integer from 0 to 20, got 21"),
        (request(options={"tools": {}}), "the option tools must be a list, got {}"),
        (request(options={"tools": []}), "the option tools is only for a request with chat messages"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_alone(batch, message):
    """D5: Its first `next` raises one clear error, and it takes no place."""
    assert refused(batch).startswith(message)


def test_a_chat_template_that_renders_nothing_gives_no_empty_feed():
    """D5: Nothing reaches the model; only the request fails."""

    class Silent(Chat):
        def chat(self, messages, tools):
            return []

    message = refused(request(prompt="", payload=[{"role": "user"}]), runner_of(Toy(tokenizer=Silent())))
    assert message == "what the chat template makes of messages must have at least one token, got none"


def test_a_model_without_a_chat_template_refuses_messages():
    """D5: It says what a request may have instead."""
    runner = runner_of(Toy(tokenizer=Bytes()))
    message = refused(request(prompt="", payload=[{"role": "user", "content": ""}]), runner)
    assert message == "the model has no chat template: a request must have a prompt or token ids"


def test_accepted_tokens_that_are_none_of_the_model_are_refused():
    """D5: They would fail on the device."""
    assert refused(request(), accepted=(5, 258)) == "accepted token ids must be from 0 to 257, got 258"


@pytest.mark.parametrize("given", [{}, {"prompt": "", "payload": [{"role": "user", "content": ""}]}])
def test_tokens_that_only_the_tokenizer_has_are_refused(given):
    """D5: One that was added to the tokenizer, and not to the model, would poison a context on a GPU."""

    class Larger(Chat):
        def encode(self, text):
            return [5, 258]

        def chat(self, messages, tools):
            return [5, 258]

    message = refused(request(**given), runner_of(Toy(tokenizer=Larger())))
    assert message == "token ids must be from 0 to 257, got 258"


def test_a_tokenizer_that_raises_costs_no_place():
    """D5: Its exception is the request's own error."""

    class Raising(Bytes):
        def encode(self, text):
            raise KeyError(text)

    runner = runner_of(Toy(tokenizer=Raising()))
    with pytest.raises(KeyError):
        runner.execute(request())
    assert (len(runner._streams), runner.model.caches) == (0, 0)


# ---- ends -----------------------------------------------------------------------------------------------------------


def script(model_tokens, prompt=1):
    """A model that generates these tokens, whatever the prompt of so many tokens."""

    class Scripted(Toy):
        def logits(self, tokens):
            logits = np.zeros(self.vocabulary_size, np.float32)
            logits[model_tokens[len(tokens) - prompt]] = 9.0
            return logits

    return Scripted()


def greedy(text, *, prompt="x", **more):
    tokens = [*text.encode(), 257]
    return list(
        runner_of(script(tokens)).execute(request(prompt=prompt, temperature=0, max_tokens=99, **more))
    )


def test_an_end_token_ends_with_stop_and_has_no_text():
    """It is one of the tokens, is counted, and its text is nowhere; text that was held back comes with it."""
    chunks = greedy("tea", stop=("ab",))
    assert (text_of(chunks), tokens_of(chunks)) == ("tea", [*b"tea", 257])
    assert chunks[-1].finish_reason is FinishReason.STOP
    assert chunks[-1].usage == TokenUsage(input=1, output=4)
    assert [chunk.text for chunk in chunks] == ["t", "e", "", "a"]


def test_the_context_is_a_limit_and_half_a_character_at_it_is_shown():
    """The stream ends with LENGTH; what the last bytes would have become is not known."""
    model = script([*"é漢".encode(), 257])
    model.context_length = 5
    chunks = list(runner_of(model).execute(request(prompt="x", temperature=0)))
    assert (text_of(chunks), len(chunks)) == ("é\ufffd", 4)
    assert chunks[-1].finish_reason is FinishReason.LENGTH


@given(
    text=st.text("ab漢é", max_size=14),
    stops=st.lists(st.text("ab漢é", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_text_ends_before_the_first_completed_stop_wherever_it_lies(text, stops, data):
    """D6: It may lie within a token's text, or be spread over tokens; no text that may be part of it is shown."""
    encoded = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(encoded)))))
    pieces = [encoded[a:b] for a, b in pairwise([0, *cuts, len(encoded)])]
    end = len(pieces)
    transcript = Transcript(Detokenizer(Pieces(pieces).decode), end + 1, frozenset({end}), tuple(stops))
    ends = [(at + len(stop), at) for stop in stops for at in range(len(text)) if text.startswith(stop, at)]
    expected = text[: min(ends)[1]] if ends else text
    shown = ""
    for token in range(end + 1):
        shown += transcript.add(token)
        assert expected.startswith(shown)
        if transcript.finish:
            break
        held = transcript.held
        assert not held or any(stop.startswith(held) for stop in stops)
    assert (shown, transcript.finish) == (expected, FinishReason.STOP)


# ---- the text -------------------------------------------------------------------------------------------------------


def increments(detokenizer, tokens):
    return [*map(detokenizer.add, tokens), detokenizer.rest()]


@given(st.lists(st.one_of(st.binary(max_size=5), st.text(max_size=3).map(str.encode)), max_size=30))
def test_the_pieces_of_any_bytes_in_any_cut_make_the_whole_text(pieces):
    """Invalid bytes, characters over several tokens, tokens without a text: the joined increments are the whole decode."""
    tokenizer = Pieces(pieces)
    tokens = list(range(len(pieces)))
    assert "".join(increments(Detokenizer(tokenizer.decode), tokens)) == tokenizer.decode(tokens)


def decoded_at_most(decode, most):
    """The same decoder, which is never to get more tokens at once."""

    def bounded(tokens):
        assert len(tokens) <= most
        return decode(tokens)

    return bounded


runs = st.lists(
    st.tuples(
        st.one_of(
            st.binary(max_size=4),
            st.sampled_from([b"", b"\x82\xac\xe2", b"\xac\xe2\x82", b"\xef", b"\xbf", b"\xbd", b"a"]),
            st.text("\ufffd€é a", max_size=3).map(str.encode),
        ),
        st.integers(1, 150),
    ),
    max_size=5,
)


@few
@given(runs=runs, one_by_one=st.booleans())
def test_long_runs_of_awkward_tokens_cost_no_more_the_longer_they_are(runs, one_by_one):
    """Tokens without a text, bytes that are no UTF-8, U+FFFD itself, characters that are always open: the text stays whole."""
    pieces = [piece for piece, count in runs for _ in range(count)]
    if one_by_one:
        pieces = [bytes([byte]) for byte in b"".join(pieces)]
    decode, tokens = Pieces(pieces).decode, list(range(len(pieces)))
    assert "".join(increments(Detokenizer(decoded_at_most(decode, 150)), tokens)) == decode(tokens)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 300])
def test_many_special_tokens_are_not_all_the_context_of_the_next_one(count):
    """The words in front of them stay in the window; the window stays short."""
    tokens = [*["▁a"] * 20, *[None] * count, "▁b", "▁c"]
    decode = decoded_at_most(Sentences().decode, 90)
    assert "".join(increments(Detokenizer(decode), tokens)) == "a" + " a" * 19 + " b c"


@pytest.mark.parametrize("count", [63, 64, 65, 300])
def test_a_character_is_completed_behind_many_tokens_without_a_text(count):
    """Its first byte stays in the window."""
    pieces = [b"a", b"\xc2", *[b""] * count, b"\xa9", b"b"]
    decode, tokens = decoded_at_most(Pieces(pieces).decode, 90), range(len(pieces))
    assert "".join(increments(Detokenizer(decode), tokens)) == "a©b"
    # A later open character looks like the one that is left out.
    awkward = Pieces([*[b"\x80"] * 7, b"\x80\xc2", b"\x80\xc2", *[b""] * count, b"b"])
    tokens = range(len(awkward.pieces))
    assert "".join(increments(Detokenizer(awkward.decode), tokens)) == awkward.decode(tokens)


@pytest.mark.parametrize("awkward", [0x80, 0xE2, "\ufffd"])
def test_the_window_is_bounded_for_bytes_that_are_no_text(awkward):
    """As with sentencepiece; what comes behind them is given as ever."""
    tokens = [*["▁a"] * 20, *[awkward] * 300, "▁b", "▁c"]
    detokenizer = Detokenizer(decoded_at_most(Sentences().decode, 90))
    assert "".join(increments(detokenizer, tokens)) == Sentences().decode(tokens)


@given(text=st.text(max_size=30), data=st.data())
def test_the_pieces_of_a_text_in_any_cut_make_it_and_are_given_as_soon_as_they_are_whole(text, data):
    """A character is given with its last byte."""
    whole = text.replace("\ufffd", "")
    encoded = whole.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(encoded)))))
    pieces = [encoded[a:b] for a, b in pairwise([0, *cuts, len(encoded)])]
    detokenizer, given = Detokenizer(Pieces(pieces).decode), ""
    for number in range(len(pieces)):
        given += detokenizer.add(number)
        assert given == b"".join(pieces[: number + 1]).decode(errors="ignore")
    assert given == whole


words = st.lists(
    st.one_of(
        st.just([None]),
        st.text("▁ab", min_size=1, max_size=4).map(lambda text: [text]),
        st.text(min_size=1, max_size=2).map(lambda text: list(text.encode())),
    ),
    max_size=20,
)


@given(prompt=words, answer=words)
def test_a_decoder_that_drops_the_first_space_and_falls_back_to_bytes_continues_the_prompt(prompt, answer):
    """As of sentencepiece: the text is what the decoder adds to that of the prompt."""
    before, after = (list(chain.from_iterable(parts)) for parts in (prompt, answer))
    decode = Sentences().decode
    if not decode(before[-8:]):
        before = ["x"]
    window = before[-8:]
    if not isinstance(window[0], str):
        window = before = ["x"]
    got = "".join(increments(Detokenizer(decode, list(window)), after))
    assert got == decode([*before, *after])[len(decode(before)) :]


def test_a_special_token_is_not_all_the_context_of_the_next_one():
    """It has no text, so that the space in front of the word behind it would be dropped as the first."""
    tokens = [*["▁a"] * 20, None, None, "▁b", "▁c"]
    assert "".join(increments(Detokenizer(Sentences().decode), tokens)) == "a" + " a" * 19 + " b c"


def test_the_answer_continues_the_text_of_a_prompt_but_not_that_of_messages():
    """A decoder drops the first space of a text: of an answer to messages, which begins one, but not behind a prompt."""

    class Spaced(Chat):
        def decode(self, tokens):
            return super().decode(tokens).removeprefix(" ")

    model = script([*b" tea", 257], prompt=len("<user><assistant>"))
    model.tokenizer = Spaced()
    messages = [{"role": "user", "content": ""}]
    for batch, expected in (
        (request(prompt="<user><assistant>", temperature=0), " tea"),
        (request(prompt="", payload=messages, temperature=0), "tea"),
    ):
        assert text_of(runner_of(model).execute(batch)) == expected


@given(st.lists(st.one_of(st.integers(0, 255), st.sampled_from(["▁a", "b", "▁"])), max_size=40))
def test_a_decoder_that_revises_its_text_loses_no_word_and_holds_back_at_most_three_tokens(tokens):
    """A byte that makes the ones before it invalid: what was given stays, and what comes next is not held back for it."""
    given = "".join(map(Detokenizer(Sentences().decode).add, [*tokens, *"bbbbbbbb"]))
    assert given.count("b") >= tokens.count("b") + 5
    assert given.endswith("bbbbb")
