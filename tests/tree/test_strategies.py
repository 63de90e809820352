"""Order, strategies, limits and backoff (R12–R15, R18)."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import (
    Backoff,
    Child,
    Decider,
    Limit,
    Pool,
    Restart,
    Stop,
    Supervisor,
    TreeFailed,
    errors,
    events,
)

from .scene import Boom, Other, Puppet, Seen, app, forever, grow, puppets, quiet

# --- order


def test_start_order_is_declaration_order_and_stop_order_its_reverse():
    """R12: Children start as declared and stop in reverse, nested supervisors in their place."""
    a, b, c, d = puppets("abcd")
    seen = grow(app(a, Supervisor("s", [b.spec, c.spec]), d))
    assert seen.order() == "+a +s +s/b +s/c +d -d -s/c -s/b -s -a"


def test_each_child_is_ready_before_the_next_is_started():
    """R12: A slow start delays the children after it."""
    a, b = Puppet("a", 7), Puppet("b")
    seen = grow(app(a, b))
    assert seen.at(events.Starting, "app/b") == seen.at(events.Ready, "app/a") == [7]


def test_each_child_has_really_ended_before_the_next_is_stopped():
    """R12: A child that is slow to end delays the stop of those before it."""
    a, b = Puppet("a"), Puppet("b", stubborn=3)
    seen = grow(app(a, b))
    assert seen.at(events.Stopping, "app/a") == seen.at(events.Stopped, "app/b") == [3]


def test_only_the_members_of_a_pool_stop_concurrently():
    """R12: Ten members that take a second each take one second in all."""

    async def member(_):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)

    pool = Pool("pool", Child("m", member))

    async def scene(tree, seen):
        for number in range(10):
            await tree[pool].add(number)

    seen = grow(app(pool), scene)
    assert seen.at(events.Stopping, "app/pool/m-1") == [0]
    assert seen.at(events.Stopped, "app/pool") == [1]


# --- strategies

CASES = [
    ("one_for_one", "-b +b"),
    ("one_for_all", "-b -d -c -a +a +b +c +d"),
    ("rest_for_one", "-b -d -c +b +c +d"),
]


@pytest.mark.parametrize(("strategy", "order"), CASES)
def test_the_strategy_selects_the_children_that_restart_together(strategy, order):
    """R13: one_for_one restarts that child, one_for_all all, rest_for_one that child and those after it; stop in reverse, start in order."""
    a, b, c, d = puppets("abcd")

    async def scene(tree, seen):
        mark = len(seen)
        b.fail()
        await quiet()
        assert seen.order(since=mark) == order
        assert tree.status().restarts == 1

    grow(app(a, b, c, d, strategy=strategy), scene)


def test_temporary_siblings_that_a_group_restart_stops_leave_the_tree():
    """R13: A group restart stops a temporary sibling, and does not start it again."""
    a, b = Puppet("a"), Puppet("b", restart="temporary")

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert [child.path for child in tree.status().children] == ["app/a"]

    grow(app(a, b, strategy="one_for_all"), scene)
    assert (a.lives, b.lives) == (2, 1)


def test_rest_for_one_retries_at_the_member_that_failed_to_start():
    """R13: Under rest_for_one the retry begins at that member, and those before it stay up."""
    a, b, c = Puppet("a"), Puppet("b", 0, Boom("again")), Puppet("c")

    async def scene(tree, seen):
        mark = len(seen)
        a.fail()
        await quiet()
        assert seen.order(since=mark) == "-a -c -b +a +b -b +b +c"
        assert tree.status().restarts == 2

    grow(app(a, b, c, strategy="rest_for_one"), scene)


def test_one_for_all_stops_the_children_that_had_just_started_and_starts_all_again():
    """R13: Under one_for_all the children that had just started stop, in reverse, when the retry runs, and all start again."""
    a, b, c = Puppet("a"), Puppet("b", 0, Boom("again")), Puppet("c")

    async def scene(tree, seen):
        mark = len(seen)
        c.fail()
        await quiet()
        assert seen.order(since=mark) == "-c -b -a +a +b -b -a +a +b +c"

    grow(app(a, b, c, strategy="one_for_all"), scene)


def test_with_a_backoff_one_for_all_stops_at_once():
    """R13: With a backoff the children that had just started stop at once, not when the retry runs."""
    a = Puppet("a")
    b = Puppet("b", 0, Boom("again"), backoff=Backoff(initial=4, jitter=0, immediate=0))

    async def scene(tree, seen):
        mark = len(seen)
        a.fail()
        await trio.sleep(2)
        assert seen.order(since=mark) == "-a -b +a +b -b -a"
        await trio.sleep(3)
        assert seen.order(since=mark) == "-a -b +a +b -b -a +a +b"

    grow(app(a, b, strategy="one_for_all"), scene)


def test_a_retry_waits_its_turn_behind_waiting_requests():
    """R13: Requests that came while the restart was in progress are served before the retry."""
    a = Puppet("a", 0, Boom("again"))

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            with tree._driver.held():
                a.fail()
                await quiet()
                nursery.start_soon(tree.root.add, Child("new", forever))
                await quiet()
        assert seen.order() == "+a -a +a -a +new +a"

    grow(app(a), scene)


def test_a_retry_is_void_if_the_child_came_up_meanwhile():
    """R13: A group restart that brings the child up voids the retry that was queued for it."""
    a = Puppet("a")
    b = Puppet("b", 0, Boom("again"))

    async def scene(tree, seen):
        with tree._driver.held():
            b.fail()
            await quiet()
            a.fail()
            await quiet()
        await quiet()
        assert (a.lives, b.lives) == (2, 3)

    grow(app(a, b, strategy="rest_for_one"), scene)


def test_a_retrys_verdict_stop_condemns_that_member_and_the_group_goes_on():
    """R13: A member whose start in the restart is judged Stop is condemned, and the next one starts."""
    a, b, c = Puppet("a"), Puppet("b", 0, Other("no")), Puppet("c")

    async def scene(tree, seen):
        mark = len(seen)
        a.fail()
        await quiet()
        assert seen.order(since=mark) == "-a -c -b +a +b -b +c"
        assert [child.state for child in tree.status().children] == ["up", "condemned", "up"]

    grow(app(a, b, c, strategy="rest_for_one", decider=Decider({Other: Stop})), scene)


def test_two_children_that_fail_together_are_restarted_once():
    """R13: A failure that its group's restart already covers is absorbed: one restart, one charge."""
    a, b, c = puppets("abc")

    async def scene(tree, seen):
        with tree._driver.held():
            a.fail()
            await quiet()
            c.fail()
            await quiet()
        await quiet()
        assert (a.lives, b.lives, c.lives) == (2, 2, 2)
        assert tree.status().restarts == 1

    seen = grow(app(a, b, c, strategy="one_for_all"), scene)
    assert seen.the(events.Decided, "app/c").because == "absorbed"


@given(st.integers(0, 2**32), st.sampled_from(CASES), st.permutations("abcd"))
def test_a_group_restarts_in_the_same_order_under_every_schedule(seed, case, order):
    """R12, R13: Neither the schedule nor a simultaneous failure changes the start order or the stop order."""
    children = {name: Puppet(name) for name in "abcd"}

    async def scene(tree, seen):
        with tree._driver.held():
            for name in order[:2]:
                children[name].fail()
                await quiet()
        await quiet()
        assert all(child.running == 1 for child in children.values())

    seen = grow(app(*children.values(), strategy=case[0], limit=None), scene, seed=seed)
    running = []
    for step in seen.order().split():
        if step[0] == "+":
            assert not running or case[0] == "one_for_one" or running[-1] < step[1]
            running.append(step[1])
        else:
            running.remove(step[1])


# --- limits


def test_exactly_the_limit_is_allowed_and_the_next_restart_passes_it():
    """R14: Three restarts within five seconds are allowed; the fourth failure fails the supervisor."""
    a = Puppet("a")
    seen = Seen()

    async def scene(tree, seen):
        for _ in range(4):
            a.fail()
        await trio.sleep_forever()

    with pytest.raises(TreeFailed) as raised:
        grow(app(a, limit=Limit(3, within=5)), scene, seen=seen)
    assert a.lives == 4
    exceeded = raised.value.__cause__
    assert isinstance(exceeded, errors.LimitExceeded)
    assert isinstance(exceeded.__cause__, Boom)
    assert seen.of(events.Decided, "app/a")[-1].limit == "3 within 5 s"
    assert seen.the(events.Failed, "app").exc is exceeded


def test_a_restart_exactly_within_ago_no_longer_counts():
    """R14: The window slides on Trio's clock, and its far end is outside."""
    a = Puppet("a")

    async def scene(tree, seen):
        for _ in range(6):
            a.fail()
            await trio.sleep(5)
        assert a.lives == 7
        assert tree.status().restarts == 0

    grow(app(a, limit=Limit(1, within=5)), scene)


def test_one_decision_is_one_charge_whatever_the_size_of_the_group():
    """R14: A group restart charges once, and every failed retry once more."""
    children = [Puppet(name) for name in "abcdefgh"]
    children[3].script.extend([0, Boom("retry"), Boom("retry")])

    async def scene(tree, seen):
        children[5].fail()
        await quiet()
        assert tree.status().restarts == 3

    grow(app(*children, strategy="one_for_all", limit=Limit(3, within=5)), scene)


def test_a_failed_retry_too_many_passes_the_limit():
    """R14: Retries alone can pass the limit, and then the failure goes up."""
    a = Puppet("a", 0, *[Boom("no")] * 9)

    async def scene(tree, seen):
        a.fail()
        await trio.sleep_forever()

    with pytest.raises(TreeFailed):
        grow(app(a, limit=Limit(3, within=5)), scene)
    assert a.lives == 4


def test_manual_restarts_are_not_charged():
    """R14: Starting a child by hand costs nothing."""
    a = Puppet("a")

    async def scene(tree, seen):
        for _ in range(5):
            await tree[a.spec].stop()
            await tree[a.spec].start()
        assert tree.status().restarts == 0

    grow(app(a, limit=Limit(0)), scene)


def test_of_ready_time_leaves_out_the_seconds_of_a_restart():
    """R14: With `of_ready_time` slow starts cannot hide a crash loop; without it they do."""

    def crash_loop(**options):
        a = Puppet("a", *[0, 60, 60, 60, 60])

        async def scene(tree, seen):
            for _ in range(4):
                a.fail()
            await trio.sleep(1000)

        seen = Seen()
        try:
            grow(app(a, limit=Limit(3, within=60, **options)), scene, seen=seen)
        finally:
            lives.append(a.lives)

    lives = []
    crash_loop()
    with pytest.raises(TreeFailed):
        crash_loop(of_ready_time=True)
    assert lives == [5, 4]


def test_of_ready_time_leaves_out_a_backoff_too():
    """R14: Neither a start nor a backoff after a failure counts as ready time."""
    a = Puppet("a", backoff=Backoff(initial=100, factor=1, maximum=100, jitter=0))

    async def scene(tree, seen):
        for _ in range(3):
            a.fail()
        await trio.sleep(1000)

    with pytest.raises(TreeFailed):
        grow(app(a, limit=Limit(2, within=50, of_ready_time=True)), scene)


def test_a_passed_limit_goes_up_as_a_failure_tagged_limit():
    """R14: Under `escalate` it is judged by the parent; unless a table names it, that is Restart."""
    a, b = puppets("ab")
    inner = Supervisor("s", [a.spec], limit=Limit(0), decider=Decider({Boom: Restart}))

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert (a.lives, b.lives) == (2, 1)

    seen = grow(app(inner, b, decider=Decider(default=Stop)), scene)
    decided = seen.the(events.Decided, "app/s")
    assert (decided.tag, decided.directive, decided.by) == ("limit", Restart, "app")


def test_on_limit_shutdown_ends_normally_as_in_otp():
    """R14: Under `shutdown` the supervisor stops its children and ends normally; its restart type decides whether it is restarted."""
    spec = {}
    for restart in ("permanent", "transient", "temporary"):
        a = Puppet("a")
        spec[restart] = (
            a,
            Supervisor(restart, [a.spec], limit=Limit(0), on_limit="shutdown", restart=restart),
        )

    async def scene(tree, seen):
        for a, _ in spec.values():
            a.fail()
        await quiet()
        states = {child.path: child.state for child in tree.status().children}
        assert states == {"app/permanent": "up", "app/transient": "down"}

    grow(app(*(s for _, s in spec.values())), scene)


def test_a_leafs_own_limit_is_judged_by_its_supervisor_by_default_stop():
    """R14: A leaf's own limit, passed, is a failure tagged `limit`, by default Stop; both limits are charged."""
    a, b = Puppet("a", limit=Limit(1, within=5)), Puppet("b")

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert (tree.status().restarts, tree[a.spec].status().restarts) == (1, 1)
        a.fail()
        await quiet()
        assert [child.state for child in tree.status().children] == ["condemned", "up"]

    decided = grow(app(a, b), scene).of(events.Decided)[-1]
    assert (decided.directive, decided.because, decided.tag) == (Stop, "limit", "limit")
    assert isinstance(decided.exc, errors.LimitExceeded)
    assert isinstance(decided.exc.__cause__, Boom)


def test_a_table_may_name_a_leafs_limit():
    """R14: A table that names `limit` decides it."""
    a = Puppet("a", limit=Limit(0))

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert a.lives == 2

    grow(app(a, decider=Decider({"limit": Restart})), scene)


def test_one_bad_member_cannot_take_the_pool_down():
    """R14: Pool members have a limit each; the one that passes it leaves, the others live."""

    async def member(crash):
        await trio.sleep(0.1)
        if crash:
            raise Boom
        await forever()

    pool = Pool("pool", Child("m", member))

    async def scene(tree, seen):
        good, bad = await tree[pool].add(False), await tree[pool].add(True)
        await trio.sleep(3)
        assert [child.path for child in tree[pool].status().children] == [good.path]
        assert isinstance(await bad.ended(), errors.LimitExceeded)

    seen = grow(app(pool), scene)
    assert len(seen.of(events.Starting, "app/pool/m-2")) == 4


@given(
    st.integers(0, 4),
    st.integers(1, 5),
    st.lists(st.integers(0, 4), max_size=20),
)
def test_the_window_agrees_with_its_definition(restarts, within, gaps):
    """R14: The n-th restart is one too many exactly if `restarts` others were granted within the last `within` seconds."""
    from supervise._core.limit import Window

    window, granted, now = Window(Limit(restarts, within=within)), [], 0.0
    for gap in gaps:
        now += gap
        recent = [at for at in granted if now - at < within]
        assert window.count(now) == len(recent)
        assert window.charge(now) == (len(recent) < restarts)
        if len(recent) < restarts:
            granted.append(now)


# --- backoff


def test_a_backoff_grows_by_its_factor_up_to_its_maximum():
    """R15: `initial * factor**n`, capped; it begins anew after a quiet time."""
    a = Puppet("a", backoff=Backoff(initial=1, factor=2, maximum=5, jitter=0, reset_after=60))

    async def scene(tree, seen):
        for _ in range(5):
            a.fail()
            await trio.sleep(10)
        await trio.sleep(60)
        a.fail()
        await trio.sleep(10)

    seen = grow(app(a, limit=None), scene)
    assert [backing.delay for backing in seen.of(events.BackingOff)] == [1, 2, 4, 5, 5, 1]
    first = seen.of(events.BackingOff)[0]
    assert first.until == first.at + 1
    assert seen.of(events.Starting, "app/a")[1].at == first.until


def test_the_first_restarts_may_be_immediate():
    """R15: A backoff may let some restarts be at once before the series begins."""
    a = Puppet("a", backoff=Backoff(initial=1, jitter=0, immediate=2))

    async def scene(tree, seen):
        for _ in range(3):
            a.fail()
            await trio.sleep(3)

    assert [backing.delay for backing in grow(app(a, limit=None), scene).of(events.BackingOff)] == [1]


def test_jitter_comes_in_as_an_input():
    """R15: The random number is the machine's input, so a seed replays it, and it stays within its share."""

    def delays(seed):
        a = Puppet("a", backoff=Backoff(initial=10, factor=1, maximum=10, jitter=0.2))

        async def scene(tree, seen):
            for _ in range(5):
                a.fail()
                await trio.sleep(15)

        return [backing.delay for backing in grow(app(a, limit=None), scene, seed=seed).of(events.BackingOff)]

    assert delays(1) == delays(1) != delays(2)
    assert all(8 <= delay <= 12 for delay in delays(1))
    assert len(set(delays(1))) == 5


def test_while_a_child_backs_off_all_other_items_are_served():
    """R15: Failures of siblings, requests and stops do not wait for a backoff."""
    a, b = Puppet("a", backoff=Backoff(initial=100, maximum=100, jitter=0)), Puppet("b")

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert tree[a.spec].status().state == "restarting"
        assert tree[a.spec].status().due == trio.current_time() + 100
        b.fail()
        await quiet()
        assert b.lives == 2
        await tree.root.add(Child("c", forever))

    seen = grow(app(a, b), scene)
    assert seen.at(events.Stopped, "app") == [0]


def test_a_manual_restart_cuts_a_backoff_short():
    """R15: A manual restart is served at once, and the retry is void then."""
    a = Puppet("a", backoff=Backoff(initial=100, maximum=100, jitter=0))

    async def scene(tree, seen):
        a.fail()
        await trio.sleep(1)
        await tree[a.spec].start()
        assert a.lives == 2
        await trio.sleep(500)
        assert a.lives == 2

    grow(app(a), scene)


def test_a_group_stops_first_and_then_waits():
    """R15: With a backoff the whole group stops before the wait, and starts after it."""
    a, b = Puppet("a", backoff=Backoff(initial=10, jitter=0)), Puppet("b")

    async def scene(tree, seen):
        mark = len(seen)
        a.fail()
        await trio.sleep(5)
        assert seen.order(since=mark) == "-a -b"
        await trio.sleep(6)
        assert seen.order(since=mark) == "-a -b +a +b"

    grow(app(a, b, strategy="one_for_all"), scene)


def test_an_earlier_siblings_failure_widens_the_waiting_group():
    """R15: The wait is then the longer of the two, and the first one's retry is void."""
    a, b = Puppet("a"), Puppet("b", backoff=Backoff(initial=10, jitter=0))

    async def scene(tree, seen):
        mark = len(seen)
        b.fail()
        await trio.sleep(4)
        a.fail()
        await trio.sleep(5.5)
        assert seen.order(since=mark) == "-b -a"
        await trio.sleep(1)
        assert seen.order(since=mark) == "-b -a +a +b"
        await trio.sleep(50)
        assert (a.lives, b.lives) == (2, 2)

    grow(app(a, b, strategy="rest_for_one"), scene)


def test_a_stop_by_hand_during_a_backoff_ends_it():
    """R15, R25: The child stays down for good, and is not started when the backoff would have been over."""
    a = Puppet("a", backoff=Backoff(initial=10, jitter=0))

    async def scene(tree, seen):
        a.fail()
        await quiet()
        await tree[a.spec].stop()
        assert isinstance(await tree[a.spec].ended(), Boom | None)
        await trio.sleep(100)
        assert a.lives == 1

    grow(app(a), scene)


# --- automatic shutdown


@pytest.mark.parametrize("mode", ["any_significant", "all_significant"])
def test_a_supervisor_ends_with_its_significant_children(mode):
    """R18: Under `any_significant` it ends normally with the first of them, under `all_significant` with the last."""
    a = Puppet("a", restart="transient", significant=True)
    b = Puppet("b", restart="temporary", significant=True)
    c = Puppet("c")
    inner = Supervisor("s", [a.spec, b.spec, c.spec], auto_shutdown=mode, restart="transient")

    async def scene(tree, seen):
        b.finish()
        await quiet()
        assert (tree[inner].status().state == "up") is (mode == "all_significant")
        a.finish()
        await quiet()
        assert tree[inner].status().state == "down"

    seen = grow(app(inner), scene)
    assert seen.of(events.Returned, "app/s")
    assert seen.of(events.Decided) == []


@pytest.mark.parametrize("mode", ["any_significant", "all_significant"])
def test_a_condemned_child_counts_as_ended_though_the_next_of_its_group_fails_to_start(mode):
    """R10, R13, R18: That start is judged and retried, and the significant child has ended all the same."""
    a = Puppet("a", 0, Other("a"), restart="transient", significant=True, decider=Decider({Other: Stop}))
    b = Puppet("b", 0, Boom("b"))
    inner = Supervisor(
        "s", [a.spec, b.spec], strategy="rest_for_one", auto_shutdown=mode, restart="transient"
    )

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert tree[inner].status().state == "down"

    grow(app(inner), scene)


def test_a_condemned_child_has_ended_for_auto_shutdown():
    """R10, R18: A verdict Stop on a significant child ends its supervisor."""
    a = Puppet("a", restart="transient", significant=True)
    inner = Supervisor(
        "s", [a.spec], auto_shutdown="any_significant", restart="transient", decider=Decider({Boom: Stop})
    )

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert tree[inner].status().state == "down"

    grow(app(inner), scene)


def test_a_child_stopped_by_hand_does_not_shut_its_supervisor_down():
    """R18: As in OTP, a significant child that is terminated by hand does not end its supervisor."""
    a = Puppet("a", restart="transient", significant=True)
    inner = Supervisor("s", [a.spec], auto_shutdown="any_significant", restart="transient")

    async def scene(tree, seen):
        await tree[inner.children[0]].stop()
        await quiet()
        assert tree[inner].status().state == "up"

    grow(app(inner), scene)


def test_a_root_that_shuts_down_ends_normally():
    """R18: Nothing is raised, and the block goes on."""
    a, b = Puppet("a", restart="transient", significant=True), Puppet("b")

    async def scene(tree, seen):
        a.finish()
        assert await tree.root.ended() is None
        assert seen.order() == "+a +b -a -b"

    grow(app(a, b, auto_shutdown="any_significant"), scene)
