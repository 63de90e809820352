"""Chaos: a short run of it, and that it would see what it looks for."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import benchmarks.chaos
from benchmarks.chaos import (
    VARIANTS,
    Chaos,
    Ledger,
    Plan,
    _began,
    _interrupted,
    problems,
    reference,
)
from benchmarks.holdings import Holdings, descendants
from benchmarks.rough import ROUGH, WIDTH, Rough
from runners.errors import ContextLost, OutOfMemory, PoisonRequest, RunnerError, WorkerDown
from runners.hosts.packing import check_runner
from runners.models.scripted import Scripted
from runners.types import RunnerStart, TokenChunk

ROOT = Path(__file__).parents[2]
PLAN = Plan(60, 7)
RIGHT = reference(PLAN)
GOOD = Ledger(requests=10, completed=10, calm=10, calm_completed=10, memory=[5, 5, 5])
GOOD.strikes["SIGKILL"] += 1


def chaos():
    return Chaos(PLAN, Ledger(), RIGHT, None, began=0.0)


def request(kind):
    """The first request of this kind."""
    batches = (PLAN.batch(number, harmful=True) for number in range(10_000))
    return next(batch for batch in batches if (batch.model.rstrip() or batch.on_loss) == kind)


@pytest.mark.slow
@pytest.mark.parametrize(("runner", "contexts"), [("torch", 1), ("scripted", 3)])
def test_a_short_run_of_chaos_passes(runner, contexts):
    """D5, D6, D8, D9, D10, D12: In twelve seconds of all kinds of faults nothing is lost, doubled, wrong, hung or left behind."""
    command = [sys.executable, "-m", "benchmarks.chaos", "--minutes", "0.2", "--seed", "3", "--pause", "1"]
    done = subprocess.run(
        [*command, "--runner", runner, "--contexts", f"{contexts}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["problems"] == []
    assert summary["completed"] > 5  # how much that is depends on the machine
    assert sum(summary["strikes"].values()) > 0


def test_a_plan_follows_from_its_seed():
    """The same seed makes the same requests and the same harm; another seed makes others."""
    for number in (0, 99):
        assert PLAN.batch(number, harmful=True) == Plan(60, 7).batch(number, harmful=True)
    assert PLAN.spec() == Plan(60, 7).spec() != Plan(60, 8).spec()
    check_runner(PLAN.spec())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"lost": 1}, "lost"),
        ({"doubled": 1}, "doubled"),
        ({"wrong": 1}, "differ"),
        ({"hung": 1}, "hung"),
        ({"unexpected": ["?"]}, "unexpected ends"),
        ({"failures": Counter({"ExceptionGroup": 1})}, "unexpected failures"),
        ({"calm_completed": 8}, "8 of 10"),
        ({"completed": 0}, "nothing happened"),
        ({"misbehaved": ["3: it hung"]}, "3: it hung"),
        ({"memory": [0, 0, 50_000_000]}, "memory grew by 50000000"),
    ],
)
def test_each_promise_that_is_broken_is_reported(wrong, says):
    """A good run has no problem."""
    assert problems(GOOD, {"processes": []}) == []
    (problem,) = problems(attrs.evolve(GOOD, **wrong), {"processes": []})
    assert says in problem


def test_a_descriptor_or_process_that_is_left_behind_is_reported():
    """It is reported by name, if it was not there before."""
    before = Holdings.now()
    reading, writing = os.pipe()
    child = subprocess.Popen(["sleep", "60"])
    try:
        beyond = Holdings.now().beyond(before)
        assert child.pid in descendants()
    finally:
        child.kill()
        child.wait()
        os.close(reading)
        os.close(writing)
    assert beyond["processes"] == [str(child.pid)]
    assert set(beyond["descriptors"]) >= {str(reading), str(writing)}
    assert "left behind" in problems(GOOD, beyond)[0]


def test_a_process_whose_name_ends_within_a_character_is_a_descendant():
    """Linux keeps 15 bytes of a name, so a process of any program here may have such a name."""
    script = r"open('/proc/self/comm', 'wb').write(b'\xd0'); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in descendants()
        assert _began(child.pid)


@given(st.integers(0, 1000), st.data())
def test_a_stream_that_differs_from_its_fault_free_one_is_reported(number, data):
    """A token less, a token more and another token are reported; a stream that was cut is right up to its cut."""
    batch = PLAN.batch(number, harmful=False)
    ids, text = RIGHT[number % VARIANTS]
    right, wrong = chaos(), chaos()
    cut = data.draw(st.integers(0, len(ids) - 1))
    right._compare(batch, ids, text, whole=True)
    right._compare(batch, ids[:cut], text[:cut], whole=False)
    assert (right.ledger.wrong, right.ledger.lost) == (0, 0)
    wrong._compare(batch, ids[:cut], text[:cut], whole=True)
    assert (wrong.ledger.wrong, wrong.ledger.lost) == (1, len(ids) - cut)
    other = (*ids[:cut], 26, *ids[cut + 1 :])
    wrong._compare(batch, other, text, whole=False)
    wrong._compare(batch, ids, f"{text}!", whole=True)
    assert wrong.ledger.wrong == 3


def test_a_token_that_is_skipped_or_repeated_is_counted():
    """Each is counted by its position."""
    run = chaos()
    run._take((1, 2), TokenChunk(request_id="0", index=3, token_ids=(4,)))
    run._take((1, 2), TokenChunk(request_id="0", index=0, token_ids=(1,)))
    assert (run.ledger.lost, run.ledger.doubled) == (1, 2)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("poison", "completed", OutOfMemory("")),
        ("tear", PoisonRequest(""), ContextLost("", incarnation=1, delivered=1)),
        ("oom", OutOfMemory(""), "completed"),
        ("killer", PoisonRequest(""), "completed"),
        ("hostile", RunnerError(""), "completed"),
        ("rogue", "completed", RunnerError("")),
        ("ignore", "completed", RunnerError("")),
        ("fail", ContextLost("", incarnation=1, delivered=1), WorkerDown("")),
    ],
)
def test_an_end_that_no_policy_names_is_unexpected(kind, good, bad):
    """Each kind of request has its own."""
    run = chaos()
    run._judge(request(kind), good, calm=False)
    assert run.ledger.unexpected == []
    run._judge(request(kind), bad, calm=False)
    assert len(run.ledger.unexpected) == 1


def test_a_wide_stream_repeats_every_character():
    """So a step of many is more than a socket holds, in both directions."""
    batch = request("wide")
    assert len(batch.model) > WIDTH
    chunks = list(Rough(Scripted(3)).build(RunnerStart(incarnation=1)).execute(batch))
    assert [len(chunk.text) for chunk in chunks] == [WIDTH] * 3


@pytest.mark.parametrize("kind", ["rogue", "mute", "hostile", "ignore"])
def test_a_stream_with_a_fault_does_its_harm_once(kind, monkeypatch):
    """The harm is done in the middle of the stream; a hostile stream that has moved before does it after the move."""
    done = []
    monkeypatch.setitem(ROUGH, kind, lambda chance: done.append(kind))
    runner = Rough(Scripted(8)).build(RunnerStart(incarnation=1))
    batch = request(kind)
    ids = tuple(chunk.token_ids[0] for chunk in runner.execute(batch))
    assert done == [kind]
    list(runner.continue_from(batch, ids[:2]))
    assert len(done) == (2 if kind == "hostile" else 1)
    list(runner.continue_from(batch, ids[:6]))
    assert len(done) == (2 if kind == "hostile" else 1)


@pytest.mark.parametrize("then", ["signal.pause()", "raise SystemExit(3)"])
def test_a_program_that_does_not_end_in_order_is_reported(then, monkeypatch):
    """The program is interrupted, and a process that it has started lives on; or the program ends by itself before that."""
    monkeypatch.setattr(benchmarks.chaos, "GONE", 0.1)
    code = f"""
import signal, subprocess
child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
print("up", child.pid, sep="\\n", flush=True)
{then}
"""
    with pytest.raises(ValueError, match="it ended with") as told:
        trio.run(_interrupted, random.Random(1), 0, [sys.executable, "-c", code])
    (pid,) = re.findall(r"up\\n(\d+)", str(told.value))
    os.kill(int(pid), signal.SIGKILL)
    assert f"left {{{pid}}}" in str(told.value) or then != "signal.pause()"


@pytest.mark.slow
def test_a_program_that_is_frozen_and_interrupted_ends_in_order():
    """One run of such a program: its streams are right, and nothing of it is left."""
    seen = trio.run(_interrupted, random.Random(2), 1)
    assert "wrong" not in seen
