"""The machine in every state that it can reach in small trees, and what finds the bugs that are put into it."""

import pytest

from supervise._core.node import Node
from tests.explore import covered, run
from tests.explore.families import FAMILIES
from tests.explore.state import DROPPED, KEPT

from ..conformance.compare import difference, load, plain
from ..conformance.test_conformance import CORPUS
from ..conformance.through import trace
from .planted import BUGS


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_state_of_the_quick_form_keeps_the_rules(family):
    """The exploration finds no violation, and it visits as many states as expected."""
    (explored,) = run([family], quick=True, processes=1)
    assert explored.found == ()
    assert explored.numbers == covered()["quick"][family]


def test_every_family_was_explored_in_full():
    """`python -m tests.explore --check` compares the numbers; the quick form is a part of it."""
    numbers = covered()
    assert list(numbers["full"]) == list(numbers["quick"]) == list(FAMILIES)
    assert all(map(less_or_equal, numbers["quick"].values(), numbers["full"].values()))


def less_or_equal(few, many):
    return all(a <= b for a, b in zip(few, many, strict=True))


def test_what_a_state_is_made_of_names_every_slot_of_a_node():
    """A new slot is either part of what makes two states differ, or dropped for a reason."""
    assert set(Node.__slots__) == KEPT | set(DROPPED)
    assert not KEPT & set(DROPPED)


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.family], ids=lambda bug: bug.name)
def test_the_exploration_finds(bug):
    """A planted bug shows as a violation."""
    group = FAMILIES[bug.family].group(bug.group)
    with bug.planted():
        outcome = group.explored(most=1)
    assert outcome.found


@pytest.mark.slow
@pytest.mark.parametrize("through", ["machine", "trio"])
@pytest.mark.parametrize("bug", [bug for bug in BUGS if not bug.family], ids=lambda bug: bug.name)
def test_the_corpora_find(bug, through):
    """What is another order, and no violation, differs from what was recorded."""
    recorded = [it for name in ("hand", "open") for it in load(CORPUS / f"{name}.jsonl.gz")]
    with bug.planted():
        assert any(difference(it, got(it["scenario"], through)) for it in recorded)


def got(scenario, through):
    try:
        return {"steps": plain(trace(scenario, through))}
    except Exception:
        return None


def test_a_violation_is_printed_as_a_test_that_fails():
    """What is printed can be pasted and run."""
    bug = BUGS[0]
    names = {}
    group = FAMILIES[bug.family].group(bug.group)
    with bug.planted():
        found = group.explored(most=1).found[0]
        exec(found.as_test(), names)
        with pytest.raises(AssertionError):
            names["test_found"]()
    names["test_found"]()
