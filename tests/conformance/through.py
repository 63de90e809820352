"""The two ways that a scenario is played: through bare machines, and through real tasks of a real tree."""

from contextlib import asynccontextmanager
from functools import partial
from math import inf

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import supervise as s
from supervise.testing.bare import BareLeaf, BareTree

from .adapter import ON_SHUTDOWN, World, names


class Machines(World):
    """Bare machines: a worker carries out its orders at once."""

    @staticmethod
    async def work(*_):
        """Nothing: each incarnation of a worker is a `Worker`."""

    @asynccontextmanager
    async def tree(self, spec):
        tree = BareTree(spec, partial(Worker, self), self.saw)
        tree.start()
        tree.run()
        if tree.failure is not None:
            raise tree.failure
        self.driver, self.status = tree, tree.status
        yield

    async def quiet(self):
        self.driver.run()

    async def end(self, ends):
        for worker, how in ends:
            worker.over(how, worker.exited)


class Worker(BareLeaf):
    """One incarnation of a worker without a task."""

    def __init__(self, world, tree, node):
        super().__init__(tree, node)
        self.world, self.path, (self.term, *script) = world, names(node.path), node.spec.args
        try:
            ignored = world.attempt(self.term, self.path, *script)
        except RuntimeError as error:
            self.exited(error)
        else:
            world.live |= {} if ignored else {self.path: self}
            self.ended(ignored=True) if ignored else self.up()

    def asked(self):
        how = ON_SHUTDOWN[self.term.get("on_shutdown", "exit")]
        if how != "kill":
            self.over(how, self.ended)

    def cancel(self):
        self.over("kill", self.ended)

    def over(self, how, report):
        """Unless it is already."""
        if self.path in self.world.live:
            report(self.world.stopped(self.path, how))


class Tasks(World):
    """Real tasks of a real tree, under a virtual clock."""

    quiet = partial(trio.sleep, 60)

    @asynccontextmanager
    async def tree(self, spec):
        async with s.open_tree(spec, sinks=[self.saw]) as tree:
            self.driver, self.status = tree._driver, tree.status
            yield

    async def work(self, term, *script, task_status):
        path, how = names(s.current_child().path), "kill"
        if self.attempt(term, path, *script) is s.IGNORE:
            return s.IGNORE
        task_status.started()
        try:
            with trio.CancelScope() as self.live[path]:
                await s.stop_requested()
                asked = ON_SHUTDOWN[term.get("on_shutdown", "exit")]
                await trio.sleep(inf if asked == "kill" else 0)
                how = asked
            how = self.ordered if self.live[path].cancelled_caught else how
        finally:
            failure = self.stopped(path, how)
        if failure is not None:
            raise failure
        return how

    async def end(self, ends):
        with self.driver.held():
            for scope, self.ordered in ends:
                scope.cancel()
                await wait_all_tasks_blocked()


def trace(scenario, through):
    """What this supervisor does with a scenario, through the bare `machine` or through `trio`."""
    world = Tasks() if through == "trio" else Machines()
    return trio.run(world.play, scenario, clock=MockClock(autojump_threshold=0))
