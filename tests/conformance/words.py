"""The words of the traces: OTP's for ours, and ours for OTP's."""

import outcome

from supervise import Child, Refused, StartFailed, Status

KINDS = {
    "start_child": "add",
    "terminate_child": "stop",
    "restart_child": "restart",
    "delete_child": "remove",
}
BEGAN = {"ok": "start", "ignore": "start_ignore", "error": "start_error"}
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
# A child whose end waits to be dealt with is still listed as running.
_STATES = {"up": "running", "failed": "running", "stopping": "running", "restarting": "restarting"}


def failure(how):
    return RuntimeError(how) if how in ("crash", "kill") else None


def reason(how):
    return f"shutdown:{how['shutdown']}" if isinstance(how, dict) else {"kill": "killed"}.get(how, how)


def refused(op, error):
    """What a step that raised answers."""
    if isinstance(error, Refused):
        running = "already_started" if op == "start_child" else "running"
        return REASONS.get(error.reason, f"error:{running if error.reason == 'running' else error.reason}")
    if isinstance(error, StartFailed):
        return "error:" + (
            f"failed_to_start_child:{names(error.path)[0]}" if op == "start" else "start_failed"
        )
    word = next((word for text, word in REFUSED.items() if text in str(error)), repr(error))
    return "error:" + (word if op == "start" else word.rpartition(":")[2])


def drain(shutdown):
    named = {"infinity": float("inf"), "brutal_kill": 0}
    return shutdown / 1000 if isinstance(shutdown, int) else named.get(shutdown, shutdown)


def names(path):
    """`root/a/b` as the trace has it."""
    return tuple(path.split("/")[1:])


def children(status):
    """As `which_children` has them, in start order; dynamic ones by name."""
    found = [[names(it.path)[-1], _STATES.get(it.state, "undefined")] for it in status.children]
    if status.kind != "pool":
        return found
    found = [[None if state == "restarting" else name, state] for name, state in found]
    return sorted(found, key=lambda row: row[0] or "")


def counts(status):
    """As `count_children` has them."""
    here = status.children
    workers = sum(it.kind == "child" for it in here)
    return {
        "specs": 1 if status.kind == "pool" else len(here),
        "active": sum(it.state == "up" for it in here),
        "supervisors": len(here) - workers,
        "workers": workers,
    }


def childspec(spec):
    """As `get_childspec` has it."""
    drain = spec.drain if isinstance(spec, Child) else float("inf")
    return {
        "restart": spec.restart,
        "shutdown": {0: "brutal_kill", float("inf"): "infinity"}.get(drain, drain * 1000),
        "significant": spec.significant,
        "type": "worker" if isinstance(spec, Child) else "supervisor",
    }


def supervisors(status):
    """Every running supervisor and its children."""
    up = (it for it in status.walk() if it.kind != "child" and it.state == "up")
    return [
        {"path": names(it.path), "children": children(it), "counts": counts(it), "restarts": it.restarts}
        for it in up
    ]


class Answer:
    """What becomes of a step or a request, in OTP's words; if nothing does, `noproc`."""

    def __init__(self, world, sup, step):
        self.world, self.sup, self.step, self.op, self.result = world, sup, step, step["op"], "noproc"

    def set(self, got):
        self.result = self.told(got.value) if isinstance(got, outcome.Value) else refused(self.op, got.error)

    def told(self, value):
        if isinstance(value, Status):
            return children(value) if self.op == "which_children" else counts(value)
        if isinstance(value, str | dict) or self.op not in ("start_child", "restart_child"):
            return value if isinstance(value, str | dict) else "ok"
        name = self.step["id"] if "id" in self.step else self.step["spec"]["id"]
        return "ignored" if self.world.began[(*self.sup, name)] == "start_ignore" else "ok"
