"""Failure → tag → directive (R1–R7), on running trees."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from supervise import (
    Child,
    Decider,
    Escalate,
    Limit,
    Restart,
    Resume,
    Rule,
    Stop,
    Supervisor,
    TreeFailed,
    current_child,
    errors,
    events,
    open_tree,
)
from supervise.testing import assert_lifecycle, run_virtual

from .scene import Boom, Kit, Other, Puppet, Seen, app, forever, grow, nothing, puppets, quiet


def verdict(exc, *, child=None, **options):
    """What a supervisor with these options decides about a failure of its only child."""
    a = Puppet("a", **(child or {}))

    async def scene(tree, seen):
        a.fail(exc)
        await quiet()

    try:
        seen = grow(app(a, **options), scene, seen=(seen := Seen()))
    except TreeFailed:
        pass
    return seen.the(events.Decided)


class Tagged(Exception):
    tag = "db.gone.for.good"


def test_the_tag_that_an_exception_carries_comes_before_any_rule():
    """R1: The tag is the one that the exception carries itself, else that of the first matching rule."""
    decider = Decider({"db": Stop, "rule": Restart}, rules=[Rule(Exception, "rule")])
    carried = verdict(Tagged(), decider=decider)
    assert (carried.tag, carried.directive) == ("db.gone.for.good", Stop)
    ruled = verdict(Boom(), decider=decider)
    assert (ruled.tag, ruled.directive) == ("rule", Restart)


def test_a_childs_decider_is_asked_before_its_supervisors_and_that_before_the_parents():
    """R2: A leaf's own decider comes first, then its supervisor's, then that one's parent's; at the root the verdict is Restart."""
    tables = {
        "own": Decider({Boom: Stop}),
        "near": Decider({Boom: Restart, Other: Stop}),
        "far": Decider({Other: Restart, KeyError: Stop}),
    }
    leaf = Puppet("a", decider=tables["own"])
    tree_spec = app(Supervisor("s", [leaf.spec], decider=tables["near"]), decider=tables["far"])

    async def scene(tree, seen):
        for exc in (ValueError(), KeyError()):
            leaf.fail(exc)
            await quiet()
            await tree["app/s/a"].start() if isinstance(exc, KeyError) else None
        for exc in (Other(), Boom()):
            leaf.fail(exc)
            await quiet()
            await tree["app/s/a"].start()

    seen = grow(tree_spec, scene)
    assert [d.directive for d in seen.of(events.Decided)] == [Restart, Stop, Stop, Stop]
    assert {d.by for d in seen.of(events.Decided)} == {"app/s"}


def test_a_tables_default_hides_the_deciders_beneath():
    """R2: The table's default answers before the next decider is asked."""
    assert verdict(Boom(), decider=Decider({Boom: Stop})).directive is Stop
    own = {"decider": Decider(default=Restart)}
    assert verdict(Boom(), child=own, decider=Decider({Boom: Stop})).directive is Restart


def test_the_most_severe_member_of_a_group_decides():
    """R3: A group is flattened, each member is decided, and the most severe directive wins."""
    decider = Decider({Boom: Restart, Other: Stop})
    group = ExceptionGroup("g", [Boom(), ExceptionGroup("inner", [Other(), Boom()])])
    assert verdict(group, decider=decider).directive is Stop


def test_cancelled_members_of_a_group_do_not_count():
    """R3: `Cancelled` is dropped from a group, and what is left is decided."""

    async def body():
        caught = await a_cancelled()
        raise BaseExceptionGroup("g", [Boom(), caught])

    async def scene(tree, seen):
        await quiet()

    seen = grow(app(Child("a", body), decider=Decider({Boom: Stop})), scene)
    failed = seen.the(events.Failed)
    assert [type(exc) for exc in failed.exc.exceptions] == [Boom]
    assert seen.the(events.Decided).directive is Stop


def test_a_group_is_matched_whole_only_by_a_group_class():
    """R3: An entry for `Exception` never takes a group whole; one that names a group class does."""
    group = ExceptionGroup("g", [Boom()])
    assert verdict(group, decider=Decider({Exception: Restart, Boom: Stop})).directive is Stop
    assert verdict(group, decider=Decider({ExceptionGroup: Restart, Boom: Stop})).directive is Restart
    rules = [Rule(Exception, "any")]
    assert verdict(group, decider=Decider({"any": Restart, Boom: Stop}, rules=rules)).tag == "any"
    rules = [Rule(Exception, "any", when=lambda exc: isinstance(exc, ExceptionGroup))]
    assert verdict(group, decider=Decider({"any": Restart, Boom: Stop}, rules=rules)).directive is Stop


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit])
def test_a_base_exception_stops_the_tree_in_order_and_leaves_bare(fatal):
    """R4: A KeyboardInterrupt or SystemExit is never judged; the tree stops in order, and the exception leaves unwrapped."""
    a, b, c = puppets("abc")
    seen, it = Seen(), fatal("now")

    async def scene(tree, seen):
        b.fail(it)
        await trio.sleep_forever()

    spec = app(Supervisor("s", [a.spec, b.spec, c.spec], decider=Decider(default=Restart)))
    with pytest.raises(fatal) as raised:
        grow(spec, scene, seen=seen)
    assert raised.value is it
    assert seen.order() == "+s +s/a +s/b +s/c -s/c -s/b -s/a -s"
    decided = seen.the(events.Decided)
    assert (decided.directive, decided.because) == (None, "not an Exception")


def test_a_group_with_a_keyboard_interrupt_is_not_decided_either():
    """R4: A base exception group is no `Exception`: the tree stops and it leaves unchanged."""
    a = Puppet("a")
    group = BaseExceptionGroup("g", [Boom(), KeyboardInterrupt()])

    async def scene(tree, seen):
        a.fail(group)
        await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as raised:
        grow(app(a), scene)
    assert raised.value is group


def test_a_keyboard_interrupt_during_a_start_leaves_bare_too():
    """R4: An interrupt in a child that is starting leaves unwrapped, like any other."""
    with pytest.raises(KeyboardInterrupt):
        grow(app(Puppet("a"), Puppet("b", KeyboardInterrupt())))


def test_a_closed_coroutine_leaves_at_once():
    """R4: A GeneratorExit may not await, so it leaves a child's code at once."""
    from supervise._trio.leaf import Leaf

    seen = []

    async def body(*_):
        try:
            await trio.sleep_forever()
        except GeneratorExit:
            seen.append("closed")
            raise

    async def close(tree, path):
        leaf = Leaf(tree._driver, tree._driver.forest.machines["app"], tree._driver.forest.find(path))
        leaf.ready = True
        coroutine = leaf.run()
        coroutine.send(None)
        coroutine.close()

    async def main():
        spec = app(Child("a", body), Child("b", body, resource=nothing))
        # In tasks of their own: a scope is not left when its coroutine is closed, which usually happens when Trio runs no more.
        async with open_tree(spec, sinks=[]) as tree, trio.open_nursery() as nursery:
            nursery.start_soon(close, tree, "app/a")
            nursery.start_soon(close, tree, "app/b")

    run_virtual(main)
    assert seen == ["closed", "closed"]


def test_a_predicate_that_raises_means_escalate():
    """R5: A decider that raises means Escalate, and its exception keeps the failure as `__context__`."""
    boom = Boom()
    decided = verdict(boom, decider=Decider(rules=[Rule(Boom, "x", when=lambda exc: 1 / 0)]))
    assert decided.directive is Escalate
    assert isinstance(decided.exc, ZeroDivisionError)
    assert decided.exc.__context__ is boom


def test_the_exception_of_a_broken_decider_is_judged_above():
    """R5: The exception that the decider raised goes up, and the next supervisor judges that one."""
    a = Puppet("a", decider=Decider(rules=[Rule(Boom, "x", when=lambda exc: 1 / 0)]))

    async def scene(tree, seen):
        a.fail()
        await quiet()

    broken_once = Decider({ZeroDivisionError: Restart})
    seen = grow(app(Supervisor("s", [a.spec]), decider=broken_once), scene)
    decided = seen.the(events.Decided)
    assert (decided.directive, decided.by) == (Restart, "app")
    assert isinstance(decided.exc.__context__, Boom)


async def a_cancelled():
    """A `Cancelled` of a scope that is not ours."""
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as exc:
            return exc


@pytest.mark.parametrize("resource", [None, nothing])
def test_a_foreign_cancelled_is_a_failure(resource):
    """R6: A `Cancelled` that escapes a child which was not stopped is a failure tagged `cancelled.foreign`."""

    async def body(*_):
        raise await a_cancelled()

    async def scene(tree, seen):
        await quiet()

    decider = Decider({"cancelled": Stop})
    seen = grow(app(Child("a", body, resource=resource), decider=decider), scene)
    decided = seen.the(events.Decided)
    assert (decided.tag, decided.directive) == ("cancelled.foreign", Stop)
    assert isinstance(decided.exc, errors.ForeignCancelled)
    assert isinstance(decided.exc.__cause__, trio.Cancelled)


def test_whether_a_child_was_stopped_is_read_from_our_flag_not_from_its_exception():
    """R6: A child that raises something else when it is cancelled by us has been stopped, not failed."""

    async def body():
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise Boom from None

    seen = grow(app(Child("a", body)))
    assert seen.of(events.Failed) == seen.of(events.Decided) == []
    assert isinstance(seen.the(events.StopError).exc, Boom)


def test_the_crash_of_a_resources_own_nursery_is_the_failure():
    """R6: It shows in the body as `Cancelled`, must pass through the resource's exit, and the exception that comes out is the failure."""
    lives = []

    @asynccontextmanager
    async def pump():
        lives.append(1)

        async def crash():
            await trio.sleep(1)
            raise Boom("pump")

        async with trio.open_nursery() as nursery:
            if len(lives) == 1:
                nursery.start_soon(crash)
            yield nursery
            nursery.cancel_scope.cancel()

    async def scene(tree, seen):
        await trio.sleep(2)
        assert tree.status().children[0].state == "up"

    decider = Decider({Boom: Restart}, default=Escalate)
    seen = grow(app(Child("a", forever, resource=pump), decider=decider), scene)
    assert isinstance(seen.the(events.Failed).exc, ExceptionGroup)
    assert seen.the(events.Decided).directive is Restart
    assert len(lives) == 2


def test_a_resources_crash_is_not_resumed():
    """R6: The resource is gone, so Resume becomes Restart."""
    lives = []

    @asynccontextmanager
    async def pump():
        lives.append(1)
        async with trio.open_nursery() as nursery:
            if len(lives) == 1:
                nursery.start_soon(fail_soon)
            yield
            nursery.cancel_scope.cancel()

    async def fail_soon():
        await trio.sleep(1)
        raise Boom

    async def scene(tree, seen):
        await trio.sleep(2)

    seen = grow(app(Child("a", forever, resource=pump), decider=Decider({Boom: Resume})), scene)
    decided = seen.the(events.Decided)
    assert (decided.directive, decided.instead_of) == (Restart, Resume)


def test_a_permanent_child_that_returns_is_judged_like_a_failure():
    """R7: A normal return of a permanent child is tagged `returned`; unless a table names that, it restarts."""
    a = Puppet("a")

    async def scene(tree, seen):
        a.finish("bye")
        await quiet()
        assert a.running == 1

    seen = grow(app(a, decider=Decider({Exception: Escalate}, default=Escalate)), scene)
    decided = seen.the(events.Decided)
    assert (decided.tag, decided.directive) == ("returned", Restart)
    assert isinstance(decided.exc, errors.ChildReturned)
    assert "'bye'" in str(decided.exc)


def test_a_table_may_name_the_tag_of_a_return():
    """R7: `returned` is a tag like any other for a table that names it."""
    a = Puppet("a")

    async def scene(tree, seen):
        a.finish()
        await quiet()

    assert grow(app(a, decider=Decider({"returned": Stop})), scene).the(events.Decided).directive is Stop


@pytest.mark.parametrize("resource", [None, nothing])
def test_a_transient_child_that_returns_is_done(resource):
    """R7: A transient child is restarted only after a failure; when it returns it stays in the tree, down."""
    a = Puppet("a", restart="transient", resource=resource)

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert a.lives == 2
        a.finish(7)
        await quiet()
        assert [child.state for child in tree.status().children] == ["down"]

    seen = grow(app(a), scene)
    assert seen.the(events.Returned).value == 7
    assert seen.order() == "+a -a +a -a"


@pytest.mark.parametrize("end", ["fail", "finish"])
def test_a_temporary_child_leaves_the_tree_when_it_ends(end):
    """R7: A temporary child is never restarted, and leaves the tree when it ends."""
    a, b = Puppet("a", restart="temporary"), Puppet("b")

    async def scene(tree, seen):
        getattr(a, end)()
        await quiet()
        assert [child.path for child in tree.status().children] == ["app/b"]

    seen = grow(app(a, b), scene)
    assert a.lives == 1
    assert seen.order() == "+a +b -a -b"
    for decided in seen.of(events.Decided):
        assert (decided.directive, decided.instead_of) == (Stop, Restart)


@pytest.mark.parametrize(("directive", "lives"), [(Resume, 2), (Escalate, 1)])
def test_resume_and_escalate_hold_for_a_temporary_child(directive, lives):
    """R7: For a temporary child Restart becomes Stop, but Resume and Escalate hold."""
    kit = Kit()
    a = Puppet("a", restart="temporary", resource=kit)

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert a.lives == lives

    seen = Seen()
    try:
        grow(app(a, decider=Decider({Boom: directive})), scene, seen=seen)
    except TreeFailed:
        assert directive is Escalate
    assert seen.the(events.Decided).directive is directive
    assert kit.entered == 1


def test_restart_types_hold_for_supervisors_too():
    """R7: A supervisor that ends normally is restarted if permanent, done if transient, gone if temporary."""

    def nested(restart):
        once = Puppet("x", restart="transient", significant=True)
        spec = Supervisor(restart, [once.spec], restart=restart, auto_shutdown="any_significant")
        return once, spec

    kinds = [nested(kind) for kind in ("permanent", "transient", "temporary")]

    async def scene(tree, seen):
        for puppet, _ in kinds:
            puppet.finish()
        await quiet()
        states = {child.path: child.state for child in tree.status().children}
        assert states == {"app/permanent": "up", "app/transient": "down"}

    seen = grow(app(*(spec for _, spec in kinds)), scene)
    assert [puppet.lives for puppet, _ in kinds] == [2, 1, 1]
    assert seen.the(events.Decided).tag == "returned"


def test_a_temporary_supervisor_that_passes_its_limit_is_not_restarted():
    """R7: Restart becomes Stop for a temporary supervisor, and it leaves the tree."""
    a = Puppet("a")
    spec = app(Supervisor("s", [a.spec], restart="temporary", limit=Limit(0)))

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert tree.status().children == ()

    seen = grow(spec, scene)
    assert seen.of(events.Decided)[-1].instead_of is Restart
    assert_lifecycle(seen)


def test_the_current_child_knows_its_last_failure():
    """R9: A new incarnation can read the failure that ended the one before."""
    results = []

    async def body():
        results.append(current_child().last_failure)
        await trio.sleep(1)
        raise Boom(len(results))

    async def scene(tree, seen):
        await trio.sleep(2.5)

    grow(app(Child("a", body)), scene)
    assert results[0] is None
    assert [exc.args for exc in results[1:]] == [(1,), (2,)]
