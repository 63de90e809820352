"""What a context knows of its open streams without looking at each of them: it is what a look would find."""

import math
from types import SimpleNamespace

import pytest
import trio
from attrs import frozen
from hypothesis import example, given
from hypothesis import strategies as st

from runners import InlineHost, RunnerInfo, device_worker
from runners.models.scripted import Scripted
from runners.types import ExecuteBatch, FinishReason, TokenChunk
from runners.worker.context import Context
from runners.worker.deadlines import Deadlines
from runners.worker.group import Group
from runners.worker.record import Loss, Record
from supervise import open_tree
from supervise.testing import run_virtual

MOMENTS = st.sampled_from([None, 1.0, 2.0, 3.0, 4.0])
NAMES = st.sampled_from("abc")


def message_of(record):
    return SimpleNamespace(memo=record)


def record(name, deadline=None, *, on_loss="migrate", suspect=False):
    made = Record(ExecuteBatch(name, deadline=deadline, on_loss=on_loss))
    if suspect:
        Loss().add(made)
    return made


def chunk(name, *, ids):
    return TokenChunk(request_id=name, index=0, token_ids=(1,) if ids else (), text="x")


@st.composite
def acts(draw):
    what = draw(st.sampled_from(["put", "put", "chunk", "close", "leave", "clear", "survive"]))
    return (
        what,
        draw(NAMES),
        draw(MOMENTS),
        draw(st.sampled_from(["migrate", "fail"])),
        draw(st.booleans()),
    )


@example(False, [(what, "a", None, "migrate", False) for what in ("put", "chunk", "close")])
@given(st.booleans(), st.lists(acts(), max_size=60))
def test_what_a_context_knows_of_its_streams_is_what_a_look_finds(can_continue, acts):
    """D6, D7: The next deadline, whether a stream must stay, and whether a suspect is on trial."""
    dropped = []
    session = SimpleNamespace(info=RunnerInfo(streams=2, can_continue=can_continue), drop=dropped.append)
    context = Context(session, Scripted(), Group(), None)
    for what, name, deadline, on_loss, flag in acts:
        message = context.open.get(name)
        if what == "clear":
            context.close_all()
        elif what == "put":
            if message is None and context.has_room():
                context.put(message_of(record(name, deadline, on_loss=on_loss, suspect=flag)))
        elif message is None:
            continue
        elif what == "chunk" and not message.memo.chunks:
            message.memo.accept([chunk(name, ids=flag)], 0)
            context.has_begun(message.memo)
        elif what == "survive":
            message.memo.settle()
        elif what == "close":
            context.close(message)
        elif what == "leave":
            message.memo.left()
        records = [one.memo for one in context.open.values()]
        moments = [one.batch.deadline for one in records if one.batch.deadline is not None]
        assert context.deadlines.first() == min(moments, default=math.inf)
        assert context.keeps_any() == any(context.must_stay(one) for one in records)
        assert context.has_room() == (len(records) < 2 and not any(one.suspect for one in records))


@given(st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=300))
def test_deadlines_pass_in_order(streams):
    """D6: Each stream that is open when its deadline has passed is found once, the earliest first."""
    opened = {}
    deadlines = Deadlines(opened)
    for number, (moment, ends) in enumerate(streams):
        opened[f"{number}"] = message_of(record(f"{number}", float(moment)))
        deadlines.add(opened[f"{number}"].memo)
        if ends:
            del opened[f"{number}"]
    found = []
    for message in deadlines.passed(200.0):
        found.append(message.memo.batch.deadline)
        del opened[message.memo.batch.request_id]
    wanted = sorted(float(moment) for moment, ends in streams if not ends and moment <= 200)
    assert found == wanted
    assert all(message.memo.batch.deadline > 200 for message in opened.values())


def test_the_deadlines_of_ended_streams_are_removed():
    """R31: A deadline that comes sooner, and stays open, does not keep those of thousands of ended streams behind it."""
    opened = {"long": message_of(record("long", 1.0))}
    deadlines = Deadlines(opened)
    deadlines.add(opened["long"].memo)
    for number in range(5000):
        deadlines.add(record(f"{number}", 2.0))
    assert len(deadlines._heap) < 100
    assert deadlines.first() == 1.0


def test_a_later_stream_of_the_same_id_has_its_own_deadline():
    """An id is free again once its stream has ended; the deadline of the earlier stream then counts no longer."""
    opened = {}
    deadlines = Deadlines(opened)
    for moment in (1.0, 3.0):
        opened["again"] = message_of(record("again", moment))
        deadlines.add(opened["again"].memo)
    assert deadlines.first() == 3.0
    assert not list(deadlines.passed(2.0))


@frozen
class Talking:
    """An async function whose streams wait for their turn, and then make three chunks at once."""

    def build(self, start):
        return _TalkingRunner()


class _TalkingRunner:
    info = RunnerInfo(streams=64)

    async def execute(self, batch):
        await trio.sleep(batch.payload)
        for index in range(3):
            last = FinishReason.STOP if index == 2 else None
            yield TokenChunk(request_id=batch.request_id, index=index, text=f"{index}", finish_reason=last)

    def rebuild(self, cause):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("spread", [0, 1])
def test_a_stream_that_had_no_chunk_is_asked_again_when_it_has_one(spread):
    """D10: Each async stream gives all of its chunks in order, whenever they come."""

    async def main():
        texts = {}
        worker = device_worker("talking", Talking(), host=InlineHost())

        async def call(tree, number):
            texts[number] = (await tree[worker].call(ExecuteBatch(f"{number}", payload=number * spread))).text

        with trio.fail_after(100):
            async with open_tree(worker, sinks=[]) as tree, trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(call, tree, number)
        return texts

    assert run_virtual(main) == dict.fromkeys(range(20), "012")
