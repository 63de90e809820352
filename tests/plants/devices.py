"""What is planted in device workers: wake-ups, deadlines, fences, ends of processes, and reports."""

from __future__ import annotations

from pathlib import Path

from .plant import Plant

_TESTS = Path(__file__).parents[1] / "runners"


def _plants(file: str, *plants: tuple[str, ...]) -> tuple[Plant, ...]:
    """Of one file below `runners`. Each has a name, both texts, and the tests that are near the rule, by their names."""
    return tuple(
        Plant(name, f"runners/{file}", old, new, tuple(found for test in tests for found in _found(test)))
        for name, old, new, *tests in plants
    )


def _found(test: str) -> list[str]:
    """Where tests of this name stand."""
    plain = test.partition("[")[0]
    files = [
        file.name for file in sorted(_TESTS.glob("test_*.py")) if f"def test_{plain}(" in file.read_text()
    ]
    assert files, f"no test is called {plain!r}"
    return [f"tests/runners/{file}::test_{test}" for file in files]


DEVICES = (
    *_plants(
        "worker/__init__.py",
        (
            "a stop comes between the look at a worker and the order",
            "            async with worker.lease() as now:\n                serving: ContextState = now\n                return serving\n",
            "            serving: ContextState = await worker.ready()\n            return serving\n",
            "a_rebuild_that_meets_the_stop_is_answered_with_the_stop",
        ),
        (
            "a poison that an order reports is ignored in a drain",
            '            report_poison(worker, f"a new session was ordered ({cause})", context.incarnation)\n',
            "            pass\n",
            "a_context_that_drains_and_is_poisoned_serves_no_longer",
        ),
        (
            "a rebuild that meets the stop is answered as if the worker were down",
            "        if exc.__cause__ is None:  # it did not fail: an operator stopped it\n            raise _stopping(worker) from None\n",
            "",
            "a_rebuild_that_meets_the_stop_is_answered_with_the_stop",
        ),
    ),
    *_plants(
        "worker/serving.py",
        (
            "a suspect is not cleared by a step that it survives",
            "                record.suspect = False\n",
            "",
            "suspects_come_back_one_at_a_time",
        ),
        (
            "an end that was ordered makes suspects",
            "record.suspect = record.suspect or not ordered",
            "record.suspect = True",
            "an_end_that_was_ordered_makes_no_stream_a_suspect",
        ),
        (
            "a canary is not silenced by a request",
            "            self._context.cancel_canary()\n            self._session.begin",
            "            self._session.begin",
            "a_canary_gives_way_to_requests_and_does_not_run_beside_them",
        ),
        (
            "a canary is begun beside requests",
            "if silence.cancelled_caught and self._context.is_idle():",
            "if silence.cancelled_caught and not self._context.canary_open:",
            "a_canary_gives_way_to_requests_and_does_not_run_beside_them",
        ),
        (
            "a canary that was answered counts as open",
            "        self.canary_open = False\n        self.has_changed()",
            "        self.has_changed()",
            "an_idle_context_is_asked_for_one_token_and_never_for_two",
        ),
        (
            "an order that waits is not answered at the end",
            "for request in (self.under_way, self.waiting):",
            "for request in (self.under_way,):",
            "a_rebuild_that_waits_gets_an_error_at_a_stop",
        ),
        (
            "an order that is superseded is not answered",
            "            self.waiting.answer(_superseded())",
            "            pass",
            "a_rebuild_is_superseded_by_a_later_one",
        ),
        (
            "a request slips past a rebuild that waits",
            "if self._has_room() and not self._draining:",
            "if not self._draining:",
            "a_rebuild_holds_streams_that_may_move_and_waits_for_those_that_may_not",
        ),
        (
            "a rebuild does not wait for a stream that may not move",
            "(self.under_way is None and not self.keeps_any())",
            "(self.under_way is None)",
            "a_rebuild_holds_streams_that_may_move_and_waits_for_those_that_may_not",
        ),
        (
            "a drain is not awaited",
            "        while self._open or not self._all_back:\n            await self._context.change()\n",
            "",
            "begun_streams_finish_when_a_worker_drains",
        ),
        (
            "a rebuild supersedes an order that reports a poison",
            "        if self.waiting is not None and self.waiting.wants_restart and not request.wants_restart:",
            "        if False:",
            "a_rebuild_does_not_supersede_an_order_that_reports_a_poison",
        ),
        (
            "a stop refuses an order that reports a poison",
            "        if self.waiting is not None and not self.waiting.wants_restart:",
            "        if self.waiting is not None:",
            "a_poison_that_is_reported_as_the_stop_comes_counts",
        ),
        (
            "a body that has ended to be resumed does not go on when the stop comes",
            "            while self._goes_on():\n                await self._serve()\n",
            "",
            "a_stop_a_few_ticks_after_a_resume_began_costs_no_stream",
        ),
        (
            "an order that a stop has overtaken counts as under way",
            "        self._context.take_back()\n",
            "",
            "a_stop_a_few_ticks_after_a_resume_began_costs_no_stream",
        ),
        (
            "a rebuild loses a stream that has just got its first chunk",
            "        if not (waits or (drains and would_be_resumed)):",
            "        if not (drains and would_be_resumed):",
            "a_rebuild_waits_for_a_stream_whose_first_chunk_is_on_its_way",
        ),
        (
            "a drain begins waiting requests",
            "            if message.memo is None:\n                message.fail(",
            "            if False:\n                message.fail(",
            "begun_streams_finish_when_a_worker_drains",
        ),
        (
            "a caller that leaves frees no place",
            "        del self.open[record.batch.request_id]\n        record.leave = None\n        self.has_changed()",
            "        del self.open[record.batch.request_id]\n        record.leave = None",
            "a_place_that_was_left_serves_the_next",
        ),
        (
            "a lack of memory is not remembered",
            "since, self._context.since_oom = self._context.since_oom, set()",
            "since, self._context.since_oom = self._context.since_oom, None",
            "a_second_lack_of_memory_at_the_same_step_is_a_restart",
        ),
        (
            "a context that has failed still admits requests",
            "return self._failure is None and self._context.has_room()",
            "return self._context.has_room()",
            "a_request_that_comes_as_a_context_fails_begins_in_the_next",
        ),
    ),
    *_plants(
        "worker/record.py",
        (
            "a request is served as its caller has left it",
            '        return evolve(batch, sampling=sampling, on_loss=batch.on_loss if may_move else "fail")\n',
            '        object.__setattr__(batch, "sampling", sampling)\n        return batch if may_move else evolve(batch, on_loss="fail")\n',
            "a_request_that_its_caller_changes_afterwards_is_served_as_it_was",
        ),
        (
            "a sampling is served as it was forged",
            "        sampling = evolve(batch.sampling, seed=random.getrandbits(63) if seed is None else seed)\n",
            "        sampling = batch.sampling if seed is not None else evolve(batch.sampling, seed=random.getrandbits(63))\n",
            "a_request_may_be_anything",
        ),
        (
            "a chunk of another incarnation is accepted",
            "                or chunk.incarnation != incarnation\n",
            "",
            "a_chunk_of_another_incarnation_is_a_protocol_error",
        ),
        (
            "a chunk that skips tokens is accepted",
            "                chunk.index != at\n",
            "                chunk.index < at\n",
            "a_session_that_miscounts_is_a_protocol_error",
        ),
        (
            "one token too many is accepted",
            "                or end > most\n",
            "                or end > most + 1\n",
            "a_session_that_sends_more_tokens_than_requested_is_a_protocol_error",
        ),
        (
            "a chunk behind a wrong chunk is accepted",
            "                del chunks[len(texts) - known :]\n",
            "                del chunks[len(texts) - known + 1 :]\n",
            "chunks_in_front_of_a_wrong_chunk_are_accepted",
        ),
    ),
    *_plants(
        "worker/__init__.py",
        (
            "a stale report of a poison is believed",
            "context.incarnation == incarnation:",
            "context.incarnation >= incarnation:",
            "a_reported_poison_restarts_and_a_stale_report_does_not",
        ),
        (
            "an order outlives the operator that gave it",
            "        state._context.withdraw(request)",
            "        pass",
            "an_operator_that_leaves_withdraws_its_order",
        ),
    ),
    *_plants(
        "hosts/process/host.py",
        (
            "a context that was idle is late at once",
            "        if not self._streams and not self._leaving:\n            self._progress = trio.current_time()\n",
            "",
            "an_idle_context_has_no_deadline",
        ),
        (
            "an idle context has a deadline",
            '        if not waited_for:\n            return math.inf, ""\n',
            "",
            "an_idle_context_has_no_deadline",
        ),
        (
            "a begin puts a deadline off",
            "        if not self._streams and not self._leaving:\n            self._progress",
            "        if True:\n            self._progress",
            "a_begin_does_not_put_off_a_hang",
        ),
        (
            "a begin arms no deadline for a reader that waits already",
            "        self._peer.send(data, number)\n        self._tighten_deadline()",
            "        self._peer.send(data, number)",
            "a_new_request_sets_the_deadline_of_a_receive_that_waits_already",
        ),
        (
            "a begin that is taken back stays due",
            "            self._new.discard(number)\n        else:",
            "            pass\n        else:",
            "a_begin_that_was_taken_back_has_no_deadline",
        ),
        (
            "a dropped stream is no longer waited for",
            "waited_for = len(self._streams) + len(self._leaving)",
            "waited_for = len(self._streams)",
            "a_hang_is_detected_though_its_caller_leaves",
        ),
        (
            "a drop may be passed over by one stream",
            "max(named, default=-1) >= next(",
            "max(named, default=-1) > next(",
            "a_context_that_answers_a_later_stream_has_dropped_the_one_before",
        ),
        (
            "a step that begins a stream has not the time of one that goes on",
            "            first = max(first, self._next_timeout())",
            "            pass",
            "a_step_that_begins_one_stream_has_the_time_of_those_that_go_on",
        ),
        (
            "a failure answers no rebuild",
            "            self._peer.kill()\n            self._answer_rebuild()",
            "            self._peer.kill()",
            "a_rebuild_that_fails_is_told_to_both",
        ),
        (
            "leaving answers no rebuild",
            "        self._ended = True\n        self._answer_rebuild()",
            "        self._ended = True",
            "leaving_answers_a_rebuild",
        ),
        (
            "time in which no process ran counts",
            "        if is_late(asked_for):",
            "        if False:",
            "time_in_which_no_process_ran_puts_a_deadline_off",
        ),
        (
            "items come along without end",
            "while more and len(made) < ENOUGH and not self._kept",
            "while more and not self._kept",
            "steps_that_arrive_together_are_bounded",
        ),
        (
            "a message behind steps that came along is lost",
            "                    self._kept = frame\n",
            "                    break\n",
            "a_poison_behind_steps_that_arrived_together_is_reported_next",
        ),
        (
            "a cancelled body closes nothing",
            "                with trio.CancelScope(shield=True):\n                    await session.end()",
            "                await session.end()",
            "leaving_by_cancellation_closes_the_runner",
        ),
        (
            "a standby comes before the load",
            "                await session.load(start)\n                reserve.replenish()",
            "                reserve.replenish()\n                await session.load(start)",
            "there_is_no_standby_until_one_has_loaded",
        ),
        (
            "a lack of memory that is a stream's is not counted",
            "            self._lacks += failed.error.name == OutOfMemory.__name__\n",
            "",
            "a_requests_own_error_concerns_nobody_else",
            "the_end_of_a_context_is_final",
            "out_of_memory_fails_one_request_and_resumes_the_rest",
        ),
    ),
    *_plants(
        "hosts/process/parent/peer.py",
        (
            "a frame that is half sent is taken back",
            "if theirs == mark and (position or self._whole):",
            "if theirs == mark:",
            "begin_and_drop_never_block_and_stay_bounded",
        ),
        (
            "the rest of a frame that is half sent goes behind the others",
            "self._unsent.appendleft((data[max(sent, 0) :], mark))",
            "self._unsent.append((data[max(sent, 0) :], mark))",
            "frames_that_wait_for_room_are_sent_in_order",
        ),
        (
            "room is waited for though nothing is unsent",
            "if bool(self._unsent) != self._awaits_room and self._open:",
            "if self._unsent and not self._awaits_room and self._open:",
            "waiting_after_a_begin_was_taken_back_is_idle",
        ),
        (
            "a pidfd is not closed",
            "        self.output.close()\n        os.close(self._process.pidfd)",
            "        self.output.close()",
            "many_contexts_leave_nothing",
        ),
        (
            "a dead process is not reaped",
            "            await self._process.reap()\n            return False",
            "            return False",
            "leaving_closes_the_runner",
            "processes_that_a_context_has_started_end_with_it",
        ),
        (
            "a standby that has sent something is handed out",
            "self._open and self.read() is None",
            "self._open",
            "a_standby_that_has_sent_something_is_passed_over",
        ),
        (
            "the last output is not waited for",
            "            await self._process.fate_known()\n            await self.output.drain()",
            "            await self._process.fate_known()",
            "all_output_is_read_before_a_death_is_reported",
        ),
    ),
    *_plants(
        "hosts/process/parent/output.py",
        (
            "one line too many is a ration",
            "return self._count <= self._most",
            "return self._count <= self._most + 1",
            "a_ration_is_counted_anew_each_second",
        ),
        (
            "a pipe stays open where there is no other",
            '            self._streams.append(_Stream(self, "stderr", logging.WARNING))\n        except OSError:\n            self.close()\n            raise',
            '            self._streams.append(_Stream(self, "stderr", logging.WARNING))\n        except OSError:\n            raise',
            "a_start_without_descriptors_fails_alone",
        ),
        (
            "output after a crash report is never logged again",
            "self._crashed = self._crashed and line.startswith(_BEHIND_IT)",
            "self._crashed = self._crashed or line.startswith(_BEHIND_IT)",
            "lines_after_the_report_of_a_crash_count_again",
        ),
        (
            "lines dropped at the end are not reported",
            "            self._take(line)\n        self._report_dropped()",
            "            self._take(line)",
            "a_flood_is_bounded_and_delays_no_context",
        ),
    ),
    *_plants(
        "hosts/process/parent/forkserver.py",
        (
            "a process that has lost its server gets no notice",
            "                asked.process.orphaned()\n",
            "                pass\n",
            "standbys_die_with_their_server_and_are_replaced",
            "contexts_die_with_their_server_and_a_later_one_has_a_new_server",
        ),
        (
            "a server that does not fork is not killed",
            '            self.kill(f"{self._name} did not fork within {_ANSWER:g} s")',
            "            pass",
            "a_server_that_has_stopped_does_not_delay_a_restart",
        ),
        (
            "descriptors that were not asked for stay open",
            "            for descriptor in descriptors:\n                os.close(descriptor)\n        return bool(data)",
            "            pass\n        return bool(data)",
            "without_a_server_the_start_is_cold",
        ),
        (
            "a hang of a preload is no reason to give up",
            "        self.hopeless = True\n        self.kill",
            "        self.kill",
            "a_preload_that_cannot_work_is_not_tried_again",
        ),
        (
            "an interrupt may end the listener",
            "    @enable_ki_protection\n    async def _listen",
            "    async def _listen",
            "a_keyboard_interrupt_in_a_task_of_the_hosts_leaves_the_program",
        ),
        (
            "the control of a dead server stays open",
            "        self._control.close()\n",
            "",
            "an_idle_server_ends_after_a_while",
        ),
    ),
    *_plants(
        "hosts/process/child/forkserver.py",
        (
            "a context has the pidfds of its neighbours",
            "(output, errors, self._control.detach(), *self._children)",
            "(output, errors, self._control.detach())",
            "a_context_shares_no_descriptor",
        ),
        (
            "the server keeps the ends of its children",
            "            for descriptor in descriptors:\n                os.close(descriptor)\n        return True",
            "            pass\n        return True",
            "a_server_keeps_nothing_of_its_contexts",
        ),
        (
            "threads are not looked for after a preload",
            "        threads.check()\n",
            "",
            "a_thread_that_prevents_a_fork_is_named",
        ),
    ),
    *_plants(
        "hosts/process/parent/standby.py",
        (
            "a reserve is not woken when a worker needs it",
            "        self._changed.set()\n        self._changed = trio.Event()\n\n    async def run",
            "        pass\n\n    async def run",
            "an_idle_server_ends_after_a_while",
        ),
        (
            "one preload too many is tried",
            "self._failures >= _TRIES",
            "self._failures > _TRIES",
            "a_limit_counts_only_servers_that_die_in_a_row",
        ),
        (
            "failures that are not in a row count",
            "            self._failures = 0\n",
            "",
            "a_limit_counts_only_servers_that_die_in_a_row",
        ),
        (
            "a recovery waits for a preload",
            "math.inf if patient else 0.0 if self._handed_out else _FIRST",
            "math.inf if patient else _FIRST",
            "no_recovery_waits_for_a_preload",
        ),
        (
            "a warning is repeated",
            "            self._warned = why\n",
            "",
            "a_preload_that_cannot_work_is_not_tried_again",
        ),
        (
            "a dead standby is handed out",
            "            if peer.waits:\n",
            "            if peer.pid:\n",
            "a_standby_that_has_died_is_passed_over",
        ),
        (
            "those that are coming are not counted",
            "self._plan.standby - len(self._standbys) - self._coming",
            "self._plan.standby - len(self._standbys)",
            "beside_two_contexts_there_are_as_many_standbys_as_declared",
        ),
        (
            "standbys outlive their reserve",
            "                    for standby in self._standbys:\n                        await self._reap(standby)",
            "                    self._standbys.clear()",
            "there_are_as_many_standbys_as_declared",
        ),
        (
            "the pidfd of a process that cannot be watched stays open",
            "            await process.reap()\n        os.close(process.pidfd)",
            "            await process.reap()",
            "a_process_that_epoll_cannot_watch_is_not_left_behind",
        ),
    ),
    *_plants(
        "hosts/process/parent/births.py",
        (
            "time in which no process ran counts whole",
            "halves -= 1 if is_late(patience.deadline) else 2",
            "halves -= 2",
            "time_in_which_no_process_ran_counts_half",
        ),
        (
            "a process that is dead counts as late",
            "    return not is_readable(process.pidfd)",
            "    return True",
            "a_process_that_dies_at_the_last_moment_has_died_in_time",
        ),
        (
            "a process that cannot be watched is not reaped",
            "            self._process.kill()\n            self._process.wait()\n            raise",
            "            raise",
            "a_process_that_cannot_be_watched_is_not_left",
        ),
    ),
    *_plants(
        "hosts/process/child/life.py",
        (
            "a process whose parent is gone lives on",
            "    if os.getppid() != parent:",
            "    if not os.getppid():",
            "a_context_whose_server_is_gone_at_its_birth_ends",
        ),
        (
            "a context writes a core",
            "    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n",
            "",
            "a_context_writes_no_core",
        ),
        (
            "signals stay as the parent has them",
            "    signal.pthread_sigmask(signal.SIG_SETMASK, ())\n",
            "",
            "a_process_that_a_runner_starts_can_be_terminated",
            "what_a_preload_leaves_behind_harms_no_context",
        ),
    ),
    *_plants(
        "hosts/process/parent/cleaner.py",
        (
            "a cleaner that was killed is not replaced",
            "        self._running = None\n        self.start()",
            "        self._running = None",
            "a_cleaner_that_is_killed_is_replaced",
        ),
        (
            "a cleaner gets no notice of an end",
            '            self._running.send(f"-{pid}")',
            "            pass",
            "processes_that_a_context_has_started_end_with_it",
        ),
    ),
    *_plants(
        "hosts/process/child/loop.py",
        (
            "a lack of memory is reported again with the next step",
            "            self._turns.failures.clear()\n",
            "",
            "out_of_memory_fails_one_request_and_resumes_the_rest",
        ),
        (
            "a drop is not answered",
            "                self._drop(number)\n                self._link.send(wire.Dropped(number))",
            "                self._drop(number)",
            "a_caller_that_leaves_a_slow_stream_makes_no_hang",
        ),
        (
            "streams are not closed before the runner",
            "        self._drop(*self._turns.open)\n        try:\n            self._turns.runner.close()",
            "        try:\n            self._turns.runner.close()",
            "streams_are_closed_before_their_runner",
        ),
        (
            "a deadline is on the parent's clock",
            "frame.batch().on_clock(time.monotonic())",
            "frame.batch()",
            "a_deadline_reaches_the_runner_on_its_own_clock",
        ),
    ),
    *_plants(
        "hosts/turns.py",
        (
            "a stream is opened whose place is not known",
            "            position = Position.of(batch, accepted)\n            self._open[number] = _Open(position, source(execute(self.runner, batch, accepted)))\n",
            "            stream = source(execute(self.runner, batch, accepted))\n            self._open[number] = _Open(Position.of(batch, accepted), stream)\n",
            "a_request_that_cannot_be_begun_opens_no_stream",
        ),
        (
            "a poison that a runner tells of in a group is not its own",
            "any(found is member for member in members(error))",
            "found is error",
            "a_poison_told_in_a_group_is_told_by_the_runner",
        ),
        (
            "a finished stream is not closed",
            "                del self._open[number]\n                source.close()",
            "                del self._open[number]",
            "a_stream_that_has_ended_is_closed",
        ),
        (
            "a stream that failed is polled again",
            "        self._open.pop(number, None)\n        found",
            "        found",
            "a_stream_that_has_failed_is_not_asked_again",
        ),
        (
            "a request that is refused keeps its place",
            "        close()\n        raise",
            "        raise",
            "a_stream_of_nonsense_frees_its_place",
        ),
        (
            "a found poison is gone with the runner",
            "not (clears and any(found is member for member in members(error)))",
            "not clears",
            "what_a_runner_raises_is_judged_where_it_lives",
        ),
    ),
    *_plants(
        "hosts/inline.py",
        (
            "a turn that the context has ended in tells of a lack of memory",
            "        if self._failure is None:\n            self._passing +=",
            "        if True:\n            self._passing +=",
            "a_turn_in_which_the_context_ends_tells_of_nothing_else",
        ),
        (
            "a rebuild leaves what its streams lacked in ending",
            "                self._turns.forget()\n",
            "",
            "what_an_async_stream_lacks_in_ending_a_rebuild_cures",
            "a_rebuild_is_the_cure_of_what_lacked_in_dropping_for_it[inline]",
        ),
        (
            "a stream is one chunk further ahead",
            "while len(self._queue) >= _AHEAD:",
            "while len(self._queue) > _AHEAD:",
            "a_fast_stream_waits_for_its_reader",
        ),
        (
            "a poison that a stream reports in ending is lost",
            "            self._late(self._error)",
            "            pass",
            "a_poison_that_a_dropped_stream_raises_in_ending_counts",
        ),
        (
            "a cancelled body does not close an async runner",
            "trio.move_on_after(self._close_timeout, shield=True)",
            "trio.move_on_after(self._close_timeout)",
            "a_cancelled_body_closes_an_async_runner",
        ),
    ),
    *_plants(
        "hosts/thread.py",
        (
            "a rebuild in a thread leaves what its streams lacked in ending",
            "        self._turns.forget()\n",
            "",
            "a_rebuild_is_the_cure_of_what_lacked_in_dropping_for_it[thread]",
        ),
        (
            "a thread makes one turn after the other, read or not",
            "            self._turn = answer\n            self._wake()",
            "            self._turn = answer\n            self._made()\n            self._wake()",
            "a_thread_does_not_run_ahead_of_its_reader",
        ),
        (
            "a reader that waits at a thread gets no new deadline",
            "        self._orders.append(lambda turns: turns.begin(number, theirs, accepted, in_turn))\n        self._wake()",
            "        self._orders.append(lambda turns: turns.begin(number, theirs, accepted, in_turn))\n        pass",
            "a_request_to_a_thread_sets_the_deadline_of_a_receive_that_waits_already",
        ),
        (
            "a stream that a thread is to drop has no deadline",
            "        if not self._turning:\n            await self._changed.wait()",
            "        if not self._turning or not self._streams:\n            await self._changed.wait()",
            "a_thread_that_hangs_is_detected_though_its_caller_leaves",
        ),
        (
            "a thread's failed runner is closed",
            "        if was_sound:\n            self._thread.do(self._close",
            "        if True:\n            self._thread.do(self._close",
            "a_runner_whose_context_is_in_trouble_is_not_closed",
        ),
    ),
    *_plants(
        "hosts/process/wire.py",
        (
            "a frame may be one byte too long",
            "if length > self._max_frame:",
            "if length > self._max_frame + 1:",
            "a_frame_that_is_too_long_is_refused_by_its_length",
        ),
        (
            "a long step may be of many streams",
            "self._long = long or decoder",
            "self._long = decoder",
            "a_long_step_is_of_one_stream_alone",
        ),
    ),
    *_plants(
        "diagnosis/nvml.py",
        (
            "a device with a stuck driver counts as well",
            'trouble: str | None = f"NVML has not answered within {self.timeout:g} s"',
            "trouble: str | None = None",
            "a_stuck_driver_makes_its_device_unrecoverable",
        ),
        (
            "a worse verdict loses the requests of the poison",
            "worse.code, worse.request_ids = error.code, error.request_ids",
            "worse.code = error.code",
            "a_device_that_needs_more_than_a_process_is_unrecoverable",
        ),
        (
            "of several devices only the first is asked about",
            "        for number in numbers:\n",
            "        for number in numbers[:1]:\n",
            "nvml_is_asked_about_each_of_several_devices",
        ),
    ),
    *_plants(
        "diagnosis/classify.py",
        (
            "of a group the mildest counts",
            "return max(found, key=_severity)",
            "return min(found, key=_severity)",
            "the_worst_member_of_a_group_counts",
        ),
        (
            "each error of a group is asked for alone",
            "return worst(error, partial(classify, probe=_Once(probe)))",
            "return worst(error, partial(classify, probe=probe))",
            "a_group_asks_its_device_once",
        ),
        (
            "a device that answers has memory",
            "if answer is None or (answer and nominee.kind is OutOfMemory):",
            "if answer is None:",
            "symptoms_nominate_only_in_the_classes_that_show_them",
            "no_text_convicts_a_device_that_answers",
        ),
    ),
    *_plants(
        "hosts/session.py",
        (
            "a rebuild that was given up leaves its session as it is",
            "        if not self._ended:\n            self.condemn(",
            "        if False:\n            self.condemn(",
            "a_rebuild_that_is_given_up_ends_its_context",
        ),
        (
            "one stream too many may begin",
            "if len(self._streams) >= self.info.streams:",
            "if len(self._streams) > self.info.streams:",
            "misuse_is_told_at_once",
        ),
    ),
)
