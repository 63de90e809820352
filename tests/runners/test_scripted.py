"""The runners that follow a script."""

import gc
import inspect
import os
import signal
import subprocess
import sys
import warnings

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rogues import Nested, Remembers, factory

from runners.errors import ContextPoisoned, OutOfMemory, Unrecoverable
from runners.hosts.packing import check_runner, pack, unpack
from runners.models.scripted import Asked, Fault, Faulty, Scripted, TaggedError, asked, expected
from runners.models.torch_lm import TorchLM
from runners.types import (
    ContinuingRunner,
    ExecuteBatch,
    FinishReason,
    RunnerSpec,
    RunnerStart,
    Sampling,
    SessionRebuildCause,
    TokenUsage,
)

START = RunnerStart(incarnation=1)
BATCH = ExecuteBatch("r", "hi")


def ids(chunks):
    return tuple(token for chunk in chunks for token in chunk.token_ids)


@given(st.text(), st.integers(0, 2**70), st.integers(0, 10), st.integers(1, 10), st.data())
def test_a_moved_stream_equals_its_uncut_one(prompt, seed, tokens, most, data):
    """D6: After any number of accepted tokens the rest is that of the fault-free stream."""
    batch = ExecuteBatch("r", prompt, sampling=Sampling(max_tokens=most, seed=seed))
    runner = Scripted(tokens).build(START)
    whole = list(runner.execute(batch))
    cut = data.draw(st.integers(0, min(tokens, most)))
    rest = list(runner.continue_from(batch, expected(batch, tokens)[:cut]))
    assert ids(whole) == expected(batch, tokens)
    assert ids(rest) == expected(batch, tokens)[cut:]
    assert (rest[0].index, rest[-1].finish_reason) == (cut, whole[-1].finish_reason)
    assert [chunk.finish_reason for chunk in (*whole[:-1], *rest[:-1])] == [None] * (
        len(whole) + len(rest) - 2
    )


def test_a_stream_ends_with_its_finish_reason_and_its_usage():
    """D8: The reason is length at `max_tokens`, and stop otherwise; usage counts the whole answer and the replay apart."""
    cut = ExecuteBatch("r", "hi", sampling=Sampling(max_tokens=2))
    runner = Scripted(3).build(START)
    last = list(runner.continue_from(cut, (1,)))[-1]
    assert last.finish_reason is FinishReason.LENGTH
    assert last.usage == TokenUsage(input=2, output=2, replayed=1)
    assert list(runner.execute(ExecuteBatch("r", "hi")))[-1].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("spec", [Scripted(), Faulty(Scripted(), (Fault("error"),))])
def test_scripted_runners_keep_the_protocols(spec):
    """They are runners whose streams can continue."""
    assert isinstance(spec, RunnerSpec)
    assert isinstance(spec.build(START), ContinuingRunner)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("poison", ContextPoisoned),
        ("oom", OutOfMemory),
        ("unrecoverable", Unrecoverable),
        ("error", ArithmeticError),
    ],
)
def test_a_fault_strikes_instead_of_the_chunk_with_its_token(kind, error):
    """A fault strikes its request at its token in its incarnation, and nothing else."""
    spec = Scripted(5, faults=(Fault(kind, "r", 2, 1),))
    stream = spec.build(START).execute(ExecuteBatch("r", ""))
    assert [next(stream).index, next(stream).index] == [0, 1]
    with pytest.raises(error):
        next(stream)
    assert len(list(spec.build(START).execute(ExecuteBatch("other", "")))) == 5
    assert len(list(spec.build(RunnerStart(incarnation=2)).execute(ExecuteBatch("r", "")))) == 5


def test_faulty_does_the_same_harm_to_any_runner():
    """Faulty(inner) strikes as Scripted's own faults do, streams that continue too."""
    runner = Faulty(Scripted(5), (Fault("poison", at_token=3),)).build(START)
    stream = runner.continue_from(ExecuteBatch("r", ""), (0, 0))
    assert next(stream).index == 2
    with pytest.raises(ContextPoisoned):
        next(stream)


def test_a_stream_with_faults_that_is_closed_frees_its_place():
    """Before its first token, after one, and when a fault has struck."""
    runner = Faulty(TorchLM(streams=1), (Fault("error", at_token=1),)).build(START)
    batch = BATCH.with_seed(1)
    runner.execute(batch).close()
    begun = runner.execute(batch)
    next(begun)
    begun.close()
    struck = runner.execute(batch)
    next(struck)
    with pytest.raises(ArithmeticError):
        next(struck)
    assert next(runner.execute(batch)).index == 0


def test_faults_strike_load_rebuild_and_close_too():
    """`at` selects the call."""
    with pytest.raises(OutOfMemory):
        Scripted(faults=(Fault("oom", at="load"),)).build(START)
    with pytest.raises(ArithmeticError):
        Scripted(faults=(Fault("error", at="rebuild"),)).build(START).rebuild(SessionRebuildCause.MANUAL)
    with pytest.raises(ArithmeticError):
        Scripted(faults=(Fault("error", at="close"),)).build(START).close()


def test_a_fault_may_be_for_the_nth_call():
    """Counted in each incarnation, streams that go on too; the other calls are served."""
    runner = Scripted(3, faults=(Fault("error", call=2, at_token=1),)).build(START)
    first = list(runner.execute(BATCH))
    second = runner.continue_from(BATCH, expected(BATCH, 3)[:1])
    with pytest.raises(ArithmeticError):
        next(second)
    assert list(runner.execute(BATCH)) == first


def test_a_fault_may_be_for_the_nth_rebuild():
    """It strikes no other rebuild."""
    runner = Scripted(faults=(Fault("oom", at="rebuild", call=2),)).build(START)
    runner.rebuild(SessionRebuildCause.MANUAL)
    with pytest.raises(OutOfMemory):
        runner.rebuild(SessionRebuildCause.MANUAL)
    runner.rebuild(SessionRebuildCause.MANUAL)


@pytest.mark.parametrize(
    ("only", "struck"),
    [
        ({"model": "big"}, ["big new", "big moved"]),
        ({"moved": True}, ["small moved", "big moved"]),
        ({"moved": False}, ["small new", "big new"]),
        ({"model": "big", "moved": True}, ["big moved"]),
        ({}, ["small new", "small moved", "big new", "big moved"]),
    ],
)
def test_a_fault_may_be_for_a_model_and_for_streams_that_moved_or_have_not(only, struck):
    """What is None matches everything."""
    runner = Scripted(3, faults=(Fault("error", **only),)).build(START)
    found = []
    for model in ("small", "big"):
        batch = attrs.evolve(BATCH, model=model)
        for name, stream in (("new", runner.execute(batch)), ("moved", runner.continue_from(batch, (1,)))):
            try:
                list(stream)
            except ArithmeticError:
                found.append(f"{model} {name}")
    assert found == struck


def test_an_error_may_carry_any_tag():
    """So any entry of a decider can be tried."""
    runner = Scripted(faults=(Fault("error", tag="net.timeout"),)).build(START)
    with pytest.raises(TaggedError, match=r"tagged net\.timeout") as raised:
        next(runner.execute(BATCH))
    assert raised.value.tag == "net.timeout"


def test_slow_takes_its_time_once_and_goes_on(monkeypatch):
    """The stream is otherwise as it was, and each fault strikes it once."""
    slept = []
    monkeypatch.setattr("runners.models.scripted.time.sleep", slept.append)
    runner = Scripted(3, faults=(Fault("slow", at_token=1, seconds=7), Fault("slow", seconds=2))).build(START)
    assert ids(runner.execute(BATCH)) == expected(BATCH, 3)
    assert slept == [2, 7]


@pytest.mark.trio
@pytest.mark.parametrize(
    "spec",
    [
        Scripted(load_delay=1.0),
        Scripted(load_delay=1.0, log="/dev/null"),
        Scripted(faults=(Fault("hang", at="load"),)),
        Faulty(Scripted(load_delay=1.0), (Fault("slow", seconds=0.0),)),
    ],
)
async def test_a_load_that_is_never_awaited_is_silent(spec):
    """R4: A KeyboardInterrupt may be raised after a runner's function has returned and before its result is awaited."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert inspect.isawaitable(spec.build(START))
        gc.collect()
    assert not warned


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("kill", -signal.SIGKILL),
        ("segv", -signal.SIGSEGV),
        ("abort", -signal.SIGABRT),
        ("stop", -signal.SIGSTOP),
        ("exit", 3),
    ],
)
def test_some_faults_are_the_end_of_the_process(kind, end):
    """The process really ends, so they need a host with its own process. After `stop` it stays until it is continued or killed."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\nfrom runners.models.scripted import Fault; Fault({kind!r}).do()"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        stopped = os.WIFSTOPPED(status)
        assert end == (-os.WSTOPSIG(status) if stopped else os.waitstatus_to_exitcode(status))
        assert stopped == (kind == "stop")
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("wrap", [Faulty, None])
def test_a_scripted_runner_records_its_calls(tmp_path, wrap):
    """It records loads, streams, rebuilds and closes, over incarnations."""
    log = str(tmp_path / "log")
    assert asked(log) == []
    spec = Scripted(log=log) if wrap is None else wrap(Scripted(), log=log)
    check_runner(spec)
    for incarnation in (1, 2):
        runner = spec.build(RunnerStart(incarnation=incarnation))
        list(runner.execute(BATCH) if incarnation == 1 else runner.continue_from(BATCH, (1, 2)))
    runner.rebuild(SessionRebuildCause.REMOTE_AUTH_FAILURE)
    runner.close()
    assert asked(log) == [
        Asked("load", 1),
        Asked("execute", 1, request_id="r"),
        Asked("load", 2),
        Asked("continue", 2, request_id="r", accepted=2),
        Asked("rebuild", 2, cause="remote_auth_failure"),
        Asked("close", 2),
    ]


def test_a_load_that_fails_is_recorded_too(tmp_path):
    """A count of loads includes it."""
    log = tmp_path / "log"
    with pytest.raises(ContextPoisoned):
        Scripted(faults=(Fault("poison", at="load"),), log=str(log)).build(START)
    assert asked(log) == [Asked("load", 1)]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Fault("sneeze"),
        lambda: Fault("kill", call=0),
        lambda: Fault("kill", model=3),
        lambda: Fault("kill", moved="yes"),
        lambda: Fault("kill", tag="net"),
        lambda: Fault("error", tag="not a tag"),
        lambda: Fault("slow", seconds=-1),
        lambda: Scripted(log=3),
        lambda: Fault("kill", at_token=-1),
        lambda: Fault("kill", incarnation=0),
        lambda: Fault("kill", at="lunch"),
        lambda: Fault("kill", "r", at="load"),
        lambda: Fault("kill", at_token=0, at="rebuild"),
        lambda: Fault("kill", model="m", at="close"),
        lambda: Fault("kill", moved=False, at="load"),
        lambda: Fault("kill", call=2, at="load"),
        lambda: Fault("kill", call=1, at="close"),
        lambda: Scripted(-1),
        lambda: Scripted(streams=0),
        lambda: Scripted(faults=("kill",)),
        lambda: Faulty("runner"),
    ],
)
def test_nonsense_is_refused(wrong):
    """A constructor refuses what cannot be meant."""
    with pytest.raises((TypeError, ValueError)):
        wrong()


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
        | st.builds(Nested, st.lists(inner, max_size=2).map(tuple), st.just({}))
    ),
    max_leaves=10,
)


@given(plain)
def test_a_spec_arrives_as_it_was(value):
    """D2: Fields of plain data and nested specs travel unchanged."""
    spec = Remembers("folder", Nested((value,), {"k": value}))
    assert unpack(pack(spec)) == spec


def test_nested_faults_travel():
    """D2: A runner around a runner with faults is one value."""
    spec = Faulty(Scripted(3, faults=(Fault("kill", "r", 1),)), (Fault("oom", at="load"),))
    check_runner(spec)
    assert unpack(pack(spec)) == spec


class Plain:
    def build(self, start):
        raise AssertionError


Main = attrs.frozen(type("Main", (), {"__module__": "__main__", "build": lambda self, start: None}))


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        (lambda start: None, "a runner must be a value with a build method, got <function"),
        (3, "a runner must be a value with a build method, got 3"),
        (Scripted, "a runner must be a value with a build method, got <class"),
        (Plain(), "a runner must be a frozen attrs value, got <"),
        (factory(), "a runner must be importable by name, got rogues:factory.<locals>.Local"),
        (Main(), "a runner must live in an importable module, got __main__:Main: move it out"),
        (
            Remembers("x", print),
            "Remembers.nested must be None, bool, int .64 bits.*got <built-in function print>",
        ),
        (Remembers("x", Nested((1, b"raw"), {})), r"Remembers.nested.values\[1\] must be .*got b'raw'"),
        (Remembers("x", Nested((), {"a": {2**64}})), r"Remembers.nested.table\['a'\] must be .*got \{"),
        (
            Remembers("x", Nested((2**64,), {})),
            r"Remembers.nested.values\[0\] must be .*got 18446744073709551616",
        ),
    ],
)
def test_a_runner_that_cannot_be_named_or_sent_is_refused_in_one_line(runner, message):
    """D2: A runner that cannot travel is refused at declaration, in one line that names it."""
    with pytest.raises((TypeError, ValueError), match=message) as refused:
        check_runner(runner)
    assert "\n" not in str(refused.value)
