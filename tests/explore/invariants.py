"""What holds in every state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervise._core.act import Act
from supervise._core.effect import Request
from supervise._core.machine import Machine
from supervise._core.node import Node
from supervise._core.spec import Pool

from .state import nodes

if TYPE_CHECKING:
    from .world import World


class Violation(AssertionError):
    """The machine did what it never may."""


def demand(condition: object, *said: object) -> None:
    """Raise `Violation` unless the condition holds."""
    if not condition:
        raise Violation(" ".join(map(str, said)))


def check(world: World) -> None:
    """Raise `Violation` if the machines' books do not agree with what is there, or if there is no way on."""
    order = nodes(world)
    for node in order:
        _check_node(world, node)
        machine = world.machine_of(node)
        if machine is not None:
            _check_machine(world, machine)
    there = {node.path for node in order}
    demand(there.issuperset(world.tasks), "run outside of the tree:", set(world.tasks) - there)
    _check_promises(world)
    if world.forest.over:
        demand(not world.tasks, "run after the end:", world.tasks)
        demand(not any(world.words.values()), "unfinished lives:", world.words)
        demand(world.gone >= {world.forest.root.path}, "the root ended and is not gone")
    elif not obliged(world):
        _check_rest(world, order)


def obliged(world: World) -> bool:
    """Whether a task, caller or timer that must act at some time is still to act."""
    modes = {task.mode for task in world.tasks.values()}
    return not modes.isdisjoint(("opening", "starting", "stopping", "leaving")) or any(world.timers())


def _check_node(world: World, node: Node) -> None:
    task = world.tasks.get(node.path)
    demand(node.alive == (task is not None), node, "alive" if node.alive else "not alive", task)
    demand(node.alive or not node.has_machine or node is world.forest.root, node, "has a machine")
    if task is None:
        states = ("down", "condemned", "restarting", "failed", "stopping", "releasing")
        demand(node.state in states, node, "has no task")
        above = world.above(node)
        ending = above is None or above.phase == "ending"
        demand(node.state != "failed" or node.undecided or ending, node, "failed and is forgotten")
    else:
        demand(task.incarnation == node.incarnation, node, "runs another incarnation")
        demand(node.state not in ("down", "condemned", "restarting"), node, "has a task")
        demand(not node.gone or task.is_over, node, "is gone but runs")
    demand(not node.gone or node.path in world.gone or node is world.forest.root, node, "is gone, untold")


def _check_machine(world: World, machine: Machine) -> None:
    children = list(machine.children.values())
    act = machine.act
    awaited = sum(node.awaited for node in children)
    asking = act is not None and act.kind == "ask" and act.node is None
    demand(awaited + asking == (0 if act is None else act.pending), machine, "waits for", awaited)
    demand(act is not None or machine.phase in ("opening", "up", "ended"), machine, "has no act")
    held = 0 if machine.ready_time is None else machine.ready_time._held
    demand(
        sum(node.restart_in_progress for node in children) == held, machine, "counts as being restarted", held
    )
    if machine.window is not None:
        charged = len(machine.window._charged)
        demand(world.charges[machine.path] == charged, machine, "charged", charged, world.charges)
    if not isinstance(machine.spec, Pool):
        ordered = [node for node in children if _on_the_way_out(world, node)]
        demand(len(ordered) <= 1, machine, "stops at once:", ordered)
        starting = [node for node in children if node.state == "starting"]
        demand(len(starting) <= 1 or act is None or act.kind == "end", machine, "starts at once:", starting)
    if isinstance(act, Act) and act.kind == "end" and machine.parent is None:
        final = not world.forest.root_waits_for_its_end
        demand(act.for_good == final, machine, "ends for good" if act.for_good else "starts anew")
    if isinstance(act, Act) and act.for_good:
        over = [
            node for node in children if not node.alive or world.tasks[node.path].mode in ("kept", "parked")
        ]
        lost = [node for node in over if not node.gone]
        demand(not lost, machine, "ends for good, and callers wait for", lost)
        asking = [world.machine_of(node) for node in children if node.has_machine and node.state == "failed"]
        for below in asking:
            demand(below.act.for_good, below, "hopes for a verdict")
    if act is None and machine.phase == "up":
        demand(not machine.inbox, machine, "has left unserved:", machine.inbox)
        _check_idle(machine, children)


def _on_the_way_out(world: World, node: Node) -> bool:
    task = world.tasks.get(node.path)
    return task is not None and (task.mode == "stopping" or (node.has_machine and node.state == "stopping"))


def _check_idle(machine: Machine, children: list[Node]) -> None:
    for place, node in enumerate(children):
        if node.state == "restarting":
            demand(node.phase == "backoff" and node.timer, node, "waits for no timer")
        elif node.state == "condemned":
            demand(node.gone, node, "is not gone")
        elif node.is_new:
            # The caller who had it join starts it next.
            demand(not node.gone, node, "has joined, and is gone")
        elif node.state == "down":
            reviving = {"one_for_one": [], "rest_for_one": children[:place], "one_for_all": children}
            retried = any(other.state == "restarting" for other in reviving[machine.spec.strategy])
            demand(node.gone != retried, node, "is gone" if retried else "is not gone")
        elif node.state == "releasing":
            demand(node.alive and node in machine.releasing, node, "has been left, and nothing came of it")
            demand(machine.spec.strategy == "one_for_one", node, "lets its group wait")
        else:
            demand(node.state == "up", machine, "is idle beside", node)


def _check_promises(world: World) -> None:
    """Every request can still be answered, and every timer has been asked for."""
    machines = [world.forest.machines[node.path] for node in nodes(world) if node.has_machine]
    requests = [item for machine in machines for item in machine.inbox if isinstance(item, Request)]
    tokens = [request.token for request in requests if not request.withdrawn]
    tokens += [machine.act.token for machine in machines if isinstance(machine.act, Act)]
    tokens += [] if world.forest.restarting is None else [world.forest.restarting.token]
    demand(
        world.asked == {token for token in tokens if token is not None}, "unanswered:", world.asked, tokens
    )
    for at, machine, node in world.timers():
        demand(
            min(world.wakes.get(machine.path, ()), default=float("inf")) <= at, node, "is not woken at", at
        )


def _check_rest(world: World, order: list[Node]) -> None:
    """Nobody is obliged to act: then nothing may be pending."""
    demand(world.forest.root.state in ("up", "starting"), "stuck:", world.forest.root)
    for node in order:
        machine = world.machine_of(node)
        if machine is not None:
            demand(machine.act is None and machine.phase == "up", "stuck:", machine)
            demand(not machine.inbox, "stuck:", machine)
        else:
            demand(node.state in ("up", "down", "condemned"), "stuck:", node)
