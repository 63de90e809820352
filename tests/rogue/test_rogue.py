"""Contexts that send any bytes at any time: the parent's loop, its memory and its verdicts (D9, D10).

`python -m tests.rogue --examples 100000` plays that many scripts; here are some hundred, and those that once did
harm.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runners.hosts.process import wire

from .grammar import Bytes, Chunk, Cut, Honest, Many, Script, Waits, packed, scripts
from .play import Turns, play


def script(*acts, ends="silent", leaves=0, rebuilds=0, incarnations=1, loads=True, at_once=False):
    return Script(loads, at_once, acts, ends, incarnations, rebuilds, leaves)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(scripts, st.integers(0, 2**32))
def test_a_rogue_context_harms_only_itself(drawn, seed):
    """D10, D9: Whatever it sends, the loop is never held, memory is bounded, and each request ends with a reason, in time."""
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
        "drops that were not asked for": (Many(DROPPED, 0),),
        "streams that are taken, unasked": (Many(Bytes(packed(wire.Taken(0))), 0),),
        "lacks of memory of no stream": (Many(Bytes(packed(wire.Broken(LACK, ()))), 0),),
        "it has rebuilt, unasked": (Many(Bytes(packed(wire.Rebuilt())), 0),),
        "it is closed, unasked": (Many(Bytes(packed(wire.Closed())), 0),),
        "it is loaded, again": (Bytes(packed(wire.Ready(1, False, False, "", "local", None, (0.0, 0.0)))),),
        "a frame of 4 GB": (Cut(2**32 - 1, 100),),
        "a frame that is a byte too long": (Cut(wire.MAX_FRAME + 1, 0),),
        "a step of many streams that is long": (Bytes(packed(wire.Step([wire.Chunk(0, 0, (1,), "x" * 200_000, None, None)] * 3, []))),),
        "70,000 tokens at once": (Bytes(packed(wire.Step([wire.Chunk(0, 0, (1,) * 70_000, "", None, None)], []))),),
        "5,000 streams at once": (Bytes(packed(wire.Step([wire.Chunk(0, 0, (1,), "", None, None)] * 5000, []))),),
        "bytes without end": (Many(Bytes(b"\xff" * 1000), 0),),
    }.items(),
    ids=lambda item: item[0],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_a_frame_that_the_protocol_forbids_ends_the_context(acts, seed):
    """D10: The context ends at once, without waiting for a deadline; streams that may move go on in the next, which is well."""
    played = play(script(*acts[1]), seed)
    assert played.ends["a"] == played.ends["b"] == "completed"
    assert played.ends["late"] == "completed"  # within a second
    assert played.failures == ["ProtocolError"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ids", [(1, 0), (0, 1)])
def test_a_stream_of_tokens_and_of_chunks_without_any_ends_the_context(ids, seed):
    """D6: Its positions could not be counted, and it could not be continued."""
    first, second = ids
    mixed = (Chunk(0, 0, first, 1, last=False), Chunk(0, second, second, 1, last=False))
    assert play(script(*mixed), seed).failures == ["ProtocolError"]


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
def test_a_context_without_progress_ends_at_the_deadline(acts):
    """D9: This holds however much it sends."""
    played = play(script(*acts[1]))
    assert played.ends["a"] == played.ends["b"] == "completed"
    assert played.ends["late"] == "Timeout"
    assert played.failures == ["ContextHung"]


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_that_was_dropped_does_not_keep_a_context_alive(seed):
    """D9: A context that sends chunks of a dropped stream without end, and never confirms the drop, makes no progress."""
    late = Chunk("leaves", 0, 1, 1, last=False)
    played = play(script(STEP, STEP, Waits(0.01), Many(late, 0), leaves=1, at_once=False), seed)
    assert played.ends["leaves"] == "left"
    assert played.ends["a"] == played.ends["b"] == "completed"
    assert played.failures in (
        ["ContextHung"],
        ["ProtocolError"],
    )  # the latter where it never had that stream


def test_a_context_that_goes_on_with_a_new_stream_has_dropped_the_old_one():
    """D9: It has read the drop before it could begin the new stream; a drop that it does not confirm would be kept for ever."""
    silent = (STEP, Waits(0.01), STEP, Waits(0.01), STEP, STEP, STEP, Waits(0.1), STEP)
    played = play(script(*silent, leaves=1))
    assert played.failures == ["ProtocolError"]
    assert played.ends["a"] == played.ends["b"] == "completed"


def test_memory_runs_out_once_for_each_stream_that_reports_it():
    """D5, D10: A lack of memory that is reported again, without a stream, is a violation of the protocol."""
    lacking = Bytes(packed(wire.Step([], [wire.Failed(0, LACK)])))
    played = play(script(lacking, Many(Bytes(packed(wire.Broken(LACK, ("?",)))), 0)))
    assert played.failures == ["OutOfMemory", "ProtocolError"]


def test_a_slow_context_that_makes_progress_is_well():
    """D9: Each deadline counts from the last progress."""
    steps = (Honest("answer"), STEP, Waits(1.5)) * 12
    played = play(script(*steps, ends="well"))
    assert played.failures == []


@pytest.mark.parametrize("seed", range(3))
def test_a_rebuild_is_answered_though_the_context_does_not_answer(seed):
    """D7, D9: The operator gets an error at the deadline of a rebuild."""
    played = play(script(STEP, rebuilds=2), seed)
    orders = [outcome.ended for outcome in played.outcomes if outcome.name == "rebuild"]
    assert set(orders) <= {"ContextHung", "RebuildSuperseded", "done"}


def test_turns_are_counted():
    """The test's counter sees reads that happen without a turn for other tasks."""
    turns = Turns()
    turns.before_task_step(None)
    turns.frames += 500
    turns.after_task_step(None)
    turns.before_task_step(None)
    assert (turns.frames, turns.most_frames) == (0, 500)
