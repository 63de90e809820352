"""The history of a tree's events for readers that come late or read slowly."""

from __future__ import annotations

import json

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import Child, Supervisor, events, open_tree
from supervise.operate.history import History
from supervise.testing import run_virtual


def happened(history, count):
    """Give it so many events."""
    for number in range(count):
        history(events.Starting(float(number), "app", 1))


@given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=8))
def test_a_reader_gets_every_event_once_or_learns_how_many_it_missed(kept, moments):
    """R31: Whatever is kept, and however rarely a reader comes: the events and the missed ones are all there were."""
    history, seen, missed = History(kept), [], 0
    for count, most in moments:
        happened(history, count)
        lost, entries = history.after(seen[-1] if seen else 0, most=most + 1)
        missed += lost
        if entries:
            assert entries[0].number == (seen[-1] if seen else 0) + lost + 1
        seen += [entry.number for entry in entries]
    while True:
        lost, entries = history.after(seen[-1] if seen else 0)
        if not entries:
            break
        missed += lost
        seen += [entry.number for entry in entries]
    assert len(seen) + missed == history.last
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("kept", [0, 1.5, True])
def test_the_number_of_kept_events_is_checked(kept):
    """A history keeps one event or more."""
    with pytest.raises((TypeError, ValueError), match="kept must be"):
        History(kept)


def test_a_reader_waits_for_the_next_event_or_the_end():
    """R31: `more` returns at once if there is one; the end wakes everyone."""

    async def main():
        history = History()
        happened(history, 1)
        with trio.fail_after(0):
            await history.more(0)
        woken = []

        async def read(number):
            await history.more(1)
            woken.append((number, trio.current_time()))

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(read, number)
            await trio.sleep(5)
            happened(history, 1)
            await trio.sleep(1)
            assert sorted(woken) == [(0, 5), (1, 5), (2, 5)]
            nursery.start_soon(history.more, 7)
            await trio.sleep(1)
            history.close()

    run_virtual(main)


def test_an_entry_is_a_line_of_json_with_words_and_without_secrets_if_asked():
    """R31: Its data are those of the schema; without `traced` the traceback and the stack are left out."""
    history = History()

    async def body():
        await trio.sleep(1)
        secret = "swordfish"
        raise ValueError(secret)

    async def main():
        async with open_tree(Supervisor("app", [Child("a", body, restart="temporary")]), sinks=[history]):
            await trio.sleep(2)

    run_virtual(main)
    _, entries = history.after(0)
    failed = next(entry for entry in entries if entry.data["kind"] == "Failed")
    whole, bare = json.loads(failed.line(traced=True)), json.loads(failed.line(traced=False))
    assert whole["text"] == "failed: ValueError: swordfish"
    assert "raise ValueError(secret)" in whole["exc"]["traceback"]
    assert bare["exc"] == {"type": "ValueError", "text": "swordfish"}
    overdue = History()
    overdue(events.Overdue(1.0, "app", 1, 5.0, "the stack"))
    (entry,) = overdue.after(0)[1]
    assert "the stack" in entry.line(traced=True)
    assert "the stack" not in entry.line(traced=False)
    assert [data["path"] for data in history.about("app/a")] == ["app/a"] * len(history.about("app/a"))
    assert len(history.about("app")) == history.last


def test_a_history_keeps_no_object_of_the_program():
    """R31: A failure holds the frames of its task; a history of ten thousand holds only texts and numbers."""

    async def body(task_status):
        task_status.started(object())
        await trio.sleep(1)
        raise ValueError(object())

    history = History()

    async def main():
        async with open_tree(Supervisor("app", [Child("a", body, restart="temporary")]), sinks=[history]):
            await trio.sleep(2)

    run_virtual(main)
    values = [value for entry in history.after(0)[1] for value in entry.data.values()]
    values += [value for each in values if type(each) is dict for value in each.values()]
    assert len(values) > 50
    assert {type(value) for value in values} <= {str, int, float, dict, type(None)}
