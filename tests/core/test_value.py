"""Values: how they compare, print and are copied is what attrs would make of them."""

import copy
import pickle

import attrs
import pytest

from supervise import Backoff, Limit, Mailbox, Restart, Rule, Stop, events
from supervise._core._value import Value

GIVEN = {
    "at": 1.5, "path": "app/a", "incarnation": 2, "value": ("v",), "exc": ValueError("v"), "directive": Restart,
    "by": "app", "because": "limit", "tag": "t", "instead_of": Stop, "limit": "3 within 5 s", "reason": "a test",
    "seconds": 5.0, "stack": "…", "delay": 0.5, "until": 2.0, "sink": "print", "restarts": 2, "within": 7.0,
    "of_ready_time": True, "initial": 0.5, "factor": 3.0, "maximum": 9.0, "jitter": 0.2, "reset_after": 8.0,
    "immediate": 1, "size": 5, "on_loss": "requeue", "stopped": KeyError, "full": OSError, "deadline": print,
    "late": LookupError, "exceptions": (OSError,), "match": "x", "when": callable, "decider": "app", "entry": "tag 't'",
    "applied_to": "app/b", "attempt": 3, "waits_for": "app/c", "changes": ("+ app/d added",), "failed": ("app/d",),
    "carry": list, "affinity": len,
}  # fmt: skip
OTHER = {
    **dict.fromkeys(GIVEN),
    "value": 1, "exc": KeyError("k"), "restarts": 3, "within": 8.0, "of_ready_time": False, "initial": 0.1,
    "factor": 4.0, "maximum": 8.0, "jitter": 0.3, "immediate": 0, "size": 6, "on_loss": "fail", "stopped": IndexError,
    "full": KeyError, "late": OSError, "exceptions": (KeyError,), "tag": "u",
    "attempt": 4,
}  # fmt: skip
PRINTED = [*events.KINDS]
KINDS = [*PRINTED, Limit, Backoff, Mailbox, Rule]

each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def given(kind):
    return {field.name: GIVEN[field.name] for field in attrs.fields(kind)}


@each
def test_equal_is_what_has_the_class_and_every_field_in_common(kind):
    """Equal values have one hash; one other field, or another class, makes another value."""
    value = kind(**given(kind))
    assert isinstance(value, Value)
    assert value == kind(**given(kind))
    assert hash(value) == hash(kind(**given(kind)))
    assert value != object()
    for name in given(kind):
        changed = attrs.evolve(value, **{name: OTHER[name]})
        assert changed != value, name
        assert hash(changed) != hash(value), name


def test_two_classes_with_the_same_fields_are_never_equal():
    """`Starting` and `Stopped` of one incarnation at one time are two things."""
    assert len({kind(1.0, "app", 1) for kind in (events.Event, events.Starting, events.Stopped)}) == 3


def test_a_value_with_a_field_that_is_not_equal_to_itself_is_not_equal_to_itself():
    """Each field is compared by `==`: NaN is not equal to NaN."""
    nan = float("nan")
    assert events.Ready(nan, "app", 1) != events.Ready(nan, "app", 1)


def test_what_has_no_hash_gives_none():
    """A value of the user's may be anything."""
    with pytest.raises(TypeError, match="unhashable type: 'list'"):
        hash(events.Ready(1.0, "app", 1, []))


@pytest.mark.parametrize("kind", PRINTED, ids=lambda kind: kind.__name__)
def test_a_value_prints_as_attrs_prints_it(kind):
    """All fields by name in their order, those with `repr=False` left out."""
    fields = {field.name: attrs.field(repr=field.repr) for field in attrs.fields(kind)}
    twin = attrs.make_class(kind.__name__, fields)
    assert repr(kind(**given(kind))) == repr(twin(**given(kind)))


def test_some_print_like_this():
    """The failure of `Decided` is that of the `Failed` before."""
    exc = ValueError("v")
    assert repr(events.Starting(1.0, "app", 1)) == "Starting(at=1.0, path='app', incarnation=1, reason=None)"
    assert repr(events.Failed(1.0, "app", 1, exc)) == (
        "Failed(at=1.0, path='app', incarnation=1, exc=ValueError('v'))"
    )
    assert repr(events.Decided(1.0, "app/a", 1, Restart, "app", exc)) == (
        "Decided(at=1.0, path='app/a', incarnation=1, directive=Restart, by='app', because='table', tag=None, "
        "instead_of=None, limit=None, decider=None, entry=None, applied_to=None, attempt=None)"
    )


def test_a_value_that_holds_itself_prints_too():
    """Where it comes again stand three dots."""

    class Holder:
        def __repr__(self):
            return repr(self.held)

    holder = Holder()
    holder.held = events.Ready(1.0, "app", 1, holder)
    assert repr(holder.held) == "Ready(at=1.0, path='app', incarnation=1, value=...)"


@each
def test_a_value_can_be_pickled_and_copied_and_not_changed(kind):
    """Copies are equal, where their fields' are."""
    plain = {name: value for name, value in given(kind).items() if not isinstance(value, BaseException)}
    exc = {"exc": KeyError} if "exc" in given(kind) else {}  # a class, for no two exceptions are equal
    value = kind(**plain, **exc)
    for made in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert made == value
        assert repr(made) == repr(value)
    for name in given(kind):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, name, None)


def test_a_value_matches_by_position():
    """In the order of its constructor."""
    match events.Failed(1.0, "app", 1, KeyError("k")):
        case events.Failed(at, path, incarnation, exc):
            assert (at, path, incarnation, repr(exc)) == (1.0, "app", 1, "KeyError('k')")
