"""Children that take messages, and a scene that fails if a task hangs."""

from __future__ import annotations

import sys

import trio

from supervise import (
    Child,
)

from .scene import Boom, app
from .scene import grow as grow_in_peace


async def fail_if_a_task_hangs():
    """A system task: if all others wait for ever, this one ends the run."""
    await trio.sleep(80_000)
    raise AssertionError("a task hangs")


def grow(spec, scene, *, seed=0):
    """As `scene.grow`, and a test that waits for ever fails."""

    async def guarded(tree, seen):
        trio.lowlevel.spawn_system_task(fail_if_a_task_hangs)
        await scene(tree, seen)

    return grow_in_peace(spec, guarded, seed=seed)


class Halt(BaseException):
    """Not an `Exception`: no decider decides it."""


def worker(serve, name="a", *, mailbox=8, **options):
    """A child that serves one message after the other."""

    async def body(*arguments):
        async for message in arguments[-1]:
            await serve(message)

    return Child(name, body, mailbox=mailbox, **options)


class Shelf:
    """A child that takes messages and keeps them in hand."""

    def __init__(self, name="shelf", *, mailbox=8, **options):
        self.held = []
        self.inboxes = []
        self.spec = Child(name, self._body, mailbox=mailbox, **options)

    async def _body(self, *arguments):
        inbox = arguments[-1]
        self.inboxes.append(inbox)
        while True:
            self.held.append(await inbox.receive())


def steps(act):
    """How many functions of Python's and of C's `act()` calls, comprehensions included."""
    count = 0

    def note(_frame, event, _arg):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(before)
    return count


class Worker:
    """A child that takes its messages from its supervisor's mailbox, and notes which it got."""

    def __init__(self, name, got, *, seconds=0.0, **options):
        self.got, self.seconds = got, seconds
        self.spec = worker(self.serve, name, mailbox="shared", **options)

    async def serve(self, message):
        self.got.append((self.spec.name, message.value))
        if self.seconds:
            await trio.sleep(self.seconds)
        if message.value == "boom":
            raise Boom
        message.reply(self.spec.name)


def crew(got, names="abc", *, mailbox=99, seconds=0.0, options=None, **others):
    """A supervisor with a mailbox over workers that share it."""
    workers = [Worker(name, got, seconds=seconds, **(options or {})) for name in names]
    return app(*workers, mailbox=mailbox, **others)
