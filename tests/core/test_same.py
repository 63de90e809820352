"""Whether code that was loaded twice is the same (R38)."""

from __future__ import annotations

import sys
import types
from enum import Enum
from functools import partial

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervise import Backoff, Child, Decider, Limit, Restart, Stop, Supervisor
from supervise._core import _same
from supervise._core._same import why_other
from supervise._core.changes import changes


def loaded(source, name="program", **others):
    """A module with this source, and with other modules among its names."""
    module = types.ModuleType(name)
    vars(module).update(others)
    exec(source, vars(module))
    return module


def reason(old, new, name="serve", **options):
    """Why a function of one source does not do what that of another does."""
    return why_other("body", getattr(loaded(old), name), getattr(loaded(new), name), **options)


BASE = """
SIZE = 3
NAMES = ["a", {"b": (1, 2.0)}]

def helper(n):
    return n + SIZE

def deep():
    def inner():
        return helper(1)
    return inner

async def serve(n, *, k=1):
    "Serve."
    return deep()() + k + len(NAMES) + n

def unused():
    return 1
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("SIZE = 3", "\n\n# a comment\nSIZE = 3"),
        ("return 1\n", "return 2\n"),
        ('NAMES = ["a", {"b": (1, 2.0)}]', 'NAMES = list(("a", dict(b=(1, 2.0))))'),
        ("def unused", "class Unused:\n    pass\n\ndef unused"),
    ],
)
def test_what_a_function_does_not_reach_makes_no_difference(before, after):
    """Other lines, comments, other functions and classes."""
    assert reason(BASE, BASE.replace(before, after) if before else BASE) is None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("return n + SIZE", "return n - SIZE", "the code of helper is another"),
        ("SIZE = 3", "SIZE = 4", "SIZE was 3, and is 4"),
        ("SIZE = 3", "SIZE = 3.0", "SIZE was 3, and is 3.0"),
        ("SIZE = 3", "SIZE = True", "SIZE was 3, and is True"),
        ("2.0)}", "2.0, 3)}", "NAMES[1]['b'] was (1, 2.0), and is (1, 2.0, 3)"),
        ("k=1", "k=2", "a default of serve['k'] was 1, and is 2"),
        ("helper(1)", "helper(2)", "the code of deep is another"),
        ("SIZE = 3\n", "", "SIZE was 3, and is missing"),
        ("async def serve(n,", "async def serve(m, n=0,", "the code of serve is another"),
    ],
)
def test_what_a_function_reaches_is_named(before, after, expected):
    """Its own code, that of the functions that it calls, and the values that they name."""
    assert reason(BASE, BASE.replace(before, after, 1)) == expected


def test_equal_sets_of_other_numbers_are_other_code():
    """A loop over `{1, 2}` gives other values than one over `{1.0, 2}`."""
    source = "def serve():\n  for number in {1, 2}: print(number)"
    assert reason(source, source) is None
    assert reason(source, source.replace("{1,", "{1.0,")) == "the code of serve is another"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("class Job: pass\ndef serve(): return Job()", "the class Job was made anew"),
        ("class Lost(Exception): pass\ndef serve():\n  try: pass\n  except Lost: pass", "the class Lost was made anew"),
        ("class Job: pass\njob = Job()\ndef serve(): return job", "job is of the class Job, which was made anew"),
        ("QUEUE = []\ndef serve(): return QUEUE", "QUEUE was [], and is made anew"),
        ("CACHE = {}\ndef serve(): return CACHE", "CACHE was {}, and is made anew"),
        ("from collections import deque\nJOBS = deque()\ndef serve(): return JOBS", "JOBS was deque([]), and is made anew"),
        ("from collections import defaultdict\nJOBS = defaultdict(list)\ndef serve(): return JOBS", "JOBS was defaultdict("),
        ("JOBS = bytearray()\ndef serve(): return JOBS", "JOBS was bytearray(b''), and is made anew"),
        ("def made():\n  jobs = []\n  def serve(): return jobs\n  return serve\nserve = made()", "jobs was [], and is made anew"),
        ("import itertools\nNUMBERS = itertools.count()\ndef serve(): return NUMBERS", "NUMBERS was made anew, and cannot be compared: count(0)"),
        ("import trio\nsend, receive = trio.open_memory_channel(1)\ndef serve(): return send", "send was made anew, and cannot be compared"),
        ("import threading\nlock = threading.Lock()\ndef serve(): return lock", "lock was made anew, and cannot be compared"),
    ],
)  # fmt: skip
def test_what_has_an_identity_of_its_own_counts_as_another(source, expected):
    """R38: An object of the new class is no instance of the old one, and the other end of a new channel is elsewhere."""
    assert reason(source, source).startswith(expected)


class Colour(Enum):
    """Values of a module that is not loaded anew."""

    RED = 1


@attrs.frozen
class Settings:
    """A value."""

    host: str
    run: object = None


@attrs.define(eq=False)
class Token:
    """It stands for nothing but itself, and has nothing in it."""


@pytest.mark.parametrize(
    "source",
    [
        "def serve(): return partial(max, 1, key=len)",
        "def serve(): return COLOUR",
        "def serve(): return SETTINGS",
        "def serve(): return TOKEN",
        "def serve(): return LIMITS",
        "BOUND = 'abc'.join\ndef serve(): return {1, 2, 'a'} and frozenset({'x', 'y', 'z'}) and (x for x in 'ab' if x in {'a', 'b'})",
        "def made(n):\n  def inner(): return n\n  return inner\nserve = made(3)",
        "def serve(): return RANGE",
        "import sys\ndef serve(): return sys.path",
        "def wrap(f):\n  import functools\n  @functools.wraps(f)\n  def inner(*a): return f(*a)\n  return inner\n@wrap\ndef serve(): return 1",
        "def serve(): return serve()",
    ],
)  # fmt: skip
def test_values_are_compared(source):
    """Those of classes that were not made anew, by their fields."""
    given = """
from functools import partial
from tests.core.test_same import Colour, Settings, Token
from supervise import Backoff, Limit, Decider, Stop
COLOUR, SETTINGS, TOKEN, RANGE = Colour.RED, Settings("h", len), Token(), range(3)
LIMITS = {"a": Limit(3), "b": [Backoff(initial=2)], "c": Decider({OSError: Stop, "x.y": Stop})}
"""
    assert reason(given + source, given + source) is None
    other = given.replace('"h"', '"g"').replace("Limit(3)", "Limit(4)").replace("range(3)", "range(4)")
    if any(name in source for name in ("SETTINGS", "LIMITS", "RANGE")):
        assert reason(given + source, other + source) is not None


def test_closures_and_methods_are_compared():
    """What a function closes over, and the object of a method."""
    source = "def made(n):\n  def inner(): return n\n  return inner\nserve = made(3)"
    assert reason(source, source.replace("made(3)", "made(4)")) == "n was 3, and is 4"
    source = "from tests.core.test_same import Settings\nclass S(Settings):\n  def run_it(self): pass\nserve = S('h').run_it"
    assert "which was made anew" in reason(source, source)


def test_of_a_module_loaded_anew_only_what_the_function_names_counts():
    """`work.serve` is compared; what else the module has is not."""
    one = "def speed(): return 1\nclass Job: pass"
    body = "def serve(): return work.speed()"

    def both(other):
        old = loaded(body, work=loaded(one, "work"))
        new = loaded(body, work=loaded(other, "work"))
        return why_other("body", old.serve, new.serve)

    assert both(one) is None
    assert both(one.replace("return 1", "return 2")) == "the code of speed is another"
    assert both("class Job: pass") is not None
    assert both("speed = []") is not None
    body, one = "def serve(): return work.jobs", "jobs = []"
    assert both(one) == "work.jobs was [], and is made anew"


def test_objects_that_raise_when_they_are_compared_count_as_others():
    """R38: And nothing escapes."""

    class Odd:
        __hash__ = None

        def __eq__(self, other):
            raise OSError("no")

    assert why_other("x", Odd(), Odd()) == "x cannot be compared: OSError('no')"

    class Leaving:
        __hash__ = None

        def __eq__(self, other):
            raise SystemExit(3)

    assert why_other("x", Leaving(), Leaving()) == "x cannot be compared: SystemExit(3)"


def test_values_that_are_made_for_the_comparison_are_not_taken_for_those_before():
    """A value that is freed gives its id to the next one."""

    @attrs.frozen
    class Made:
        number: int
        other: int

        def __getattribute__(self, name):
            value = object.__getattribute__(self, name)
            return (value,) if name in ("number", "other") else value

    old, new = [[Made(number, number) for number in range(1, last)] for last in (50, 51)]
    old.append(Made(0, 0))
    assert why_other("x", old, new) is not None


def test_only_values_that_differ_are_printed():
    """The text of a large value may take long, and most values are the same."""

    printed = []

    @attrs.frozen(repr=False)
    class Large:
        number: int

        def __repr__(self):
            printed.append(self.number)
            return "large"

    assert why_other("x", [Large(1), {"a": Large(2)}], [Large(1), {"a": Large(2)}]) is None
    assert printed == []


def test_an_empty_list_among_the_arguments_is_shared():
    """R38: A sibling that gets the same list would fill another one."""

    async def serve(number, jobs):
        pass

    def declared(jobs):
        return Supervisor("app", [Child("a", serve, args=[1, jobs])])

    def reasons(old, new):
        found = changes(declared(old), declared(new), lambda path: None, lambda path: None)
        return [reason for change in found for reason in change.why]

    jobs = []
    assert reasons(jobs, jobs) == []
    assert reasons([], []) == ["args[1] was [], and is made anew"]
    assert reasons([1], [1]) == []


def test_deep_and_cyclic_values_come_to_an_end():
    """Nothing here recurses."""
    old, new = [1], [1]
    old.append(old)
    new.append(new)
    assert why_other("x", old, new) is None
    old = new = ()
    for _ in range(50_000):
        old, new = (old,), (new,)
    assert why_other("x", (old, 1), (new, 1)) is None


def test_the_path_to_a_difference_is_bounded():
    """It is in the events, and paths that grow with the depth would hold up the loop."""
    old, new = (1,), (2,)
    for _ in range(50_000):
        old, new = (old,), (new,)
    why = why_other("x", old, new)
    assert why.startswith("x[0][0]")
    assert why.endswith("[0][0] was 1, and is 2")
    assert len(why) < 1000


def test_large_constants_are_compared_without_their_texts():
    """R38: Python makes no text of the integer, and those of a hundred megabytes would hold up the loop."""
    number = 10**5_000
    assert why_other("x", number, number + 1 - 1) is None
    assert why_other("x", [number], [number + 1 - 1]) is None
    assert str(why_other("x", number, number + 1)).startswith("x was ")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.0, -0.0, 1.0, "a", b"a", Colour.RED, len]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        | st.builds(Settings, st.just("h"), inner)
        | st.builds(partial, st.just(max), inner)
    ),
    max_leaves=6,
)


@given(VALUES, VALUES)
def test_two_values_are_the_same_exactly_if_they_print_the_same(one, other):
    """Their reprs have all that is in them, in their order."""
    assert (why_other("x", one, other) is None) == (repr(one) == repr(other))


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the names in a function's code are others")
def test_a_class_counts_where_a_rule_names_it_only_by_its_name():
    """R38: The new decider is taken at once in any case, so that no difference is reported where there is none."""
    source = """
from supervise import Child, Decider, Restart, Supervisor
class Lost(Exception): pass
async def body(): pass
async def other(): raise Lost
tree = Supervisor("app", [Child("a", body), Child("b", other)], decider=Decider({Lost: Restart}))
"""
    old, new = loaded(source).tree, loaded(source).tree
    found = changes(old, new, lambda _: None, lambda _: None)
    assert [str(each) for each in found] == ["~ app/b restarts: body, since the class Lost was made anew"]


def test_an_equal_declaration_has_no_changes():
    """R38: Trees that two calls of one function make."""

    def made():
        return Supervisor(
            "app",
            [
                Child("a", reason_of, args=[1, "x"], backoff=Backoff()),
                Supervisor("b", [Child("c", reason_of)]),
            ],
            limit=Limit(4),
            decider=Decider({ValueError: Stop}, default=Restart),
        )

    assert changes(made(), made(), lambda _: None, lambda _: None) == []


async def reason_of(*_):
    """A body."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: [1, "x", 2.5, None, b"y"] * 100,
        lambda: {number: str(number) for number in range(500)},
        lambda: tuple(range(500)),
    ],
)
def test_a_table_of_constants_is_compared_without_a_pair_for_each(make, monkeypatch):
    """R38: An adoption compares in one step of the loop, and a program may have a table with a million entries."""
    compared = []
    plain = _same._compared
    monkeypatch.setattr(_same, "_compared", lambda *pair, **how: compared.append(pair) or plain(*pair, **how))
    assert why_other("table", make(), make()) is None
    assert len(compared) == 1
