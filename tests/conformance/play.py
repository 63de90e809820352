"""Plays a scenario before one of two faces: `Machines`, bare, or `Tasks`, a real tree."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import outcome

from supervise import IGNORE, OTP, Child, Limit, Pool, Refused, StartFailed, Status, Supervisor, events
from supervise._core import effect

from . import terms
from .terms import Path, Term, names, refusal


class World:
    """One scenario: its specs, its start scripts, its steps and its log."""

    def __init__(self, face: Any) -> None:
        self.face, self.log, self.replies = face, [], []
        self.ends: dict[Path, str] = {}  # of supervisors that `stop_sup` ends
        self.began: dict[Path, str] = {}  # what came of the last start
        self._attempts: Counter[Any] = Counter()
        self._open: set[Path] = set()

    async def play(self, scenario: Term) -> list[Term]:
        async with AsyncExitStack() as stack:
            result, down = "ok", "never_started"
            try:
                self._began("sup_init", ())  # where OTP gets its terms
                spec = self._supervisor(scenario["tree"], "root", ())
                await stack.enter_async_context(self.face.open(spec))
                down = "shutdown"
            except StartFailed as exc:
                result = f"error:failed_to_start_child:{names(exc.path)[0]}"
            except (TypeError, ValueError) as exc:
                result = f"error:{refusal(exc)}"
            trace = [self._look(result, down)]
            for step in scenario["steps"]:
                result = await self._step(step)
                await self.face.quiet()
                trace.append(self._look(result, down))
        return trace

    def _look(self, result: Any, down: str) -> Term:
        up = [it for it in self.face.status().walk() if it.kind != "child" and it.state == "up"] if self.find(()) else []
        seen = {"events": self.log, "result": result, "root": "up" if up else down}
        seen["sups"] = [
            {"path": names(it.path), "children": terms.children(it), "counts": terms.counts(it), "restarts": it.restarts}
            for it in up
        ]
        if self.replies:
            seen["replies"] = [answer.result for answer in self.replies]
        self.log, self.replies = [], []
        return seen

    # --- specs

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
        name, kind = term.get("id"), term.get("type", "worker")
        options = {"restart": term.get("restart", "permanent"), "significant": term.get("significant", False)}
        if kind == "supervisor":
            init = partial(self._init, term, (*above, name))
            return self._supervisor(term["sup"], name, (*above, name), init=init, **options)
        if kind != "worker":
            raise ValueError(f"type must be worker or supervisor, got {kind!r}")
        return Child(name, self.face.work, args=(term,), drain=terms.drain(term.get("shutdown", 5000)), **options)

    # --- what happens

    def attempt(self, machine: Any, term: Term, path: Path, script: Any = None) -> Any:
        """The outcome of the next attempt to start; the requests of `error_then` are posted."""
        key, script = (path, script) if script else (term.get("key", path), term.get("start", ["ok"]))
        result = script[min(self._attempts[key], len(script) - 1)]
        self._attempts[key] += 1
        ok = "sup_init" if "sup" in term else "start"
        self._began({"ok": ok, "ignore": "start_ignore"}.get(str(result), "start_error"), path)
        for step in result["error_then"] if isinstance(result, dict) else ():
            self._post(machine, step)
        return result

    def _init(self, term: Term, path: Path, script: Any = None, label: str = "") -> object:
        result = self.attempt(None, term, (*path[:-1], label) if label else path, script)
        if result == "error":
            raise terms.Crash(result)
        return IGNORE if result == "ignore" else None

    def _began(self, word: str, path: Path) -> None:
        self.log.append([word, path])
        self.began[path] = word
        if word == "sup_init":
            self._open.add(path)

    def stopped(self, path: Path, how: Any) -> None:
        self.log.append(["stop", path, terms.reason(how)])

    def saw(self, event: events.Event) -> None:
        """What the tree tells of its supervisors; workers speak for themselves."""
        path, word = names(event.path), terms.SUPERVISORS.get(type(event))
        if word is None or path not in self._open:
            return
        if word != "sup_up":
            self._open.discard(path)
        if path or word != "sup_start_error":
            self.log.append([word, path, self.ends.pop(path, "shutdown")][: 3 if word == "sup_stop" else 2])

    # --- steps

    def find(self, path: Any) -> Any:
        """The node at a path, if it is up."""
        node = self.face.root
        for name in path:
            node = node and node.machine and node.machine.children.get(name)
        return node if node and node.state == "up" else None

    async def _step(self, step: Term) -> Any:
        if step["op"] == "check_childspecs":
            return self._check_childspecs(step)
        if "path" in step and step["op"] == "exit":
            return await self._exit([tuple(step["path"])], [step["how"]])
        sup = self.find(step.get("sup") or step.get("path") or ())
        if sup is None or sup.machine is None:
            return "noproc"
        if step["op"] in ("stop_sup", "stop_root"):
            return self._stop(sup.machine, step)
        if step["op"] == "exit_many":
            return await self._exit([(*step["sup"], name) for name in step.get("ids", ())], step["hows"])
        return await self._request(sup.machine, step)

    async def _exit(self, paths: list[Path], hows: list[Any]) -> str:
        ended = await self.face.end(list(zip(paths, hows, strict=False)))
        return "ok" if any(ended) else "noproc"

    def _stop(self, machine: Any, step: Term) -> str:
        how, exc = step.get("how"), terms.failure(step.get("how"))
        if how is not None:
            self.ends[names(machine.path)] = terms.reason(how)
        self.face.post(machine, effect.Stop("the scenario", returned=how is not None and exc is None, exc=exc))
        return "ok"

    def _check_childspecs(self, step: Term) -> str:
        try:
            children = [self.child(term, ()) for term in step["specs"]]
            Supervisor("checked", children, auto_shutdown=step.get("auto_shutdown") or "any_significant")
        except (TypeError, ValueError) as exc:
            return f"error:{refusal(exc).rpartition(':')[2]}"
        return "ok"

    async def _request(self, machine: Any, step: Term) -> Any:
        specs = {node.name: node.spec for node in machine.children.values()}
        if isinstance(machine.spec, Pool):
            specs[machine.spec.template.name] = machine.spec.template
        if step["op"] == "get_childspec":
            return terms.childspec(specs[step["id"]]) if step["id"] in specs else "error:not_found"
        if isinstance(step.get("id"), dict):
            return "error:simple_one_for_one"  # not a pid
        answer = Answer(self, machine, step)
        try:
            await self.face.ask(self.request(machine, step, answer), machine)
        except Exception as exc:
            answer.set(outcome.Error(exc))
        return answer.result

    def request(self, machine: Any, step: Term, token: Any) -> effect.Request:
        kind: Any = terms.KINDS.get(step["op"], "status")
        if kind != "add":
            return effect.Request(kind, token, name=step.get("id"))
        term = step["spec"]
        if isinstance(machine.spec, Pool):
            return effect.Request(kind, token, name=term["id"], args=(term.get("start", ["ok"]), term["id"]))
        return effect.Request(kind, token, spec=self.child(term, names(machine.path)))

    def _post(self, machine: Any, step: Term) -> None:
        if step["op"] == "stop":
            self.face.post(machine, effect.Stop("its parent wants it"))
        else:
            self.replies.append(Answer(self, machine, step))
            self.face.post(machine, self.request(machine, step, self.replies[-1]))


class Answer:
    """What becomes of a request, in OTP's words; if nothing does, `noproc`."""

    def __init__(self, world: World, machine: Any, step: Term) -> None:
        self._world, self._machine, self._step = world, machine, step
        self.result: Any = "noproc"

    def set(self, got: outcome.Outcome[Any]) -> None:
        self.result = self._told(got.value) if isinstance(got, outcome.Value) else self._failed(got.error)

    def _told(self, value: Any) -> Any:
        if isinstance(value, Status):
            return (terms.children if self._step["op"] == "which_children" else terms.counts)(value)
        if self._step["op"] not in ("start_child", "restart_child"):
            return "ok"
        name = self._step["spec"]["id"] if "spec" in self._step else self._step["id"]
        ignored = self._world.began[(*names(self._machine.path), name)] == "start_ignore"
        return "ignored" if ignored else "ok"

    def _failed(self, error: Any) -> str:
        if isinstance(error, StartFailed):
            return "error:start_failed"
        if not isinstance(error, Refused):
            return f"error:{refusal(error).rpartition(':')[2]}"
        if error.reason == "not_found" and isinstance(self._machine.spec, Pool):
            return "ok"  # a pid that is no more
        if error.reason == "running" and self._step["op"] == "start_child":
            return "error:already_started"
        return terms.REASONS.get(error.reason, f"error:{error.reason}")
