"""What the random campaign shares: running a tree with everything that may go wrong, and what must hold of it."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager, contextmanager

import attrs
import trio

from supervise import (
    CallLost,
    Child,
    ChildRestarted,
    ChildStopped,
    MailboxFull,
    Pool,
    Refused,
    Restart,
    Resume,
    StartFailed,
    Status,
    Supervisor,
    TreeFailed,
    current_child,
    events,
    open_tree,
)
from supervise._core import effect, shortcut
from supervise._core.forest import Forest
from supervise._core.spec import walk
from supervise._trio import driver
from supervise.testing import FaultPlan, Script, assert_lifecycle, idle, nothing, run_virtual
from supervise.testing.simulation import _World

ANSWERS = (CallLost, ChildRestarted, ChildStopped, KeyError, MailboxFull, Refused, StartFailed, TypeError)
FOR_EVER = 1e6
MOST_ORDERS = 200
"""Of one case. Of 4000 that were drawn none had so many: for 3993 the orders came to one outcome, for 7 to two."""


class Halt(BaseException):
    """Not an `Exception`: no decider decides it."""


# --- which children run


class Roll:
    """Every incarnation of every path enters and leaves; two at once are one too many."""

    def __init__(self):
        self.inside = {}

    @contextmanager
    def here(self):
        path, number = current_child().path, current_child().incarnation
        assert path not in self.inside, f"{path} #{number} beside #{self.inside[path]}"
        self.inside[path] = number
        try:
            yield
        finally:
            del self.inside[path]

    def over(self, spec):
        if isinstance(spec, Child):
            return self._child(spec)
        if isinstance(spec, Pool):
            return attrs.evolve(spec, template=self.over(spec.template))
        return attrs.evolve(spec, children=map(self.over, spec.children))

    def _child(self, child):
        if child.resource is None:
            return attrs.evolve(child, body=self._body(child))

        @asynccontextmanager
        async def resource():
            with self.here():
                async with child.resource() as owned:
                    yield owned

        return attrs.evolve(child, resource=resource)

    def _body(self, child):
        async def passes(*args, task_status):
            with self.here():
                return await child.body(*args, task_status=task_status)

        async def body(*args):
            with self.here():
                return await child.body(*args)

        return passes if child.takes_task_status else body


# --- what went in and what came out


class Tap:
    """Makes forests that note what the driver puts in, and what comes out."""

    def __init__(self):
        self.noted = []

    def __call__(self, spec):
        self.forest = forest = Forest(spec)
        handle, start = forest.handle, forest.start
        forest.handle = lambda *given: self._note(given, handle(*given))
        forest.start = lambda now: self._note((None, None, now, 0.0), start(now))
        return forest

    def restart_at_once(self, *given):
        return self._note_fast(shortcut.restart_at_once, *given)

    def up_at_once(self, *given):
        return self._note_fast(shortcut.up_at_once, *given)

    def _note_fast(self, path, machine, node, *given):
        """Note a step on the fast path; `assert_replays` compares it with the general path."""
        incarnation, out = node.incarnation, path(machine, node, *given)
        if out is not None:
            item = (path.__name__, node.name, incarnation, *given[:-1])
            self.noted.append(((machine, item, given[-1], 0.5), out, {}))
        return out

    def _note(self, given, out):
        paths = [one.path for one in out if isinstance(one, effect.Start)]
        started = {path: self.forest.machines[path] for path in paths if path in self.forest.machines}
        self.noted.append((given, list(out), started))
        return out


@contextmanager
def tapped(tap, *, steady=False):
    """Every tree that is opened has `tap` on its forest. `steady`: no jitter."""
    before = driver.shortcut, driver.random
    driver.shortcut = tap
    token = driver.forests.set(tap)
    if steady:
        driver.random = lambda: 0.5
    try:
        yield
    finally:
        driver.forests.reset(token)
        driver.shortcut, driver.random = before


def assert_replays(spec, noted):
    """A fresh forest, given the same inputs, gives the same effects, one by one."""
    forest = Forest(spec)
    same = {}
    for (machine, item, now, u), expected, started in noted:
        if isinstance(item, tuple):
            out = _by_general_path(forest, same[machine], *item[1:], now=now)
        elif item is None:
            out = forest.start(now)
        else:
            out = forest.handle(same[machine], _moved(item, same), now, u)
        assert list(map(_bare, out)) == list(map(_bare, expected)), item
        same |= {its: forest.machines[path] for path, its in started.items()}


def _by_general_path(forest, machine, name, incarnation, *exc, now):
    """A failure and the end, or being up; without the orders that a task which has ended needs not."""
    items = [effect.Exited(name, incarnation, *exc), effect.Ended(name, incarnation)]
    steps = items if exc else [effect.Up(name, incarnation)]
    out = [one for item in steps for one in forest.handle(machine, item, now)]
    return [one for one in out if not isinstance(one, effect.Release | effect.Start)]


def _moved(item, same):
    """A request is marked when it is withdrawn, so that each forest needs its own."""
    if isinstance(item, effect.Request):
        same[item] = attrs.evolve(item, withdrawn=False)
        return same[item]
    return effect.Withdraw(same[item.request]) if isinstance(item, effect.Withdraw) else item


def _bare(value):
    """Without identities."""
    match value:
        case events.Event():
            return plain(value)
        case BaseException():
            return repr(value)
        case Status():
            return [(one.path, one.state, one.incarnation, one.restarts, one.due) for one in value.walk()]
    if attrs.has(type(value)):
        return type(value), *(_bare(getattr(value, one.name)) for one in attrs.fields(type(value)))
    return value


def plain(event):
    """An event as a value: exceptions as they print, no stacks."""
    fields = attrs.asdict(event, recurse=False)
    fields.pop("stack", None)
    fields.pop("waits_for", None)
    shown = {name: repr(it) if isinstance(it, BaseException) else it for name, it in fields.items()}
    return type(event).__name__, shown


# --- times that never meet


def tilted(value, dice):
    """The same value with every time in it a little later, each by another amount, so that no two things meet."""
    if isinstance(value, FaultPlan):
        return FaultPlan({path: [tilted(one, dice) for one in its] for path, its in value.scripts.items()})
    if isinstance(value, Script):
        return Script(**{f.name: tilted(getattr(value, f.name), dice) for f in attrs.fields(Script)})
    if isinstance(value, tuple):
        return tuple(tilted(one, dice) for one in value)
    if value is None:
        return None
    names = [
        n
        for n in ("after", "start_timeout", "start_warning", "drain", "grace", "initial")
        if _is_time(value, n)
    ]
    changes = {name: getattr(value, name) + dice.getrandbits(24) / 2**28 + 2**-28 for name in names}
    for name in ("children", "template", "backoff"):
        if getattr(value, name, None) is not None and _settable(value, name):
            changes[name] = tilted(getattr(value, name), dice)
    return attrs.evolve(value, **changes)


def _settable(value, name):
    return any(f.name == name and f.init for f in attrs.fields(type(value)))


def _is_time(value, name):
    it = getattr(value, name, None)
    return isinstance(it, float) and (name in {"after", "initial"} or it > 0)


# --- one run


class Run:
    """One tree, what was done to it, and what is known of it afterwards."""

    def __init__(self, spec, plan, *, requests=(), stop_at=100.0, seed=0, steady=False):
        self.seen, self.roll, self.tap = [], Roll(), Tap()
        self.plan, self.requests, self.stop_at = plan, requests, stop_at
        self.raised = None
        self.answers = []
        self.entered = False
        self.spec = self.roll.over(plan.over(spec))
        with tapped(self.tap, steady=steady):
            run_virtual(self._main, seed=seed)

    async def _main(self):
        with trio.fail_after(FOR_EVER):
            async with trio.open_nursery() as callers:
                await self._open(callers)

    async def _open(self, callers):
        try:
            with trio.move_on_at(self.stop_at):
                async with open_tree(self.spec, sinks=[self.seen.append]) as tree:
                    self.entered = True
                    for request in self.requests:
                        callers.start_soon(self._ask, tree, *request)
                    await trio.sleep_forever()
        except (StartFailed, TreeFailed, Halt) as exc:
            self.raised = exc
        assert not self.roll.inside, "a child still runs"
        assert isinstance(self.seen[-1], events.Stopped)
        assert self.seen[-1].path == self.spec.name
        self.ended = len(self.seen)

    async def _ask(self, tree, at, kind, path, number):
        await trio.sleep_until(at)
        patience = number / 4 if number % 3 == 2 else FOR_EVER
        try:
            with trio.move_on_after(patience):
                await getattr(self, kind)(tree, path, number)
            self.answers.append((kind, None))
        except ANSWERS as answer:
            self.answers.append((kind, answer))

    async def add(self, tree, path, number):
        node = tree._driver.forest.find(path)
        if node is not None and isinstance(node.spec, Pool):
            await tree[path].add()
            return
        name = f"x{number % 3}"
        resource = nothing if number % 2 else None
        child = Child(
            name, idle, restart=("permanent", "transient", "temporary")[number % 3], resource=resource
        )
        added = Supervisor(name, [child]) if number > 5 else child
        await tree[path].add(self.roll.over(self.plan.over(added, at=path)))

    async def stop(self, tree, path, _):
        await tree[path].stop()

    async def start(self, tree, path, _):
        await tree[path].start()

    async def restart(self, tree, path, _):
        await tree[path].restart()

    async def remove(self, tree, path, _):
        await tree[path].remove()

    async def status(self, tree, path, _):
        assert tree[path].status().path == path
        assert tree.status().path == tree.root.path

    async def call(self, tree, path, number):
        assert await tree[path].call(number, on_loss=(None, "fail", "requeue")[number % 3]) == number

    async def send(self, tree, path, number):
        tree[path].send_nowait(number) if number % 2 else await tree[path].send(number)

    async def ready(self, tree, path, _):
        await tree[path].ready()

    async def ended_(self, tree, path, _):
        await tree[path].ended()

    async def lease(self, tree, path, number):
        async with tree[path].lease():
            await trio.sleep(number)

    async def inject(self, tree, path, number):
        tree[path].inject(ValueError(f"injected {number}"))

    def check(self):
        """What must hold of every run."""
        assert len(self.seen) == self.ended, "something happened after the end"
        assert len(self.answers) == (len(self.requests) if self.entered else 0), "a request got no answer"
        assert_lifecycle(self.seen)
        assert_one_at_a_time(self.spec, self.seen)
        assert_reverse_order(self.spec, self.seen)
        assert_limits(self.spec, self.seen)
        assert_replays(self.spec, self.tap.noted)


def predicted(spec, plan, stop_at, *, most=MOST_ORDERS):
    """All that the rules allow, as texts of events, and whether it is all: every order of what is due at one moment is tried.

    At each choice a simulation is given which of the due things comes next, and it returns how many there were. So all
    choices are gone through, the last ones first, until none is left, or `most` orders have been tried.
    """
    outcomes, orders, left = set(), 0, [()]
    while left and orders < most:
        choices = Choices(left.pop())
        world = _World(spec, plan, 0.5, pick=choices)
        world.at(stop_at, world.stop)
        world.run()
        outcomes.add(as_texts(world.seen))
        orders += 1
        left += choices.others()
    return outcomes, not left


class Choices:
    """Takes the given choices, then always the first, and notes how many there were to choose from."""

    def __init__(self, wanted):
        self._wanted = wanted
        self._sizes = []

    def __call__(self, size):
        at = len(self._sizes)
        self._sizes.append(size)
        return self._wanted[at] if at < len(self._wanted) else 0

    def others(self):
        """The choices that begin like these, and then differ for the first time where nothing was wanted."""
        known = len(self._wanted)
        for at in range(known, len(self._sizes)):
            for other in range(1, self._sizes[at]):
                yield *self._wanted, *[0] * (at - known), other


def as_texts(seen):
    """Events as one text."""
    return repr(list(map(plain, apart(seen))))


def apart(seen):
    """What happens at one moment below different supervisors, put apart: between them there is no order."""
    return sorted(seen, key=lambda event: (event.at, above(event.path)))


# --- what must hold


def above(path):
    return path.rpartition("/")[0]


def assert_one_at_a_time(spec, seen):
    """R12: a child is ready before the next one starts, and has ended before the next one is stopped."""
    pools = {path for path, node in walk(spec) if isinstance(node, Pool)}
    starting, stopping = {}, {}
    for event in seen:
        home = above(event.path)
        if not home:
            continue
        match event:
            case events.Starting():
                assert starting.get(home) is None, (event, starting[home])
                starting[home] = event.path
            case events.Ready() | events.Ignored() | events.StartFailed():
                starting[home] = None
            case events.Stopping() if home not in pools:
                assert stopping.get(home) is None, (event, stopping[home])
                starting[home], stopping[home] = None, event.path
            case events.Stopped():
                starting[home] = None if starting.get(home) == event.path else starting.get(home)
                stopping[home] = None if stopping.get(home) == event.path else stopping.get(home)


def assert_reverse_order(spec, seen):
    """R12: what is stopped for one reason is stopped in the reverse of its start order, which is the declared one.

    But for a start that came too late: it is on its way out already, and is waited for first.
    """
    timed = {path for path, node in walk(spec) if node.start_timeout is not None}
    place, runs, unready = {}, {}, set()
    for event in seen:
        home = above(event.path)
        match event:
            case events.Starting():
                place.setdefault(event.path, len(place))
                runs.pop(home, None)
                unready.add(event.path)
            case events.Ready():
                unready.discard(event.path)
            case events.Stopping() if home and event.path not in timed & unready:
                reason, last = runs.get(home, (None, None))
                if reason == event.reason and not event.path.rpartition("/")[2].startswith(("x", "m-")):
                    assert place[event.path] < last, event
                runs[home] = (event.reason, place[event.path])


def assert_limits(spec, seen):
    """R14: exactly `restarts` within `within`; one decision is one charge. Where no retry was charged, and no message made a resume free."""
    limits = {path: node.limit for path, node in walk(spec) if not isinstance(node, Child) and node.limit}
    unclear = {
        by
        for event in seen
        if isinstance(event, events.StartFailed)
        for by in (above(event.path), *_all_above(event.path))
    }
    mailboxes = {path for path, node in walk(spec) if isinstance(node, Child) and node.mailbox}
    unclear |= {
        e.by for e in seen if isinstance(e, events.Decided) and e.directive is Resume and e.path in mailboxes
    }
    charges = {}
    for event in seen:
        if isinstance(event, events.Starting):
            charges.pop(event.path, None)
        if not isinstance(event, events.Decided) or event.by in unclear or event.by not in limits:
            continue
        limit = limits[event.by]
        if limit.of_ready_time or event.directive not in {Resume, Restart}:
            continue
        kept = [at for at in charges.get(event.by, ()) if event.at - at < limit.within]
        assert (event.limit is not None) == (len(kept) >= limit.restarts), (event, kept)
        charges[event.by] = [*kept, event.at] if event.limit is None else kept


def _all_above(path):
    while path:
        path = above(path)
        yield path


def dice(seed=0):
    return random.Random(seed)
