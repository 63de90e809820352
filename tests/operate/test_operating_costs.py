"""What it costs a program to be looked at: nothing is made again that was made before, and it shows no old state for that."""

from __future__ import annotations

import gc
import traceback
import weakref

import trio
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.operating import ROWS, as_table
from benchmarks.streams import Lines
from supervise import Backoff, Child, Limit, Supervisor, events, open_tree
from supervise.operate.history import History
from supervise.operate.rows import Rows
from supervise.sinks import tracebacks
from supervise.testing import run_virtual
from tests.tree.scene import Puppet


def raised(make, depth=0):
    """An exception with a stack of its own."""
    try:
        if depth:
            return raised(make, depth - 1)
        raise make()
    except Exception as exc:
        return exc


def chained():
    """An exception with a cause."""
    try:
        try:
            {}["key"]
        except KeyError as cause:
            raise ValueError("no such key") from cause
    except ValueError as exc:
        return exc


def suppressed():
    """An exception that hides its context."""
    try:
        try:
            {}["key"]
        except KeyError:
            raise ValueError("no such key") from None
    except ValueError as exc:
        return exc


def noted():
    """An exception with a note."""
    exc = raised(lambda: ValueError("x"))
    exc.add_note("a note")
    return exc


def misspelt():
    """An exception whose text has a suggestion in newer versions of Python, which depends on the names in its frame."""
    number = 1
    try:
        return numbre
    except NameError as exc:
        assert number
        return exc


def test_the_text_of_a_traceback_is_that_of_the_standard_library_each_time():
    """R31: Its stack comes from memory the second time; whatever depends on the exception does not."""
    makers = [
        lambda: raised(lambda: ValueError("x")), lambda: raised(lambda: ValueError("another text")), lambda: raised(KeyError, depth=5),
        lambda: raised(KeyError, depth=7), chained, suppressed, noted, misspelt, lambda: ValueError("never raised"),
        lambda: raised(lambda: ExceptionGroup("two", [raised(KeyError), chained()])), lambda: raised(lambda: SyntaxError("x", ("f", 1, 2, "text"))),
    ]  # fmt: skip
    for _ in range(2):
        for make in makers:
            exc = make()
            assert tracebacks.trace(exc) == "".join(traceback.format_exception(exc)).rstrip()
    assert "a note" in tracebacks.trace(noted())


def test_the_texts_of_stacks_are_bounded_and_keep_no_object_of_the_program():
    """R31: Code that is made at run time has new places without end; a frame would keep the locals of its function."""

    class Thing:
        pass

    known = []
    for number in range(3 * tracebacks._MOST_STACKS):
        scope = {"thing": Thing()}
        known.append(weakref.ref(scope["thing"]))
        exec(
            compile("def f():\n    mine = thing\n    raise ValueError(mine)", f"<made {number}>", "exec"),
            scope,
        )
        assert f"<made {number}>" in tracebacks.trace(raised(scope["f"]))
    del scope
    gc.collect()
    assert len(tracebacks._STACKS) == tracebacks._MOST_STACKS
    assert [reference() for reference in known if reference() is not None] == []


def lines_of(call):
    """How many lines of Python a call executes."""
    with Lines() as lines:
        call()
    return lines.count


def test_a_failure_that_happened_before_costs_no_more_than_its_stack():
    """R31: To make the text of a stack takes hundreds of lines and looks at files; a storm of failures must not pay that each time."""
    history = History()

    def fail():
        history(events.Failed(1.0, "app/a", 1, raised(lambda: ConnectionError("gone"), depth=5)))

    first, second = lines_of(fail), lines_of(fail)
    assert second < first - 100


@given(
    st.lists(
        st.sampled_from(["fail a", "fail b", "fail c", "fail d", "stop a", "start a", "restart", "add", "remove", "send", "wait"]),
        max_size=12,
    )
)  # fmt: skip
def test_rows_that_are_kept_are_those_of_now(steps):
    """R33: After any step, and while things happen: what is kept equals what is made anew, and shows each node of the tree."""

    async def main():
        a, b = Puppet("a", restart="transient"), Puppet("b", backoff=Backoff(initial=2))
        c, d = Puppet("c", limit=Limit(2, within=10)), Puppet("d", mailbox=3)
        added = Child("e", trio.sleep_forever)
        part = Supervisor("part", [c.spec, d.spec], strategy="one_for_all")
        async with open_tree(
            Supervisor("app", [a.spec, b.spec, part], limit=Limit(50, within=10)), sinks=[]
        ) as tree:
            kept = Rows(tree)
            puppets = {"a": a, "b": b, "c": c, "d": d}

            def compare():
                now = trio.current_time()
                rows = kept.read(now=now, time=now)
                assert rows == Rows(tree).read(now=now, time=now)
                status = list(tree.status().walk())
                assert [row.data["path"] for row in rows] == [node.path for node in status]
                assert [row.data["state"] for row in rows] == [node.state for node in status]
                assert [row.data["failures_total"] for row in rows] == [
                    node.failures_total for node in status
                ]

            async def step(what):
                verb, _, name = what.partition(" ")
                up = {node.path for node in tree.status().walk() if node.state == "up"}
                if verb == "fail":
                    puppets[name].fail()
                elif verb == "stop" and "app/a" in up:
                    await tree["app/a"].stop()
                elif verb == "start" and "app/a" not in up:
                    await tree["app/a"].start()
                elif verb == "restart" and "app/part" in up:
                    await tree["app/part"].restart()
                elif verb == "add" and "app/e" not in up:
                    await tree["app"].add(added)
                elif verb == "remove" and "app/e" in up:
                    await tree["app/e"].stop()
                    compare()
                    await tree["app/e"].remove()
                elif verb == "send" and "app/part/d" in up:
                    with trio.move_on_after(1):  # it never takes one, so its mailbox gets full
                        await tree["app/part/d"].send("x")
                elif verb == "wait":
                    await trio.sleep(3)

            compare()
            for what in steps:
                await step(what)
                for _ in range(4):
                    compare()
                    await trio.lowlevel.checkpoint()
                await trio.sleep(0.1)
                compare()

    run_virtual(main)


def test_a_node_that_has_not_changed_costs_nearly_nothing():
    """R33: Two readers that fetch a thousand nodes each second pay for those that have changed."""

    async def main():
        a = Puppet("a")
        others = [Child(f"b{number}", trio.sleep_forever) for number in range(50)]
        async with open_tree(Supervisor("app", [a.spec, *others]), sinks=[]) as tree:
            kept = Rows(tree)

            def read(rows, offset):
                now = trio.current_time()
                return rows.read(now=now, time=now + offset)

            first = read(kept, 100)
            a.fail()
            await tree["app/a"].ready()
            await trio.sleep(1)
            second = read(kept, 100.001)  # the two clocks are not read at the same moment
            assert [old is new for old, new in zip(first, second, strict=True)] == [
                False,
                False,
                *[True] * 50,
            ]
            third = read(kept, 101)  # the clock was set
            assert third[5].data["since"] == first[5].data["since"] + 1
            assert lines_of(lambda: read(kept, 101)) < lines_of(lambda: read(Rows(tree), 101)) / 2

    run_virtual(main)


def test_the_table_shows_differences_to_the_floor_of_the_same_repetition():
    """A busy machine makes both dearer; the last row decides."""
    found = {
        name: [{"cpu": 0.02 + number, "events": 1000.0}, {"cpu": 0.5 + number, "events": 1000.0}]
        for name, number in zip(ROWS, (0, 0.01, 0.02, 0.03, 0.04, 0.06), strict=True)
    }
    table, cost = as_table(found)
    assert round(cost, 6) == 6
    assert table.count("\n") == len(ROWS) + 1
    assert "| 1,000 | 32.0 | 6.0 (6.0 to 6.0) |" in table


def test_rows_that_are_kept_show_the_declaration_of_now():
    """R33, R38: Of two declarations since the last look, the second may be an object at the address of the one before."""

    def declared(restarts):
        below = Supervisor("s", [Child("a", trio.sleep_forever)], limit=Limit(restarts))
        return Supervisor("app", [below], limit=Limit(restarts))

    async def main():
        async with open_tree(declared(1), sinks=[]) as tree:
            kept = Rows(tree)
            for restarts in range(1, 100):
                await tree.adopt(declared(0))
                await tree.adopt(declared(restarts))
                rows = kept.read(now=0.0, time=0.0)
                assert [row.data["allowed"] for row in rows] == [restarts, restarts, None]

    run_virtual(main)
