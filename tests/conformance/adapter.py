"""OTP's terms for ours, and ours for OTP's: it translates, knows no strategy and no limit, and decides nothing."""

from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from math import inf

import outcome

import supervise as s
from supervise import events
from supervise._core import effect

ASKS = {"start_child": "add", "terminate_child": "stop", "restart_child": "start", "delete_child": "remove"}
BEGAN = {"ok": "start", "ignore": "start_ignore", "error": "start_error"}
ON_SHUTDOWN = {"exit": "shutdown", "normal": "normal", "crash": "crash", "hang": "kill"}
DRAINS = {"infinity": inf, "brutal_kill": 0}
SAID = {events.Ready: "sup_up", events.StartFailed: "sup_start_error", events.Stopped: "sup_stop"}
# A child whose end waits to be dealt with is still listed as running.
STATES = {"up": "running", "failed": "running", "stopping": "running", "restarting": "restarting"}
REASONS = {"duplicate": "error:already_present", "pool": "error:simple_one_for_one", "stopping": "noproc"}
REFUSED = {
    "strategy must": "supervisor_data:invalid_strategy",
    "restarts must": "supervisor_data:invalid_intensity",
    "within must": "supervisor_data:invalid_period",
    "auto_shutdown must": "supervisor_data:invalid_auto_shutdown",
    "positional argument": "bad_start_spec:other",  # a template too few or too many
    "name must": "start_spec:missing_id",
    "two children named": "start_spec:duplicate_child_name",
    "restart must": "start_spec:invalid_restart_type",
    "drain must": "start_spec:invalid_shutdown",
    "type must": "start_spec:invalid_child_type",
    "significant must": "start_spec:invalid_significant",
    "significant needs": "start_spec:bad_combination",
}


def names(path):
    """`root/a/b` as the trace has it."""
    return tuple(path.split("/")[1:])


def reason(how):
    return f"shutdown:{how['shutdown']}" if isinstance(how, dict) else {"kill": "killed"}.get(how, how)


def children(status):
    """As `which_children` has them, in start order; those of a pool by name."""
    found = [(names(it.path)[-1], STATES.get(it.state, "undefined")) for it in status.children]
    if status.kind != "pool":
        return found
    dynamic = sorted(("" if state == "restarting" else name, state) for name, state in found)
    return [(name or None, state) for name, state in dynamic]


def counts(status):
    """As `count_children` has them."""
    found, specs = status.children, 1 if status.kind == "pool" else len(status.children)
    active, workers = sum(it.state == "up" for it in found), sum(it.kind == "child" for it in found)
    return {"specs": specs, "active": active, "supervisors": len(found) - workers, "workers": workers}


def childspec(spec):
    """As `get_childspec` has it."""
    kind, drain = ("worker", spec.drain) if isinstance(spec, s.Child) else ("supervisor", inf)
    shutdown = {drain: word for word, drain in DRAINS.items()}.get(drain, drain * 1000)
    return {"restart": spec.restart, "significant": spec.significant, "type": kind, "shutdown": shutdown}


class Answer:
    """What becomes of a step or a request, in OTP's words; if nothing does, `noproc`."""

    def __init__(self, op):
        self.op, self.result = op, "noproc"

    def set(self, got):
        self.result = self.refused(got.error) if isinstance(got, outcome.Error) else self.told(got.value)

    def told(self, value):
        if isinstance(value, s.Status):
            return children(value) if self.op == "which_children" else counts(value)
        if isinstance(value, str | dict) and not str(value).startswith("root/"):
            return value
        if self.op not in ("start_child", "restart_child"):
            return "ok"
        node = self.machine.children.get(value.rpartition("/")[2])
        down = node is None or node.state == "down"
        return "ignored" if down else "ok"

    def refused(self, error):
        starts = self.op == "start"
        if isinstance(error, s.Refused):
            word = "already_started" if self.op == "start_child" else "running"
            return {"running": f"error:{word}", **REASONS}.get(error.reason, f"error:{error.reason}")
        if isinstance(error, s.StartFailed):
            return f"error:failed_to_start_child:{names(error.path)[0]}" if starts else "error:start_failed"
        word = next((word for text, word in REFUSED.items() if text in str(error)), repr(error))
        return f"error:{word}" if starts else f"error:{word.rpartition(':')[2]}"


class World:
    """One scenario: its specs, its start scripts, its steps, and the log."""

    driver = None

    def __init__(self):
        self.log, self.replies, self.attempts, self.live, self.ends = [], [], Counter(), {}, {}

    async def play(self, scenario):
        trace = []
        async with AsyncExitStack() as self.stack:
            for step in ({"op": "start", **scenario}, *scenario["steps"]):
                answer = Answer(step["op"])
                got = await outcome.acapture(self.step, step["op"], step, answer)
                if got != outcome.Value(None):
                    answer.set(got)
                if self.driver is not None:
                    await self.quiet()
                trace.append(self.look(answer.result))
        return trace

    def look(self, result):
        up = self.machine(()) is not None
        root = "up" if up else "shutdown" if self.driver else "never_started"
        replies = [answer.result for answer in self.replies if answer.op != "stop"]
        seen = {"events": self.log, "result": result, "root": root, "replies": replies or None}
        seen["sups"] = [
            {"path": names(it.path), "children": children(it), "counts": counts(it), "restarts": it.restarts}
            for it in (self.status().walk() if up else ())
            if it.kind != "child" and it.state == "up"
        ]
        self.log, self.replies = [], []
        return seen

    def supervisor(self, term, name, path, **options):
        options["limit"] = s.Limit(term.get("intensity", 1), within=term.get("period", 5))
        options["auto_shutdown"] = term.get("auto_shutdown", "never")
        options |= {"on_limit": "shutdown", "decider": s.OTP}
        specs = [self.child(child, path) for child in term["children"]]
        if term.get("strategy") == "simple_one_for_one":
            return s.Pool(name, *specs, member_limit=None, **options)
        return s.Supervisor(name, specs, strategy=term.get("strategy", "one_for_one"), **options)

    def child(self, term, above):
        name, kind, shutdown = term.get("id"), term.get("type", "worker"), term.get("shutdown", 5000)
        options = {"restart": term.get("restart", "permanent"), "significant": term.get("significant", False)}
        if kind == "supervisor":
            init = partial(self.attempt, term, (*above, name))
            return self.supervisor(term["sup"], name, (*above, name), init=init, **options)
        if kind != "worker":
            raise ValueError(f"type must be worker or supervisor, got {kind!r}")
        drain = shutdown / 1000 if isinstance(shutdown, int) else DRAINS.get(shutdown, shutdown)
        return s.Child(name, self.work, args=(term,), drain=drain, **options)

    def attempt(self, term, path, script=None, label=None):
        """The next attempt to start; what `error_then` asks for is posted first."""
        path = (*path[:-1], label or path[-1])
        key, script = (path, script) if script else (term.get("key", path), term.get("start", ["ok"]))
        result = script[min(self.attempts[key], len(script) - 1)]
        self.attempts[key] += 1
        word, asked = ("error", result["error_then"]) if isinstance(result, dict) else (result, ())
        self.begin("sup_init" if word == "ok" and "sup" in term else BEGAN[word], path)
        for step in asked:
            self.replies.append(Answer(step["op"]))
            self.request(self.machine(path[:-1]), step, self.replies[-1])
        if word == "error":
            raise RuntimeError(word)
        return s.IGNORE if word == "ignore" else None

    def begin(self, word, path):
        self.log.append([word, path])
        self.ends |= {path: "shutdown"} if word == "sup_init" else {}

    def saw(self, event):
        """What the tree reports of its supervisors; the workers report for themselves."""
        path, word = names(event.path), SAID.get(type(event))
        if path not in self.ends or word is None:
            return
        how = self.ends[path] if word == "sup_up" else self.ends.pop(path)
        if path or word != "sup_start_error":
            self.log.append([word, path, how] if word == "sup_stop" else [word, path])

    def stopped(self, path, how):
        """A worker has; gives the failure, if it was one."""
        del self.live[path]
        self.log.append(["stop", path, reason(how)])
        return RuntimeError(how) if how in ("crash", "kill") else None

    def machine(self, path):
        """The supervisor at a path, if it is up."""
        machine = self.driver and self.driver.forest.machines.get("/".join(("root", *path)))
        return machine if machine and machine.phase == "up" else None

    async def step(self, op, step, answer):
        """Gives the answer; None: the supervisor that is asked gives it."""
        if op == "start":
            self.begin("sup_init", ())  # where OTP gets its terms
            await self.stack.enter_async_context(self.tree(self.supervisor(step["tree"], "root", ())))
            return "ok"
        if op == "check_childspecs":
            mode = step.get("auto_shutdown") or "any_significant"
            return self.supervisor({"children": step["specs"], "auto_shutdown": mode}, "checked", ())
        machine = self.machine(step["path"] if op == "stop_sup" else step.get("sup", ()))
        if machine is None:
            return "noproc"
        if op in ("exit", "exit_many"):
            paths = [step["path"]] if op == "exit" else [[*step["sup"], name] for name in step.get("ids", ())]
            ends = zip(map(tuple, paths), step.get("hows") or [step["how"]], strict=False)
            ends = [(self.live[path], how) for path, how in ends if path in self.live]
            await self.end(ends)
            return "ok" if ends else "noproc"
        if op in ("stop_sup", "stop_root"):
            self.ends[names(machine.path)] = reason(step.get("how", "shutdown"))
            exc = RuntimeError("crash") if step.get("how") == "crash" else None
            self.driver.post(machine, effect.Stop("a test", returned="how" in step and not exc, exc=exc))
            return "ok"
        return self.ask(op, machine, step, answer)

    def ask(self, op, machine, step, answer):
        specs, pool = {it.name: it.spec for it in machine.children.values()}, isinstance(machine.spec, s.Pool)
        if op == "get_childspec":
            specs |= {machine.spec.template.name: machine.spec.template} if pool else {}
            return childspec(specs[step["id"]]) if step["id"] in specs else "error:not_found"
        if isinstance(step.get("id"), dict):
            return "error:simple_one_for_one"  # not a pid
        if op == "terminate_child" and pool and step["id"] not in specs:
            return "ok"  # a pid that is no more
        return self.request(machine, step, answer)

    def request(self, machine, step, answer):
        kind, term = ASKS.get(step["op"], "status"), step.get("spec")
        answer.machine = machine
        if machine is None:
            return
        if step["op"] == "stop":
            item = effect.Stop("its parent wants it")
        elif kind != "add":
            item = effect.Request(kind, answer, name=step.get("id"))
        elif isinstance(machine.spec, s.Pool):
            item = effect.Request(kind, answer, name=term["id"], args=(term.get("start", ["ok"]), term["id"]))
        else:
            item = effect.Request(kind, answer, spec=self.child(term, names(machine.path)))
        self.driver.post(machine, item)
