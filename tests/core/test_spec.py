"""Specs by themselves: what is refused, and the defaults."""

from __future__ import annotations

from functools import partial, wraps

import pytest

from supervise import Backoff, Child, ChildStopped, Decider, Limit, Mailbox, MailboxFull, Pool, Supervisor
from supervise._core.spec import placed_twice, walk


async def body(*_):
    """A body."""


a = Child("a", body)


def test_the_defaults():
    """R7, R14, R20, R29: as section 9 has them."""
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
    """R28: a spec is an address, so two that look alike are two."""
    assert Child("a", body) != Child("a", body)
    assert len({a, Child("a", body)}) == 2
    with pytest.raises(AttributeError):
        a.name = "b"


def test_a_body_says_itself_whether_it_takes_task_status():
    """R17: any Trio function, partials and callables included."""

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
    """R29: a number is the size."""
    assert Child("a", body, mailbox=5).mailbox == Mailbox(5)


def test_a_front_may_be_given_by_name_or_spec():
    """R34: both are the name in the end."""
    assert Supervisor("s", [a], front="a").front == Supervisor("s", [a], front=a).front == "a"


def test_walking_a_tree_goes_parents_first_in_start_order():
    """R12: every node with its path."""
    tree = Supervisor(
        "app", [a, Supervisor("s", [Child("b", body), Child("c", body)]), Pool("p", Child("m", body))]
    )
    assert [path for path, _ in walk(tree)] == ["app", "app/a", "app/s", "app/s/b", "app/s/c", "app/p"]


def test_one_spec_stands_at_one_place():
    """R28: for a spec is an address."""
    tree = Supervisor("app", [a, Supervisor("s", [a])])
    assert list(placed_twice(tree)) == ["one spec stands at two places: 'app/a' and 'app/s/a'; make two"]


def test_a_member_is_the_template_under_a_name_of_its_own():
    """R14, R26: with its own arguments and, unless it has one, the pool's member limit."""
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
    (lambda: Child("a", body, start_timeout=-1), ValueError, "child 'a': start_timeout must be >= 0, got -1"),
    (lambda: Child("a", body, limit=3), TypeError, "child 'a': limit must be a Limit or None, got 3"),
    (lambda: Child("a", body, backoff=3), TypeError, "child 'a': backoff must be a Backoff or None, got 3"),
    (lambda: Child("a", body, decider={}), TypeError, "child 'a': decider must be a Decider or None, got {}"),
    (lambda: Child("a", body, mailbox=0), ValueError, "a mailbox's size must be >= 1, got 0"),
    (lambda: Child("a", body, mailbox="x"), TypeError, "a mailbox's size must be an integer, got 'x'"),
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
    """R25: one clear error that names the thing, says what is allowed, and shows what came."""
    if kind is None:
        make()
        return
    with pytest.raises(kind) as raised:
        make()
    assert str(raised.value).startswith(message)


def test_deciders_are_part_of_a_spec():
    """R2: a leaf and a supervisor may each have one."""
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
    """R34: found by its name."""
    children = [Child("a", body), Child("b", body)]
    assert Supervisor("s", children, front="b").front_child is children[1]
    assert Supervisor("s", children).front_child is None
