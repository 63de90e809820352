"""The decider by itself (R1–R5)."""

from __future__ import annotations

import pickle
import re
from contextvars import ContextVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervise import AKKA, DEVICE, OTP, Decider, Directive, Escalate, Restart, Resume, Rule, Stop, errors
from supervise._core.decide import ROOT, Judgement, _chain, is_interrupt, judge


class Tagged(Exception):
    def __init__(self, tag):
        super().__init__(tag)
        self.tag = tag


def directive(decider, exc, tag=None):
    return judge(decider.over(ROOT), exc, tag).directive


# --- tags


def test_a_carried_tag_comes_first():
    """R1: The tag is the exception's own, else that of the first rule that fits."""
    rules = [Rule(OSError, "io"), Rule(Exception, "any")]
    decider = Decider(rules=rules)
    assert decider.tag(Tagged("mine")) == "mine"
    assert decider.tag(FileNotFoundError()) == "io"
    assert decider.tag(KeyError()) == "any"
    assert decider.tag(KeyboardInterrupt()) is None


def test_a_tag_that_is_no_string_is_no_tag():
    """R1: Other libraries may have anything else in an attribute `tag`."""
    assert Decider().tag(Tagged(5)) is None


def test_a_rule_needs_its_class_and_its_text_and_its_predicate():
    """R1: A rule has class(es), an optional regex on the message, and an optional predicate; all of them must hold."""
    rule = Rule((OSError, KeyError), "x", match="gone", when=lambda exc: len(exc.args) == 1)
    assert rule.fits(OSError("it is gone"))
    assert rule.fits(KeyError("gone"))
    assert not rule.fits(ValueError("gone"))
    assert not rule.fits(OSError("here"))
    assert not rule.fits(KeyError("gone", 2))
    assert Rule(OSError, "x", match=re.compile("GONE", re.IGNORECASE)).fits(OSError("gone"))


# --- look-up


def test_the_look_up_goes_from_the_exact_tag_to_the_default():
    """R2: The order is the exact tag, shorter prefixes, the class along the MRO, and the default."""
    exc = Tagged("device.oom.host")
    table = {
        "device.oom.host": Resume,
        "device.oom": Restart,
        "device": Stop,
        Tagged: Escalate,
        Exception: Resume,
    }
    order = [Resume, Restart, Stop, Escalate, Resume]
    for expected in order:
        assert directive(Decider(table), exc) is expected
        del table[next(iter(table))]
    assert directive(Decider(default=Stop), exc) is Stop
    assert directive(Decider(), exc) is Restart


def test_the_nearest_class_wins_whatever_the_order_of_the_table():
    """R2: The look-up goes along the MRO, not along the table."""
    table = {Exception: Stop, OSError: Restart, ConnectionError: Resume}
    for decider in (Decider(table), Decider(dict(reversed(table.items())))):
        assert directive(decider, ConnectionResetError()) is Resume
        assert directive(decider, FileNotFoundError()) is Restart
        assert directive(decider, KeyError()) is Stop


def test_prefixes_end_at_dots():
    """R2: `dev` is no prefix of `device`."""
    assert directive(Decider({"dev": Stop}), Tagged("device.oom")) is Restart


def test_deciders_compose():
    """R2: `mine.over(theirs)` asks theirs for what mine does not answer; rules of both give tags."""
    theirs = Decider({KeyError: Escalate, "x": Stop}, rules=[Rule(OSError, "x")])
    mine = Decider({ValueError: Resume}).over(theirs)
    assert [directive(mine, exc) for exc in (ValueError(), KeyError(), OSError())] == [Resume, Escalate, Stop]
    three = Decider({ValueError: Stop}).over(Decider().over(theirs)).over(Decider({TypeError: Stop}))
    assert [directive(three, exc) for exc in (ValueError(), KeyError(), TypeError())] == [
        Stop,
        Escalate,
        Stop,
    ]


def test_a_default_hides_the_deciders_beneath():
    """R2: It does so only for failures that its own table does not name."""
    decider = Decider({KeyError: Stop}, default=Resume).over(Decider({ValueError: Escalate}))
    assert [directive(decider, exc) for exc in (KeyError(), ValueError())] == [Stop, Resume]


def test_presets():
    """R2: `OTP` restarts everything; `AKKA` is the classic default; `DEVICE` falls back along its dots."""
    assert directive(OTP, KeyError()) is Restart
    assert directive(AKKA, KeyError()) is Restart
    assert directive(AKKA, errors.StartTimeout()) is Stop
    assert directive(DEVICE, Tagged("device.poisoned.hung")) is Restart
    assert directive(DEVICE, Tagged("device.oom")) is Resume
    assert directive(DEVICE, Tagged("device.unrecoverable")) is Stop
    assert directive(DEVICE, KeyError()) is Escalate


@pytest.mark.parametrize("exc", [errors.ChildReturned(), errors.LimitExceeded()])
def test_the_frameworks_own_tags_ignore_defaults(exc):
    """R2: Unless a table names them, `returned` and `limit` mean what the caller of `judge` gives for them, which is mostly Restart."""
    decider = Decider({Exception: Escalate}, default=Escalate)
    assert directive(decider, exc) is Restart
    assert judge(decider.over(ROOT), exc, otherwise=Stop).directive is Stop
    assert directive(Decider({exc.tag: Resume}).over(decider), exc) is Resume


def test_severity_is_an_order():
    """R3: Escalate > Stop > Restart > Resume."""
    assert list(Directive) == sorted([Resume, Restart, Stop, Escalate]) == [Resume, Restart, Stop, Escalate]
    assert [repr(one) for one in Directive] == ["Resume", "Restart", "Stop", "Escalate"]


# --- groups

LEAVES = {ValueError: Resume, KeyError: Restart, TypeError: Stop, OSError: Escalate}
groups = st.recursive(
    st.sampled_from(list(LEAVES)).map(lambda cls: cls()),
    lambda inner: st.lists(inner, min_size=1, max_size=4).map(lambda excs: ExceptionGroup("g", excs)),
    max_leaves=8,
)


def flat(exc):
    return (
        [leaf for inner in exc.exceptions for leaf in flat(inner)]
        if isinstance(exc, ExceptionGroup)
        else [exc]
    )


@given(groups)
def test_a_group_is_as_severe_as_its_worst_member(exc):
    """R3: This holds whatever the nesting."""
    assert directive(Decider(LEAVES), exc) is max(LEAVES[type(leaf)] for leaf in flat(exc))


def test_a_groups_tag_is_that_of_its_decisive_member():
    """R3: The event names the tag of the member that decided."""
    group = ExceptionGroup("g", [Tagged("mild"), Tagged("bad"), Tagged("mild")])
    verdict = judge(Decider({"mild": Restart, "bad": Stop}), group)
    assert (verdict.directive, verdict.tag, verdict.exc) == (Stop, "bad", group)


def test_a_group_is_whole_only_for_a_group_class():
    """R3: Neither a table nor a rule takes it whole by `Exception`."""
    group = ExceptionGroup("g", [KeyError()])
    assert directive(Decider({Exception: Resume, KeyError: Stop}), group) is Stop
    assert directive(Decider({ExceptionGroup: Resume, KeyError: Stop}), group) is Resume
    assert directive(Decider({BaseExceptionGroup: Resume, KeyError: Stop}), group) is Resume
    assert not Rule(Exception, "x").fits(group)
    assert Rule(ExceptionGroup, "x").fits(group)


def test_a_group_member_that_no_table_names_gets_the_built_in_directive():
    """R3: It gets the directive that the caller of `judge` gives for a failure that no table names."""
    group = ExceptionGroup("g", [ValueError()])
    assert [judge(Decider(), group, otherwise=it).directive for it in (Stop, Restart)] == [Stop, Restart]


# --- deciders that raise


@pytest.mark.parametrize("nested", [False, True])
def test_a_decider_that_raises_escalates_and_keeps_the_failure(nested):
    """R5: The failure is at the end of the `__context__` chain of the exception that the decider raised."""

    def predicate(_):
        if nested:
            try:
                {}["missing"]
            except KeyError:
                raise LookupError from None
        raise LookupError

    exc = ValueError()
    verdict = judge(Decider(rules=[Rule(ValueError, "x", when=predicate)]), exc)
    assert verdict.directive is Escalate
    assert isinstance(verdict.exc, LookupError)
    last = verdict.exc
    while last.__context__ is not None:
        last = last.__context__
    assert last is exc


def test_a_decider_that_raises_the_failure_itself_makes_no_circle():
    """R5: No exception is chained to itself."""

    def predicate(exc):
        raise exc

    exc = ValueError()
    assert judge(Decider(rules=[Rule(ValueError, "x", when=predicate)]), exc).exc is exc
    assert exc.__context__ is None


def test_a_context_chain_that_is_already_a_circle_stays_so():
    """R5: There is no end to which the failure could be chained, and the search for it ends."""
    one, two = LookupError("one"), LookupError("two")
    one.__context__, two.__context__ = two, one
    _chain(one, ValueError())
    assert (one.__context__, two.__context__) == (two, one)


def test_a_message_that_cannot_be_made_is_no_match():
    """R5: A `str()` that raises counts as a decider that raises."""

    class Nasty(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    assert judge(Decider(rules=[Rule(Nasty, "x", match="y")]), Nasty()).directive is Escalate


# --- nonsense


async def awaits(_):
    """No predicate: a call of it has to be awaited."""


def two(exc, more):
    """No predicate: it is called with the exception alone."""


class Unreadable(dict):
    """A table that cannot be read."""

    def items(self):
        raise OSError("no items")


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: Rule("x", "y"),
            TypeError,
            "a rule's first argument must be an exception class or a tuple of them, got 'x'",
        ),
        (
            lambda: Rule((), "y"),
            TypeError,
            "a rule's first argument must be an exception class or a tuple of them, got ()",
        ),
        (
            lambda: Rule(KeyError, "a b"),
            ValueError,
            "a rule's tag must be a dotted tag such as 'device.oom', got 'a b'",
        ),
        (
            lambda: Rule(KeyError, "a."),
            ValueError,
            "a rule's tag must be a dotted tag such as 'device.oom', got 'a.'",
        ),
        (lambda: Rule(KeyError, "x", when=5), TypeError, "a rule's when must be a function, got 5"),
        (
            lambda: Rule(KeyError, "x", when=awaits),
            TypeError,
            "a rule's when must be a plain function, and awaits is an async function: it is not awaited",
        ),
        (
            lambda: Rule(KeyError, "x", when=two),
            TypeError,
            "a rule's when is called as two(exc), but it is two(exc, more): missing a required argument: 'more'",
        ),
        (
            lambda: Rule(KeyError, "x", match=5),
            TypeError,
            "a rule's match must be a regular expression, got 5",
        ),
        (
            lambda: Rule(KeyError, "x", match="("),
            ValueError,
            "a rule's match must be a regular expression, got '('",
        ),
        (
            lambda: Decider({"": Stop}),
            ValueError,
            "a decider's key, if not an exception class, must be a dotted tag such as 'device.oom', got ''",
        ),
        (
            lambda: Decider({5: Stop}),
            ValueError,
            "a decider's key, if not an exception class, must be a dotted tag such as 'device.oom', got 5",
        ),
        (
            lambda: Decider({KeyError: "stop"}),
            TypeError,
            "a decider maps <class 'KeyError'> to Resume, Restart, Stop or Escalate, got 'stop'",
        ),
        (
            lambda: Decider({KeyError: 2}),
            TypeError,
            "a decider maps <class 'KeyError'> to Resume, Restart, Stop or Escalate, got 2",
        ),
        (lambda: Decider(default="x"), TypeError, "a decider's default must be a directive or None, got 'x'"),
        (lambda: Decider(rules=[5]), TypeError, "a decider's rules must be Rules, got 5"),
        (lambda: Decider([1]), TypeError, "a decider's table must be a mapping, got [1]"),
        (
            lambda: Decider(Unreadable()),
            TypeError,
            "a decider's table cannot be read: OSError('no items')",
        ),
        (lambda: Decider().over(5), TypeError, "a decider goes over another Decider, got 5"),
        (lambda: Decider(beneath=5), TypeError, "a decider's beneath must be a Decider or None, got 5"),
        (lambda: Decider(rules="x"), TypeError, "a decider's rules must be a list of Rules, got 'x'"),
        (lambda: Decider(rules=5), TypeError, "a decider's rules must be a list of Rules, got 5"),
    ],
)
def test_nonsense_is_refused_at_once(make, kind, message):
    """R2: One clear error that names the thing, says what is allowed, and shows what came."""
    with pytest.raises(kind) as raised:
        make()
    assert str(raised.value) == message


def test_deciders_and_rules_are_frozen():
    """R2: A table cannot change under a running tree."""
    table = {KeyError: Stop}
    decider = Decider(table)
    table[KeyError] = Resume
    assert directive(decider, KeyError()) is Stop
    with pytest.raises(TypeError):
        decider.table[KeyError] = Resume


class Thorny(Exception):
    """Its tag cannot be had."""

    @property
    def tag(self):
        raise OSError("no tag")


LOOKED_AT = [
    ValueError("v"), KeyError("k"), Tagged("a"), Tagged("a.b"), Tagged("z"), Tagged("limit"), Tagged("returned"),
    Tagged(7), Thorny(), ExceptionGroup("g", [ValueError()]), ExceptionGroup("g", [Tagged("a")]),
]  # fmt: skip
LOOKED_UP = [
    Decider(),
    Decider(default=Stop),
    Decider({"a": Resume, KeyError: Escalate, "limit": Stop}),
    Decider({"a.b": Stop}).over(Decider({"a": Resume}, default=Escalate)),
    Decider({ExceptionGroup: Stop}),
    Decider(rules=[Rule(ValueError, "a")]).over(Decider({"a": Stop})),
    Decider({"a": Stop}).over(Decider(rules=[Rule(ValueError, "a")])),
]


@pytest.mark.parametrize("decider", LOOKED_UP, ids=repr)
@pytest.mark.parametrize("exc", LOOKED_AT, ids=repr)
def test_a_cheap_look_agrees_with_the_full_judgement(decider, exc):
    """R2: It gives the same verdict, or it reports that a full judgement is needed; a second look gives the same as the first."""
    for _ in range(2):
        tag, answer = decider.looked_up(exc)
        verdict = judge(decider, exc)
        more = bool(decider._all_rules) or isinstance(exc, Thorny | ExceptionGroup)
        assert (answer is None) == more
        found = None if answer is None else (tag, *answer)
        assert more or found == (verdict.tag, verdict.directive, verdict.node, verdict.entry)


def test_only_the_last_few_answers_are_remembered():
    """Tags may be anything: what is remembered does not grow with them."""
    decider = Decider({"a": Stop})
    for number in range(200):
        assert decider.looked_up(Tagged(f"a.t{number}")) == (f"a.t{number}", (Stop, "", "tag 'a'"))
        assert len(decider._answers) == number % 64 + 1
    assert Decider({"a": Stop}, rules=[Rule(OSError, "x")]).over(decider)._answers == {}


def test_an_answer_is_remembered():
    """Class and tag alone decide, so that the table is asked once."""
    asked = []

    class Watched(dict):
        def __contains__(self, key):
            asked.append(key)
            return super().__contains__(key)

    decider = Decider({"a": Stop})
    object.__setattr__(decider, "table", Watched(decider.table))
    assert [decider.looked_up(Tagged("a.b")) for _ in range(3)] == [("a.b", (Stop, "", "tag 'a'"))] * 3
    assert asked == ["a.b", "a"]


def test_the_error_of_a_bad_pattern_is_the_cause_of_the_refusal():
    """R1: The cause is the error that `re` raises."""
    with pytest.raises(ValueError, match="must be a regular expression") as raised:
        Rule(OSError, "x", match="(")
    assert isinstance(raised.value.__cause__, re.error)


def test_a_tag_given_further_down_stays_the_tag():
    """R11: The tag that a supervisor below gave goes up with the failure."""
    exc = ValueError("v")
    assert judge(Decider({"a": Stop}), exc, "a.b") == Judgement(Stop, "a.b", exc, "", "tag 'a'")


def test_a_verdict_names_the_node_of_its_decider_and_the_entry_that_applied():
    """R2: The entry is a tag, a class, a default, or a built-in rule; the node is the one at which the decider stands."""
    own = Decider({"a": Stop, OSError: Resume}).over(Decider({KeyError: Escalate}))
    decider = own.at("app/x", Decider(default=Stop).at("app", ROOT))
    outcome = {}
    for exc in (Tagged("a.b"), ConnectionError(), KeyError(), ValueError(), Tagged("limit")):
        verdict = judge(decider, exc)
        outcome[repr(exc)] = verdict.directive, verdict.node, verdict.entry
    assert outcome == {
        "Tagged('a.b')": (Stop, "app/x", "tag 'a'"),
        "ConnectionError()": (Resume, "app/x", "class OSError"),
        "KeyError()": (Escalate, "app/x", "class KeyError"),
        "ValueError()": (Stop, "app", "default"),
        "Tagged('limit')": (Restart, "", "rule"),
    }
    assert judge(Decider().over(ROOT), ValueError()).entry == "rule"


def test_a_decider_is_judged_in_an_empty_context():
    """R2: A predicate sees no context variable of the task in which the machine happens to run."""
    where = ContextVar("where", default="nowhere")
    where.set("in some task")
    seen = []
    decider = Decider(rules=[Rule(ValueError, "x", when=lambda exc: seen.append(where.get()))])
    judge(decider, ValueError())
    assert seen == ["nowhere"]


def test_a_group_of_any_depth_is_flattened_and_one_met_twice_is_judged_once():
    """R3: Neither depth nor a group that is a member of many others makes a judgement slow."""
    group = ExceptionGroup("g", [ValueError("v"), Tagged("bad")])
    for _ in range(5000):
        group = ExceptionGroup("g", [group, group] if _ < 60 else [group])
    verdict = judge(Decider({"bad": Stop}), group)
    assert (verdict.directive, verdict.tag, verdict.raised) == (Stop, "bad", False)


class Liar(Exception):
    """Says of itself what is not true, or nothing at all."""

    @property
    def __class__(self):
        raise RuntimeError("no class")

    def __eq__(self, other):
        raise RuntimeError("no comparison")

    __hash__ = None

    def __bool__(self):
        return False


class OddTag(str):
    __slots__ = ()

    def __hash__(self):
        raise RuntimeError("no hash")


def test_a_failure_with_a_false_class_is_judged_by_its_type():
    """R1, R2: Of the object only its tag is read, and of the tag only its characters."""
    exc = Liar()
    assert judge(Decider({Liar: Stop}), exc).directive is Stop
    assert Decider({Liar: Stop}).looked_up(exc)[1].directive is Stop
    assert judge(Decider({"a": Stop}), Tagged(OddTag("a.b"))).directive is Stop


def test_a_base_exception_from_a_predicate_replaces_the_failure_and_is_not_judged():
    """R4, R5: The `BaseException` takes the place of the failure, and the machine stops the tree for it."""

    def leave(_):
        raise SystemExit(3)

    verdict = judge(Decider(rules=[Rule(ValueError, "x", when=leave)]), ValueError())
    assert (verdict.directive, verdict.raised, type(verdict.exc)) == (Escalate, True, SystemExit)


class TaggedGroup(ExceptionGroup):
    """A group with a tag of its own, whatever becomes of it."""

    tag = "net"


def test_a_group_in_a_group_is_judged_whole_by_its_tag_or_by_an_entry_for_its_class():
    """R3: Otherwise its members are judged."""
    tagged = ExceptionGroup("outer", [TaggedGroup("inner", [OSError()]), KeyError()])
    assert directive(Decider({"net": Stop, OSError: Escalate}), tagged) is Stop
    named = ExceptionGroup("outer", [ExceptionGroup("inner", [OSError()]), KeyError()])
    assert directive(Decider({OSError: Stop}), named) is Stop

    class Named(ExceptionGroup):
        """A class that a table names."""

    named = ExceptionGroup("outer", [Named("inner", [OSError()]), KeyError()])
    assert directive(Decider({Named: Stop, OSError: Escalate}), named) is Stop


@pytest.mark.parametrize("tag", ["limit", "returned"])
def test_a_look_at_a_tag_of_the_framework_finds_the_built_in_answer(tag):
    """R2: No default answers it."""
    assert Decider(default=Stop).looked_up(Tagged(tag)) == (tag, (Restart, "", "rule"))


def test_a_tag_of_a_subclass_of_str_takes_a_full_judgement():
    """R1: Its hash and equality are the user's code."""

    class Tag(str):
        """Any string may be a tag."""

        __slots__ = ()

    assert Decider(default=Stop).looked_up(Tagged(Tag("x"))) == (None, None)


def test_a_decider_gives_a_directive_or_none():
    """R2: None means that no layer answers."""
    assert Decider({"x": Stop}).directive(KeyError(), "x.y") is Stop
    assert Decider({"x": Stop}).directive(KeyError(), None) is None


def test_a_keyboard_interrupt_is_found_in_groups_of_any_shape():
    """R4: An interrupt that a user's nursery wraps counts as one; the search ends at a group that contains itself."""
    deep = BaseExceptionGroup("a", [OSError(), BaseExceptionGroup("b", [KeyboardInterrupt()])])
    assert is_interrupt(KeyboardInterrupt())
    assert is_interrupt(deep)
    assert not is_interrupt(SystemExit())
    inner = BaseExceptionGroup("b", [SystemExit()])
    for _ in range(40):  # without a look at what was seen this would be 2 ** 40 steps
        inner = BaseExceptionGroup("a", [inner, inner])
    assert not is_interrupt(inner)


@pytest.mark.parametrize(
    "again", [lambda decider: pickle.loads(pickle.dumps(decider)), lambda decider: decider.over(OTP)]
)
def test_a_decider_of_a_node_stays_that_nodes(again):
    """R2: If it is pickled, or put over another one, `Decided` still names its node."""
    decider = again(Decider({KeyError: Stop}).at("app/a", ROOT))
    assert judge(decider, KeyError()).node == "app/a"
