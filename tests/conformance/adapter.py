"""Plays a scenario on a tree of bare machines or of real tasks. It translates OTP's terms and decides nothing."""

from collections import Counter, deque
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import SimpleNamespace

import outcome
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import supervise as s
from supervise import events
from supervise._core import effect
from supervise._core.forest import Forest
from supervise._core.judging import start_failed
from supervise._trio.driver import _call_init

from . import words
from .words import Answer, failure, names, reason


class World:
    """One scenario: its specs, its start scripts, its steps, and the log."""

    def __init__(self, face):
        self.face, self.log, self.replies, self.attempts = face, [], [], Counter()
        self.began, self.ends, self.open, self.down = {}, {}, set(), "never_started"

    async def play(self, scenario):
        trace = []
        async with AsyncExitStack() as self.stack:
            for step in ({"op": "start", **scenario}, *scenario["steps"]):
                answer = Answer(self, step.get("sup", ()), step)
                answer.set(await outcome.acapture(self.step, step["op"], step))
                await self.face.quiet()
                trace.append(self.look(answer.result))
        return trace

    def look(self, result):
        up = self.find(()) is not None
        seen = {"events": self.log, "result": result, "root": "up" if up else self.down}
        seen["sups"] = words.supervisors(self.face.status()) if up else []
        seen |= {"replies": [answer.result for answer in self.replies]} if self.replies else {}
        self.log, self.replies = [], []
        return seen

    def supervisor(self, term, name, path, **options):
        options["limit"] = s.Limit(term.get("intensity", 1), within=term.get("period", 5))
        options["auto_shutdown"] = term.get("auto_shutdown", "never")
        options |= {"on_limit": "shutdown", "decider": s.OTP}
        specs = [self.child(child, path) for child in term["children"]]
        if term.get("strategy") != "simple_one_for_one":
            return s.Supervisor(name, specs, strategy=term.get("strategy", "one_for_one"), **options)
        if len(specs) != 1:
            raise ValueError("simple_one_for_one takes one template")
        return s.Pool(name, specs[0], member_limit=None, **options)

    def child(self, term, above):
        name, kind, shutdown = term.get("id"), term.get("type", "worker"), term.get("shutdown", 5000)
        options = {"restart": term.get("restart", "permanent"), "significant": term.get("significant", False)}
        if kind == "supervisor":
            init = partial(self.init, term, (*above, name))
            return self.supervisor(term["sup"], name, (*above, name), init=init, **options)
        if kind != "worker":
            raise ValueError(f"type must be worker or supervisor, got {kind!r}")
        return s.Child(name, self.face.work, args=(term,), drain=words.drain(shutdown), **options)

    def attempt(self, machine, term, path, script=None):
        """The outcome of the next attempt to start; what `error_then` asks for is posted first."""
        key, script = (path, script) if script else (term.get("key", path), term.get("start", ["ok"]))
        result = script[min(self.attempts[key], len(script) - 1)]
        self.attempts[key] += 1
        word = "start_error" if isinstance(result, dict) else words.BEGAN[result]
        self.begin("sup_init" if word == "start" and "sup" in term else word, path)
        for step in result["error_then"] if isinstance(result, dict) else ():
            if step["op"] == "stop":
                self.face.post(machine, effect.Stop("its parent wants it"))
            else:
                self.replies.append(Answer(self, path[:-1], step))
                self.face.post(machine, self.request(machine, step, self.replies[-1]))
        return result

    def init(self, term, path, script=None, label=""):
        path = (*path[:-1], label or path[-1])
        result = self.attempt(None, term, path, script)
        if result == "error":
            raise RuntimeError(result)
        return s.IGNORE if result == "ignore" else None

    def begin(self, word, path):
        self.log.append([word, path])
        self.began[path] = word
        self.open |= {path} if word == "sup_init" else set()

    def saw(self, event):
        """What the tree tells of its supervisors; the workers speak for themselves."""
        path = names(event.path)
        if path not in self.open or isinstance(event, events.Starting | events.Stopping):
            return
        if isinstance(event, events.Ready):
            self.log.append(["sup_up", path])
            return
        self.open.remove(path)
        if not isinstance(event, events.StartFailed):
            self.log.append(["sup_stop", path, self.ends.pop(path, "shutdown")])
        elif path:
            self.log.append(["sup_start_error", path])

    def find(self, path):
        node = self.face.root
        for name in path:
            node = node and node.machine and node.machine.children.get(name)
        return node if node and node.state == "up" else None

    async def step(self, op, step):
        if op == "start":
            self.begin("sup_init", ())  # where OTP gets its terms
            spec = self.supervisor(step["tree"], "root", ())
            await self.stack.enter_async_context(self.face.open(spec))
            self.down = "shutdown"
            return "ok"
        if op == "check_childspecs":
            specs = [self.child(term, ()) for term in step["specs"]]
            mode = step.get("auto_shutdown") or "any_significant"
            return s.Supervisor("checked", specs, auto_shutdown=mode)
        sup = self.find(step["path"] if op == "stop_sup" else step.get("sup", ()))
        if sup is None or sup.machine is None:
            return "noproc"
        if op in ("exit", "exit_many"):
            paths = [step["path"]] if op == "exit" else [[*step["sup"], name] for name in step.get("ids", ())]
            ends = zip(map(tuple, paths), step.get("hows") or [step["how"]], strict=False)
            return "ok" if any(await self.face.end(list(ends))) else "noproc"
        if op in ("stop_sup", "stop_root"):
            how, exc = step.get("how"), failure(step.get("how"))
            self.ends |= {names(sup.path): reason(how)} if how else {}
            stop = effect.Stop("a test", returned=bool(how) and exc is None, exc=exc)
            return self.face.post(sup.machine, stop)
        return await self.ask(op, sup.machine, step)

    async def ask(self, op, machine, step):
        specs, pool = {it.name: it.spec for it in machine.children.values()}, isinstance(machine.spec, s.Pool)
        if op == "get_childspec":
            specs |= {machine.spec.template.name: machine.spec.template} if pool else {}
            return words.childspec(specs[step["id"]]) if step["id"] in specs else "error:not_found"
        if isinstance(step.get("id"), dict):
            return "error:simple_one_for_one"  # not a pid
        if op == "terminate_child" and pool and step["id"] not in specs:
            return "ok"  # a pid that is no more
        return await self.face.ask(self.request(machine, step, None), machine)

    def request(self, machine, step, token):
        kind, term = words.KINDS.get(step["op"], "status"), step.get("spec")
        if kind != "add":
            return effect.Request(kind, token, name=step.get("id"))
        if isinstance(machine.spec, s.Pool):
            return effect.Request(kind, token, name=term["id"], args=(term.get("start", ["ok"]), term["id"]))
        return effect.Request(kind, token, spec=self.child(term, names(machine.path)))


class Machines:
    """Bare machines: time is a number, and a worker does at once what it is told."""

    root = failed = None

    def __init__(self):
        self.now, self.waiting, self.timers, self.live = 0.0, deque(), [], {}

    @asynccontextmanager
    async def open(self, spec):
        self.forest = Forest(spec)
        self.root, self.status = self.forest.root, lambda: self.forest.status(self.now)
        self.carry_out(self.forest.start(self.now))
        await self.quiet()
        if self.failed is not None:
            raise start_failed(self.failed)
        yield

    def work(self, node):
        path, (term, *script) = names(node.path), node.spec.args
        result = self.world.attempt(node.parent, term, path, *script[:1])
        if result == "ignore":
            return effect.Ended(node, node.incarnation, ignored=True)
        if result != "ok":
            return effect.Exited(node, node.incarnation, RuntimeError(result))
        self.live[path] = node
        return effect.Up(node, node.incarnation)

    def post(self, machine, item):
        self.waiting.append((machine, item))

    async def ask(self, request, machine):
        got = []
        request.token = SimpleNamespace(set=got.append)
        self.post(machine, request)
        await self.quiet()
        return got[0].unwrap()

    async def end(self, ends):
        return [self.over(path, how, effect.Exited, failure(how)) for path, how in ends]

    def over(self, path, how, report, exc):
        node = self.live.pop(path, None) if how else None
        if node is not None:
            self.world.log.append(["stop", path, reason(how)])
            self.post(node.parent, report(node, node.incarnation, exc))
        return node

    async def quiet(self):
        while self.waiting or self.timers:
            if not self.waiting:
                self.timers.sort(key=lambda timer: timer[0])
                self.now, machine = self.timers.pop(0)
                self.post(machine, effect.Wake())
            self.carry_out(self.forest.handle(*self.waiting.popleft(), self.now))

    def carry_out(self, effects):
        for one in effects:
            match one:
                case events.Event():
                    self.world.saw(one)
                case effect.Start(child=node):
                    report = self.work(node) if node.machine is None else _call_init(node.spec.init)
                    self.post(node.machine or node.parent, report)
                case effect.Ask(child=node):
                    how = words.ON_SHUTDOWN[node.spec.args[0].get("on_shutdown", "exit")]
                    self.over(names(node.path), how, effect.Ended, failure(how))
                case effect.Cancel(child=node):
                    self.over(names(node.path), "kill", effect.Ended, None)
                case effect.Release(child=node):
                    self.post(node.parent, effect.Ended(node, node.incarnation))
                case effect.WakeAt():
                    self.timers.append((one.at, one.machine))
                case effect.Reply(token=token):
                    token.set(outcome.Value(one.value) if one.error is None else outcome.Error(one.error))
                case effect.Rise(report=effect.Ended() as ended) if ended.child is self.root:
                    self.failed = ended.failure


class Tasks:
    """Real tasks of a real tree, under a virtual clock."""

    root = None

    def __init__(self):
        self.live, self.quiet = {}, partial(trio.sleep, 60)

    @asynccontextmanager
    async def open(self, spec):
        async with s.open_tree(spec, sinks=[self.world.saw]) as self.tree:
            driver, self.status = self.tree._driver, self.tree.status
            self.root, self.post = driver.forest.root, driver.post
            yield await self.quiet()

    async def work(self, term, script=None, _=None, *, task_status):
        leaf = s.current_child()
        self.post, path = leaf._driver.post, names(leaf.path)
        result = self.world.attempt(leaf._node.parent, term, path, script)
        if result == "ignore":
            return s.IGNORE
        if result != "ok":
            raise RuntimeError(result)
        self.live[path], orders = trio.open_memory_channel(1)
        task_status.started()
        how = "kill"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.obey, path, words.ON_SHUTDOWN[term.get("on_shutdown", "exit")])
                how = await orders.receive()
                nursery.cancel_scope.cancel()
        finally:
            del self.live[path]
            self.world.log.append(["stop", path, reason(how)])
        if failure(how) is not None:
            raise failure(how)
        return how

    async def obey(self, path, how):
        await s.stop_requested()
        if how:
            self.live[path].send_nowait(how)

    async def ask(self, request, machine):
        here, name = s.Ref(self.tree, machine.path), request.name
        if request.kind == "status":
            return here.status()
        if request.kind == "add":
            return await here.add(*(request.args or [request.spec]), name=name)
        return await getattr(s.Ref(self.tree, f"{here.path}/{name}"), request.kind)()

    async def end(self, ends):
        found = [end for end in ends if end[0] in self.live]
        with self.tree._driver.held():
            for path, how in found:
                self.live[path].send_nowait(how)
                await wait_all_tasks_blocked()
        return found


def trace(scenario, through):
    """What this supervisor does with a scenario, through the bare `machine` or through `trio`."""
    face = Tasks() if through == "trio" else Machines()
    face.world = World(face)
    if through == "trio":
        return trio.run(face.world.play, scenario, clock=MockClock(autojump_threshold=0))
    try:
        face.world.play(scenario).send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the bare machines wait for nothing")
