"""The texts of a machine: in the reasons of its stops, in its replies, and in the failures that it makes itself."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from contextlib import asynccontextmanager
from math import inf

import pytest

from supervise import Decider, Escalate, Limit, Pool, Stop, Supervisor, events
from supervise._core import effect
from supervise._core._brief import MOST, brief, failure_line
from supervise.testing.bare import BareTree

from .test_machine import Boom, Slow, Up, ask, asked_for, child, fail, leaf, machine, opened, reasons


@asynccontextmanager
async def resource():
    """A resource."""
    yield


class Fails(Up):
    """A leaf that fails to start, from its second incarnation on, or at once if it is named `bad`."""

    def up(self):
        if self.incarnation > 1 or self.node.name == "bad":
            self.exited(Boom("start"))
        else:
            super().up()


class Never(Slow):
    """One that is never up."""

    def up(self):
        """Not yet."""


class Halt(BaseException):
    """Not an `Exception`: no decider decides it."""


def order_reasons(out, kind):
    """The reasons of orders of one kind."""
    return [one.reason for one in out if isinstance(one, kind)]


def failures(seen, kind):
    """The failures that events of one kind carry."""
    return [str(event.exc) for event in seen if isinstance(event, kind)]


def test_a_failed_first_start_is_the_reason_for_which_the_siblings_stop():
    """R16, R36: The reason names it by its path."""
    tree, seen = opened(Supervisor("app", [leaf("a"), leaf("bad")]), Fails)
    assert reasons(seen) == [("app/a", "'app/bad' failed to start")]
    assert str(tree.failure) == "'app/bad' failed to start: Boom('start')"
    assert (tree.failure.path, str(tree.failure.__cause__)) == ("app/bad", "start")


def test_the_text_of_a_late_start_has_its_timeout():
    """R17: The text stands in the reason of the cancellation and in the failure."""
    seen = []
    tree = BareTree(Supervisor("app", [leaf("a", start_timeout=1.5)]), Never, seen.append)
    tree.start()
    asked_for(tree, effect.Boot())
    out = tree.forest.handle(machine(tree), effect.Wake(), 1.5)
    assert order_reasons(out, effect.Cancel) == ["'app/a': start_timeout of 1.5 s passed"]
    late = KeyError("late")
    out = tree.forest.handle(machine(tree), effect.Ended("a", 1, late), 2)
    (failed,) = (one for one in out if isinstance(one, events.Failed) and one.path == "app/a")
    assert str(failed.exc) == "'app/a' was not ready within 1.5 s"
    assert failed.exc.__context__ is late


def test_the_reason_of_a_cancellation_after_a_drain_has_the_drain_time():
    """R20: The child is first asked with the reason alone, and then cancelled with the drain time added."""
    tree, _ = opened(Supervisor("app", [leaf("a", drain=2.5)]), Slow)
    out = asked_for(tree, effect.Stop("a test"))
    assert [one for one in out if isinstance(one, effect.Ask)] == [effect.Ask("app/a", 1, "a test")]
    out = tree.forest.handle(machine(tree), effect.Wake(), 2.5)
    assert order_reasons(out, effect.Cancel) == ["a test; not drained within 2.5 s"]


def test_the_reason_of_a_cancellation_that_cuts_a_release_short_has_the_time():
    """R9: The cancellation has the time, and so has the report when the resource is overdue for twice as long."""
    tree, _ = opened(Supervisor("app", [leaf("a", resource=resource, grace=1.5, start_warning=inf)]), Slow)
    asked_for(tree, effect.Exited("a", 1, Boom("f")))
    out = tree.forest.handle(machine(tree), effect.Wake(), 1.5)
    (cancel,) = (one for one in out if isinstance(one, effect.Cancel))
    assert cancel == effect.Cancel("app/a", 1, "'app/a': its resource was not left within 1.5 s")
    overdue = [one.seconds for one in out if isinstance(one, effect.ReportOverdue)]
    out = tree.forest.handle(machine(tree), effect.Wake(), 4.5)
    overdue += [one.seconds for one in out if isinstance(one, effect.ReportOverdue)]
    assert overdue == [1.5, 4.5]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (Supervisor("app", [leaf("a")], limit=Limit(0, within=2)), "'app' passed its limit of 0 within 2 s"),
        (
            Supervisor("app", [leaf("a", limit=Limit(0, within=3))]),
            "'app/a' passed its limit of 0 within 3 s",
        ),
    ],
    ids=["supervisor", "leaf"],
)
def test_the_error_of_a_passed_limit_names_the_limit(spec, expected):
    """R14: The last failure is its cause."""
    tree, seen = opened(spec)
    fail(tree, "a")
    decided = [event for event in seen if isinstance(event, events.Decided)]
    assert (str(decided[-1].exc), decided[-1].tag) in [(expected, "limit"), ("restart", "restart")]
    made = [
        event.exc for event in seen if getattr(event, "exc", None) is not None and "limit" in str(event.exc)
    ]
    why = [node.why for node in (tree.forest.root, child(tree, "a")) if node.why]
    assert {str(exc) for exc in [*made, *why]} == {expected}
    assert all(str(exc.__cause__) == "restart" for exc in [*made, *why])


def test_the_failure_of_a_permanent_child_that_returned_has_the_value():
    """R7: The failure is tagged `returned`."""
    tree, seen = opened(Supervisor("app", [leaf("a"), Supervisor("x", [leaf("b")])]))
    asked_for(tree, effect.Exited("a", 1, value=7))
    below = machine(tree, "x")
    tree.forest.handle(below, effect.Stop("x is to end", returned=True), 0)
    out = tree.forest.handle(below, effect.Ended("b", 1), 0)
    seen += [one for one in out if isinstance(one, events.Event)]
    tree.run()
    failed = [event for event in seen if isinstance(event, events.Failed)]
    assert [(event.path, str(event.exc)) for event in failed if event.path == "app/x"] == [
        ("app/x", "permanent supervisor 'app/x' ended normally")
    ]
    assert str(child(tree, "a").last_failure) == "permanent child 'app/a' returned 7"
    assert child(tree, "a").last_failure.tag == "returned"


def test_an_auto_shutdown_names_the_child():
    """R18, R36: The reason has the mode too, in words."""
    for mode, words in (("any_significant", "any significant"), ("all_significant", "all significant")):
        spec = Supervisor(
            "app", [leaf("a"), leaf("b", restart="temporary", significant=True)], auto_shutdown=mode
        )
        tree, seen = opened(spec)
        tree.post(machine(tree), effect.Exited("b", 1))
        tree.run()
        assert ("app/a", f"'app' shuts down: {words} child 'app/b' has ended") in reasons(seen)


def test_an_exception_that_no_decider_decides_stops_the_tree_and_names_the_supervisor():
    """R4, R36: The reason names the supervisor that met the exception."""
    tree, seen = opened(Supervisor("app", [leaf("a"), leaf("b")]))
    halt = Halt()
    tree.post(machine(tree), effect.Exited("a", 1, halt))
    tree.run()
    assert reasons(seen) == [
        ("app", "'app' reported a failure that is not an Exception"),
        ("app/b", "'app' reported a failure that is not an Exception"),
    ]
    assert tree.forest.root.why is halt


def test_a_root_that_gives_up_names_the_failure():
    """R11, R36: The reason names the child whose failure it was."""
    tree, seen = opened(Supervisor("app", [leaf("a"), leaf("b")], decider=Decider(default=Escalate)))
    fail(tree, "a")
    assert reasons(seen) == [("app", "'app' failed"), ("app/b", "'app' failed: 'app/a' escalated")]


def test_the_children_of_a_condemned_supervisor_are_stopped_with_the_reason():
    """R10, R36: The reason says that their supervisor was condemned."""
    spec = Supervisor(
        "app",
        [Supervisor("x", [leaf("a"), leaf("b")], decider=Decider(default=Escalate))],
        decider=Decider(default=Stop),
    )
    tree, seen = opened(spec)
    inner = machine(tree, "x")
    tree.post(inner, effect.Exited("a", 1, Boom("f")))
    tree.run()
    assert reasons(seen) == [("app/x/b", "'app/x' was condemned")]
    assert child(tree, "x").state == "condemned"


def test_an_add_that_fails_stops_the_children_that_it_had_started():
    """R25: A supervisor whose second child fails to start is not in the tree."""
    tree, seen = opened(Supervisor("app", [leaf("a")]), Fails)
    wanted = Supervisor("x", [leaf("c"), leaf("bad")])
    with pytest.raises(Exception, match=r"^'app/x/bad' failed to start: Boom\('start'\)$"):
        ask(tree, "add", spec=wanted)
    assert ("app/x/c", "'app/x/bad' failed to start") in reasons(seen)
    assert list(machine(tree).children) == ["a"]


def test_a_name_in_a_pool_counts_up():
    """R26: `template-1`, `template-2`, never one twice."""
    tree, _ = opened(Pool("app", leaf("m")))
    assert [ask(tree, "add").name for _ in range(3)] == ["m-1", "m-2", "m-3"]


def grouped(exc, depth=1, cls=ExceptionGroup):
    """An exception in so many groups, as nested nurseries wrap it."""
    for _ in range(depth):
        exc = cls("Exceptions from Trio nursery", [exc])
    return exc


class Liar(ExceptionGroup):
    """One that does not show its members."""

    exceptions = property(lambda self: 1 / 0)


IN_USE = OSError(98, "Address already in use")


@pytest.mark.parametrize(
    ("exc", "line"),
    [
        (IN_USE, "OSError: [Errno 98] Address already in use"),
        (KeyError(), "KeyError"),
        (
            grouped(IN_USE, 3),
            "ExceptionGroup: Exceptions from Trio nursery (1 sub-exception): OSError: [Errno 98] Address already in use",
        ),
        (
            ExceptionGroup("g", [ValueError(1), grouped(KeyError(2)), TypeError(3)]),
            "ExceptionGroup: g (3 sub-exceptions): ValueError: 1; KeyError: 2; TypeError: 3",
        ),
        (
            ExceptionGroup("g", [ValueError(number) for number in range(4)]),
            "ExceptionGroup: g (4 sub-exceptions): ValueError: 0; ValueError: 1; ValueError: 2; ...",
        ),
        (grouped(IN_USE, cls=Liar), "Liar: Exceptions from Trio nursery (1 sub-exception): OSError: [Errno 98] Address already in use"),
        (grouped(IN_USE, 50_000), "ExceptionGroup: Exceptions from Trio nursery (1 sub-exception)"),
    ],
    ids=["single", "without a text", "nested", "several", "many", "liar", "deep"],
)  # fmt: skip
def test_the_line_of_a_failure_names_what_is_in_a_group(exc, line):
    """R31: The text of a group only says how many members it has; one that is nested too deeply is not searched to its end."""
    assert failure_line(exc) == line


def test_a_short_text_of_a_group_shows_the_exception_in_three_nurseries():
    """R16: A first start that fails may have only this text."""
    assert brief(grouped(IN_USE, 3)).count("OSError(98, 'Address already in use')") == 1


class Long(Exception):
    """One that prints without end."""

    def __repr__(self):
        return "x" * 2_300_000

    __str__ = __repr__


def around(value, depth):
    """The value in so many lists."""
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [Long(), ValueError(Long()), ExceptionGroup("g", [Long()] * 30), ["x" * 1000] * 1000, {1: Long()}, around("x", 100_000)],
    ids=["exception", "argument", "group", "list", "dict", "depth"],
)  # fmt: skip
def test_the_text_of_an_object_is_short(value):
    """R24, R36: Hundreds of callers may be told of one failure, each in an error of its own."""
    assert len(brief(value)) <= MOST


class Compared(int):
    """A key that counts how often it is compared with another."""

    times = 0

    def __lt__(self, other):
        Compared.times += 1
        return int.__lt__(self, other)

    __hash__ = int.__hash__


@pytest.mark.parametrize("made", [dict.fromkeys, set, frozenset])
def test_a_large_container_is_not_sorted_for_its_text(made):
    """R31: Sorting a million keys would block the loop for a second; a few are sorted, as by `reprlib`."""
    Compared.times = 0
    assert "..." in brief(made(map(Compared, range(10_000))))
    assert brief(made([2, 1])) == repr(made([1, 2]))
    assert 0 < Compared.times < 1_000


class Shown:
    """An item that counts how often it is printed."""

    times = 0

    def __repr__(self):
        Shown.times += 1
        return "item"


class Items(list):
    """A list of a class of its own."""


class Batch(Items):
    """One that says itself how it is printed."""

    def __repr__(self):
        return f"<batch of {len(self)}>"


@pytest.mark.parametrize(
    "made",
    [Counter, OrderedDict.fromkeys, lambda items: defaultdict(int, dict.fromkeys(items)), Items],
    ids=["Counter", "OrderedDict", "defaultdict", "Items"],
)
def test_of_a_large_container_of_another_class_a_few_items_are_printed(made):
    """R31: Printing a million of them would block the loop for a second. Of a few the text is the container's own."""
    Shown.times = 0
    text = brief(made([Shown() for _ in range(10_000)]))
    assert text.startswith(f"{type(made([])).__name__}(")
    assert "item, " in text or "item: " in text
    assert Shown.times < 100
    assert brief(made([2, 1])) == repr(made([2, 1]))


def test_a_large_container_may_print_itself():
    """Its own text may be short."""
    assert brief(Batch(range(10_000))) == "<batch of 10000>"


@pytest.mark.parametrize("exc", [Long(), ValueError("x" * 10_000), ExceptionGroup("g", [Long()] * 30)])
def test_the_line_of_a_failure_is_short(exc):
    """R31: It has the texts of at most three members of a group."""
    assert len(failure_line(exc)) < 5 * MOST
