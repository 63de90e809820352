"""Values print as the code that makes them."""

from __future__ import annotations

from functools import partial
from math import inf

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import supervise
from supervise import (
    IGNORE,
    Backoff,
    Child,
    Decider,
    Limit,
    Mailbox,
    Pool,
    Restart,
    Resume,
    Rule,
    Stop,
    Supervisor,
    open_tree,
)
from supervise._core._code import Code, as_code


async def body(*_, **__):
    """A body."""


class Printer:
    """What Hypothesis prints with."""

    def __init__(self):
        self.texts = []

    def text(self, text):
        self.texts.append(text)


@attrs.frozen(repr=False)
class Pair(Code):
    """Defaults of every kind: a value, a factory, and one that is not given but found out."""

    left: int
    right: list[int] = attrs.field(factory=list)
    named: int = attrs.field(default=7, kw_only=True)
    _hidden: int = attrs.field(default=1)
    kept: int = attrs.field(default=3, repr=False)
    found: int = attrs.field(init=False, default=0)


@attrs.frozen(repr=False)
class Plain(Code):
    """What is converted to a plain tuple."""

    items: tuple[int, ...] = attrs.field(converter=tuple)


class Callable:
    """A callable without a name."""

    def __call__(self):
        """Nothing."""

    def __repr__(self):
        return "<callable>"


PRINTED = [
    (Limit(), "Limit()"),
    (Limit(1), "Limit(1)"),
    (Limit(within=1.5), "Limit(within=1.5)"),
    (Limit(1, within=inf, of_ready_time=True), "Limit(1, within=float('inf'), of_ready_time=True)"),
    (Backoff(initial=1, jitter=0), "Backoff(initial=1, jitter=0)"),
    (Mailbox(3, on_loss="requeue"), "Mailbox(3, on_loss='requeue')"),
    (Child("a", body), "Child('a', body)"),
    (Child("a", body, args=("x", 1), drain=2), "Child('a', body, args=['x', 1], drain=2)"),
    (Child("a", partial(body, 1, k=2)), "Child('a', partial(body, 1, k=2))"),
    (Child("a", body, decider=Decider()), "Child('a', body, decider=Decider())"),
    (Supervisor("s", []), "Supervisor('s', [])"),
    (Supervisor("s", [Child("a", body)], limit=None), "Supervisor('s', [Child('a', body)], limit=None)"),
    (Pool("p", Child("a", body), maximum=2), "Pool('p', Child('a', body), maximum=2)"),
    (Decider({"a.b": Resume, KeyError: Stop}), "Decider({'a.b': Resume, KeyError: Stop})"),
    (Decider(default=Restart), "Decider(default=Restart)"),
    (Decider(rules=[Rule(OSError, "x")]), "Decider(rules=[Rule((OSError,), 'x')])"),
    (Rule((OSError, KeyError), "x", when=callable), "Rule((OSError, KeyError), 'x', when=callable)"),
    (Pair(1), "Pair(1)"),
    (Pair(1, [2]), "Pair(1, [2])"),
    (Pair(1, hidden=2), "Pair(1, hidden=2)"),
    (Pair(1, [2], 5, named=8), "Pair(1, [2], 5, named=8)"),
    (Pair(1, kept=9), "Pair(1)"),
    (IGNORE, "IGNORE"),
    (Plain([1]), "Plain([1])"),
    (Callable(), "<callable>"),
    ((), "()"),
    ((1,), "(1,)"),
    ((1, 2.5), "(1, 2.5)"),
    (("a", (None,)), "('a', (None,))"),
    ([], "[]"),
    ([inf, -inf], "[float('inf'), -inf]"),
    ({}, "{}"),
    ({"k": [1]}, "{'k': [1]}"),
    (open_tree, "open_tree"),
    (Printer.text, "Printer.text"),
    ("it's", '"it\'s"'),
]


@pytest.mark.parametrize(("value", "text"), PRINTED, ids=[text for _, text in PRINTED])
def test_it_prints_as_what_makes_it(value, text):
    """Defaults and what is found out are left out; what comes behind a gap is named."""
    assert as_code(value) == text
    assert not isinstance(value, Code) or repr(value) == text


def test_what_is_too_long_is_broken_into_lines():
    """An item a line, four columns further in, and so on inwards; what fits in its line stays there."""
    tree = Supervisor("app", [Child("a", body, args=(1, 2)), Child("b", body)], decider=Decider({"x": Stop}))
    assert as_code(tree, width=40) == (
        "Supervisor(\n"
        "    'app',\n"
        "    [\n"
        "        Child('a', body, args=[1, 2]),\n"
        "        Child('b', body),\n"
        "    ],\n"
        "    decider=Decider({'x': Stop}),\n"
        ")"
    )


def test_a_line_may_be_as_long_as_the_width_and_no_longer():
    """The indentation counts."""
    assert as_code([1, 2], width=6) == "[1, 2]"
    assert as_code([[1, 2]], width=6) == "[\n    [\n        1,\n        2,\n    ],\n]"
    assert as_code([1, 2], width=5) == "[\n    1,\n    2,\n]"
    assert as_code([1, 2], width=9, indent=4) == "[\n        1,\n        2,\n    ]"
    assert as_code([1, 2], width=10, indent=4) == "[1, 2]"


def test_a_tuple_of_one_in_lines_has_one_comma():
    """And what is empty, or of one piece, cannot be broken."""
    assert as_code(("long",), width=3) == "(\n    'long',\n)"
    assert as_code([], width=0) == "[]"
    assert as_code("long", width=1) == "'long'"


def test_hypothesis_prints_a_value_over_several_lines():
    """It hands its printer over; a line is at most 100 long."""
    short, long = Printer(), Printer()
    Limit(1)._repr_pretty_(short, False)
    args = tuple("x" * 10 for _ in range(8))
    Child("a", body, args=args)._repr_pretty_(long, False)
    assert short.texts == ["Limit(1)"]
    assert long.texts == [as_code(Child("a", body, args=args), width=100)]
    assert max(map(len, long.texts[0].splitlines())) <= 100
    exact, more = Printer(), Printer()
    Child("a" * 85, body)._repr_pretty_(exact, False)
    Child("a" * 86, body)._repr_pretty_(more, False)
    assert (len(exact.texts[0]), exact.texts[0].count("\n"), more.texts[0].count("\n")) == (100, 0, 3)


limits = st.none() | st.builds(
    Limit, st.integers(0, 9), within=st.floats(0.1, 9), of_ready_time=st.booleans()
)
kinds = st.sampled_from(["permanent", "transient", "temporary"])


@pytest.mark.slow
@given(limits, kinds, st.lists(st.text(), max_size=3), st.sampled_from([20, 60, inf]))
def test_what_is_printed_makes_the_same_again(limit, restart, args, width):
    """Whatever the width."""
    child = Child("a", body, limit=limit, restart=restart, args=args)
    again = eval(as_code(child, width=width), vars(supervise) | {"body": body, "partial": partial})
    assert repr(again) == repr(child)
    assert (again.limit, again.restart, again.args) == (limit, restart, tuple(args))
