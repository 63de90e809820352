"""How `supervise top` asks the tree, under virtual time and with answers that were made up."""

import pytest

pytest.importorskip("urwid", reason="supervise top needs urwid, which is not installed")

import trio
from trio.testing import MockClock

from supervise.operate.client import OperateError
from supervise.operate.top.feed import Feed
from supervise.operate.top.terminal import watch

from .made import FAILED, ROWS, Client, event, state, status


def run(client, seconds, keys=(), **more):
    """The state after so many seconds; each key is pressed at its time."""
    feed = Feed(client, state(**more))
    drawn = []
    feed.changed = lambda: drawn.append(feed.state)

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.run)
            for at, key in keys:
                await trio.sleep_until(at)
                assert feed.press(key)
            await trio.sleep_until(seconds)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return feed.state, drawn


def test_it_asks_twice_a_second_and_for_events_only_when_there_are_new_ones():
    """The events after those it has; at most a hundred."""
    client = Client(
        status(seq=1000), status(seq=1000), status(seq=1002), events=[event(each) for each in range(1, 1003)]
    )
    last, _ = run(client, 1.9)
    assert client.asked == ["status", "events after 900", "status", "status", "events after 1000", "status"]
    assert [each["seq"] for each in last.events] == list(range(901, 1003))


def test_without_a_tail_no_event_is_fetched():
    """But for the details of a node."""
    client = Client(status(seq=10), status(seq=20), events=[event(each) for each in range(1, 21)])
    run(client, 3, tail=False)
    assert set(client.asked) == {"status"}
    run(client, 3, [(1.2, "enter")], tail=False)
    assert "events after 0" in client.asked


def test_a_lost_connection_is_tried_again_until_it_comes_back():
    """The screen is drawn each second meanwhile."""
    client = Client(
        status(),
        OperateError("no such file"),
        ValueError("refused"),
        status(seq=30, time=status()["time"] + 2),
    )
    last, drawn = run(client, 2)
    assert [each.link.why for each in drawn[:3]] == ["", "no such file", "refused"]
    assert last.link.since is None
    assert last.note.endswith("20 events meanwhile")


def test_a_slow_answer_is_asked_for_less_often():
    """It may take a twentieth of the time; but one of the last five seconds is always shown."""

    class Slow(Client):
        seconds = 0.1

        async def status(self):
            await trio.sleep(self.seconds)
            return await super().status()

    client = Slow(status())
    run(client, 10, tail=False)
    assert len(client.asked) == 5
    client = Slow(status())
    client.seconds = 1
    run(client, 17.5, tail=False)
    assert len(client.asked) == 3


def test_without_a_first_answer_there_is_an_error():
    """The terminal is not touched then, and the client is closed."""
    client = Client(OperateError("no such file"))
    with pytest.raises(OperateError, match="no such file"):
        trio.run(watch, client)
    assert client.asked == ["status", "close"]


def test_an_answer_that_does_not_come_is_a_lost_connection():
    """A blocked loop does not answer."""

    class Blocked(Client):
        async def status(self):
            await trio.sleep_forever()

    last, _ = run(Blocked(status()), 11)
    assert last.link.why == "no answer within 10 s"


def test_a_key_carries_its_question_to_the_tree():
    """The answers come while the statuses go on."""
    client = Client(status())
    assert run(client, 0.4, [(0.2, "enter")])[0].page.text == "shop is up, 1."
    assert run(client, 1, [(0.2, "s")])[0].page.text == "shop: trio.sleep_forever()"
    last, _ = run(client, 3, [(0.2, "r"), (0.4, "d"), (0.5, "enter"), (0.6, "y")])
    assert last.note == "shop: restart is done"
    assert [each for each in client.asked if isinstance(each, tuple)] == [
        ("restart", "shop", "a dry run", True),
        ("restart", "shop", "d", False),
    ]
    refused, _ = run(client, 1, [(0.2, "end"), (0.3, "x")])
    assert refused.note == "shop/migrate: not done: 'shop/migrate' is not running"


def test_the_details_say_why_again_when_the_node_is_not_as_it_was():
    """Else they would be of the moment at which they were opened."""
    later = status([{**ROWS[0], "incarnation": 2}, *ROWS[1:]])
    for seconds, count in [
        (1.9, 2),
        (2.4, 3),
    ]:  # once by the key, once by the next status, and once when it has changed
        client = Client(status(), status(), status(), status(), later)
        assert run(client, seconds, [(0.2, "enter")])[0].page.text == f"shop is up, {count}."


def test_after_an_act_and_for_the_tail_it_asks_at_once():
    """Not only after half a second."""
    client = Client(status(seq=10), events=[event(5)])
    run(client, 0.2, [(0.1, "e")], tail=False)
    assert client.asked == ["status", "status", "events after 0"]


def test_a_traceback_is_searched_from_the_last_event_backwards():
    """Few events are fetched if it is among the last ones; all, if it is not."""
    old = event(3, "Failed", path="shop", exc=FAILED)
    client = Client(status(seq=5000), events=[old])
    assert run(client, 1, [(0.2, "t")], tail=False)[0].page.text == FAILED["traceback"]
    assert client.asked.count("events after 0") == 1
    assert {"events after 4700", "events after 2000"} < set(client.asked)
    new = Client(status(seq=200))
    run(new, 1, [(0.2, "t")], tail=False)
    assert new.asked.count("events after 0") == 1
    none = Client(status(seq=5000), events=[event(4999, path="shop")])
    assert run(none, 1, [(0.2, "t")], tail=False)[0].page.text.startswith("No failure of this node")


def test_q_ends_it():
    """It needs no answer of the tree."""
    assert not Feed(Client(status()), state()).press("q")


def test_a_tree_that_listens_at_another_place_is_followed():
    """The path of a socket may have the number of the process, which changes."""
    old, new = Client(status(), OperateError("gone")), Client(status(pid=99))
    feed = Feed(old, state(), elsewhere=lambda name: {"shop": new}[name])

    async def main():
        with trio.move_on_after(2):
            await feed.run()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert feed.client is new
    assert old.asked[-1] == "close"
    assert feed.state.note == "connected again after 0s: the tree has been started again, pid 99"
