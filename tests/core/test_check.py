"""How constructors refuse: at once, or, while a whole file is checked, all of it in one go."""

from __future__ import annotations

import pytest

from supervise import Backoff, Child, Decider, Limit, Pool, Rule, Supervisor
from supervise._core._check import check_choice, check_number, noting, refuse


async def body():
    """A body."""


def test_what_is_refused_is_raised_at_once():
    """Outside of `noting`."""
    problem = ValueError("no")
    with pytest.raises(ValueError, match="no") as raised:
        refuse(problem)
    assert raised.value is problem


def test_inside_noting_a_problem_is_noted_and_the_constructor_goes_on():
    """So that a check finds every problem of a file."""
    with noting() as problems:
        limit = Limit(-1, within=0)
        Child("a", None, drain=-1)
    assert limit.restarts == -1
    assert list(map(str, problems)) == [
        "restarts must be >= 0, got -1",
        "within must be > 0, got 0",
        "child 'a': body must be an async function, got None",
        "child 'a': drain must be >= 0, got -1",
    ]
    assert [type(problem) for problem in problems] == [ValueError, ValueError, TypeError, ValueError]


def test_the_same_problem_is_noted_once():
    """Two constructors may trip over one value."""
    with noting() as problems:
        refuse(ValueError("no"))
        refuse(ValueError("no"))
        refuse(ValueError("not that either"))
    assert list(map(str, problems)) == ["no", "not that either"]


def test_a_check_may_watch_what_is_made_and_what_is_refused():
    """It is called in the constructor, so that it can see who calls; each time, also for a problem that is noted already."""
    watched = []
    with noting(watched.append):
        child = Child("a", body, drain=-1)
        pool = Pool("p", child)
        for _ in range(2):
            refuse(ValueError("no"))
    assert [one if isinstance(one, (Child, Pool)) else str(one) for one in watched] == [
        child,
        "child 'a': drain must be >= 0, got -1",
        pool,
        "no",
        "no",
    ]
    Child("b", body)
    assert len(watched) == 5


def test_after_noting_what_is_refused_is_raised_again():
    """Also when the block ends with an exception, and the outer block gets the rest."""
    with noting() as outer:
        with pytest.raises(KeyError), noting() as inner:
            refuse(ValueError("inner"))
            raise KeyError
        refuse(ValueError("outer"))
    assert (list(map(str, inner)), list(map(str, outer))) == (["inner"], ["outer"])
    with pytest.raises(ValueError, match="now"):
        refuse(ValueError("now"))


def test_nonsense_that_is_noted_leaves_a_spec_that_can_be_looked_at():
    """Whatever comes after goes on with something of the right kind."""
    with noting() as problems:
        rule = Rule(int, "x", match="(")
        decider = Decider(5, rules=["r"], default="d")
        assert Decider(rules=6).rules == ()
        Supervisor("s", [Child("a", body), Child("a", body), 5], init=3)
        Pool("p", 3)
    assert (rule.exceptions, rule.match, dict(decider.table)) == ((), None, {})
    assert list(map(str, problems)) == [
        "a rule's first argument must be an exception class or a tuple of them, got <class 'int'>",
        "a rule's match must be a regular expression, got '('",
        "a decider's table must be a mapping, got 5",
        "a decider's rules must be Rules, got 'r'",
        "a decider's default must be a directive or None, got 'd'",
        "a decider's rules must be a list of Rules, got 6",
        "supervisor 's': each child must be a Child or Supervisor or Pool, got 5",
        "supervisor 's': init must be a function, got 3",
        "supervisor 's' has two children named 'a'",
        "pool 'p': template must be a Child or Supervisor or Pool, got 3",
    ]


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        (True, {}, "it must be a number, got True"),
        (True, {"kind": int}, "it must be an integer, got True"),
        (1.5, {"kind": int}, "it must be an integer, got 1.5"),
        ("1", {}, "it must be a number, got '1'"),
        (1, {"least": 2}, "it must be >= 2, got 1"),
        (float("nan"), {}, "it must be >= 0, got nan"),
        (-1, {"more": True}, "it must be > 0, got -1"),
        (0, {"more": True}, "it must be > 0, got 0"),
        (float("nan"), {"more": True}, "it must be > 0, got nan"),
        (0.5, {"more": True}, ""),
        (2, {"least": 2}, ""),
        (2.0, {"least": 2}, ""),
        (0, {"kind": int}, ""),
    ],
)
def test_a_number_is_no_bool_and_not_too_small(value, options, expected):
    """Of the wrong kind is a `TypeError`, of the wrong size a `ValueError`."""
    with noting() as problems:
        check_number("it", value, **{"least": 0, **options})
    assert list(map(str, problems)) == ([expected] if expected else [])
    assert all(isinstance(problem, ValueError if ">" in expected else TypeError) for problem in problems)


def test_a_choice_must_be_one_of_the_allowed_values():
    """The message lists the allowed values."""
    check_choice("it", "b", ("a", "b"))
    with pytest.raises(ValueError, match=r"^it must be one of 'a', 'b', got 'c'$"):
        check_choice("it", "c", ("a", "b"))


def test_a_backoff_refuses_every_number_of_the_wrong_kind():
    """R15: Each error names the argument."""
    names = ("initial", "factor", "maximum", "jitter", "immediate", "reset_after")
    with noting() as problems:
        Backoff(**dict.fromkeys(names, "x"))
    assert [str(problem).split()[0] for problem in problems] == [
        "initial", "factor", "maximum", "jitter", "immediate", "reset_after",
    ]  # fmt: skip


def test_a_refusal_names_the_node_and_what_is_allowed():
    """The message names the node, and what would be allowed."""
    with noting() as problems:
        Pool("p", Child("m", body), on_limit="x")
        Supervisor("s", [Child("a", body), Child("b", body)], front="c")
    assert list(map(str, problems)) == [
        "pool 'p': on_limit must be one of 'escalate', 'shutdown', got 'x'",
        "supervisor 's': front must be one of its children (a, b), got 'c'",
    ]
