"""Faults planted in how a worker judges deaths of its contexts, and where it sends their streams."""

from __future__ import annotations

from .devices import plants_of

FLEETS = (
    *plants_of(
        "hosts/process/host.py",
        (
            "a stream counts as taken once it is sent",
            "return number is not None and number not in self._untaken",
            "return number is not None",
            "a_stream_from_a_dead_context_is_waited_for_once_it_is_taken",
        ),
        (
            "a stream that is not taken puts a deadline off",
            "if self._new <= self._untaken and len(self._new) < waited_for:",
            "if not self._new:",
            "a_stream_from_a_dead_context_is_waited_for_once_it_is_taken",
        ),
    ),
    *plants_of(
        "hosts/process/child/loop.py",
        (
            "a stream is confirmed behind its first step",
            "        if frame.confirm:\n            self._link.send(wire.Taken(frame.stream))\n",
            "",
            "a_stream_is_taken_before_anything_is_done_for_it",
        ),
    ),
    *plants_of(
        "worker/serving.py",
        (
            "a context convicts what it has not taken",
            "record_of(message).loss is not None and self._session.has_taken(name)",
            "record_of(message).loss is not None",
            "a_suspect_is_not_convicted_by_a_context_that_had_not_taken_it",
        ),
        (
            "no confirmation is asked for",
            "confirm=record.loss is not None",
            "confirm=False",
            "the_streams_of_contexts_that_die_together_come_back_together",
        ),
        (
            "a stream that is refused in the next context stays part of its loss",
            "            if message.memo is not None:\n                record_of(message).settle()\n",
            "",
            "a_stream_that_ends_in_the_next_context_is_no_part_of_a_loss",
        ),
    ),
    *plants_of(
        "worker/group.py",
        (
            "each death has its suspects",
            "if is_apart and self.loss.streams:",
            "if False:",
            "the_streams_of_contexts_that_die_together_come_back_together",
            "the_loss_of_a_machine_costs_no_stream",
        ),
        (
            "a request that was in both contexts is not taken for the cause",
            "if is_apart and self.loss.streams:",
            "if self.loss.streams:",
            "a_suspect_blocks_only_the_context_that_tries_it",
        ),
        (
            "a death is joined with one that is over",
            "if is_apart and self.loss.streams:",
            "if is_apart:",
            "a_later_death_is_judged_alone",
        ),
        (
            "a worker that was down remembers a loss",
            "self.drains_until, self.loss = None, Loss()",
            "self.drains_until = None",
            "a_worker_that_was_down_remembers_no_loss",
        ),
    ),
    *plants_of(
        "worker/record.py",
        (
            "a caller that leaves stays part of a loss",
            "        self.settle()\n        if self.leave",
            "        if self.leave",
            "a_stream_that_has_ended_is_no_part_of_a_loss",
        ),
    ),
    *plants_of(
        "worker/context.py",
        (
            "a stream that fails by itself stays part of a loss",
            "        record.settle()\n",
            "",
            "a_stream_that_ends_in_the_next_context_is_no_part_of_a_loss",
        ),
    ),
    *plants_of(
        "models/causal/runner.py",
        (
            "a long prompt holds up the streams beside it",
            "        if self.ready is None and self.fed == self.asked:\n",
            "        while self.ready is None:\n",
            "one_turn_is_one_step_for_all_streams_and_a_long_prompt_is_fed_in_pieces",
        ),
        (
            "each stream asks for a step of its own",
            "        if self.ready is None and self.fed == self.asked:\n",
            "        if self.ready is None:\n",
            "one_turn_is_one_step_for_all_streams_and_a_long_prompt_is_fed_in_pieces",
        ),
    ),
)
