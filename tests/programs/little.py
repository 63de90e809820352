"""What these tests share: small programs in Python, and one way to run one of them in a tree that proves to leave nothing."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from supervise import Child, Supervisor, Tree, events, open_tree
from supervise.programs import Command, Running, line

from .servers import processes_in

PATIENCE = 60.0

UP = "print('up', flush=True)\n"
FOR_EVER = "import time\nwhile True: time.sleep(1)\n"
WITH_ORPHAN = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
os.wait()
"""
"""It has a process that no group and no session of its own holds."""


def python(text: str) -> list[str]:
    """The command of a small program."""
    return [sys.executable, "-c", text]


def little(text: str, folder: Path, **options) -> Child:
    """A small program that is ready when it prints `up`; all its processes work in the folder."""
    return Command("little", python(text), **{"ready": line("^up$"), "cwd": folder, **options})


class Seen:
    """A sink that keeps every event."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []

    def __call__(self, event: events.Event) -> None:
        self.events.append(event)

    def failures(self) -> list[BaseException]:
        """The exceptions of all failures."""
        return [event.exc for event in self.events if isinstance(event, events.Failed)]


@asynccontextmanager
async def opened(
    spec: Child, folder: Path, seen: Seen | None = None, **options
) -> AsyncIterator[tuple[Tree, Running]]:
    """A tree with this child, once that is ready; and afterwards the proof that none of its processes is left."""
    try:
        with trio.fail_after(PATIENCE):
            root = Supervisor("app", [spec], **{"limit": None, **options})
            async with open_tree(root, sinks=[] if seen is None else [seen]) as tree:
                yield tree, await tree[spec].ready()
    finally:
        left = processes_in(folder)
    assert not left


async def refused(spec: Child, folder: Path) -> BaseException:
    """The failure of a first start; nothing is left of it."""
    try:
        async with opened(spec, folder):
            raise AssertionError("it has started")
    except Exception as failed:
        if isinstance(failed, AssertionError) or failed.__cause__ is None:
            raise
        return failed.__cause__


async def started_again(tree: Tree, spec: Child, before: Running) -> Running:
    """The ready value of a later incarnation."""
    running = before
    while running is before:
        await trio.sleep(0.01)
        running = await tree[spec].ready()
    return running


async def until(true) -> None:
    """Wait for what another process does, which gives no event."""
    with trio.fail_after(PATIENCE):
        while not true():  # noqa: ASYNC110 - see above
            await trio.sleep(0.01)


def is_permitted(isolation: str) -> bool:
    """Whether this machine permits it."""

    async def attempt():
        try:
            async with opened(
                little(UP + FOR_EVER, Path.cwd(), isolation=isolation, cwd="/tmp"), Path("/nowhere")
            ):
                return True
        except Exception:
            return False

    return isolation == "group" or trio.run(attempt)
