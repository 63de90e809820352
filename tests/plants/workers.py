"""What is planted in the device worker: frames, deadlines, places, rebuilds, draining, and how exceptions are looked at."""

from __future__ import annotations

from .plant import Plant

_WORKER = tuple(
    f"tests/runners/test_{name}.py" for name in ("worker", "requests_kept", "rebuild", "worker_in_time")
)
_PROCESS = tuple(f"tests/runners/test_process_{name}.py" for name in ("host", "ends", "limits"))

WORKERS = tuple(
    Plant(f"{file}: {number}", file, old, new, tests)
    for number, (file, old, new, tests) in enumerate(
        (
            (
                "runners/hosts/process/host.py",
                '            raise self._fail(ProtocolError(f"{self._peer.name} sent an empty step"))',
                "            pass",
                ("tests/rogue",),
            ),
            (
                "runners/hosts/process/host.py",
                "        if self._turn < TURN:\n            return\n        await trio.lowlevel.checkpoint()",
                "        if self._turn < TURN:\n            return",
                ("tests/rogue",),
            ),
            (
                "runners/hosts/process/host.py",
                "            more -= 1",
                "            more -= 0",
                ("tests/rogue",),
            ),
            (
                "runners/hosts/process/host.py",
                "        elif self._read - self._overdue > BACKLOG:",
                "        elif False:",
                ("tests/rogue",),
            ),
            (
                "runners/hosts/process/host.py",
                "        if isinstance(error, OutOfMemory) and not self._rebuilding:\n            return self._fail(self._unexpected(frame))",
                "        if isinstance(error, OutOfMemory) and not self._rebuilding:\n            return error",
                ("tests/rogue",),
            ),
            (
                "runners/hosts/process/host.py",
                '    def _check_leaving(self, number: int) -> None:\n        """An item of a stream that is not open must be late, not invented."""\n        if number not in self._leaving:',
                "    def _check_leaving(self, number: int) -> None:\n        if not 0 <= number < self._begun:",
                ("tests/rogue",),
            ),
            (
                "runners/hosts/process/host.py",
                '            raise self._fail(\n                ProtocolError(f"{self._peer.name} dropped stream {number} without being asked to")\n            )',
                "            return",
                ("tests/rogue", *_PROCESS),
            ),
            (
                "runners/hosts/process/host.py",
                "        if self._leaving and max(named, default=-1) >= next(iter(self._leaving.values())):",
                "        if False:",
                ("tests/rogue", *_PROCESS),
            ),
            (
                "runners/hosts/process/host.py",
                "        if made:\n            now",
                "        if True:\n            now",
                ("tests/rogue",),
            ),
            (
                "runners/hosts/process/wire.py",
                "    chunks: Annotated[list[Chunk], msgspec.Meta(max_length=1)]",
                "    chunks: list[Chunk]",
                ("tests/runners/test_wire.py",),
            ),
            (
                "runners/hosts/process/wire.py",
                "    chunks: Annotated[list[Chunk], msgspec.Meta(max_length=MAX_ITEMS)]",
                "    chunks: list[Chunk]",
                ("tests/runners/test_wire.py",),
            ),
            (
                "runners/hosts/process/wire.py",
                "    token_ids: Tokens",
                "    token_ids: tuple[int, ...]",
                ("tests/runners/test_wire.py",),
            ),
            (
                "runners/hosts/process/wire.py",
                "        if length > self._max_frame:",
                "        if length > 2**31:",
                ("tests/rogue",),
            ),
            (
                "runners/hosts/process/host.py",
                "            self._progress = now\n        elif",
                "            pass\n        elif",
                ("tests/rogue", *_PROCESS),
            ),
            (
                "runners/hosts/process/host.py",
                "        del self._leaving[number]\n        self._forget_new(number)\n        self._progress = trio.current_time()",
                "        del self._leaving[number]\n        self._forget_new(number)",
                (*_PROCESS,),
            ),
            (
                "runners/worker/context.py",
                "        return self.waiting.wants_restart or (self.under_way is None and not self.keeps_any())",
                "        return self.waiting.wants_restart or not self.keeps_any()",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/context.py",
                '            self.under_way.answer(\n                RebuildSuperseded("a restart was ordered while this rebuild was carried out")\n            )',
                "            pass",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/serving.py",
                "            if context.under_way is not request:  # a restart was ordered meanwhile, and this one answered\n                return\n",
                "",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/context.py",
                "            record.leave = None\n            record.withdraw()\n        self.open.clear()",
                "            record.withdraw()\n        self.open.clear()",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/context.py",
                "        self._forget(record)\n        self.session.drop(record.batch.request_id)",
                "        self._forget(record)",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/serving.py",
                "        context.has_changed()  # another request may wait",
                "        pass",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/serving.py",
                "        self._draining = True\n",
                "",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/serving.py",
                "                message.fail(\n                    WorkerStopping(",
                "                (lambda e: None)(\n                    WorkerStopping(",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/serving.py",
                "        if current_child().stopping:\n            self._context.refuse_rebuild()\n",
                "",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/context.py",
                '        self.waiting.answer(WorkerStopping("the worker was being stopped"))\n            self.waiting = None',
                "        self.waiting = None",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/serving.py",
                "            if record.characters > MAX_CHARACTERS and",
                "            if False and",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/serving.py",
                "                self._session.drop(request_id)\n                message.fail(record.too_long())",
                "                message.fail(record.too_long())",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/opener.py",
                "        cause = None if child.last_failure is None else one_line(brief(child.last_failure))",
                "        cause = None if child.last_failure is None else brief(child.last_failure)",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/serving.py",
                "            if record.loss is not None:\n                record.settle()\n                self._context.has_changed()",
                "            if record.loss is not None:\n                record.settle()",
                (*_WORKER,),
            ),
            (
                "runners/worker/serving.py",
                "        if is_a(failure, SessionRebuild):\n            self._inbox.progressed = False",
                "        if is_a(failure, SessionRebuild):\n            pass",
                (*_WORKER,),
            ),
            (
                "runners/worker/serving.py",
                "        self._context.cancel_canary()\n        ordered",
                "        ordered",
                (*_WORKER,),
            ),
            (
                "runners/worker/serving.py",
                "                if loss and (record.loss is None or name in tried):",
                "                if ordered:\n                    record.settle()\n                if loss and (record.loss is None or name in tried):",
                (*_WORKER,),
            ),
            (
                "runners/worker/serving.py",
                "            self._context.since_oom = None\n            if record.loss",
                "            if record.loss",
                (*_WORKER,),
            ),
            (
                "runners/worker/serving.py",
                "        if not is_a(failed.error, OutOfMemory):\n            self._context.since_oom = None",
                "        pass",
                (*_WORKER,),
            ),
            (
                "runners/worker/serving.py",
                "                await self._context.change()\n            now = trio",
                "                await trio.sleep_forever()\n            now = trio",
                (*_WORKER,),
            ),
            (
                "runners/worker/serving.py",
                "                self._context.close(message)\n                self._session.drop(id_of(message))\n                message.fail(record_of",
                "                self._context.close(message)\n                message.fail(record_of",
                (*_WORKER, "tests/runners/test_deadlines.py"),
            ),
            (
                "runners/worker/context.py",
                "        self._staying.discard(record.batch.request_id)\n",
                "",
                ("tests/runners/test_open_streams.py",),
            ),
            (
                "runners/worker/context.py",
                "        self.open.clear()\n        self._staying.clear()\n        self._last = None\n",
                "        self.open.clear()\n",
                ("tests/runners/test_open_streams.py",),
            ),
            (
                "runners/worker/serving.py",
                "            if begins:\n                self._context.has_begun(record)\n",
                "",
                (*_WORKER,),
            ),
            (
                "runners/worker/deadlines.py",
                "        if len(self._heap) > 2 * len(self._open) + _FEW:",
                "        if False:",
                ("tests/runners/test_open_streams.py",),
            ),
            (
                "runners/worker/deadlines.py",
                "        return message is not None and record_of(message).batch.deadline == deadline",
                "        return message is not None",
                ("tests/runners/test_open_streams.py",),
            ),
            (
                "runners/hosts/turns.py",
                "                self._ready.discard(number)\n                return None\n",
                "                return None\n",
                ("tests/test_costs.py",),
            ),
            (
                "runners/hosts/inline.py",
                "        self._turns.wake(number)\n",
                "",
                ("tests/runners/test_open_streams.py",),
            ),
            (
                "runners/worker/serving.py",
                "                    self._take_more()\n",
                "",
                ("tests/runners/test_batches.py",),
            ),
            (
                "runners/worker/serving.py",
                "are in one step.\n            await trio.lowlevel.checkpoint()\n",
                "are in one step.\n",
                ("tests/runners/test_batches.py",),
            ),
            (
                "runners/worker/record.py",
                "                del chunks[len(texts) - known :]\n",
                "",
                (*_WORKER,),
            ),
            (
                "runners/worker/record.py",
                "        self.characters, self.at = characters, at\n",
                "        self.at = at\n",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/record.py",
                "        validate(batch.sampling)\n",
                "",
                ("tests/runners/test_hostile.py",),
            ),
            (
                "runners/plain.py",
                " or self._lists > MAX_LISTS:",
                ":",
                ("tests/runners/test_open_values.py",),
            ),
            (
                "runners/plain.py",
                "    if depth > MAX_DEPTH:",
                "    if False:",
                ("tests/runners/test_open_values.py",),
            ),
            (
                "runners/plain.py",
                "    if type(value) in _SCALARS:\n        return value\n    if is_a(value, list, tuple):",
                "    if type(value) in _SCALARS or type(value) is list:\n        return value\n    if is_a(value, list, tuple):",
                ("tests/runners/test_open_values.py",),
            ),
            (
                "runners/hosts/process/wire.py",
                "    if len(rest) > MAX_REST or",
                "    if",
                ("tests/runners/test_open_values.py",),
            ),
            (
                "runners/worker/context.py",
                "        return counts_ids and record",
                "        return record",
                ("tests/runners/test_open_values.py",),
            ),
            (
                "runners/hosts/turns.py",
                "        if more and self.has_ids is not has_ids:",
                "        if False:",
                ("tests/runners/test_open_values.py",),
            ),
            (
                "runners/hosts/turns.py",
                "        if made.index != self.at or end > self.most or not (more or finish):",
                "        if made.index != self.at or not (more or finish):",
                (*_WORKER,),
            ),
            (
                "runners/hosts/turns.py",
                "        if made.index != self.at or end > self.most or not (more or finish):",
                "        if end > self.most or not (more or finish):",
                (*_WORKER,),
            ),
            (
                "runners/hosts/turns.py",
                "        if made.index != self.at or end > self.most or not (more or finish):",
                "        if made.index != self.at or end > self.most:",
                ("tests/runners/test_requests_kept.py",),
            ),
            (
                "runners/hosts/turns.py",
                "    except Exception:  # noqa: BLE001 - a property, or a `__setattr__`\n",
                "    except ZeroDivisionError:\n",
                ("tests/runners/test_hostile.py",),
            ),
            (
                "runners/hosts/inline.py",
                "        if self._turns.has(number, _AsyncSource):\n            self._turns.drop(number)\n            return\n",
                "",
                ("tests/runners/test_inline_host.py",),
            ),
            (
                "runners/hosts/thread.py",
                "    except BaseException as error:  # noqa: BLE001 - sys.exit of a runner, say: it must end neither the thread nor the program\n",
                "    except Exception as error:\n",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/hosts/session.py",
                "        self._rebuild_oom = error\n",
                "",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/hosts/process/host.py",
                "        return self._fail(self._of_rebuild(error))",
                "        return self._fail(error)",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/hosts/process/host.py",
                "        if unclosed is not None:\n            raise unclosed\n",
                "",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/diagnosis/classify.py",
                "    if is_a(error, InferenceError) or tag_of(error) is not None:\n        return error\n    finding",
                "    if is_a(error, InferenceError):\n        return error\n    finding",
                ("tests/runners/test_classify.py",),
            ),
            (
                "runners/diagnosis/classify.py",
                "    return max(found, key=_severity) if found else RunnerError(quoted(group))",
                "    return max(found, key=_severity)",
                ("tests/runners/test_hostile.py",),
            ),
            (
                "runners/hosts/turns.py",
                "    if len(ids) > MAX_TOKENS:",
                "    if False:",
                ("tests/runners/test_hostile.py",),
            ),
            (
                "runners/hosts/turns.py",
                "    return sound(found)\n",
                "    return found\n",
                ("tests/runners/test_hostile.py",),
            ),
            (
                "runners/hosts/inline.py",
                "        self._dropped.append(number)\n        self._wake()",
                "        self._turns.drop(number)",
                ("tests/runners/test_hostile.py",),
            ),
            (
                "runners/hosts/process/host.py",
                "            self._lacks -= 1\n            return error",
                "            return error",
                ("tests/rogue",),
            ),
            (
                "runners/diagnosis/classify.py",
                "        if not self._answers:\n            self._answers",
                "        if True:\n            self._answers",
                ("tests/runners/test_hostile.py",),
            ),
            (
                "runners/hosts/process/child/loop.py",
                "        self._link.send(wire.Closed())\n",
                "",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/serving.py",
                '        self._admission.cancel("the worker is being stopped")',
                "        pass",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/serving.py",
                "            while self._open or context.retries or not (self._are_all_back() and child.stopping):",
                "            while self._open or context.retries or not child.stopping:",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/serving.py",
                "            while self._open or context.retries or not (self._are_all_back() and child.stopping):",
                "            while not (self._are_all_back() and child.stopping):",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/serving.py",
                "            elif self._has_room():\n                self._take(message)\n",
                "            elif True:\n                self._take(message)\n",
                ("tests/runners/test_serving.py",),
            ),
            (
                "runners/worker/serving.py",
                "            if message.memo is None:\n                message.fail(",
                "            if message.memo is None or not record_of(message).chunks:\n                message.fail(",
                ("tests/runners/test_serving.py",),
            ),
        )
    )
)
