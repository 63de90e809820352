"""Plays the steps of a scenario before one of two faces: the bare machines, or real Trio tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from heapq import heappop, heappush
from typing import Any

import outcome
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from supervise import IGNORE, Pool, Ref, StartFailed, Supervisor, current_child, open_tree, stop_requested
from supervise._core import effect
from supervise._core.forest import Forest
from supervise._core.machine import start_failed
from supervise._trio.driver import _call_init

from .terms import Answer, Crash, World, counts, failure, names, reason, refusal, which, written

ON_SHUTDOWN = {"exit": "shutdown"}


async def play(scenario: dict[str, Any], face: Any) -> list[dict[str, Any]]:
    """The trace of a scenario."""
    world = face.world = World(face)
    steps = []
    async with AsyncExitStack() as stack:
        result: Any = "ok"
        try:
            await stack.enter_async_context(face.open(world.root(scenario["tree"])))
        except StartFailed as exc:
            result = f"error:failed_to_start_child:{names(exc.path)[0]}"
        except (TypeError, ValueError) as exc:
            result = f"error:{refusal(exc)}"
        steps.append(_look(world, result, "shutdown" if result == "ok" else "never_started"))
        for step in scenario["steps"]:
            result = await _STEP.get(step["op"], _request)(world, step)
            await face.quiet()
            steps.append(_look(world, result, "shutdown"))
    return steps


def _look(world: World, result: Any, root: str) -> dict[str, Any]:
    """Everything as it is after a step."""
    seen = {"result": result, "events": world.log, "root": root, "sups": []}
    if world.running(()):
        seen["root"] = "up"
        seen["sups"] = [
            {"path": names(it.path), "children": which(it), "counts": counts(it), "restarts": it.restarts}
            for it in world.face.status().walk()
            if it.kind != "child" and it.state == "up"
        ]
    if world.replies:
        seen["replies"] = [answer.result for answer in world.replies]
    world.log, world.replies = [], []
    return seen
