"""Changing a running tree (R25, R26)."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from supervise import (
    IGNORE,
    Backoff,
    Child,
    Decider,
    Limit,
    Pool,
    Refused,
    StartFailed,
    Stop,
    Supervisor,
    current_child,
    errors,
)

from .scene import Boom, Other, Puppet, app, forever, grow, puppets, quiet


def refused(reason):
    return pytest.raises(Refused, check=lambda exc: exc.reason == reason)


# --- requests


@pytest.mark.parametrize("fails", [True, False])
def test_a_request_to_a_supervisor_that_does_not_come_up_is_refused(fails):
    """R25: This holds also if its `init` fails, or returns IGNORE, while the request waits."""
    expected = []

    def init():
        if expected and fails:
            raise Boom("init")
        return expected.pop() if expected else None

    inner = Supervisor("s", [Puppet("a").spec], init=init)

    async def start(tree):
        if fails:
            with pytest.raises(StartFailed):
                await tree[inner].start()
        else:
            await tree[inner].start()

    async def scene(tree, seen):
        await tree[inner].stop()
        expected.append(IGNORE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start, tree)
            while tree[inner].status().state != "starting":
                await trio.lowlevel.checkpoint()
            with trio.fail_after(10), refused("stopping"):
                await tree[inner].add(Puppet("b").spec)

    grow(app(inner), scene)


def test_added_children_go_last_and_are_lost_when_their_supervisor_restarts():
    """R25: As with OTP's start_child, an added child is at the end of the order, and is not in the spec."""
    a, b = puppets("ab")
    inner = Supervisor("s", [a.spec], limit=Limit(0))

    async def scene(tree, seen):
        ref = await tree[inner].add(b.spec)
        assert ref.path == "app/s/b"
        mark = len(seen)
        a.fail()
        await quiet()
        assert seen.order(since=mark) == "-s/a -s/b -s +s +s/a"
        assert await ref.ended() is None

    grow(app(inner), scene)


def test_a_child_that_does_not_start_is_not_added():
    """R25: `add` raises StartFailed from the cause, and the supervisor goes on."""
    boom = Boom("start")

    async def scene(tree, seen):
        with pytest.raises(StartFailed) as raised:
            await tree.root.add(Puppet("b", boom).spec)
        assert raised.value.__cause__ is boom
        assert len(tree.status().children) == 1
        assert tree.status().restarts == 0

    grow(app(Puppet("a")), scene)


def test_refusals_are_those_of_otp():
    """R25: The reasons are running, restarting, duplicate and not found; each is an exception with a reason."""
    a, b, c = Puppet("a"), Puppet("b"), Puppet("c", backoff=Backoff(initial=9, jitter=0))

    async def scene(tree, seen):
        await tree[b.spec].stop()
        c.fail()
        await quiet()
        with refused("running"):
            await tree[a.spec].start()
        with refused("running"):
            await tree[a.spec].remove()
        with refused("running"):
            await tree.root.add(Child("a", forever))
        with refused("duplicate"):
            await tree.root.add(Child("b", forever))
        with refused("duplicate"):
            await tree.root.add(Child("c", forever))
        with refused("restarting"):
            await tree[c.spec].remove()
        await tree[b.spec].remove()
        for request in (tree[b.spec].stop, tree[b.spec].restart, tree[b.spec].remove):
            with refused("not_found"):
                await request()
        with refused("not_found"):
            await tree[a.spec].add(Child("x", forever))
        with refused("not_found"):
            await tree.root.start()
        await tree[a.spec].stop()
        await tree[a.spec].stop()

    grow(app(a, b, c), scene)


def test_a_queued_retry_refuses_a_manual_restart():
    """R25: Between two tries without a backoff the child counts as restarting."""
    a = Puppet("a", 0, Boom("again"))

    async def ask(tree, results):
        try:
            await tree[a.spec].start()
        except Refused as exc:
            results.append(exc.reason)

    async def scene(tree, seen):
        results = []
        async with trio.open_nursery() as nursery:
            with tree._driver.held():
                a.fail()
                await quiet()
                nursery.start_soon(ask, tree, results)
                await quiet()
        assert results == ["restarting"]
        assert a.running == 1

    grow(app(a), scene)


@pytest.mark.parametrize(
    ("strategy", "order"),
    [("one_for_one", "-b +b"), ("rest_for_one", "-c -b +b +c"), ("one_for_all", "-c -b -a +a +b +c")],
)
def test_restart_stops_a_running_child_and_its_group_in_order_and_starts_them_again(strategy, order):
    """R25: It is one act: the group stops in reverse, and starts in order; nothing is charged."""
    children = puppets("abc")

    async def scene(tree, seen):
        mark = len(seen)
        await tree["app/b"].restart()
        assert seen.order(since=mark) == order
        assert tree["app/b"].status().state == "up"
        assert tree.status().restarts == 0

    grow(app(*children, strategy=strategy), scene)


def test_restart_works_in_every_state():
    """R25: A child that is down, condemned or backing off can be restarted by hand, and so can a whole supervisor."""
    a, b = Puppet("a", backoff=Backoff(initial=20, jitter=0)), Puppet("b")
    inner = app(Puppet("x"), name="inner")

    async def scene(tree, seen):
        await tree[b.spec].stop()
        await tree[b.spec].restart()
        b.fail(Other("condemn"))
        await quiet()
        assert tree[b.spec].status().state == "condemned"
        await tree[b.spec].restart()
        a.fail()
        await quiet()
        await tree[a.spec].restart()
        await tree[inner].restart()
        assert [child.state for child in tree.status().children] == ["up", "up", "up"]
        assert (a.lives, b.lives, tree[inner].status().incarnation) == (2, 3, 2)
        assert trio.current_time() == 0

    grow(app(a, b, inner, decider=Decider({Other: Stop})), scene)


def test_a_temporary_child_is_restarted_by_hand_all_the_same():
    """R7, R25: A temporary child leaves the tree when it ends, unless a caller asked for its restart."""
    a, b = Puppet("a", restart="temporary"), Puppet("b", restart="temporary")

    async def scene(tree, seen):
        await tree[a.spec].restart()
        assert [child.path for child in tree.status().children] == ["app/a"]
        assert a.lives == 2

    grow(app(a, b, strategy="one_for_all"), scene)


def test_a_restart_by_hand_whose_start_fails_is_reported_and_retried():
    """R25: The caller gets the failure, and the child that had run is started again as after any failure."""
    a = Puppet("a", 0, Boom("no"))

    async def scene(tree, seen):
        with pytest.raises(StartFailed):
            await tree[a.spec].restart()
        await quiet()
        assert (a.lives, tree[a.spec].status().state, tree.status().restarts) == (3, "up", 1)

    grow(app(a), scene)


def test_a_request_whose_caller_has_gone_is_withdrawn_unless_it_has_begun():
    """R25: Twenty clients that give up waiting for a busy pool leave one member behind, which was already starting."""

    async def slow(task_status):
        await trio.sleep(10)
        task_status.started()
        await trio.sleep_forever()

    pool = Pool("pool", Child("m", slow))
    added = []

    async def client(tree):
        with trio.move_on_after(1):
            added.append(await tree[pool].add())

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(client, tree)
        await trio.sleep(100)
        assert added == []
        assert [child.path for child in tree[pool].status().children] == ["app/pool/m-1"]

    grow(app(pool), scene)


def test_requests_that_were_withdrawn_do_not_pile_up_at_a_busy_supervisor():
    """R25, R31: Clients give up, one after the other, while a child does not end."""
    a, b = Puppet("a", stubborn=5_000), Puppet("b")

    async def scene(tree, seen):
        machine = tree._driver.forest.machines["app"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree["app/a"].stop)
            await quiet()
            nursery.start_soon(tree["app/b"].restart)
            for _ in range(1_000):
                with trio.move_on_after(1):
                    await tree["app/b"].restart()
            assert len(machine.inbox) < 100
        assert b.lives == 2

    grow(app(a, b), scene)


def test_a_manual_restart_that_fails_leaves_the_child_down():
    """R25: The caller gets the failure; nothing is judged, charged or retried."""
    a = Puppet("a", 0, Boom("no"))

    async def scene(tree, seen):
        await tree[a.spec].stop()
        with pytest.raises(StartFailed):
            await tree[a.spec].start()
        assert tree[a.spec].status().state == "down"
        assert tree.status().restarts == 0
        await tree[a.spec].start()

    grow(app(a), scene)


def test_requests_are_served_in_order_with_exits_also_during_a_backoff():
    """R25: No request and no exit waits for the backoff."""
    a, b = Puppet("a", backoff=Backoff(initial=20, jitter=0)), Puppet("b")

    async def scene(tree, seen):
        a.fail()
        await quiet()
        mark = len(seen)
        b.fail()
        await quiet()
        await tree[b.spec].stop()
        await tree.root.add(Child("c", forever))
        await tree[b.spec].start()
        assert seen.order(since=mark) == "-b +b -b +c +b"
        assert trio.current_time() == 0

    grow(app(a, b), scene)


@pytest.mark.parametrize("order", ["restart", "stop"])
@pytest.mark.parametrize("last", ["is ready", "is ignored"])
def test_a_supervisor_may_be_added_and_stopped_in_one_step(last, order):
    """R19, R25: Its supervisor comes up, serves the `add`, and is stopped by an order that waited above it.

    The added supervisor has ended before it has a task, so its `init` is not called. If the last child is ignored, the
    supervisor above has nothing else to stop, and ends in the same step.
    """
    lives = []
    called = []

    async def slow_once(task_status):
        lives.append(trio.current_time())
        if len(lives) == 2:
            await trio.sleep(2)
            if last == "is ignored":
                return IGNORE
        task_status.started()
        return await trio.sleep_forever()

    inner = Supervisor("s", [Child("a", slow_once)])
    new = Supervisor("new", [Child("b", forever)], init=lambda: called.append("init"), start_timeout=9)

    async def add(tree):
        with refused("stopping"):
            await tree[inner].add(new)

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            for request in (tree[inner].restart, partial(add, tree), getattr(tree[inner], order)):
                nursery.start_soon(request)
                await trio.sleep(0.5)
        assert seen.kinds("app/s/new") == "Starting Stopping Stopped"
        assert called == []
        assert tree[inner].status().state == ("up" if order == "restart" else "down")
        await trio.sleep(20)
        if order == "stop":
            await tree[inner].start()
        await tree[inner].add(new)
        assert called == ["init"]
        assert tree["app/s/new/b"].status().state == "up"

    grow(app(inner), scene)


@pytest.mark.parametrize("what", ["itself", "its supervisor", "the root"])
def test_a_child_that_would_wait_for_its_own_end_gets_an_error(what):
    """R25: A child that stops itself or an ancestor, and waits for that, would wait for ever."""
    results = []

    async def body():
        tree = current_child().tree
        path = {"itself": "app/s/a", "its supervisor": "app/s", "the root": "app"}[what]
        with pytest.raises(RuntimeError, match="would wait for ever"):
            await tree[path].stop()
        results.append(1)
        await trio.sleep_forever()

    grow(app(Supervisor("s", [Child("a", body)])))
    assert results == [1]


@pytest.mark.parametrize("request_", ["add", "stop", "restart", "remove"])
def test_a_child_that_asks_its_own_supervisor_before_it_is_ready_gets_an_error(request_):
    """R25: The supervisor waits for that start, so it could never answer."""
    results = []

    async def body(task_status):
        root = current_child().tree.root
        sibling = current_child().tree["app/b"]
        ask = {"add": lambda: root.add(Child("x", forever))}.get(request_, getattr(sibling, request_))
        with pytest.raises(RuntimeError, match="would wait for ever"):
            await ask()
        results.append(1)
        task_status.started()
        await trio.sleep_forever()

    grow(app(Child("a", body), Puppet("b")))
    assert results == [1]


def test_a_child_may_change_its_siblings():
    """R25: Once it is ready, a child may add, stop and restart siblings; children of other branches it may change before."""
    a = Puppet("a")

    async def body(task_status):
        tree = current_child().tree
        await tree["app/other"].add(Child("early", forever))
        task_status.started()
        await tree["app/s/a"].stop()
        await tree["app/s/a"].start()
        await tree["app/s"].add(Child("new", forever))
        await trio.sleep_forever()

    mine = Supervisor("s", [a.spec])
    driver = Child("driver", body)

    async def scene(tree, seen):
        await tree["app/s"].add(driver)
        await quiet()
        assert [child.path for child in tree["app/s"].status().children] == [
            "app/s/a",
            "app/s/driver",
            "app/s/new",
        ]
        assert tree["app/other/early"].status().state == "up"

    grow(app(mine, Supervisor("other", [])), scene)
    assert a.lives == 2


def test_a_caller_that_is_cancelled_waits_no_longer():
    """R25: The request is carried out all the same."""
    slow = Puppet("slow", stubborn=10)

    async def scene(tree, seen):
        with trio.move_on_after(1):
            await tree[slow.spec].stop()
        assert trio.current_time() == 1
        await trio.sleep(20)
        assert tree[slow.spec].status().state == "down"

    grow(app(slow), scene)


def test_stopping_the_root_ends_the_tree():
    """R25: The block goes on, and every later request is refused."""
    a = Puppet("a")

    async def scene(tree, seen):
        await tree.root.stop()
        assert (a.running, tree.status().state) == (0, "down")
        with refused("stopping"):
            await tree.root.add(Child("x", forever))

    grow(app(a), scene)


def test_nonsense_is_refused_at_once():
    """R25: A value that is no spec, a spec that has another place already, and one that this supervisor cannot hold are refused."""
    a = Puppet("a")
    inner = Supervisor("s", [a.spec])

    async def scene(tree, seen):
        with pytest.raises(TypeError, match="takes one Child, Supervisor or Pool, got"):
            await tree.root.add(5)
        with pytest.raises(ValueError, match="one spec stands at two places: 'app/s/a' and 'app/a'"):
            await tree.root.add(a.spec)
        with pytest.raises(ValueError, match="significant needs auto_shutdown"):
            await tree.root.add(Child("x", forever, restart="transient", significant=True))
        await tree["app/s/a"].stop()
        await tree["app/s/a"].remove()
        await tree["app/s"].add(a.spec)

    grow(app(inner), scene)


# --- pools


def test_a_pool_has_members_of_one_template():
    """R26: `add(*args)` starts a member with these arguments, under a name of its own or the one given."""
    results = []

    async def member(*args):
        results.append((current_child().path, args))
        await trio.sleep_forever()

    pool = Pool("pool", Child("m", member, args=("always",)))

    async def scene(tree, seen):
        first = await tree[pool].add(1)
        named = await tree[pool].add(2, 3, name="special")
        with refused("running"):
            await tree[pool].add(name="special")
        await first.stop()
        assert [child.path for child in tree[pool].status().children] == [named.path]
        assert (await tree[pool].add()).path == "app/pool/m-2"

    grow(app(pool), scene)
    assert results == [
        ("app/pool/m-1", ("always", 1)),
        ("app/pool/special", ("always", 2, 3)),
        ("app/pool/m-2", ("always",)),
    ]


def test_a_pool_gives_no_name_that_a_member_has_already():
    """R26: A caller may give a member a name that the pool would have given next; the next add is not refused for it."""
    pool = Pool("pool", Child("m", forever))

    async def scene(tree, seen):
        await tree[pool].add(name="m-1")
        await tree[pool].add(name="m-2")
        assert (await tree[pool].add()).path == "app/pool/m-3"

    grow(app(pool), scene)


@pytest.mark.parametrize("name", ["", 0, False])
def test_a_pool_takes_no_name_that_is_empty(name):
    """R26: Only None has the pool generate one."""

    async def scene(tree, seen):
        with pytest.raises((TypeError, ValueError), match="name must be"):
            await tree.root.add(name=name)
        assert (await tree.root.add()).path == "app/m-1"

    grow(Pool("app", Child("m", forever)), scene)


class Odd(str):
    """A string whose methods raise."""

    __slots__ = ()

    def __bool__(self):
        raise Boom

    __str__ = __format__ = __len__ = startswith = __bool__


def test_a_name_of_another_class_than_str_hurts_no_tree():
    """R24, R26: Its own methods are not called."""

    async def scene(tree, seen):
        ref = await tree.root.add(name=Odd("m-1"))
        assert type(ref.path) is str
        assert ref.path == "app/m-1"

    grow(Pool("app", Child("m", forever)), scene)


@pytest.mark.parametrize("same", [True, False])
def test_a_child_is_added_in_the_step_in_which_another_of_its_name_leaves(same):
    """R7, R25: The request waits behind the failure of the one that leaves; its task has still to end then."""

    busy = Puppet("busy", 1)

    async def scene(tree, seen):
        await tree.root.add(x.spec)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.root.add, busy.spec)
            await quiet()
            x.fail()
            await quiet()
            with trio.move_on_after(10) as scope:
                await tree.root.add(spec)
            if scope.cancelled_caught:
                # The tree would wait for ever for the end of this child, so it must not stop in order.
                tree._driver._break(AssertionError("the child has not started"))
        assert tree["app/x"].status().state == "up"
        assert seen.order() == "+x +busy -x +x"

    x = Puppet("x", restart="temporary")
    spec = x.spec if same else Puppet("x").spec
    grow(app(), scene)


def test_a_pool_may_have_a_maximum():
    """R26: One member more is refused, until one has left."""
    pool = Pool("pool", Child("m", forever), maximum=2)

    async def scene(tree, seen):
        first, _ = await tree[pool].add(), await tree[pool].add()
        with refused("full"):
            await tree[pool].add()
        await first.stop()
        await tree[pool].add()

    grow(app(pool), scene)


def test_members_are_restarted_one_for_one_and_leave_when_they_are_done():
    """R26: A failed member starts again, with its own arguments; one that is done leaves."""
    lives = []

    async def member(number):
        lives.append(number)
        await trio.sleep(1)
        if lives.count(number) == 1:
            raise Boom

    pool = Pool("pool", Child("m", member, restart="transient"))

    async def scene(tree, seen):
        for number in range(2):
            await tree[pool].add(number)
        await trio.sleep(3)
        assert sorted(lives) == [0, 0, 1, 1]
        assert tree[pool].status().children == ()

    grow(app(pool), scene)


def test_a_pool_is_empty_after_a_restart():
    """R26: Its members are gone, and a task that waits for one of them gets an error."""
    a, pool = Puppet("a"), Pool("pool", Child("m", forever, mailbox=2))

    async def scene(tree, seen):
        member = await tree[pool].add()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lost_call, member)
            await quiet()
            a.fail()
        assert tree[pool].status().children == ()
        assert await member.ended() is None
        assert (await tree[pool].add()).path == "app/pool/m-2"

    async def lost_call(ref):
        with pytest.raises(errors.ChildStopped):
            await ref.call(1)

    grow(app(a, pool, strategy="one_for_all"), scene)


def test_pools_have_no_manual_restart_or_remove():
    """R26: Members leave when they end, so there is nothing to restart."""
    pool = Pool("pool", Child("m", forever))

    async def scene(tree, seen):
        member = await tree[pool].add()
        with refused("pool"):
            await member.start()
        with refused("pool"):
            await member.remove()

    grow(app(pool), scene)
