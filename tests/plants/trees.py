"""What is planted in the shell around the machines: tasks, scopes, verdicts, interrupts, timers, sinks, last resorts."""

from __future__ import annotations

from .plant import Plant

_MACHINE = "supervise/_core/machine.py"
_SHARED = "supervise/_trio/shared.py"
_DRIVER = "supervise/_trio/driver.py"
_LEAF = "supervise/_trio/leaf.py"
_TREE = "supervise/_trio/tree.py"
_LAST = "supervise/_trio/last_resort.py"
_RUN = "supervise/_trio/run.py"
_REF = "supervise/_trio/ref.py"
_BRIEF = "supervise/_core/_brief.py"
_INTERRUPTS = ("tests/tree/test_interrupts.py", "tests/ctrl_c/test_ctrl_c.py")
_STOPPING = ("tests/tree/test_stopping.py",)
_HOSTILE = ("tests/tree/test_hostile.py",)
_ENDS = ("tests/tree/test_message_ends.py",)
_GROWTH = ("tests/tree/test_growth.py",)

TREES = tuple(
    Plant(name, file, old, new, tests)
    for name, file, old, new, tests in (
        (
            "the tree is not shielded from a cancellation from outside",
            _DRIVER,
            "            with trio.CancelScope(shield=True):\n                async with trio.open_nursery() as self._nursery:",
            "            with trio.CancelScope():\n                async with trio.open_nursery() as self._nursery:",
            _STOPPING,
        ),
        (
            "the first interrupt cancels the children that drain",
            _DRIVER,
            "        if not self._interrupted:\n            self._interrupted = True\n            return\n",
            "        self._interrupted = True\n",
            _INTERRUPTS,
        ),
        (
            "callers wait for what is down, or backs off, as its supervisor stops for good",
            _MACHINE,
            '            if node.state in ("down", "restarting"):\n                self._stop_dead(act, node)\n            elif',
            "            if",
            _ENDS,
        ),
        (
            "a supervisor that stops for a restart does not hear that there will be none",
            _MACHINE,
            '            elif node.has_machine and node.state == "stopping":\n',
            "            elif False:\n",
            _ENDS,
        ),
        (
            "callers wait for what is down below a supervisor that is stopped by hand",
            _MACHINE,
            "act.for_good or (stays_down and not self._will_be_revived(node))",
            "act.for_good",
            _ENDS,
        ),
        (
            "callers wait for what has ended as its supervisor stops for good",
            _MACHINE,
            "        elif act.for_good and not node.gone:\n",
            "        elif False:\n",
            _ENDS,
        ),
        (
            "the end of each supervisor of a deep tree closes all addresses below it anew",
            _DRIVER,
            "            if one.removed or not each.gone:\n",
            "            if True:\n",
            _GROWTH,
        ),
        (
            "each child that is stopped looks at all that share its mailbox",
            _SHARED,
            'children if owner.phase == "ending" else reversed(children)',
            "reversed(children)",
            _GROWTH,
        ),
        (
            "a child that would drain after a second interrupt is only asked",
            _DRIVER,
            "        if leaf is not None and self._hurried:\n",
            "        if False:\n",
            _INTERRUPTS,
        ),
        (
            "an interrupt while the tree drains is forgotten",
            _DRIVER,
            "                first = exc if first is None else first\n",
            "                first = first\n",
            _INTERRUPTS,
        ),
        (
            "a child that is added as another of its name ends runs in the place of that",
            _DRIVER,
            "leaving._node is node and",
            "leaving._node.path == path and",
            ("tests/tree/test_changing.py",),
        ),
        (
            "a request is not withdrawn",
            _DRIVER,
            "            self.post(machine, effect.Withdraw(request))\n",
            "            pass\n",
            ("tests/tree/test_changing.py",),
        ),
        (
            "a broken tree still takes requests",
            _DRIVER,
            "        if self._broken:\n            raise self.cannot_answer()\n",
            "",
            _STOPPING,
        ),
        (
            "a caller is not answered when the tree breaks",
            _DRIVER,
            "        for answer in self._asked:\n            answer.set(outcome.Error(self.cannot_answer()))\n",
            "",
            _STOPPING,
        ),
        (
            "an input is handled before those that wait",
            _DRIVER,
            "                machine, item = waiting.popleft()\n",
            "                machine, item = waiting.pop()\n",
            ("tests/tree/test_deciding.py", "tests/tree/test_changing.py", "tests/tree/test_seeing.py"),
        ),
        (
            "a sink that raises keeps its place",
            _DRIVER,
            "        self._sinks = [other for other in self._sinks if other is not sink]\n",
            "",
            ("tests/tree/test_seeing.py",),
        ),
        (
            "a sink that raises takes the event from those behind it",
            _DRIVER,
            "                failed = [*(failed or ()), (sink, exc)]\n",
            "                failed = [*(failed or ()), (sink, exc)]\n                break\n",
            ("tests/tree/test_seeing.py",),
        ),
        (
            "the block is not cancelled when the tree has failed",
            _DRIVER,
            '            self.body_scope.cancel(f"tree {self.forest.root.path!r} failed: {brief(why)}")',
            "            assert why is not None",
            ("tests/tree/test_stopping.py", "tests/tree/test_directives.py"),
        ),
        (
            "the tree fails with its last failure",
            _DRIVER,
            "        if self.failure is None:\n            self.failure = exc\n",
            "        self.failure = exc\n        if True:\n",
            ("tests/tree/test_interrupts.py", "tests/tree/test_stopping.py"),
        ),
        (
            "a supervisor's task ends before its children's",
            _DRIVER,
            "                place.closed.set()\n                self._forget_timer(place)",
            "                place.closed.set()\n                place.nursery.cancel_scope.cancel()\n                self._forget_timer(place)",
            ("tests/tree/test_stopping.py", "tests/tree/test_random_trees.py"),
        ),
        (
            "timers of a node that has ended are kept",
            _DRIVER,
            "                place.closed.set()\n                self._forget_timer(place)\n",
            "                place.closed.set()\n",
            ("tests/tree/test_memory.py",),
        ),
        (
            "void timers are never swept out",
            _DRIVER,
            "        if self._void_timers > _FEW_TIMERS and 2 * self._void_timers > len(self._timers):",
            "        if False:",
            ("tests/tree/test_memory.py",),
        ),
        (
            "the node that a start waits for is not named",
            _DRIVER,
            "                if frame.f_code is Address.wait.__code__:",
            "                if False:",
            ("tests/tree/test_releasing.py",),
        ),
        (
            "a new incarnation begins in the context of the last one",
            _LEAF,
            "            task.context = fresh\n",
            "            pass\n",
            ("tests/tree/test_directives.py", "tests/tree/test_hostile.py"),
        ),
        (
            "equal contexts are taken for the same",
            _LEAF,
            "    return list(one) == list(other) and all(map(is_, one.values(), other.values()))",
            "    return one == other",
            _HOSTILE,
        ),
        (
            "a resume does not let others run",
            _LEAF,
            "            # A body that fails at once again and again, with progress, would block the loop without this.\n            await cancel_shielded_checkpoint()\n",
            "",
            _HOSTILE,
        ),
        (
            "a foreign Cancelled is no failure",
            _LEAF,
            "            if rest is None and not self.stopping:\n                rest = _foreign(exc)\n",
            "",
            ("tests/tree/test_deciding.py",),
        ),
        (
            "a defect in a leaf's own lines leaves through its nursery",
            _LEAF,
            "            self._driver.leaf_broke(self, exc)",
            "            raise",
            _HOSTILE,
        ),
        (
            "a body is ready before it could be called",
            _LEAF,
            "            self._check_awaitable(awaitable)\n        if not self.ready:",
            "            pass\n        if not self.ready:",
            _HOSTILE,
        ),
        (
            "a stale task_status makes the next incarnation ready",
            _LEAF,
            "        if not leaf.ready and leaf.incarnation == leaf._node.incarnation == self._incarnation:",
            "        if not leaf.ready:",
            ("tests/tree/test_hostile.py", "tests/tree/test_starting.py"),
        ),
        (
            "an injected failure is lost",
            _LEAF,
            "            exc, self._injected = self._injected[0], None\n",
            "            self._injected = None\n",
            ("tests/tree/test_directives.py", "tests/tree/test_injecting.py"),
        ),
        (
            "only one order of simultaneous failures is tried",
            "supervise/testing/bare.py",
            "same.pop(self._pick(len(same)) if len(same) > 1 else 0)",
            "same.pop(0)",
            ("tests/tree/test_random_trees.py::test_every_order_of_simultaneous_failures_is_predicted",),
        ),
        (
            "a child that ended in a broken tree is up",
            "supervise/_trio/ref.py",
            '            if node is not None and node.state == "up" and (leaf is not None or not node.is_leaf):',
            '            if node is not None and node.state == "up":',
            ("tests/tree/test_stopping.py",),
        ),
        (
            "nothing is injected while a child drains",
            _LEAF,
            "        if self.stopping:\n            return not self._cancelled\n",
            "        if self.stopping:\n            return False\n",
            ("tests/tree/test_injecting.py",),
        ),
        (
            "nothing is injected while a child is suspended",
            _LEAF,
            "        return self._parked is not None and self.spec.resource is not None and self.ready",
            "        return False",
            ("tests/tree/test_injecting.py",),
        ),
        (
            "a failure that is injected when a body has drained is lost",
            _LEAF,
            "            if self.stopping and self._injected is not None:",
            "            if False:",
            ("tests/tree/test_injecting.py",),
        ),
        (
            "an exception from a resource's exit is lost",
            _LEAF,
            "            if error is not None and not _is_fatal(self._error):\n                self._error = error\n",
            "",
            ("tests/tree/test_stopping.py", "tests/tree/test_directives.py"),
        ),
        (
            "the verdict on one failure is taken for that on the next",
            _LEAF,
            "        verdict, self._verdict = self._verdict, None\n",
            "        verdict = self._verdict\n",
            _HOSTILE,
        ),
        (
            "a release during a stop hangs",
            _LEAF,
            "        if self.stopping or self._ignored:\n            return False\n        self._reported = True",
            "        if self._ignored:\n            return False\n        self._reported = True",
            ("tests/tree/test_stopping.py",),
        ),
        (
            "the child's code is protected from an interrupt",
            _LEAF,
            "@disable_ki_protection\nasync def _run(",
            "async def _run(",
            _INTERRUPTS,
        ),
        (
            "a leaf's own lines are not protected",
            _LEAF,
            "    @enable_ki_protection\n    async def run(",
            "    async def run(",
            _INTERRUPTS,
        ),
        (
            "a block that raises hides that the tree failed",
            _TREE,
            'driver.end(f"the block of open_tree was {why}")',
            'driver.end("the end")',
            ("tests/tree/test_stopping.py", "tests/tree/test_seeing.py", "tests/cli/test_cli.py"),
        ),
        (
            "the hard exit waits for the block to be left",
            _RUN,
            "                    tree._driver.ending = self._hard_exit.begin\n",
            "                    pass\n",
            ("tests/ctrl_c/test_blocked.py",),
        ),
        (
            "a second signal asks once more",
            _RUN,
            "        if self._signalled:\n            leave(128 + number)\n",
            "",
            ("tests/ctrl_c/test_blocked.py",),
        ),
        (
            "a signal that nohup ignores is obeyed",
            _RUN,
            "            if not ignored or handler != stop:",
            "            if True:",
            ("tests/ctrl_c/test_blocked.py", "tests/cli/test_cli.py"),
        ),
        (
            "the end of a program waits for its standard error",
            _LAST,
            "        done.acquire(timeout=_PATIENCE)\n",
            "        done.acquire()\n",
            ("tests/ctrl_c/test_blocked.py",),
        ),
        (
            "the text of an object has no bound",
            _BRIEF,
            "    if len(text) <= most:\n",
            "    if True:\n",
            ("tests/core/test_texts.py",),
        ),
        (
            "an object that raises when it is printed breaks the tree",
            _BRIEF,
            "        except BaseException as problem:  # noqa: BLE001 - a user's `__repr__`",
            "        except ZeroDivisionError as problem:  # noqa: BLE001 - a user's `__repr__`",
            _HOSTILE,
        ),
        (
            "a group of exceptions does not show what is in it",
            _BRIEF,
            '        line = ": ".join(',
            '        _ = ": ".join(',
            ("tests/core/test_texts.py",),
        ),
        (
            "a group that cannot be split breaks the tree",
            _LEAF,
            "        except Exception:  # noqa: BLE001 - a group that cannot be split, too deep",
            "        except ZeroDivisionError:  # noqa: BLE001 - a group that cannot be split, too deep",
            _HOSTILE,
        ),
        (
            "an exit of an init is a failed start",
            _DRIVER,
            "                if boot.problem is None or is_decidable(boot.problem):",
            "                if True:",
            ("tests/tree/test_interrupts.py",),
        ),
        (
            "a block whose nursery was cancelled has raised",
            _TREE,
            "raised is None or _without_cancelled(raised) is None",
            "raised is None or isinstance(raised, trio.Cancelled)",
            _HOSTILE,
        ),
        (
            "a task that inherits the variable of a child counts as inside it",
            _LEAF,
            "isinstance(leaf, Leaf) and leaf._task is task and leaf._driver is tree",
            "isinstance(leaf, Leaf) and leaf._driver is tree",
            _HOSTILE,
        ),
        (
            "a child that is being stopped waits for its supervisor",
            _REF,
            "            if branch is not None and branch.awaited and branch.leaving:",
            "            if False:",
            _HOSTILE,
        ),
    )
)
