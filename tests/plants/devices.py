"""Faults planted in device workers: wake-ups, deadlines, fences, and reports."""

from __future__ import annotations

from pathlib import Path

from .plant import Plant

_TESTS = Path(__file__).parents[1] / "runners"


def plants_of(file: str, *plants: tuple[str, ...]) -> tuple[Plant, ...]:
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
    *plants_of(
        "worker/operations.py",
        (
            "a stop comes between the look at a worker and the order",
            "            async with context.lease() as now:\n                serving: ContextState = now\n                return serving\n",
            "            serving: ContextState = await context.ready()\n            return serving\n",
            "a_rebuild_that_meets_the_stop_is_answered_with_the_stop",
        ),
        (
            "a poison that an order reports is ignored in a drain",
            '            report_poison(context, f"a new session was ordered ({cause})", status.incarnation)\n',
            "            pass\n",
            "a_context_that_drains_and_is_poisoned_serves_no_longer",
        ),
        (
            "a rebuild that meets the stop is answered as if the worker were down",
            "        if exc.__cause__ is None:  # it did not fail: an operator stopped it\n            raise _stopping(context) from None\n",
            "",
            "a_rebuild_that_meets_the_stop_is_answered_with_the_stop",
        ),
    ),
    *plants_of(
        "worker/serving.py",
        (
            "a suspect is not cleared by a step that it survives",
            "            if record.loss is not None:\n                record.settle()\n",
            "            if record.loss is not None:\n",
            "suspects_come_back_one_at_a_time",
        ),
        (
            "an end that was ordered makes suspects",
            "if self._open and not ordered else None",
            "if self._open else None",
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
            "silence.cancelled_caught and self._context.is_idle()",
            "silence.cancelled_caught and not self._context.canary_open",
            "a_canary_gives_way_to_requests_and_does_not_run_beside_them",
        ),
        (
            "a request slips past a rebuild that waits",
            "if self._has_room() and not self._draining:",
            "if not self._draining:",
            "a_rebuild_holds_streams_that_may_move_and_waits_for_those_that_may_not",
        ),
        (
            "a drain is not awaited",
            "                with trio.move_on_after(math.inf if self._admits_begun and not self._inbox else _LOOK):\n",
            "                break\n                with trio.CancelScope():\n",
            "begun_streams_finish_when_a_worker_drains",
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
    *plants_of(
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
    *plants_of(
        "worker/operations.py",
        (
            "a second replacement takes a worker for down while only the spare serves",
            "    _free_group(worker)\n    opener",
            "    opener",
            "a_second_replacement_is_refused_while_only_the_spare_serves",
        ),
        (
            "a stale report of a poison is believed",
            "            if context.status().incarnation == incarnation:",
            "            if context.status().incarnation >= incarnation:",
            "a_reported_poison_restarts_and_a_stale_report_does_not",
        ),
        (
            "an order outlives the operator that gave it",
            "        state._context.withdraw(request)",
            "        pass",
            "an_operator_that_leaves_withdraws_its_order",
        ),
    ),
    *plants_of(
        "worker/group.py",
        (
            "one context takes a whole burst",
            "        return len(context.open) * len(free) >= sum(free) + waiting",
            "        return False",
            "a_burst_is_spread_evenly",
        ),
        (
            "contexts that do not serve have a share of a burst",
            "if other is context or other.has_room()]",
            "]",
            "a_context_that_is_full_counts_for_no_share",
        ),
        (
            "the contexts drain one after the other",
            "            for context in self.contexts.values():\n                context.has_changed()\n",
            "",
            "all_contexts_drain_at_the_same_time",
        ),
        (
            "a worker that was stopped drains when it is started again",
            "self.drains_until, self.loss = None, Loss()",
            "self.loss = Loss()",
            "a_drained_worker_ends_with_its_last_stream_and_serves_again",
        ),
    ),
    *plants_of(
        "worker/operations.py",
        (
            "a context that drains for a new runner begins requests",
            "            with context.hold():\n                await context.emptied(drain)\n                if group",
            "            if True:\n                await context.emptied(drain)\n                if group",
            "a_new_runner_is_swapped_in_while_the_worker_serves",
        ),
        (
            "a runner that does not load stays the new one",
            "            group.replacement = before\n            await _start_again(context)",
            "            await _start_again(context)",
            "a_new_runner_that_does_not_load_leaves_the_old_one",
        ),
        (
            "a context whose old runner does not load at once stays down",
            "for delay in _DELAYS:",
            "for delay in (0,):",
            "the_old_runner_is_loaded_again_until_it_loads",
        ),
        (
            "one old runner that does not load at once leaves the others with the new one",
            "            if is_new:\n                raise",
            "            raise",
            "the_old_runner_is_loaded_again_until_it_loads",
        ),
        (
            "a replacement that is cancelled leaves its spare",
            "        with trio.CancelScope(shield=True):\n            await _take_out(spare)",
            "        if True:\n            await _take_out(spare)",
            "one_replacement_at_a_time",
        ),
        (
            "a rolling rebuild ends with a context that is just replaced",
            "    except RebuildSuperseded:\n        return await _next(context)",
            "    except ZeroDivisionError:\n        return await _next(context)",
            "a_rolling_rebuild_waits_for_a_context_that_is_just_replaced",
        ),
    ),
    *plants_of(
        "worker/serving.py",
        (
            "a context that is stopped alone refuses what its siblings could serve",
            "            while self._leaves_the_queue():\n                await self._context.change()\n",
            "",
            "a_context_that_is_stopped_while_the_others_restart_refuses_nothing",
        ),
        (
            "a context that is stopped alone refuses what waits for its siblings' restart",
            "        return alone or self._inbox.relieved",
            "        return self._inbox.relieved",
            "a_context_that_is_stopped_while_the_others_restart_refuses_nothing",
        ),
        (
            "a context that is restarted alone refuses what waits for its next incarnation",
            "context.opener.is_one_of_several or not self._is_worker_stopping()",
            "context.opener.is_one_of_several",
            "a_context_that_drains_alone_leaves_what_waits_to_the_next_one",
        ),
        (
            "another runner continues a stream",
            "        if not record.continues_in(self._context.runner):",
            "        if False:",
            "another_runner_continues_no_stream",
        ),
        (
            "streams wait for the rebuild of their context",
            "            else:\n                message.requeue()\n                if loss",
            "            else:\n                if loss",
            "the_contexts_are_rebuilt_one_after_the_other",
        ),
    ),
    *plants_of(
        "worker/context.py",
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
            "a rebuild does not wait for a stream that may not move",
            "(self.under_way is None and not self.keeps_any())",
            "(self.under_way is None)",
            "a_rebuild_holds_streams_that_may_move_and_waits_for_those_that_may_not",
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
            "a caller that leaves frees no place",
            "            self._last = None\n        record.leave = None\n        record.settle()\n        record.withdraw()\n        self.has_changed()",
            "            self._last = None\n        record.leave = None\n        record.settle()\n        record.withdraw()",
            "a_place_that_was_left_serves_the_next",
        ),
    ),
    *plants_of(
        "worker/rates.py",
        (
            "a minute never ends",
            "        while self._begun and self._begun[0].at <= now - _MINUTE:",
            "        while False:",
            "no_minute_has_more_than_the_limits_and_none_waits_too_long",
        ),
        (
            "tokens that have left the window still count",
            "            requests, left, free = requests - 1, left - begun.tokens, max(free, begun.at + _MINUTE)",
            "            requests, left, free = requests - 1, left, max(free, begun.at + _MINUTE)",
            "no_minute_has_more_than_the_limits_and_none_waits_too_long",
        ),
        (
            "the word of a server is forgotten",
            "        free = max(now, self.paused_until)",
            "        free = now",
            "a_server_that_says_when_is_left_alone_until_then",
        ),
    ),
    *plants_of(
        "worker/serving.py",
        (
            "rate limits are not enforced",
            "        if self._exceeds(message):",
            "        if False:",
            "no_more_requests_begin_in_a_minute_than_the_server_takes",
        ),
        (
            "a context waits for the next change though its minute is over",
            "            with trio.move_on_at(self._context.again if self._is_held_back() else math.inf):",
            "            if True:",
            "no_more_requests_begin_in_a_minute_than_the_server_takes",
        ),
        (
            "a stream that gave something is tried again",
            "        if not is_of_server or record.chunks or record.failures >= opener.retries:",
            "        if not is_of_server or record.failures >= opener.retries:",
            "an_error_is_not_tried_again_for_ever",
        ),
    ),
    *plants_of(
        "worker/serving.py",
        (
            "a canary keeps to no limit",
            "            if quiet and self._may_begin(lambda: CANARY.estimated_tokens):",
            "            if quiet:",
            "a_canary_keeps_to_the_limits_and_to_what_the_server_said",
        ),
        (
            "canaries take what a request waits for",
            " and works and not self._inbox\n",
            " and works\n",
            "canaries_do_not_take_what_a_request_waits_for",
        ),
        (
            "a death brings every retry forward",
            "        if message.memo is not None and record_of(message).begins_again > trio.current_time():",
            "        if False:",
            "a_death_of_the_context_brings_no_retry_forward",
        ),
        (
            "a request that is refused counts for the limit",
            "        if self._exceeds(message):\n            message.requeue()\n            return\n",
            "        if self._exceeds(message):\n            message.requeue()\n            return\n        self._note_rate(1)\n",
            "a_request_that_is_refused_counts_for_no_limit",
        ),
        (
            "a context that drains alone does not learn of the stop of its worker",
            "        while not self._is_worker_stopping():",
            "        while not self._is_worker_stopping() and not await trio.sleep(9):",
            "all_contexts_drain_at_the_same_time_though_one_drains_already",
        ),
    ),
    *plants_of(
        "worker/context.py",
        (
            "any number of requests may wait for a retry",
            "        free = self.waiting is None and not self.held and len(self.retries) < streams",
            "        free = self.waiting is None and not self.held",
            "no_more_requests_wait_for_a_retry_than_the_runner_has_places",
        ),
        (
            "a caller leaves its retry behind",
            "        record.leave = self._retry_left\n",
            "",
            "a_caller_that_leaves_takes_its_retry_along",
        ),
    ),
    *plants_of(
        "worker/group.py",
        (
            "a request id may be open in two contexts",
            "            request_id in context.open or request_id in context.retries for context in self.contexts.values()",
            "            False for context in self.contexts.values()",
            "request_ids_differ_in_all_contexts_of_a_worker",
        ),
        (
            "the next request waits for the limit of one that has left",
            "            message.on_left(self._look_again)\n",
            "",
            "a_request_that_leaves_holds_back_no_smaller_one_behind_it",
        ),
        (
            "the members of a pool share a group",
            "    if path not in groups:",
            "    path = next(iter(groups), path)\n    if path not in groups:",
            "a_member_that_drains_leaves_the_others_alone",
        ),
        (
            "the groups of members that have left are kept",
            "                del known[other]",
            "                pass",
            "nothing_is_kept_of_members_that_have_left",
        ),
        (
            "a worker that is declared anew becomes two",
            "        if group is None or not are_equal(group.runner, runner):\n",
            "        if True:\n",
            "a_worker_that_is_declared_anew_keeps_its_replaced_runner",
        ),
        (
            "a worker that is declared with another runner keeps the old one",
            "        if group is None or not are_equal(group.runner, runner):\n",
            "        if group is None:\n",
            "another_runner_that_is_declared_counts_instead_of_a_replaced_one",
        ),
        (
            "both declarations of a worker count a request",
            "Group(runner, ends=Ends() if group is None else group.ends)",
            "Group(runner)",
            "a_worker_that_is_declared_anew_counts_each_request_once",
        ),
        (
            "a request counts where it ends",
            "            record.begun.rates.settle(",
            "            self.rates.settle(",
            "a_request_counts_where_it_has_begun",
        ),
    ),
    *plants_of(
        "worker/operations.py",
        (
            "a worker that is starting gets a new runner in part",
            "        for node in worker.status().children\n",
            '        for node in worker.status().children if node.state == "up"\n',
            "a_context_that_is_started_by_hand_meanwhile_gets_the_new_runner",
        ),
    ),
    *plants_of(
        "worker/record.py",
        (
            "a stream mixes chunks with ids and chunks without",
            "                or (more and len(accepted) != (at if ids else 0))  # all chunks have ids, or none\n",
            "",
            "a_stream_with_chunks_of_both_kinds_is_a_protocol_error",
        ),
        (
            "a runner that does not equal itself is another one",
            "return one is other or bool(",
            "return bool(",
            "a_stream_continues_in_the_same_runner_whatever_its_spec_is",
        ),
    ),
)
