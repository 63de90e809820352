"""Plays a scenario, step by step, on a tree behind one of two faces: bare machines, or real Trio tasks."""

from __future__ import annotations

from typing import Any

from supervise import Pool, StartFailed, Supervisor
from supervise._core import effect

from .terms import KINDS, Crash, World, abnormal, names, reason, refusal


async def play(scenario: dict[str, Any], face_of: Any) -> list[dict[str, Any]]:
    """The trace of a scenario."""
    world = World(scenario)
    face = world.face = face_of(world)
    steps: list[dict[str, Any]] = []

    def note(result: Any, root: str, sups: list[Any]) -> None:
        steps.append({"events": world.log.copy(), "result": result, "root": root, "sups": sups})
        if world.replies:
            steps[-1]["replies"] = [answer.result for answer in world.replies]
        world.log.clear()
        world.replies.clear()

    try:
        async with face.open(world.root()):
            await face.quiet()
            note("ok", *world.look())
            for step in scenario["steps"]:
                result = await _STEP.get(step["op"], _request)(world, step)
                await face.quiet()
                note(result, *world.look())
    except StartFailed as exc:
        note(f"error:failed_to_start_child:{names(exc.path)[0]}", "never_started", [])
    except (TypeError, ValueError) as exc:
        note(f"error:{refusal(exc)}", "never_started", [])
    return steps


async def _request(world: World, step: dict[str, Any]) -> Any:
    sup = world.running(step["sup"])
    if sup is None:
        return "noproc"
    name = step.get("id")
    if isinstance(name, dict):  # not a pid
        return world.refused({**step, "id": name["raw"]}, "pool")
    try:
        return world.answer(step, await world.face.ask(sup, step))
    except Exception as exc:
        return world.answer(step, error=exc)


async def _get_childspec(world: World, step: dict[str, Any]) -> Any:
    sup = world.running(step["sup"])
    if sup is None:
        return "noproc"
    node = sup.machine.children.get(step["id"])
    if isinstance(sup.spec, Pool) and step["id"] == sup.spec.template.name:
        spec = sup.spec.template
    elif node is None:
        return "error:not_found"
    else:
        spec = node.spec
    return world.written(spec)


async def _check_childspecs(world: World, step: dict[str, Any]) -> str:
    try:
        children = [world.child(term, ()) for term in step["specs"]]
        Supervisor("checked", children, auto_shutdown=step.get("auto_shutdown") or "any_significant")
    except (TypeError, ValueError) as exc:
        return "error:" + refusal(exc).rpartition(":")[2]
    return "ok"


async def _exit(world: World, step: dict[str, Any]) -> str:
    return "ok" if world.face.end(tuple(step["path"]), step["how"]) else "noproc"


async def _exit_many(world: World, step: dict[str, Any]) -> str:
    found = False
    with world.face.held():
        for name, how in zip(step.get("ids", ()), step["hows"], strict=False):
            found |= world.face.end((*step["sup"], name), how)
            await world.face.blocked()
    return "ok" if found else "noproc"


async def _stop_sup(world: World, step: dict[str, Any]) -> str:
    sup, how = world.running(step["path"]), step["how"]
    if sup is None:
        return "noproc"
    world.ends[tuple(step["path"])] = reason(how)
    exc = Crash(how) if abnormal(how) else None
    world.face.post(sup.machine, effect.Stop("the test ends it", returned=exc is None, exc=exc))
    return "ok"


async def _stop_root(world: World, _: dict[str, Any]) -> str:
    if world.running(()) is None:
        return "noproc"
    await world.face.stop_root()
    return "ok"
