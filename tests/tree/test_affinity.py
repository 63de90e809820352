"""`Mailbox(affinity=…)`: a message goes to the child that took the last one with its key, if that waits (R37)."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from supervise import (
    Backoff,
    Child,
    ChildStopped,
    Decider,
    Mailbox,
    Refused,
    Resume,
    Supervisor,
    open_tree,
)

from .scene import Boom, nothing, quiet
from .talk import crew, grow


def first(value):
    """The key of a message: its first letter."""
    return value[0] if isinstance(value, str) else None


def keyed(got, names="abc", **options):
    return crew(got, names, mailbox=Mailbox(99, affinity=first), **options)


def test_a_message_goes_to_the_child_that_took_the_last_one_with_its_key():
    """R37: Other messages, and those without a key, go to the child that has waited longest."""

    async def scene(tree, _):
        call = tree["app"].call
        assert [await call(value) for value in ("x1", "y1", 1, "x2", "x3", "y2", 2)] == list("abcaabc")

    grow(keyed([]), scene)


def test_a_key_is_no_claim():
    """R37: If that child is at work, another one takes the message, and has the key from then on."""
    got = []

    async def scene(tree, _):
        for value in ("x1", "x2", "x3"):
            tree["app"].send_nowait(value)
            await quiet()
        await trio.sleep(5)
        assert got == [("a", "x1"), ("b", "x2"), ("c", "x3")]
        assert await tree["app"].call("x4") == "c"

    grow(keyed(got, seconds=1), scene)


def test_a_child_that_starts_anew_has_no_keys():
    """R37: What it had in store for them is gone."""

    async def scene(tree, _):
        assert await tree["app"].call("x1") == "a"
        await tree["app/a"].restart()
        assert [await tree["app"].call(value) for value in ("x2", "x3")] == ["b", "b"]

    grow(keyed([]), scene)


def test_a_child_that_is_resumed_takes_its_keys_anew():
    """R8, R37: Its body begins again, so it waits as any other."""
    got = []

    async def scene(tree, _):
        for value in ("x1", "boom", "x2"):
            tree["app"].send_nowait(value)
            await quiet()
        assert await tree["app"].call("x3") == got[-2][0]

    grow(keyed(got, options={"resource": nothing}, decider=Decider({Boom: Resume}), limit=None), scene)


@pytest.mark.parametrize("wrong", [ValueError("no"), ["a list"]])
def test_a_function_that_fails_is_logged_and_dropped(caplog, wrong):
    """R31, R37: No sender gets its error, and no message is lost."""
    asked = []

    def affinity(value):
        asked.append(value)
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    async def scene(tree, _):
        assert [await tree["app"].call(value) for value in "xxx"] == list("abc")

    grow(crew([], mailbox=Mailbox(9, affinity=affinity)), scene)
    assert asked == ["x"]
    (record,) = [each for each in caplog.records if each.name == "supervise"]
    assert record.getMessage().startswith("an affinity of 'app' raised, and is dropped: ")


def test_a_function_that_exits_the_program_as_a_caller_leaves_stops_the_tree_in_order():
    """R4, R37: It is called for the next sender while Trio cancels that caller, where nothing may be raised."""

    def affinity(value):
        if value == "exits":
            raise SystemExit(3)

    async def scene(tree, _):
        tree["app"].send_nowait("is taken")
        await quiet()
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(1):
                nursery.start_soon(tree["app"].send, "exits")
                await tree["app"].call("leaves")
            await trio.sleep_forever()

    with pytest.raises(SystemExit):
        grow(crew([], "a", mailbox=Mailbox(1, affinity=affinity), seconds=9), scene)


def test_the_keys_of_bodies_that_are_over_are_not_kept():
    """R31: An inbox would keep the failure of its body, with all that its frames hold."""
    held = weakref.WeakSet()

    async def fails(inbox):
        message = await inbox.receive()
        here = Boom(message.value)
        held.add(here)
        raise here

    async def main():
        async with open_tree(spec, sinks=[]) as tree:
            for number in range(20):
                await tree["app"].send(str(number))
                await trio.sleep(9)
            gc.collect()
            assert 0 < len(held) <= 2

    child = Child("a", fails, mailbox="shared", backoff=Backoff(initial=0.1, factor=1))
    spec = Supervisor("app", [child], mailbox=Mailbox(9, affinity=str), limit=None)
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_adoption_takes_the_affinity_at_once():
    """R38: It is one of the options of the mailbox."""

    async def scene(tree, _):
        assert [await tree["app"].call(value) for value in ("x1", "x2")] == list("ab")
        workers = tree.status().children
        await tree.adopt(Supervisor("app", [*spec.children], mailbox=Mailbox(9, affinity=first)))
        assert [await tree["app"].call(value) for value in ("x3", "x4", "x5")] == ["c", "c", "c"]
        assert [each.incarnation for each in tree.status().children] == [each.incarnation for each in workers]

    spec = crew([], mailbox=9)
    grow(spec, scene)


def test_a_mailbox_of_one_child_has_no_affinity():
    """R37: It has no choice."""
    with pytest.raises(ValueError, match="child 'a': its own mailbox must not have an affinity"):
        Child("a", trio.sleep_forever, mailbox=Mailbox(affinity=first))
    with pytest.raises(TypeError, match="a mailbox's affinity"):
        Mailbox(affinity="x")


@pytest.mark.parametrize("seed", range(3))
def test_a_child_whose_message_is_withdrawn_takes_the_next_one(seed):
    """R37: It was woken for a message that its caller took back, and no other child is woken for the next one."""

    async def scene(tree, _):
        assert await tree["app"].call("x1") == "a"
        await quiet()
        scope, answers = trio.CancelScope(), []

        async def leaves():
            with scope:
                await tree["app"].call("x2")

        async def comes():
            scope.cancel()
            answers.append(await tree["app"].call("x3"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaves)
            nursery.start_soon(comes)
        assert answers == ["a"]

    grow(keyed([], "a"), scene, seed=seed)


OPS = st.sampled_from(["send", "call", "leave", "stop", "start", "restart", "fail", "tick"])


def test_a_caller_that_leaves_while_its_message_is_handed_over_is_in_no_queue():
    """R33, R37: Its message counts for nothing, and the reader that was woken for it takes the next one."""
    scopes = {}

    def affinity(value):
        if value in scopes:
            scopes[value].cancel()  # before the caller waits, and before the reader that is woken now has run
        return "key"

    async def scene(tree, _):
        call = tree["app"].call
        assert await call("first") == "a"
        with trio.CancelScope() as scopes["leaves"]:
            await call("leaves")
        assert scopes["leaves"].cancelled_caught
        assert tree["app"].status().mailbox == 0
        await quiet()
        assert tree["app"].status().mailbox == 0
        assert [await call(value) for value in ("second", "third")] == ["a", "a"]
        assert got == [("a", "first"), ("a", "second"), ("a", "third")]

    got = []
    grow(crew(got, mailbox=Mailbox(99, affinity=affinity)), scene)


@settings(max_examples=100, deadline=None)
@given(
    st.random_module(),
    st.lists(st.tuples(OPS, st.sampled_from("abc"), st.sampled_from("xyz")), max_size=25),
    st.integers(0, 9),
)
def test_whatever_happens_each_message_is_taken_once_and_each_caller_is_answered(schedule, ops, seed):
    """R29, R37: Callers that leave, and children that stop and fail, whether or not a message was just handed to them."""
    got, answered, asked = [], [], 0

    async def ask(tree, value, patience):
        with trio.move_on_after(patience):
            try:
                answered.append(await tree["app"].call(value))
            except (ChildStopped, Boom) as exc:
                answered.append(exc)
            return
        answered.append("left")

    async def request(child, op):
        with suppress(Refused):
            await getattr(child, op)()

    async def scene(tree, _):
        nonlocal asked
        async with trio.open_nursery() as nursery:
            for number, (op, name, key) in enumerate(ops):
                child, value = tree[f"app/{name}"], f"{key}{number}"
                if op == "send":
                    tree["app"].send_nowait(value)
                elif op in ("call", "leave"):
                    asked += 1
                    nursery.start_soon(ask, tree, value, 0 if op == "leave" else 1_000)
                elif op == "tick":
                    await quiet()
                elif op == "fail":
                    with suppress(Refused):
                        child.inject(Boom(name))
                elif op != "stop" or name != "c":  # one child stays, so that no message is refused
                    nursery.start_soon(request, child, op)
            for name in "abc":
                await quiet()
                if tree[f"app/{name}"].status().state == "down":
                    await tree[f"app/{name}"].start()
            await trio.sleep(10)
        assert tree.status().mailbox == 0
        values = [value for _, value in got]
        assert len(values) == len(set(values))
        assert len(answered) == asked
        one_way = [f"{key}{number}" for number, (op, _, key) in enumerate(ops) if op == "send"]
        assert set(one_way) <= set(values)

    grow(crew(got, mailbox=Mailbox(99, affinity=first, on_loss="requeue"), limit=None), scene, seed=seed)
