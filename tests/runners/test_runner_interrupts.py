"""A KeyboardInterrupt in the code of a runner that runs in the task itself (R4)."""

import signal

import pytest
import trio
import trio.testing
from attrs import frozen

from runners import ExecuteBatch, InlineHost, RunnerInfo, device_worker
from runners.nursery import bare_nursery
from supervise import open_tree
from supervise.testing import assert_lifecycle, run_virtual

BATCH = ExecuteBatch("r", "prompt")


class Interrupted:
    """A runner in whose code a signal comes, which is raised there."""

    info = RunnerInfo(streams=2, reproducible=True, can_continue=False, runtime="test")

    def __init__(self, place, reached):
        self._place = place
        self._reached = reached

    def at(self, place):
        if self._place == place:
            signal.raise_signal(signal.SIGINT)
            self._reached.append(place)

    def execute(self, batch):
        self.at("execute")
        return self._chunks()

    async def _chunks(self):
        try:
            self.at("step")
            await trio.sleep_forever()
            yield
        finally:
            self.at("left")

    def rebuild(self, cause):
        pass

    def close(self):
        self.at("close")


@frozen
class Spec:
    place: str
    reached: list

    def build(self, start):
        runner = Interrupted(self.place, self.reached)
        runner.at("load")
        return runner


@pytest.mark.parametrize("place", ["load", "execute", "step", "left", "close"])
def test_an_interrupt_in_a_runners_code_is_raised_there_and_leaves_bare(place):
    """R4: A step that takes its time must not delay it, and a stream that is no longer read must not swallow it."""
    reached, seen = [], []

    async def main():
        async with open_tree(
            device_worker("worker", Spec(place, reached), host=InlineHost()), sinks=[seen.append]
        ) as tree:
            async with tree.root.stream(BATCH):
                await trio.sleep(1)
            await trio.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        run_virtual(main)
    assert not reached
    assert_lifecycle(seen)


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("body_fails", [True, False])
def test_a_base_exception_leaves_a_nursery_as_itself(fatal, body_fails):
    """R4: It may come from any of its tasks, whatever else fails there or in its body."""

    async def fails(failure):
        raise failure

    async def main():
        async with bare_nursery() as nursery:
            nursery.start_soon(fails, ValueError())
            nursery.start_soon(fails, fatal())
            with trio.CancelScope(shield=body_fails):
                await trio.testing.wait_all_tasks_blocked()
            raise LookupError

    with pytest.raises(fatal):
        trio.run(main)
