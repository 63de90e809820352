"""Requests from everywhere: random trees whose own code asks for random changes of them, also while they stop (R19, R21, R25, R28, R38).

Two trees run in one program. Requests come from tasks outside, and from each place at which a tree calls a program's code: a
body, its start and its end, a resource, a sink, a decider, an `init`. They are about any node of either tree. What must hold:

- Every request ends: with what it asked for, or with an error that its docstring names. A child that is being stopped is answered
  at once. A request whose caller has left before it was begun has no consequence.
- Both trees end in order, and no event comes after the end.
- A child is never there twice, its incarnations live by the grammar of events, and no failure of it is reported twice.
- Whenever all tasks wait, the status of each node is what its last event says.
- No supervisor has the newest declaration before the one above it.
- Where all nodes of a tree are at rest, it has the declaration that it adopted last, and every change of it has been answered.
- At the end of a tree each of its addresses is closed, no task waits at one, and every later request ends at once.

`CAMPAIGN=40` in the environment plays forty times as many, which takes some ten minutes.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from functools import partial
from itertools import chain, count, cycle
from math import inf

import pytest
import trio
from attrs import evolve, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervise import (
    IGNORE,
    Backoff,
    CallLost,
    Child,
    ChildRestarted,
    ChildStopped,
    Decider,
    Inbox,
    MailboxFull,
    Pool,
    Refused,
    Rule,
    StartFailed,
    TreeFailed,
    current_child,
    events,
)
from supervise._core.spec import walk
from supervise._trio.tree import opening
from supervise.testing import assert_lifecycle, run_virtual, trees
from supervise.testing.strategies import FAILURES

from .scene import quiet

TIMES = int(os.environ.get("CAMPAIGN", "1"))
FOR_EVER = 10_000.0
CHANGES = {
    "stop": (Refused,),
    "start": (Refused, StartFailed),
    "restart": (Refused, StartFailed),
    "remove": (Refused,),
    "add": (Refused, StartFailed, TypeError),
    "adopt": (Refused, StartFailed, ExceptionGroup, ValueError),
}
"""What changes a tree, with its errors. Code of a child may also be refused to wait for itself."""
WAITS = {
    "ready": (ChildStopped,),
    "ended": (),
    "lease": (ChildStopped, ChildRestarted, TypeError),
    "call": (ChildStopped, CallLost, TypeError),
}
AT_ONCE = {
    "send": (ChildStopped, MailboxFull, TypeError),
    "inject": (Refused,),
    "plan": (Refused,),
    "status": (ChildStopped,),
    "stack": (ChildStopped,),
    "changes": (ValueError,),
    "raise": tuple(map(type, FAILURES)),
}
ERRORS = {**CHANGES, **WAITS, **AT_ONCE, "return": ()}
VERBS = [*CHANGES, *CHANGES, "restart", "adopt", *WAITS, *AT_ONCE, "return"]
LAST = {
    "up": "Ready Resumed",
    "down": "Never Stopped BackingOff",
    "condemned": "Stopped",
    "starting": "Starting StartFailed Failed Decided",
    "failed": "Failed Decided",
    "stopping": "Stopping Failed Decided StopError Returned Ignored Stopped",
    "releasing": "Decided Returned StopError Ignored StartFailed Failed Stopped",
    "restarting": "BackingOff Stopped",
}
"""The last events that a node in each state may have had, but for those that say nothing of its state."""
NO_STATE = (events.Overdue, events.StartOverdue, events.Adopting, events.Adopted, events.SinkFailed)
SLOW = {
    "start": {"a": 0.5, "b": 0.7, "e": 1.1},
    "enter": {"a": 0.5, "b": 0.7, "e": 1.1},
    "cleanup": {"a": 0.4, "b": 1.3, "d": 0.9, "x": 0.6},
}
"""How many seconds a place takes, by the last letter of the path: what is asked of a supervisor meanwhile waits."""


@frozen
class Act:
    """A request or a failure that a `place` of one node carries out after `pause` seconds, about the node number `target`."""

    place: str
    actor: int
    pause: float
    how: str
    verb: str
    target: int
    number: int


def acts(*places, verbs=VERBS):
    act = st.builds(
        Act,
        place=st.sampled_from(places),
        actor=st.integers(0, 63),
        pause=st.sampled_from([0.0, 0.0, 0.25, 1.0, 2.5]),
        how=st.sampled_from(["wait", "beside", "briefly"]),
        verb=st.sampled_from(verbs),
        target=st.integers(0, 63),
        number=st.integers(0, 5),
    )
    return st.lists(act, max_size=12)


def within(outer, inner):
    """A tree with another in it, between its first child and the others."""
    first, *others = outer.children
    return evolve(outer, children=[first, evolve(inner, name="n", significant=False), *others])


DECLARED = st.lists(
    st.builds(within, trees(min_size=2, max_size=5), trees(max_size=3)), min_size=1, max_size=3
)
ACTS = [
    acts("outside"),
    acts("outside"),
    acts("body"),
    acts("body", verbs=[*VERBS, "raise", "raise"]),
    acts("start", "enter", verbs=[*VERBS, *["raise"] * 10]),
    acts("cleanup", "exit"),
    acts("sink", "decider", "init"),
]
ENDS = st.tuples(*[st.sampled_from([6.0, 1.0, 3.0, 12.0, 20.0])] * 2)


class Program:
    """Two trees, `app` and `two`, which take the same declarations in turn, and what is known of them."""

    def __init__(self, declared, acts, ends):
        self.declared, self.ends = declared, dict(zip(("app", "two"), ends, strict=True))
        self.trees, self.ended, self.seen = {}, {}, {name: [] for name in self.ends}
        self.inside, self.open, self.wrong = set(), [], []
        self.numbers, self.left = count(), {}
        # The nodes with which both trees begin come more often: others run only after an adoption.
        nodes = [
            (f"{name}{path.removeprefix(one.name)}", node)
            for one in [declared[0], declared[0], *declared]
            for path, node in walk(one)
            for name in self.ends
        ]
        children = [(path, node) for path, node in nodes if isinstance(node, Child)]
        above = [path for path, node in nodes if not isinstance(node, Child)]
        boxes = [path for path, node in nodes if node.mailbox is not None]
        starters = [path for path, node in children if node.takes_task_status]
        owners = [path for path, node in children if node.resource is not None]
        leaves = [path for path, _ in children]
        leaves += [f"{path}/m-1" for path, node in nodes if isinstance(node, Pool)]
        leaves += [f"{path}/x" for path in unique(above)]
        self.paths = [*leaves, *above]
        self.added = {(path, number): self._added(number) for path in above for number in (0, 1)}
        self.targets = {"call": boxes, "send": boxes, "inject": leaves, "lease": leaves, "add": above}
        self.targets["restart"] = [*[*self.ends] * 8, *self.paths]  # the roots come more often
        actors = {"outside": [""], "sink": list(self.ends), "init": above, "decider": above}
        actors |= {"start": starters, "enter": owners, "exit": owners}
        self.acts = defaultdict(deque)
        for act in acts:
            its = actors.get(act.place) or leaves
            self.acts[act.place, its[act.actor % len(its)]].append(act)

    # --- the declarations

    def declare(self, name, version):
        """One of the declarations, made anew, with the code of this program at its nodes."""
        return self._over(evolve(self.declared[version % len(self.declared)], name=name), name, version)

    def _over(self, spec, path, version):
        if isinstance(spec, Child):
            its = {"body": self._starts if spec.takes_task_status else self._runs}
            its |= {"args": [version] if path[-1] in "aceg" else []}  # the others stay as they are
            its |= {"resource": spec.resource and self._resource}
        elif isinstance(spec, Pool):
            its = {"template": self._over(spec.template, f"{path}/m-1", version)}
        else:
            its = {"children": [self._over(one, f"{path}/{one.name}", version) for one in spec.children]}
        if ("init", path) in self.acts and not isinstance(spec, Child):
            its["init"] = partial(self._called, "init", path)
        if ("decider", path) in self.acts:
            mine = Decider(rules=[Rule(Exception, "x", when=lambda _: self._called("decider", path))])
            its["decider"] = mine if spec.decider is None else mine.over(spec.decider)
        return evolve(spec, **its)

    def _added(self, number):
        """A child to be added; the same may be added again once it has left."""
        rest = {"restart": "temporary", "drain": 1.0, "resource": self._resource} if number else {}
        return Child("x", self._starts, backoff=Backoff(initial=0.5, jitter=0), **rest)

    # --- where a tree calls this program

    @contextmanager
    def _here(self):
        me = id(current_child().tree), current_child().path
        if me in self.inside:
            self.wrong.append(AssertionError(f"{me[1]} is there twice"))
        self.inside.add(me)
        try:
            yield
        finally:
            self.inside.discard(me)

    async def _starts(self, *args, task_status):
        with self._here():
            if await self._play("start"):
                return IGNORE
            task_status.started(current_child().incarnation)
            return await self._lives(args)

    async def _runs(self, *args):
        with self._here():
            return await self._lives(args)

    async def _lives(self, args):
        try:
            async with trio.open_nursery() as nursery:
                if args and isinstance(args[-1], Inbox):
                    nursery.start_soon(self._serve, args[-1])
                if not await self._play("body", nursery):
                    await current_child().stop_requested()
                nursery.cancel_scope.cancel()
        finally:
            await self._play_shielded("cleanup")

    async def _serve(self, inbox):
        while True:
            message = await inbox.receive()
            await trio.sleep(message.value / 4)
            message.reply(message.value)

    @asynccontextmanager
    async def _resource(self):
        await self._play_shielded("enter")
        try:
            yield
        finally:
            await self._play_shielded("exit")

    async def _play_shielded(self, place):
        """A child that ends may wait for another that waits for its end, so it gives up."""
        with trio.move_on_after(20, shield=True):
            await self._play(place)

    async def _play(self, place, nursery=None):
        """Carry out what is left of the acts of a body, or the next act of any other place. Returns whether one is to return."""
        path = current_child().path
        await trio.sleep(SLOW.get(place, {}).get(path[-1], 0))
        todo = self.acts.get((place, path), ())
        if place in ("start", "enter") and todo and current_child().incarnation <= todo[0].number % 2:
            return False  # half of these are for a restart, since a first start that fails ends the tree
        while todo:
            act = todo.popleft()
            await trio.sleep(act.pause)
            if act.verb == "return":
                return True
            if act.how == "beside" and nursery is not None:
                nursery.start_soon(self._ask, act, path)
            else:
                await self._ask(act, path)
            if place != "body":
                break
        return False

    def _hear(self, name, _):
        """A sink: it carries out an act at every third event."""
        if len(self.seen[name]) % 3 == 0:
            self._called("sink", name)

    def _called(self, place, path):
        """Carry out one act where nothing can be awaited: a task outside waits for it, if that is needed."""
        todo = self.acts.get((place, path))
        if todo:
            act = todo.popleft()
            if act.verb in AT_ONCE:
                with self._answered(act, place):
                    self._do(act)
            else:
                self.outside.start_soon(self._ask, act, place)

    # --- the requests

    async def _ask(self, act, who):
        entry = act, who, trio.current_time()
        reason, is_stopped = f"#{next(self.numbers)}", self._is_stopped_by(act, who)
        self.open.append(entry)
        try:
            with trio.move_on_after(0.75 if act.how == "briefly" else inf), self._answered(act, who):
                if act.verb in AT_ONCE:
                    self._do(act)
                elif act.verb != "return":
                    try:
                        await self._await(act, reason)
                    except trio.Cancelled:
                        self._note_left(act, reason)
                        raise
        finally:
            self.open.remove(entry)
            if is_stopped and trio.current_time() > entry[2]:
                self.wrong.append(AssertionError(f"{who} is being stopped, and waits for that: {act}"))

    @contextmanager
    def _answered(self, act, who):
        """A request may end with one of its errors. Any other is noted: raised in a child it would be a failure like any."""
        try:
            yield
        except (KeyError, *ERRORS[act.verb]) as error:
            if act.verb == "raise":
                raise
            if isinstance(error, ExceptionGroup) and error.split(StartFailed)[1] is not None:
                self.wrong.append(error)
        except Exception as error:
            for_itself = "/" in who and ("for ever" in str(error) or "no other task" in str(error))
            if not (isinstance(error, RuntimeError) and for_itself):
                self.wrong.append(error)

    def _find(self, act):
        """The tree and the path that an act is about."""
        paths = self.targets.get(act.verb) or self.paths
        path = paths[act.target % len(paths)]
        return self.trees.get(path.partition("/")[0]), path

    def _do(self, act):
        tree, path = self._find(act)
        match act.verb:
            case "raise":
                raise copy(FAILURES[act.number])
            case _ if tree is None:
                pass
            case "changes":
                tree.changes(self.declare(tree.root.path, act.number))
            case "send":
                tree[path].send_nowait(act.number)
            case "inject":
                tree[path].inject(copy(FAILURES[act.number]))
            case "plan":
                tree[path].plan(("stop", "start", "restart")[act.number % 3])
            case verb:
                getattr(tree[path], verb)()

    def _is_stopped_by(self, act, who):
        """Whether a supervisor that would serve this request is just stopping the child that asks, so that it answers at once."""
        tree, path = self._find(act)
        served = path if act.verb == "add" else path.rpartition("/")[0]
        if tree is None or act.verb not in CHANGES or not served or not who.startswith(f"{served}/"):
            return False
        name = who.removeprefix(f"{served}/").partition("/")[0]
        return tree[f"{served}/{name}"].status().state == "stopping"

    def _note_left(self, act, reason):
        """The caller has left: from now on no event may have the reason of its request, unless that was begun."""
        tree = self._find(act)[0]
        begun = [machine.act.why for machine in tree._driver.forest.machines.values() if machine.act]
        if not any(why.endswith(reason) for why in begun):
            seen = self.seen[tree.root.path]
            self.left[reason] = seen, len(seen)

    async def _await(self, act, reason):
        tree, path = self._find(act)
        if tree is None:
            return
        if act.verb == "adopt":
            await tree.adopt(self.declare(tree.root.path, act.number))
            return
        ref, seen = tree[path], self.seen[tree.root.path]
        if act.verb in ("start", "remove") and act.number % 2 and "/" in path:
            await ref.stop(reason=reason)
        since, node = len(seen), tree._driver.forest.find(path)
        match act.verb:
            case "stop" if node is not None and node.state in ("starting", "up"):
                last = path, node.incarnation
                await ref.stop(reason=reason)
                assert any(
                    (e.path, e.incarnation) == last for e in seen[since:] if isinstance(e, events.Stopped)
                )
            case "start" | "restart":
                if act.verb == "restart" and act.number % 2 and "/" not in path:
                    for number in (0, 1, 3):  # the root stops, starts, and perhaps ends meanwhile
                        adopt = evolve(act, verb="adopt", pause=0.7, number=number)
                        self.outside.start_soon(self._ask_late, adopt)
                await getattr(ref, act.verb)(reason=reason)
                started = events.Ready | events.Ignored
                assert any(e.path == path for e in seen[since:] if isinstance(e, started))
            case "add" if node is not None and isinstance(node.spec, Pool):
                await ref.add(reason=reason)
            case "add":
                spec = self.added[path, act.number % 2]
                added = await ref.add(spec, reason=reason)
                if act.number % 2:  # it is added once more while it ends
                    self.outside.start_soon(
                        self._ask, evolve(act, verb="stop", target=self.paths.index(added.path)), "outside"
                    )
                    await trio.sleep(0.25)
                    await ref.add(spec, reason=reason)
            case "lease":
                async with ref.lease():
                    since = len(seen)
                    await trio.sleep(act.number)
                    ended = [e for e in seen[since:] if e.path == path and isinstance(e, events.Stopped)]
                    assert all(e.at == trio.current_time() for e in ended), "a lease outlived its incarnation"
            case "call":
                assert await ref.call(act.number) == act.number
            case verb:
                await getattr(ref, verb)()

    # --- one run

    async def main(self):
        async with trio.open_nursery() as watching:
            watching.start_soon(self._watch)
            async with trio.open_nursery() as self.outside:
                for name, end in self.ends.items():
                    self.outside.start_soon(self._run, name, end)
                for act in self.acts.get(("outside", ""), ()):
                    if act.verb != "raise":  # it would end this program
                        self.outside.start_soon(self._ask_late, act)
            watching.cancel_scope.cancel()
        for name, tree in self.trees.items():
            self._check_end(name, tree._driver)
        for path, verb in zip(unique(self.paths), cycle([*CHANGES, *WAITS]), strict=False):
            with trio.fail_after(1):
                await self._ask(Act("outside", 0, 0, "wait", verb, self.paths.index(path), 0), "outside")
        for reason, (seen, since) in self.left.items():
            late = [event for event in seen[since:] if str(getattr(event, "reason", "")).endswith(reason)]
            assert not late, f"its caller had left: {late[0]}"
        assert not self.wrong

    async def _run(self, name, end):
        seen, look = self.seen[name], partial(self._look, name)
        try:
            with trio.move_on_at(end):
                async with opening(self.declare(name, 0), [seen.append, partial(self._hear, name)], look):
                    await trio.sleep_forever()
        except (StartFailed, TreeFailed):
            pass
        self.ended[name] = len(seen)

    def _look(self, name, tree):
        self.trees[name], driver = tree, tree._driver
        ask, asks = driver.ask, count()

        async def counted(*args):
            assert next(asks) < 1_000, "it is asked for ever, and no task runs meanwhile"
            return await ask(*args)

        driver.ask = counted

    async def _ask_late(self, act):
        await trio.sleep(act.pause * (1 + act.number))
        await self._ask(act, "outside")

    async def _watch(self):
        """Look at both trees again and again, whenever all tasks wait, and end them if something waits for ever."""
        while trio.current_time() < FOR_EVER:
            await trio.sleep(0.3 if trio.current_time() < 12 else 9.7)
            await quiet()
            for name, tree in self.trees.items():
                if not (tree._driver.is_ending or tree._driver.finished.is_set()):
                    self._check_status(name, tree)
        hang = AssertionError(f"these wait for ever: {self.open}")
        for tree in self.trees.values():
            if not tree._driver.over.is_set():  # it is shielded from the scopes outside
                tree._driver._break(hang)
        raise hang

    def _check_status(self, name, tree):
        last = {event.path: event for event in self.seen[name] if not isinstance(event, NO_STATE)}
        nodes = list(tree.status().walk())
        for its in nodes:
            event = last.get(its.path)
            kind = "Never" if event is None else type(event).__name__
            allowed = LAST[its.state]
            if its.kind != "child" and its.state in ("failed", "stopping", "releasing"):
                allowed += " Ready Resumed Failed Decided"  # it failed with its child, which has the events
            assert kind in allowed.split(), (its, event)
            assert event is None or event.incarnation == its.incarnation, (its, event)
        newest = tree._declared.specs
        for path, machine in tree._driver.forest.machines.items():
            above = machine.parent
            if above is not None and machine.spec is newest.get(path):
                assert above.spec is newest[above.path], (
                    f"{path!r} took its declaration before {above.path!r}"
                )
        up = {its.path for its in nodes if its.state == "up"}
        if all(its.path in up or its.state in ("down", "condemned") for its in nodes):
            for act, who, at in self.open:
                its_tree, path = self._find(act)
                waits = act.verb in CHANGES or (act.verb == "ready" and path in up)
                assert not waits or its_tree is not tree, f"{who} waits for nothing since {at}: {act}"
            left = tree.changes(tree._spec)
            assert not left, f"not adopted: {list(map(str, left))}"

    def _check_end(self, name, driver):
        seen = self.seen[name]
        assert_lifecycle(seen)
        failures = [(e.path, id(e.exc)) for e in seen if isinstance(e, events.Failed | events.StopError)]
        assert len(failures) == len(set(failures)), "a failure is reported twice"
        assert len(seen) == self.ended[name], "something happened after the end"
        last = [event for event in seen if not isinstance(event, events.SinkFailed)][-1]
        assert (type(last), last.path) == (events.Stopped, name)
        assert not self.inside
        assert not driver.leaves
        assert not driver._asked
        for address in driver.addresses.values():
            assert address.gone
            assert not address._changes
            assert address.mailbox is None or address.mailbox.closed


def unique(paths):
    return list(dict.fromkeys(paths))


@pytest.mark.slow
@settings(max_examples=250 * TIMES, deadline=None, suppress_health_check=list(HealthCheck))
@given(DECLARED, st.tuples(*ACTS), ENDS, st.integers(0, 2**32 - 1))
def test_whatever_is_asked_from_wherever_each_request_ends_and_so_does_the_tree(declared, acts, ends, seed):
    """R19, R21, R25, R28, R38: See the first lines of this file."""
    run_virtual(Program(declared, chain(*acts), ends).main, seed=seed)
