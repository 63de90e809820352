"""Contexts that say whatever they like: the parent's loop, its memory and its verdicts (D9, D10).

`python -m tests.rogue --examples 100000` plays as many scripts as it is told to; here are some hundred, and those that
have once done harm.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runners.hosts import wire

from .grammar import Bytes, Chunk, Cut, Honest, Many, Script, Waits, packed, scripts
from .play import Turns, play


def script(*acts, ends="silent", leaves=0, rebuilds=0, incarnations=1, loads=True, at_once=False):
    return Script(loads, at_once, acts, ends, incarnations, rebuilds, leaves)


def ends_of(outcomes):
    return {outcome.name: outcome.ended for outcome in outcomes}


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(scripts, st.integers(0, 2**32))
def test_whatever_a_context_says(drawn, seed):
    """D10, D9: the loop is never held, memory is bounded, each request has an end that says why, and in time."""
    play(drawn, seed)


STEP = Honest("step")
OF_NOTHING = Bytes(packed(wire.Step([], [])))
LACK = wire.Error("OutOfMemory", "none left", None, "")
DROPPED = Bytes(packed(wire.Dropped(0)))
LATE = Chunk(stream=0, ahead=0, ids=1, text=1, last=False)


@pytest.mark.parametrize(
    "acts",
    {
        "steps of nothing, without end": (Many(OF_NOTHING, 0),),
        "a step, then steps of nothing": (STEP, Many(OF_NOTHING, 0)),
        "chunks of a stream never begun": (Many(Chunk(-1, 0, 1, 1, last=False), 0),),
        "chunks of a stream that has ended": (Honest("finish"), Many(Bytes(packed(wire.Step([wire.Chunk(0, 9, (1,), "", None, None)], []))), 0)),
        "drops nobody asked for": (Many(DROPPED, 0),),
        "lacks of memory nobody had": (Many(Bytes(packed(wire.Broken(LACK, ()))), 0),),
        "it has rebuilt, unasked": (Many(Bytes(packed(wire.Rebuilt())), 0),),
        "it is closed, unasked": (Many(Bytes(packed(wire.Closed())), 0),),
        "it is loaded, again": (Bytes(packed(wire.Ready(1, False, False, "", "local", None, (0.0, 0.0)))),),
        "a frame of 4 GB": (Cut(2**32 - 1, 100),),
        "a step of many streams that is long": (Bytes(packed(wire.Step([wire.Chunk(0, 0, (1,), "x" * 200_000, None, None)] * 3, []))),),
        "70,000 tokens at once": (Bytes(packed(wire.Step([wire.Chunk(0, 0, (1,) * 70_000, "", None, None)], []))),),
        "5,000 streams at once": (Bytes(packed(wire.Step([wire.Chunk(0, 0, (1,), "", None, None)] * 5000, []))),),
        "bytes without end": (Many(Bytes(b"\xff" * 1000), 0),),
    }.items(),
    ids=lambda item: item[0],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_what_the_protocol_forbids_is_the_end_of_the_context(acts, seed):
    """D10: at once, without waiting for a deadline; whoever may move goes on in the next, which is well."""
    outcomes = ends_of(play(script(*acts[1]), seed))
    assert outcomes["a"] == outcomes["b"] == "completed"
    assert outcomes["late"] == "completed"  # within a second


@pytest.mark.parametrize(
    "acts",
    {
        "nothing": (),
        "half a frame": (Cut(1000, 100),),
        "a long frame, byte by byte": (Cut(wire.MAX_FRAME, 2**18), Many(Bytes(b"\x93"), 0)),
        "a pause": (Waits(100.0),),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_makes_no_progress_ends_at_the_deadline(acts):
    """D9: however much it says."""
    outcomes = ends_of(play(script(*acts[1])))
    assert outcomes["a"] == outcomes["b"] == "completed"
    assert outcomes["late"] == "Timeout"


def test_a_stream_that_was_dropped_does_not_keep_a_context_alive():
    """D9: a context that makes chunks of it without end, and never says that it has dropped it, makes no progress."""
    outcomes = ends_of(
        play(script(STEP, STEP, Waits(0.01), Many(Chunk(0, 0, 1, 1, last=False), 0), leaves=1))
    )
    assert outcomes["leaves"] == "left"
    assert outcomes["a"] == outcomes["b"] == "completed"


def test_rebuilds_are_answered_by_a_context_that_does_not():
    """D7, D9: at the deadline of a rebuild."""
    outcomes = play(script(STEP, ends="silent", rebuilds=2))
    assert {outcome.ended for outcome in outcomes if outcome.name == "rebuild"} <= {
        "ContextHung",
        "RebuildSuperseded",
        "done",
    }


def test_turns_are_counted():
    """The count sees what is read without a turn for the others."""
    turns = Turns()
    turns.before_task_step(None)
    turns.frames += 500
    turns.after_task_step(None)
    turns.before_task_step(None)
    assert (turns.frames, turns.most_frames) == (0, 500)
