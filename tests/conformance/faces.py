"""The two faces before which a scenario is played."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from typing import Any

import outcome
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from supervise import IGNORE, Ref, current_child, open_tree, stop_requested
from supervise._core import effect
from supervise._core.forest import Forest
from supervise._core.machine import start_failed
from supervise._trio.driver import _call_init

from .terms import ON_SHUTDOWN, Crash, failure, names
from .play import World


class Machines:
    """The bare machines: time is a number, and a worker does at once what it is told."""

    root = failed = None

    def __init__(self) -> None:
        self.now, self.waiting, self.timers, self.live = 0.0, deque(), [], {}

    @asynccontextmanager
    async def open(self, spec):
        self.forest = Forest(spec)
        self.root = self.forest.root
        self._carry_out(self.forest.start(self.now))
        await self.quiet()
        if self.failed is not None:
            raise start_failed(self.failed)
        yield

    def work(self, node):
        path, (term, *args) = names(node.path), node.spec.args
        result = self.world.attempt(node.parent, term, path, *args[:1])
        if result == "ok":
            self.live[path] = node
            return effect.Up(node, node.incarnation)
        if result == "ignore":
            return effect.Ended(node, node.incarnation, ignored=True)
        return effect.Exited(node, node.incarnation, Crash(result))

    def status(self):
        return self.forest.status(self.now)

    def post(self, machine, item):
        self.waiting.append((machine, item))

    async def ask(self, request, machine):
        self.post(machine, request)
        await self.quiet()

    async def end(self, ends):
        ended = [(self.live.pop(path, None), path, how) for path, how in ends]
        for node, path, how in ended:
            if node is not None:
                self.world.stopped(path, how)
                self.post(node.parent, effect.Exited(node, node.incarnation, failure(how)))
        return [node for node, _, _ in ended]

    async def quiet(self):
        while self.waiting or self.timers:
            if self.waiting:
                machine, item = self.waiting.popleft()
            else:
                self.now, _, machine = heappop(self.timers)
                item = effect.Wake()
            self._carry_out(self.forest.handle(machine, item, self.now))

    def _carry_out(self, effects):
        for one in effects:
            match one:
                case effect.Emit(event=event):
                    self.world.saw(event)
                case effect.Start(child=node) if node.machine is not None:
                    self.post(node.machine, _call_init(node.spec.init))
                case effect.Start(child=node):
                    self.post(node.parent, self.work(node))
                case effect.Ask(child=node):
                    self._stopped(node, ON_SHUTDOWN[node.spec.args[0].get("on_shutdown", "exit")])
                case effect.Cancel(child=node):
                    self._stopped(node, "kill")
                case effect.Release(child=node):
                    self.post(node.parent, effect.Ended(node, node.incarnation))
                case effect.WakeAt(machine=machine, at=at):
                    heappush(self.timers, (at, id(machine), machine))
                case effect.Reply(token=token) if token is not None:
                    token.set(outcome.Value(one.value) if one.error is None else outcome.Error(one.error))
                case effect.Rise(report=effect.Ended() as ended) if ended.child is self.root:
                    self.failed = ended.failure

    def _stopped(self, node, how):
        if how and self.live.pop(names(node.path), None):
            self.world.stopped(names(node.path), how)
            error = failure(how) if how == "crash" else None
            self.post(node.parent, effect.Ended(node, node.incarnation, error))


class Tasks:
    """Real tasks of a real tree, under a virtual clock."""

    root = driver = None

    def __init__(self) -> None:
        self.live = {}

    @asynccontextmanager
    async def open(self, spec):
        async with open_tree(spec, sinks=[self.world.saw]) as self.tree:
            self.driver, self.status = self.tree._driver, self.tree.status
            self.root = self.driver.forest.root
            await self.quiet()
            yield

    async def work(self, term, script=None, _=None, *, task_status):
        leaf = current_child()
        self.driver, path = leaf._driver, names(leaf.path)
        result = self.world.attempt(leaf._node.parent, term, path, script)
        if result == "ignore":
            return IGNORE
        if result != "ok":
            raise Crash(result)
        self.live[path], orders = trio.open_memory_channel(1)
        task_status.started()
        how = "kill"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, path, ON_SHUTDOWN[term.get("on_shutdown", "exit")])
                how = await orders.receive()
                nursery.cancel_scope.cancel()
        finally:
            self.world.stopped(path, how)
        if failure(how) is not None:
            raise Crash(how)
        return how

    async def _obey(self, path, how):
        await stop_requested()
        if how:
            self.live[path].send_nowait(how)

    def post(self, machine, item):
        self.driver.post(machine, item)

    async def ask(self, request, machine):
        supervisor, child = Ref(self.tree, machine.path), Ref(self.tree, f"{machine.path}/{request.name}")
        if request.kind == "status":
            got = supervisor.status()
        elif request.kind == "add":
            got = await supervisor.add(*(request.args or [request.spec]), name=request.name)
        else:
            got = await getattr(child, request.kind)()
        request.token.set(outcome.Value(got))

    async def end(self, ends):
        ended = [self.live.pop(path, None) for path, _ in ends]
        with self.driver.held():
            for orders, (_, how) in zip(ended, ends, strict=True):
                if orders is not None:
                    orders.send_nowait(how)
                    await wait_all_tasks_blocked()
        return ended

    async def quiet(self):
        await trio.sleep(60)


def trace(scenario, through: str):
    """What this supervisor does with a scenario, through the bare `machine` or through `trio`."""
    face = Tasks() if through == "trio" else Machines()
    face.world = World(face)
    if through == "trio":
        return trio.run(face.world.play, scenario, clock=MockClock(autojump_threshold=0))
    try:
        face.world.play(scenario).send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the bare machines wait for nothing")
