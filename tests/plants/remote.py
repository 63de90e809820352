"""Faults planted in the host of another machine: its guardian, its lease, and its connection."""

from __future__ import annotations

from .devices import plants_of

REMOTE = (
    *plants_of(
        "hosts/remote/guardian.py",
        (
            "a lease that is over ends nothing",
            "if self._hung_up or now() >= self._until:",
            "if self._hung_up:",
            "a_lease_lapses_without_a_word",
        ),
        (
            "whatever comes extends a lease",
            "            self._in += data\n",
            "            self._in += data\n            self._until = now() + self._lease\n",
            "an_answer_to_an_old_question_extends_no_lease",
        ),
        (
            "a lease counts from its answer",
            "self._until = max(self._until, asked + self._lease)",
            "self._until = now() + self._lease",
            "a_late_answer_extends_a_lease_only_from_its_question",
        ),
        (
            "an answer extends no lease",
            "self._until = max(self._until, asked + self._lease)",
            "pass",
            "answers_keep_a_lease",
        ),
        (
            "the end of the connection is not noticed",
            "            self._hung_up = self._hung_up or not data\n",
            "",
            "the_end_of_the_connection_ends_the_context",
        ),
        (
            "what a context has started is left",
            "        _kill_children()\n",
            "",
            "output_there_is_logged_here_and_what_it_starts_ends_with_it",
        ),
        (
            "any version will do",
            'if (version, protocol) == (order["version"], order["protocol"]):',
            "if wire:",
            "another_version_is_refused_with_both_numbers",
        ),
        (
            "bytes that do not fit at once are lost",
            "            del self._to_context[: self._connection.send(self._to_context)]\n",
            "            self._connection.send(self._to_context)\n            self._to_context.clear()\n",
            "many_bytes_pass_in_both_directions",
        ),
    ),
    *plants_of(
        "hosts/remote/link.py",
        (
            "the device of a lost machine is used at once",
            "                await self._outlast_lease()\n",
            "                pass\n",
            "a_guardian_or_a_connection_that_is_killed_frees_the_device_when_the_lease_is_over",
        ),
        (
            "a far process that lives on is given up",
            "            return lives\n",
            "            return False\n",
            "a_far_process_that_does_not_die_makes_its_device_unrecoverable",
        ),
        (
            "a record may have any length",
            "if length > (guardian.LINES if kind in _WRITTEN else _LONGEST) or kind not in _KINDS:",
            "if kind not in _KINDS:",
            "records_that_cannot_be_read_lose_the_connection",
        ),
        (
            "a silent machine is never lost",
            "elif trio.current_time() >= self._heard + self._order.lease:",
            "elif False:",
            "a_silent_connection_is_a_lost_one_at_both_ends",
        ),
        (
            "questions of the guardian get no answer",
            "            self._answer(question)\n",
            "            pass\n",
            "an_idle_context_outlives_many_leases",
        ),
        (
            "a context process is lost with what has not been read",
            "        self._reads, self._data = False, bytearray()\n",
            "",
            "a_session_that_reads_nothing_still_ends",
        ),
    ),
    *plants_of(
        "hosts/remote/reserve.py",
        (
            "a start that fails leaves its connection",
            "                await peer.reap(self._plan.kill_timeout)\n",
            "                pass\n",
            "a_start_that_is_cancelled_leaves_nothing",
        ),
    ),
    *plants_of(
        "hosts/remote/ssh.py",
        (
            "an option may replace ours",
            "if name.lower() in ours:",
            "if False:",
            "a_wrong_argument_is_named",
        ),
    ),
)
