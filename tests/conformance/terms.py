"""OTP's terms for our values, one for one."""

from __future__ import annotations

from typing import Any

from supervise import Child, Pool, Status, Supervisor, events

Path = tuple[str, ...]
Term = dict[str, Any]

KINDS = {"start_child": "add", "terminate_child": "stop", "restart_child": "restart", "delete_child": "remove"}
# A child whose end waits to be dealt with is still listed as running.
STATES = {"up": "running", "failed": "running", "stopping": "running", "restarting": "restarting"}
ON_SHUTDOWN = {"exit": "shutdown", "normal": "normal", "crash": "crash", "hang": None}
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
SUPERVISORS = {
    events.Ready: "sup_up",
    events.StartFailed: "sup_start_error",
    events.Failed: "sup_stop",
    events.Returned: "sup_stop",
    events.Stopped: "sup_stop",
}


class Crash(Exception):
    """What is raised by whatever does not end normally."""


def failure(how: Any) -> Crash | None:
    return Crash(how) if how in ("crash", "kill") else None


def reason(how: Any) -> str:
    return f"shutdown:{how['shutdown']}" if isinstance(how, dict) else {"kill": "killed"}.get(how, how)


def names(path: str) -> Path:
    return tuple(path.split("/")[1:])


def refusal(problem: Exception) -> str:
    """What OTP says to what a constructor of ours refuses."""
    return next((word for text, word in REFUSED.items() if text in str(problem)), repr(problem))


def drain(shutdown: Any) -> Any:
    named = {"infinity": float("inf"), "brutal_kill": 0}
    return shutdown / 1000 if isinstance(shutdown, int) else named.get(shutdown, shutdown)


def childspec(spec: Child | Supervisor | Pool) -> Term:
    leaf = isinstance(spec, Child)
    shutdown = {0: "brutal_kill", float("inf"): "infinity"}.get(spec.drain, spec.drain * 1000) if leaf else "infinity"
    kind = "worker" if leaf else "supervisor"
    return {"restart": spec.restart, "shutdown": shutdown, "significant": spec.significant, "type": kind}


def children(status: Status) -> list[list[Any]]:
    """As `which_children` has them, in start order; the dynamic ones by name."""
    found: list[list[Any]] = [[names(it.path)[-1], STATES.get(it.state, "undefined")] for it in status.children]
    if status.kind != "pool":
        return found
    found = [[None if state == "restarting" else name, state] for name, state in found]
    return sorted(found, key=lambda row: row[0] or "")


def counts(status: Status) -> dict[str, int]:
    here, workers = status.children, sum(it.kind == "child" for it in status.children)
    specs, active = 1 if status.kind == "pool" else len(here), sum(it.state == "up" for it in here)
    return {"specs": specs, "active": active, "supervisors": len(here) - workers, "workers": workers}
