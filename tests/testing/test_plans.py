"""What `fault_plans` draws for a tree: what the tree's own deciders name, what it was given, and nothing impossible."""

from collections import Counter
from subprocess import CalledProcessError

import pytest
from hypothesis import given, settings

from supervise import (
    IGNORE,
    Child,
    Decider,
    Escalate,
    Limit,
    Pool,
    Restart,
    Resume,
    Rule,
    Stop,
    Supervisor,
)
from supervise._core.decide import judge
from supervise.testing import Fail, Injected, Return, fault_plans, idle, nothing, scripts, starter, trees


class Odd(Exception):
    """An exception that wants an argument by name."""

    def __init__(self, *, code):
        super().__init__(code)
        self.code = code

    def __copy__(self):
        return Odd(code=self.code)


class Answered(Exception):
    """An exception that wants more than a text."""

    def __init__(self, text, status):
        super().__init__(text, status)


def drawn(strategy, examples=300):
    """The scripts of so many plans, by path."""
    found = []

    @settings(max_examples=examples, database=None, derandomize=True)
    @given(strategy)
    def draw(plan):
        found.extend((path, script) for path, its in plan.scripts.items() for script in its)

    draw()
    return found


def failures(strategy, path, examples=300):
    """The exceptions that bodies at a path fail with."""
    return [
        act.exc
        for where, script in drawn(strategy, examples)
        for act in script.bodies
        if where == path and isinstance(act, Fail)
    ]


DECIDER = Decider(
    {"device.oom": Resume, TimeoutError: Stop, "limit": Stop, KeyError: Restart},
    rules=[Rule((LookupError, RuntimeError), "cuda.sticky", match=r"^CUDA error: \(700\)$")],
).over(Decider({"cuda": Escalate}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tree", "path"),
    [
        (Supervisor("app", [Child("a", idle, resource=nothing, decider=DECIDER)]), "app/a"),
        (Supervisor("app", [Supervisor("s", [Child("a", idle)])], decider=DECIDER), "app/s/a"),
        (Pool("app", Child("a", idle), decider=DECIDER), "app/a-2"),
        (Pool("app", Child("a", idle, decider=DECIDER)), "app/a-2"),
    ],
)
def test_every_directive_that_a_tree_names_is_drawn_about_as_often(tree, path):
    """R2: A directive counts by tags, classes and rules, of the child's own decider or of one above it."""
    verdicts = Counter(judge(DECIDER, exc).directive for exc in failures(fault_plans(tree), path, 1000))
    assert set(verdicts) == {Resume, Restart, Stop, Escalate}
    assert 10 * min(verdicts.values()) > sum(verdicts.values())


@pytest.mark.slow
def test_each_entry_is_drawn():
    """R1, R2: A tag, a class, and a rule with a literal text are entries; the framework's own tags are no failures of a child."""
    tree = Supervisor("app", [Child("a", idle)], decider=DECIDER)
    met = {(type(exc), getattr(exc, "tag", None)) for exc in failures(fault_plans(tree), "app/a")}
    assert {(Injected, "device.oom"), (TimeoutError, None), (KeyError, None), (Injected, "cuda")} <= met
    assert (Injected, "limit") not in met
    assert any(DECIDER.tag(exc) == "cuda.sticky" for exc in failures(fault_plans(tree), "app/a"))


@pytest.mark.slow
def test_a_decider_of_a_sibling_does_not_count():
    """R2: Only the deciders that a failure meets on its way up count."""
    tree = Supervisor("app", [Child("a", idle, decider=Decider({"mine": Stop})), Child("b", idle)])
    assert not any(getattr(exc, "tag", None) == "mine" for exc in failures(fault_plans(tree), "app/b"))


@pytest.mark.slow
def test_exceptions_may_be_added():
    """They may be instances or classes."""
    tree = Supervisor("app", [Child("a", idle)])
    given = [Odd(code=7), ZeroDivisionError, UnicodeDecodeError, ExceptionGroup]
    met = Counter(type(exc).__name__ for exc in failures(fault_plans(tree, exceptions=given), "app/a"))
    assert {"Odd", "ZeroDivisionError", "UnicodeDecodeError", "ExceptionGroup", "Injected"} <= set(met)


@pytest.mark.parametrize("wrong", [Odd, int, "x", 5])
def test_an_argument_that_makes_no_exception_is_refused(wrong):
    """The error is one line that names what to give instead."""
    with pytest.raises(TypeError, match=r"^fault_plans: cannot make an exception of .*without arguments"):
        fault_plans(Supervisor("app", [Child("a", idle)]), exceptions=[wrong])


def test_a_class_that_a_decider_names_but_fault_plans_cannot_make_has_to_be_given():
    """Otherwise its entry would never be drawn, in silence."""
    tree = Supervisor("app", [Child("a", idle, decider=Decider({Odd: Stop}))])
    with pytest.raises(TypeError, match=r"^fault_plans: cannot make a Odd, which a decider names"):
        fault_plans(tree)
    met = failures(fault_plans(tree, exceptions=[Odd(code=1)]), "app/a")
    assert any(isinstance(exc, Odd) for exc in met)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ExceptionGroup, {}),
        (UnicodeDecodeError, {}),
        (UnicodeEncodeError, {}),
        (CalledProcessError, {}),
        (Answered, {"match": "gone"}),
    ],
)
def test_a_rule_is_drawn_whatever_its_class_takes(kind, options):
    """R1: This holds for a group, and for a class that takes more than a text."""
    decider = Decider({"mine": Stop}, rules=[Rule(kind, "mine", **options)])
    tree = Supervisor("app", [Child("a", idle)], decider=decider)
    assert any(isinstance(exc, kind) for exc in failures(fault_plans(tree), "app/a"))


def test_a_rule_whose_class_cannot_be_made_is_refused():
    """Otherwise it would never be drawn, in silence; a rule with a text or a predicate is not refused."""
    tree = Supervisor("app", [Child("a", idle)], decider=Decider(rules=[Rule(Odd, "mine")]))
    with pytest.raises(TypeError, match=r"^fault_plans: cannot make a Odd, which a decider names"):
        fault_plans(tree)
    met = failures(fault_plans(tree, exceptions=[Odd(code=1)]), "app/a")
    assert any(isinstance(exc, Odd) for exc in met)
    fault_plans(Supervisor("app", [], decider=Decider(rules=[Rule((Odd, OSError), "mine")])))
    fault_plans(Supervisor("app", [Child("a", idle)], decider=Decider(rules=[Rule(Odd, "mine", match="x")])))


def test_an_entry_for_base_exception_group_is_drawn_as_a_group_of_exceptions():
    """R3: A `BaseExceptionGroup` that holds only `Exception`s is an `ExceptionGroup`."""
    tree = Supervisor("app", [Child("a", idle)], decider=Decider({BaseExceptionGroup: Stop}))
    assert any(isinstance(exc, ExceptionGroup) for exc in failures(fault_plans(tree), "app/a"))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: fault_plans(5), "fault_plans takes a Supervisor or Pool, got 5"),
        (lambda: scripts(Supervisor("app", [])), r"scripts takes a Child, got Supervisor\('app', \[\]\)"),
        (lambda: fault_plans(Supervisor("app", []), exceptions=OSError), "exceptions must be a list of them"),
        (lambda: trees(min_size=0), "min_size must be >= 1, got 0"),
        (lambda: trees(min_size=5, max_size=2), "max_size must be >= 5, got 2"),
        (lambda: trees(max_size="2"), "max_size must be an integer, got '2'"),
    ],
)
def test_nonsense_is_refused_in_one_line(make, expected):
    """It names the argument, what is allowed, and what came."""
    with pytest.raises((TypeError, ValueError), match=expected):
        make()


@pytest.mark.slow
@pytest.mark.parametrize(("options", "horizon"), [({}, 5.0), ({"horizon": 60}, 60), ({"horizon": 0.5}, 0.5)])
def test_no_act_takes_longer_than_the_horizon(options, horizon):
    """Some acts take nearly as long."""
    child = Child("a", starter, resource=nothing, drain=1, start_timeout=9)
    found = drawn(fault_plans(Supervisor("app", [child]), **options))
    times = [
        act.after
        for _, script in found
        for act in (script.enter, script.start, *script.bodies, script.drain, script.stop, script.leave)
        if act is not None
    ]
    assert 0.8 * horizon <= max(times) <= horizon
    with pytest.raises(ValueError, match="horizon must be >= 0, got -1"):
        fault_plans(Supervisor("app", [child]), horizon=-1)


@pytest.mark.slow
def test_only_a_child_with_task_status_returns_before_it_is_ready():
    """R17: Any other child cannot return `IGNORE` before it is ready."""
    tree = Supervisor("app", [Child("a", idle), Child("b", starter)])
    returns = {
        (path, script.start.value)
        for path, script in drawn(fault_plans(tree))
        if isinstance(script.start, Return)
    }
    assert returns == {("app/b", IGNORE), ("app/b", None)}


def test_the_scripts_of_one_child_follow_its_decider():
    """`scripts(child)` draws one incarnation."""
    child = Child("a", idle, decider=Decider({"mine": Stop}))
    found = []

    @settings(max_examples=100, database=None, derandomize=True)
    @given(scripts(child, exceptions=[ZeroDivisionError], horizon=1))
    def draw(script):
        found.extend(act.exc for act in script.bodies if isinstance(act, Fail))

    draw()
    assert any(getattr(exc, "tag", None) == "mine" for exc in found)
    assert any(isinstance(exc, ZeroDivisionError) for exc in found)


def test_a_fault_that_needs_a_resume_is_found():
    """If a decider resumes, plans that fail repeatedly are drawn: a limit of one is passed by resumes alone."""
    tree = Supervisor(
        "app", [Child("a", idle, resource=nothing)], decider=Decider({"busy": Resume}), limit=Limit(1)
    )
    plans = drawn(fault_plans(tree), examples=200)
    assert any(
        [getattr(act.exc, "tag", None) for act in script.bodies if isinstance(act, Fail)].count("busy") >= 2
        for _, script in plans
    )
