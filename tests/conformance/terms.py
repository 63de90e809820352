"""From the terms of a scenario to a tree, and from what the tree says back to those terms. It decides nothing."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import outcome

from supervise import IGNORE, OTP, Child, Limit, Pool, Refused, StartFailed, Status, Supervisor, events
from supervise._core import effect
from supervise._core.machine import Machine

Path = tuple[str, ...]
Term = dict[str, Any]

KINDS: dict[str, Any] = {
    "start_child": "add",
    "terminate_child": "stop",
    "restart_child": "restart",
    "delete_child": "remove",
    "which_children": "status",
    "count_children": "status",
}
# A child whose end waits to be dealt with is still listed as running.
STATES = {"up": "running", "failed": "running", "stopping": "running", "restarting": "restarting"}
REASONS = {"duplicate": "error:already_present", "pool": "error:simple_one_for_one", "stopping": "noproc"}
REFUSED = {
    "strategy must": "supervisor_data:invalid_strategy",
    "restarts must": "supervisor_data:invalid_intensity",
    "within must": "supervisor_data:invalid_period",
    "auto_shutdown must": "supervisor_data:invalid_auto_shutdown",
    "one template": "bad_start_spec:other",
    "name must": "start_spec:missing_id",
    "two children named": "start_spec:duplicate_child_name",
    "restart must": "start_spec:invalid_restart_type",
    "drain must": "start_spec:invalid_shutdown",
    "type must": "start_spec:invalid_child_type",
    "significant must": "start_spec:invalid_significant",
    "significant needs": "start_spec:bad_combination",
}


class Crash(Exception):
    """What a worker, or a supervisor, that does not end normally raises."""


def failure(how: Any) -> Crash | None:
    """What ending like this raises."""
    return Crash(how) if how in ("crash", "kill") else None


def reason(how: Any) -> str:
    """An exit reason as the trace has it."""
    return f"shutdown:{how['shutdown']}" if isinstance(how, dict) else {"kill": "killed"}.get(how, how)


def names(path: str) -> Path:
    """`root/a/b` as the trace has it."""
    return tuple(path.split("/")[1:])


def refusal(problem: Exception) -> str:
    """OTP's words for what a constructor of ours refuses."""
    return next((word for text, word in REFUSED.items() if text in str(problem)), repr(problem))


class World:
    """One scenario: its specs, its start scripts, and the log. `face` plays it: bare machines, or tasks."""

    def __init__(self, face: Any) -> None:
        self.face = face
        self.log: list[list[Any]] = []
        self.replies: list[Answer] = []
        self.ends: dict[Path, str] = {}  # how `stop_sup` ends a supervisor
        self._attempts: Counter[Any] = Counter()
        self._open: set[Path] = set()

    # --- specs

    def root(self, term: Term) -> Supervisor | Pool:
        """The root, whose `init` gives OTP its terms."""
        self._began("sup_init", ())
        return self._supervisor(term, "root", ())

    def _supervisor(self, term: Term, name: str, path: Path, **options: Any) -> Supervisor | Pool:
        options["limit"] = Limit(term.get("intensity", 1), within=term.get("period", 5))
        options |= {"on_limit": "shutdown", "decider": OTP, "auto_shutdown": term.get("auto_shutdown", "never")}
        children = [self.child(child, path) for child in term["children"]]
        if term.get("strategy") != "simple_one_for_one":
            return Supervisor(name, children, strategy=term.get("strategy", "one_for_one"), **options)
        if len(children) != 1:
            raise ValueError("simple_one_for_one takes one template")
        return Pool(name, children[0], member_limit=None, **options)

    def child(self, term: Term, above: Path) -> Any:
        """One child of the supervisor at `above`."""
        name, kind = term.get("id"), term.get("type", "worker")
        options = {"restart": term.get("restart", "permanent"), "significant": term.get("significant", False)}
        if kind == "supervisor":
            init = partial(self._init, term, (*above, name))
            return self._supervisor(term["sup"], name, (*above, name), init=init, **options)
        if kind != "worker":
            raise ValueError(f"type must be worker or supervisor, got {kind!r}")
        shutdown = term.get("shutdown", 5000)
        drain = shutdown / 1000 if isinstance(shutdown, int) else {"infinity": float("inf"), "brutal_kill": 0}.get(shutdown)
        return Child(name, self.face.work, args=(term,), drain=drain, **options)

    # --- what happens

    def attempt(self, machine: Machine | None, term: Term, path: Path, script: list[Any] | None = None) -> Any:
        """The outcome of the next attempt to start; what `error_then` asks the supervisor for is posted."""
        key = path if script else term.get("key", path)
        script = script or term.get("start", ["ok"])
        result = script[min(self._attempts[key], len(script) - 1)]
        self._attempts[key] += 1
        if result == "ok":
            self._began("sup_init" if "sup" in term else "start", path)
            return result
        self.log.append(["start_ignore" if result == "ignore" else "start_error", path])
        for step in () if isinstance(result, str) else result["error_then"]:
            self._post(machine, step)
        return result

    def _init(self, term: Term, path: Path) -> object:
        result = self.attempt(None, term, path)
        if result == "error":
            raise Crash(result)
        return IGNORE if result == "ignore" else None

    def _began(self, word: str, path: Path) -> None:
        self.log.append([word, path])
        if word == "sup_init":
            self._open.add(path)

    def stopped(self, path: Path, how: Any) -> None:
        """A worker's last word."""
        self.log.append(["stop", path, reason(how)])

    def saw(self, event: events.Event) -> None:
        """What the tree tells of its supervisors; the workers speak for themselves."""
        path = names(event.path)
        if path in self._open and isinstance(event, events.Ready):
            self.log.append(["sup_up", path])
        elif path in self._open and isinstance(event, events.StartFailed):
            self._open.discard(path)
            self.log += [["sup_start_error", path]] if path else []
        elif path in self._open and isinstance(event, events.Failed | events.Returned | events.Stopped):
            self._open.discard(path)
            self.log.append(["sup_stop", path, self.ends.pop(path, "shutdown")])

    # --- requests

    def running(self, path: Path | list[str]) -> Any:
        """The node at a path, if it is up."""
        node = self.face.root
        for name in path:
            node = node and node.machine and node.machine.children.get(name)
        return node if node and node.state == "up" else None

    def request(self, machine: Machine, step: Term, token: Any) -> effect.Request:
        """A request to the supervisor, as the machines know it."""
        kind = KINDS[step["op"]]
        if kind != "add":
            return effect.Request(kind, token, name=step.get("id"))
        term = step["spec"]
        if isinstance(machine.spec, Pool):
            return effect.Request(kind, token, name=term["id"], args=(term.get("start", ["ok"]),))
        return effect.Request(kind, token, spec=self.child(term, names(machine.path)))

    def _post(self, machine: Machine | None, step: Term) -> None:
        assert machine is not None
        if step["op"] == "stop":
            self.face.post(machine, effect.Stop("its parent wants it"))
        else:
            self.replies.append(Answer(machine, step))
            self.face.post(machine, self.request(machine, step, self.replies[-1]))


class Answer:
    """What becomes of a request, in OTP's words; of one that nobody answers, `noproc`."""

    def __init__(self, machine: Machine, step: Term) -> None:
        self.machine, self.step = machine, step
        self.result: Any = "noproc"

    def set(self, got: outcome.Outcome[Any]) -> None:
        """Take the answer."""
        self.result = self._told(got.value) if isinstance(got, outcome.Value) else self._failed(got.error)

    def _told(self, value: Any) -> Any:
        if isinstance(value, Status):
            return which(value) if self.step["op"] == "which_children" else counts(value)
        name = self.step["spec"]["id"] if "spec" in self.step else self.step["id"]
        node = self.machine.children.get(name)
        started = node is not None and node.state == "up"
        return "ok" if started or self.step["op"] not in ("start_child", "restart_child") else "ignored"

    def _failed(self, error: Any) -> str:
        if isinstance(error, StartFailed):
            return "error:start_failed"
        if not isinstance(error, Refused):
            return f"error:{refusal(error).rpartition(':')[2]}"
        if error.reason == "not_found" and isinstance(self.machine.spec, Pool):
            return "ok"  # a pid that is no more
        if error.reason == "running" and self.step["op"] == "start_child":
            return "error:already_started"
        return REASONS.get(error.reason, f"error:{error.reason}")


def which(status: Status) -> list[list[Any]]:
    """As `which_children` has a supervisor's children, in start order."""
    listed: list[list[Any]] = [[names(it.path)[-1], STATES.get(it.state, "undefined")] for it in status.children]
    if status.kind != "pool":
        return listed
    return sorted(([None, state] if state == "restarting" else [name, state] for name, state in listed), key=str)


def counts(status: Status) -> dict[str, int]:
    """As `count_children` has them."""
    here, workers = status.children, sum(it.kind == "child" for it in status.children)
    specs, active = 1 if status.kind == "pool" else len(here), sum(it.state == "up" for it in here)
    return {"specs": specs, "active": active, "supervisors": len(here) - workers, "workers": workers}


def written(spec: Child | Supervisor | Pool) -> Term:
    """As `get_childspec` has one."""
    drain = spec.drain if isinstance(spec, Child) else float("inf")
    shutdown = {0: "brutal_kill", float("inf"): "infinity"}.get(drain) or round(drain * 1000)
    kind = "worker" if isinstance(spec, Child) else "supervisor"
    return {"restart": spec.restart, "shutdown": shutdown, "significant": spec.significant, "type": kind}
