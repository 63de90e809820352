"""From the terms of a scenario to a tree, and from what the tree says back to those terms. Nothing is decided here."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from typing import Any

from supervise import IGNORE, OTP, Child, Limit, Pool, Refused, StartFailed, Status, Supervisor, events
from supervise._core import effect

KINDS = {
    "start_child": "add",
    "terminate_child": "stop",
    "restart_child": "restart",
    "delete_child": "remove",
    "which_children": "status",
    "count_children": "status",
}
# OTP has no state between: a child whose end is not dealt with yet is still listed as running.
STATES = {"up": "running", "failed": "running", "stopping": "running", "restarting": "restarting"}
REASONS = {"duplicate": "already_present", "pool": "simple_one_for_one"}
REFUSED = {
    "strategy must": "supervisor_data:invalid_strategy",
    "restarts must": "supervisor_data:invalid_intensity",
    "within must": "supervisor_data:invalid_period",
    "auto_shutdown must": "supervisor_data:invalid_auto_shutdown",
    "one template": "other",
    "name must": "start_spec:missing_id",
    "two children named": "start_spec:duplicate_child_name",
    "restart must": "start_spec:invalid_restart_type",
    "drain must": "start_spec:invalid_shutdown",
    "type must": "start_spec:invalid_child_type",
    "significant must": "start_spec:invalid_significant",
    "significant needs": "start_spec:bad_combination",
}


class Crash(Exception):
    """What a worker that does not end normally raises."""


def reason(how: Any) -> str:
    """An exit reason as the trace writes it."""
    return f"shutdown:{how['shutdown']}" if isinstance(how, dict) else {"kill": "killed"}.get(how, how)


def abnormal(how: Any) -> bool:
    return how in ("crash", "kill")


def names(path: str) -> tuple[str, ...]:
    """`root/a/b` as the trace writes it."""
    return tuple(path.split("/")[1:])


def refusal(problem: Exception) -> str:
    """OTP's words for what one of our constructors refuses."""
    found = (word for text, word in REFUSED.items() if re.search(text, str(problem)))
    return next(found, repr(problem))


class World:
    """One scenario while it is played: its specs, its start scripts, and the log of what happened."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        self.tree = scenario["tree"]
        self.log: list[list[Any]] = []
        self.replies: list[Answer] = []
        self.face: Any = None
        self._attempts: Counter[Any] = Counter()
        self._running: set[tuple[str, ...]] = set()
        self.ends: dict[tuple[str, ...], str] = {}

    # --- specs

    def root(self) -> Supervisor | Pool:
        """The root; OTP reads its terms after its `init` has been called."""
        self.log.append(["sup_init", []])
        self._running.add(())
        return self.supervisor(self.tree, "root", ())

    def supervisor(self, term: dict[str, Any], name: str, path: tuple[str, ...], **options: Any) -> Supervisor | Pool:
        limit = Limit(term.get("intensity", 1), within=term.get("period", 5))
        options |= {"limit": limit, "on_limit": "shutdown", "decider": OTP}
        options["auto_shutdown"] = term.get("auto_shutdown", "never")
        strategy = term.get("strategy", "one_for_one")
        if strategy != "simple_one_for_one":
            children = [self.child(child, path) for child in term["children"]]
            return Supervisor(name, children, strategy=strategy, **options)
        if len(term["children"]) != 1:
            raise ValueError("simple_one_for_one takes one template")
        template = self.child(term["children"][0] | {"key": None}, path)
        return Pool(name, template, member_limit=None, **options)

    def child(self, term: dict[str, Any], above: tuple[str, ...]) -> Any:
        name, kind = term.get("id"), term.get("type", "worker")
        options = {"restart": term.get("restart", "permanent"), "significant": term.get("significant", False)}
        if kind == "supervisor":
            path = (*above, name)
            init = partial(self.init, term, path)
            return self.supervisor(term["sup"], name, path, init=init, **options)
        if kind != "worker":
            raise ValueError(f"type must be worker or supervisor, got {kind!r}")
        shutdown = term.get("shutdown", 5000)
        drain = {"infinity": float("inf"), "brutal_kill": 0}.get(shutdown, shutdown)
        drain = drain / 1000 if isinstance(drain, int) else drain
        return Child(name, self.face.work, args=(term,), drain=drain, **options)

    # --- scripts

    def attempt(self, term: dict[str, Any], path: tuple[str, ...], script: list[Any] | None = None) -> Any:
        """The outcome of the next attempt to start, logged; what `error_then` asks for is posted."""
        script = script or term.get("start", ["ok"])
        key = term.get("key") or path
        outcome = script[min(self._attempts[key], len(script) - 1)]
        self._attempts[key] += 1
        started = "sup_init" if term.get("type") == "supervisor" else "start"
        word = {"ok": started, "ignore": "start_ignore"}.get(outcome if isinstance(outcome, str) else "", "start_error")
        self.log.append([word, list(path)])
        for request in outcome["error_then"] if isinstance(outcome, dict) else ():
            self.post(path[:-1], request)
        return outcome

    def init(self, term: dict[str, Any], path: tuple[str, ...]) -> object:
        """A supervisor's own start."""
        outcome = self.attempt(term, path)
        if outcome == "ok":
            self._running.add(path)
        elif outcome != "ignore":
            raise Crash(outcome)
        return IGNORE if outcome == "ignore" else None

    def stopped(self, path: tuple[str, ...], how: Any) -> None:
        """A worker's last word."""
        self.log.append(["stop", list(path), reason(how)])

    def saw(self, event: events.Event) -> None:
        """What the tree tells of its supervisors; workers speak for themselves."""
        path = names(event.path)
        if path not in self._running:
            return
        if isinstance(event, events.Ready):
            self.log.append(["sup_up", list(path)])
        elif isinstance(event, events.StartFailed):
            self._running.discard(path)
            if path:
                self.log.append(["sup_start_error", list(path)])
        elif isinstance(event, events.Failed | events.Returned | events.Stopped):
            self._running.discard(path)
            self.log.append(["sup_stop", list(path), self.ends.pop(path, "shutdown")])

    # --- requests

    def find(self, path: Any) -> Any:
        """The node at a path, or None."""
        node = self.face.forest.root
        for name in path:
            node = node.machine.children.get(name) if node is not None and node.machine is not None else None
        return node

    def running(self, path: Any) -> Any:
        """The supervisor at a path, if it is up."""
        node = self.find(path)
        return node if node is not None and node.machine is not None and node.state == "up" else None

    def post(self, sup: tuple[str, ...], step: dict[str, Any]) -> None:
        """Put a request in, without waiting for its answer."""
        machine = self.find(sup).machine
        if step["op"] == "stop":
            self.face.post(machine, effect.Stop("the test's stop"))
            return
        answer = Answer(self, {**step, "sup": sup})
        self.replies.append(answer)
        self.face.post(machine, self.request(machine, step, answer))

    def request(self, machine: Any, step: dict[str, Any], token: Any) -> effect.Request:
        kind: Any = KINDS[step["op"]]
        if kind != "add":
            return effect.Request(kind, token, name=step.get("id"))
        spec = step["spec"]
        if isinstance(machine.spec, Pool):
            return effect.Request(kind, token, name=spec["id"], args=(spec.get("start"),))
        return effect.Request(kind, token, spec=self.child(spec, names(machine.path)))

    def answer(self, step: dict[str, Any], value: Any = None, error: Exception | None = None) -> Any:
        """The answer to a request in OTP's words."""
        op = step["op"]
        if isinstance(error, Refused):
            return self.refused(step, error.reason)
        if isinstance(error, StartFailed):
            return "error:start_failed"
        if error is not None:
            return "error:" + refusal(error).rpartition(":")[2]
        if op == "which_children":
            return which(value)
        if op == "count_children":
            return counts(value)
        node = self.find((*step["sup"], step.get("id") or step["spec"]["id"]))
        started = op not in ("start_child", "restart_child") or (node is not None and node.state == "up")
        return "ok" if started else "ignored"

    def refused(self, step: dict[str, Any], why: str) -> str:
        if why == "stopping":
            return "noproc"
        if why == "running" and step["op"] == "start_child":
            return "error:already_started"
        if why == "not_found" and isinstance(self.find(step["sup"]).spec, Pool):
            return "ok"  # a pid that has ended
        return f"error:{REASONS.get(why, why)}"

    def look(self) -> list[dict[str, Any]]:
        """Every running supervisor and its children."""
        return [
            {"path": list(names(it.path)), "children": which(it), "counts": counts(it), "restarts": it.restarts}
            for it in self.face.status().walk()
            if it.kind != "child" and it.state == "up"
        ]


class Answer:
    """The token of a request that nobody waits for."""

    def __init__(self, world: World, step: dict[str, Any]) -> None:
        self._world = world
        self._step = step
        self.result: Any = "noproc"

    def set(self, outcome: Any) -> None:
        error = getattr(outcome, "error", None)
        self.result = self._world.answer(self._step, getattr(outcome, "value", None), error)


def which(status: Status) -> list[list[Any]]:
    """A supervisor's children and their states, as `which_children` has them."""
    listed = [[names(child.path)[-1], STATES.get(child.state, "undefined")] for child in status.children]
    if status.kind == "pool":
        listed = [[None if state == "restarting" else name, state] for name, state in listed]
        listed.sort(key=lambda row: row[0] or "")
    return listed


def counts(status: Status) -> dict[str, int]:
    """How many there are of a supervisor's children, as `count_children` has it."""
    workers = sum(child.kind == "child" for child in status.children)
    return {
        "specs": 1 if status.kind == "pool" else len(status.children),
        "active": sum(child.state == "up" for child in status.children),
        "supervisors": len(status.children) - workers,
        "workers": workers,
    }
