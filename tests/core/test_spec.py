"""Specs by themselves: what is refused, and the defaults."""

from __future__ import annotations

import copy
import pickle
from functools import partial, wraps

import attrs
import pytest

from supervise import (
    IGNORE,
    Backoff,
    Child,
    ChildStopped,
    Decider,
    Escalate,
    Limit,
    Mailbox,
    MailboxFull,
    Pool,
    Restart,
    Rule,
    Status,
    Stop,
    Supervisor,
)
from supervise._core.spec import placed_twice, walk
from supervise.testing import Fail, FaultPlan, Script


async def body(*_):
    """A body."""


async def nobody():
    """A body that takes nothing."""


async def somebody(who):
    """One that takes one thing."""


a = Child("a", body)


def test_the_defaults_are_these():
    """R7, R14, R20, R29: The defaults are those of the semantics."""
    assert (a.restart, a.significant, a.start_timeout, a.drain, a.grace) == ("permanent", False, None, 0, 5)
    assert (a.limit, a.backoff, a.decider, a.mailbox, a.resource, a.args) == (
        None,
        None,
        None,
        None,
        None,
        (),
    )
    s = Supervisor("s", [a])
    assert (s.strategy, s.restart, s.auto_shutdown, s.on_limit) == (
        "one_for_one",
        "permanent",
        "never",
        "escalate",
    )
    assert (s.limit, s.backoff, s.decider, s.front) == (Limit(3, within=5), None, None, None)
    pool = Pool("p", a)
    assert (pool.limit, pool.member_limit, pool.maximum, pool.children) == (
        None,
        Limit(3, within=5),
        None,
        (),
    )
    box = Mailbox()
    assert (box.size, box.on_loss, box.stopped, box.full) == (64, "fail", ChildStopped, MailboxFull)
    backoff = Backoff()
    assert (backoff.initial, backoff.factor, backoff.maximum, backoff.jitter) == (0.1, 2, 30, 0.1)


def test_specs_are_frozen_and_compared_by_identity():
    """R28: A spec is an address, so two that look alike are two."""
    assert Child("a", body) != Child("a", body)
    assert len({a, Child("a", body)}) == 2
    with pytest.raises(AttributeError):
        a.name = "b"


def test_whether_a_body_takes_task_status_follows_from_its_signature():
    """R17: This holds for any Trio function, partials and callable objects included."""

    async def starts(x, task_status=None):
        pass

    class Callable:
        async def __call__(self, *, task_status):
            pass

    async def named(*, task_status):
        pass

    @wraps(named)
    async def wrapped(**options):
        pass

    kinds = [body, starts, partial(starts, 1), Callable(), partial(body, 1), named, wrapped, range]
    assert [Child("x", kind).takes_task_status for kind in kinds] == [
        False, True, True, True, False, True, True, False
    ]  # fmt: skip


def test_a_mailbox_may_be_given_by_its_size():
    """R29: A number is the size."""
    assert Child("a", body, mailbox=5).mailbox == Mailbox(5)


def test_a_front_may_be_given_by_name_or_spec():
    """R34: Both become the name."""
    assert Supervisor("s", [a], front="a").front == Supervisor("s", [a], front=a).front == "a"


def test_walking_a_tree_goes_parents_first_in_start_order():
    """R12: Every node comes with its path."""
    tree = Supervisor(
        "app", [a, Supervisor("s", [Child("b", body), Child("c", body)]), Pool("p", Child("m", body))]
    )
    assert [path for path, _ in walk(tree)] == ["app", "app/a", "app/s", "app/s/b", "app/s/c", "app/p"]


def test_one_spec_stands_at_one_place():
    """R28: A spec is an address, so it cannot have two places."""
    tree = Supervisor("app", [a, Supervisor("s", [a])])
    assert list(placed_twice(tree)) == [(a, "one spec stands at two places: 'app/a' and 'app/s/a'; make two")]


def test_a_member_is_the_template_under_a_name_of_its_own():
    """R14, R26: It has its own arguments and, unless the template has a limit, the pool's member limit."""
    member = Pool("p", Child("m", body, args=(1,))).member("m-1", (2,))
    assert (member.name, member.args, member.limit) == ("m-1", (1, 2), Limit(3, within=5))
    assert Pool("p", Child("m", body, limit=Limit(9))).member("x", ()).limit == Limit(9)


transient = Child("t", body, restart="transient", significant=True)

NONSENSE = [
    (
        lambda: Child("", body),
        ValueError,
        "child's name must be non-empty, without '/' and outer spaces, got ''",
    ),
    (
        lambda: Child("a/b", body),
        ValueError,
        "child's name must be non-empty, without '/' and outer spaces, got 'a/b'",
    ),
    (
        lambda: Child(" a", body),
        ValueError,
        "child's name must be non-empty, without '/' and outer spaces, got ' a'",
    ),
    (lambda: Child("..", body), ValueError, "child's name must not be '.' or '..', got '..'"),
    (lambda: Child(5, body), TypeError, "child's name must be a string, got 5"),
    (lambda: Child("a", 5), TypeError, "child 'a': body must be an async function, got 5"),
    (lambda: Child("a", lambda: 5), None, None),
    (lambda: Child("a", body, drain=0, grace=0), None, None),
    (lambda: Child("a", body, resource=5), TypeError, "child 'a': resource must be a function, got 5"),
    (
        lambda: Child("a", body, restart="always"),
        ValueError,
        "child 'a': restart must be one of 'permanent', 'transient', 'temporary', got 'always'",
    ),
    (
        lambda: Child("a", body, significant=True),
        ValueError,
        "child 'a': significant needs restart 'transient' or 'temporary', got 'permanent'",
    ),
    (lambda: Child("a", body, significant=1), TypeError, "child 'a': significant must be a bool, got 1"),
    (lambda: Child("a", body, drain=-1), ValueError, "child 'a': drain must be >= 0, got -1"),
    (lambda: Child("a", body, grace="x"), TypeError, "child 'a': grace must be a number, got 'x'"),
    (lambda: Child("a", body, start_timeout=-1), ValueError, "child 'a': start_timeout must be > 0, got -1"),
    (lambda: Child("a", body, start_timeout=0), ValueError, "child 'a': start_timeout must be > 0, got 0"),
    (lambda: Child("a", body, start_warning=0), ValueError, "child 'a': start_warning must be > 0, got 0"),
    (
        lambda: Child("a", body, drain=2**63),
        ValueError,
        "child 'a': drain must be <= 9223372036854775807, got 9223372036854775808",
    ),
    (
        lambda: Child("a", body, args="x"),
        TypeError,
        "child 'a': args must be a tuple or list of arguments, got 'x'",
    ),
    (
        lambda: Pool("p", Child("m", body)).member("m-1", (Child("a", body),)),
        TypeError,
        "pool 'p' makes its members from its template: add takes their arguments, got Child('a', body)",
    ),
    (
        lambda: Pool("p", Child("m", nobody)).member("m-1", (1,)),
        TypeError,
        "child 'm-1': body is called as nobody(args[0]), but it is nobody(): too many positional arguments",
    ),
    (
        lambda: Pool("p", Child("m", somebody)).member("m-1", ()),
        TypeError,
        "pool 'p': child 'm-1': body is called as somebody(), but it is somebody(who): missing a required argument: 'who'",
    ),
    (lambda: Child("a", body, limit=3), TypeError, "child 'a': limit must be a Limit or None, got 3"),
    (lambda: Child("a", body, backoff=3), TypeError, "child 'a': backoff must be a Backoff or None, got 3"),
    (lambda: Child("a", body, decider={}), TypeError, "child 'a': decider must be a Decider or None, got {}"),
    (lambda: Child("a", body, mailbox=0), ValueError, "a mailbox's size must be >= 1, got 0"),
    (
        lambda: Child("a", body, mailbox="share"),
        ValueError,
        "a mailbox must be a size, a Mailbox or 'shared', got 'share'; did you mean 'shared'?",
    ),
    (
        lambda: Supervisor("app", [Child("a", body, mailbox="shared")]),
        ValueError,
        "supervisor 'app': child 'a' is to take the messages of its supervisor, which has no mailbox",
    ),
    (
        lambda: Pool("crew", Child("a", body, mailbox="shared")),
        ValueError,
        "pool 'crew': child 'a' is to take the messages of its supervisor, which has no mailbox",
    ),
    (
        lambda: Supervisor("app", [Child("a", body)], front="a", mailbox=4),
        ValueError,
        "supervisor 'app' must have a front or a mailbox at its address, got both",
    ),
    (
        lambda: Mailbox(on_loss="drop"),
        ValueError,
        "a mailbox's on_loss must be one of 'fail', 'requeue', got 'drop'",
    ),
    (lambda: Mailbox(stopped=5), TypeError, "a mailbox's stopped must be an exception class, got 5"),
    (lambda: Mailbox(full=5), TypeError, "a mailbox's full must be an exception class, got 5"),
    (lambda: Mailbox(late=5), TypeError, "a mailbox's late must be an exception class, got 5"),
    (lambda: Mailbox(deadline=5), TypeError, "a mailbox's deadline must be a function, got 5"),
    (
        lambda: Supervisor("s", [5]),
        TypeError,
        "supervisor 's': each child must be a Child or Supervisor or Pool, got 5",
    ),
    (
        lambda: Supervisor("s", [5], front="a"),
        TypeError,
        "supervisor 's': each child must be a Child or Supervisor or Pool, got 5",
    ),
    (
        lambda: Supervisor("app", [Child("b", body), a, Child("a", body)]),
        ValueError,
        "supervisor 'app' has two children named 'a'",
    ),
    (
        lambda: Supervisor("s", [], strategy="all"),
        ValueError,
        "supervisor 's': strategy must be one of 'one_for_one', 'one_for_all', 'rest_for_one', got 'all'",
    ),
    (
        lambda: Supervisor("s", [], on_limit="x"),
        ValueError,
        "supervisor 's': on_limit must be one of 'escalate', 'shutdown', got 'x'",
    ),
    (
        lambda: Supervisor("s", [], auto_shutdown="x"),
        ValueError,
        "supervisor 's': auto_shutdown must be one of 'never', 'any_significant', 'all_significant', got 'x'",
    ),
    (
        lambda: Supervisor("s", [a], front="b"),
        ValueError,
        "supervisor 's': front must be one of its children (a), got 'b'",
    ),
    (lambda: Supervisor("s", [], init=5), TypeError, "supervisor 's': init must be a function, got 5"),
    (
        lambda: Supervisor("s", [transient]),
        ValueError,
        "supervisor 's': child 't': significant needs auto_shutdown 'any_significant' or 'all_significant', got 'never'",
    ),
    (
        lambda: Supervisor("s", [], decider=5),
        TypeError,
        "supervisor 's': decider must be a Decider or None, got 5",
    ),
    (lambda: Pool("p", 5), TypeError, "pool 'p': template must be a Child or Supervisor or Pool, got 5"),
    (lambda: Pool("p", a, maximum=0), ValueError, "pool 'p': maximum must be >= 1, got 0"),
    (lambda: Pool("p", a, maximum=1.5), TypeError, "pool 'p': maximum must be an integer, got 1.5"),
    (
        lambda: Pool("p", a, member_limit=1),
        TypeError,
        "pool 'p': member_limit must be a Limit or None, got 1",
    ),
    (
        lambda: Pool("p", transient),
        ValueError,
        "pool 'p': child 't': significant needs auto_shutdown 'any_significant' or 'all_significant', got 'never'",
    ),
]


@pytest.mark.parametrize(("make", "kind", "message"), NONSENSE)
def test_nonsense_is_refused_at_once(make, kind, message):
    """R25: One clear error that names the thing, says what is allowed, and shows what came."""
    if kind is None:
        make()
        return
    with pytest.raises(kind) as raised:
        make()
    assert str(raised.value).startswith(message)


def test_deciders_are_part_of_a_spec():
    """R2: A leaf and a supervisor may each have one."""
    decider = Decider()
    assert (
        Child("a", body, decider=decider).decider is Supervisor("s", [], decider=decider).decider is decider
    )


def test_a_walk_may_begin_further_down():
    """Its paths begin with the one that is given."""
    tree = Supervisor("s", [Child("c", body)])
    assert [path for path, _ in walk(tree, "app/above")] == ["app/above/s", "app/above/s/c"]
    assert [path for path, _ in walk(tree)] == ["s", "s/c"]


def test_a_supervisor_knows_the_child_that_is_its_front():
    """R34: The child is found by its name."""
    children = [Child("a", body), Child("b", body)]
    assert Supervisor("s", children, front="b").front_child is children[1]
    assert Supervisor("s", children).front_child is None


def copies(value):
    """In the three ways that there are."""
    return copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))


def test_ignore_is_one_object_however_it_is_copied():
    """R17: `IGNORE` is recognised by its identity."""
    assert all(made is IGNORE for made in copies(IGNORE))


def test_a_decider_can_be_copied_and_pickled():
    """R2: A copy gives the same answers."""
    decider = Decider(
        {"net": Restart, OSError: Stop}, rules=[Rule(KeyError, "net", match="x")], default=Escalate
    ).over(Decider({KeyError: Stop}))
    for made in copies(decider):
        assert repr(made) == repr(decider)
        assert made.directive(OSError(), None) is Stop
        assert made.tag(KeyError("x")) == "net"


def test_specs_and_plans_can_be_copied_and_pickled():
    """A copy is a spec of its own, which prints the same."""
    tree = Supervisor(
        "app", [Child("a", body, args=(1,), decider=Decider({OSError: Stop})), Pool("p", Child("m", body))]
    )
    plan = FaultPlan({"app/a": Script(body=Fail(OSError("x"), after=1))})
    for value in (tree, plan):
        for made in copies(value):
            assert repr(made) == repr(value)
    assert plan == pickle.loads(pickle.dumps(plan))


DEPTH = 5_000


def test_a_tree_may_be_deep():
    """Nothing that is asked of a spec goes down by recursion."""
    spec = bottom = Child("c", body)
    for _ in range(DEPTH):
        spec = Supervisor("s", [spec])
    assert repr(spec).count("Supervisor(") == DEPTH
    assert sum(1 for _ in walk(spec)) == DEPTH + 1
    assert repr(bottom) in repr(spec)
    assert list(placed_twice(spec)) == []


def test_a_status_may_be_deep():
    """R33: A `Status` of any depth can be printed, compared and hashed."""

    def made(state):
        status = Status(path="c", kind="child", state=state, incarnation=1)
        for _ in range(DEPTH):
            status = Status(path="s", kind="supervisor", state="up", incarnation=1, children=(status,))
        return status

    status = made("up")
    assert status == made("up")
    assert hash(status) == hash(made("up"))
    assert status != made("down")
    assert status != status.children[0]
    assert status != 5
    assert repr(status).count("Status(") == DEPTH + 1


def test_two_statuses_differ_if_any_of_their_fields_differs():
    """R33: The order and the states of their children count too."""
    leaf = Status(path="a", kind="child", state="up", incarnation=1)
    given = {"path": "b", "kind": "pool", "state": "down", "incarnation": 2}
    for field in attrs.fields(Status):
        other = attrs.evolve(
            leaf, **{field.name: given.get(field.name, (leaf,) if field.name == "children" else 7)}
        )
        assert other != leaf, field.name
        assert hash(other) != hash(leaf), field.name
    one = attrs.evolve(leaf, children=(attrs.evolve(leaf, children=(leaf,)),))
    assert one != attrs.evolve(leaf, children=(leaf, leaf))


@pytest.mark.slow
def test_a_stack_of_deciders_may_be_deep():
    """R2: Many deciders can be put over one another."""
    decider = other = Decider({OSError: Stop})
    for _ in range(DEPTH):
        decider = attrs.evolve(Decider(), beneath=decider)
    assert decider.over(Decider({KeyError: Escalate})).directive(KeyError(), None) is Escalate
    assert decider.directive(OSError(), None) is other.directive(OSError(), None) is Stop
    assert repr(decider).count("Decider(") == DEPTH + 1


def test_what_contains_itself_is_printed():
    """With three dots."""
    args = []
    args.append(args)
    assert repr(Child("a", body, args=(args,))) == "Child('a', body, args=[[...]])"


class Odd:
    """A value that can be neither printed nor compared."""

    def __repr__(self):
        raise RuntimeError

    __eq__ = __hash__ = __bool__ = __repr__


def test_a_spec_with_odd_arguments_is_printed():
    """Whatever they do."""
    assert (
        repr(Child("a", body, args=(Odd(),)))
        == "Child('a', body, args=[<Odd whose repr raised RuntimeError>])"
    )
    assert repr(Fail(OSError(Odd()))) == "Fail(OSError(<Odd whose repr raised RuntimeError>))"


def test_a_text_or_number_of_ones_own_class_is_taken_as_a_plain_one():
    """What its class overrides cannot come up later."""

    class Text(str):
        __slots__ = ()
        __eq__ = __hash__ = Odd.__repr__

    class Number(float):
        __add__ = __radd__ = __ge__ = __lt__ = Odd.__repr__

    child = Child(Text("a"), body, restart=Text("transient"), drain=Number(2))
    kinds = {type(value) for value in (child.name, child.restart)}
    assert (child.name, child.restart, kinds, type(child.drain)) == ("a", "transient", {str}, float)
    assert dict(Decider({str(Text("x")): Stop}).table) == {"x": Stop}
    assert type(Rule(OSError, Text("net")).tag) is str


def test_a_partial_that_contains_itself_is_a_body_with_an_unknown_signature():
    """R17: The inspection of such a partial ends."""
    itself = partial(body)
    itself.__setstate__((itself, (), {}, {}))
    assert Child("a", itself).takes_task_status is False
