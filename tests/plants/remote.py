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
            "        kill_children()\n",
            "",
            "output_there_is_logged_here_and_what_it_starts_ends_with_it",
        ),
        (
            "the end of what has started a guardian is not noticed",
            "            self._watch(self._starter)\n",
            "",
            "the_end_of_what_has_started_the_guardian_ends_the_context_and_is_reported",
        ),
        (
            "bytes that do not fit at once are lost",
            "            del self._to_context[: self._connection.send(self._to_context)]\n",
            "            self._connection.send(self._to_context)\n            self._to_context.clear()\n",
            "many_bytes_pass_in_both_directions",
        ),
        (
            "the near end's word of a poison is ignored",
            "            self._poisoned = self._poisoned or bool(content)\n",
            "",
            "nvml_is_asked_if_the_order_to_kill_says_that_the_context_is_poisoned",
        ),
        (
            "a poison is not seen at the end of the context itself",
            "return self._poisoned or not (self._ordered or code in (0, SETTLED))",
            "return self._poisoned",
            "nvml_is_asked_if_the_context_ends_by_itself_before_the_near_end_says_why",
        ),
        (
            "a driver may take as long as it likes",
            "if self._examiner and now() >= self._examined_until:",
            "if False:",
            "a_driver_of_another_machine_that_hangs_makes_its_device_unrecoverable",
        ),
        (
            "a recovery on another machine waits for a preload",
            "        if not self._seeking:\n            self._start_cold(*self._late)\n",
            "        self._seeking = True\n",
            "a_fork_server_that_is_killed_ends_no_stream_and_the_next_start_makes_a_new_one",
        ),
        (
            "a connection that a fork server has taken may be served twice",
            "            self._server.shutdown(socket.SHUT_RD)\n",
            "            pass\n",
            "a_fork_server_that_takes_a_connection_and_forks_nothing_is_given_up",
        ),
        (
            "what has passed its connection on does not end with its guardian",
            "    select.select(watched, [], [])\n    os._exit(0)",
            "    time.sleep(1000)\n    os._exit(0)",
            "the_runners_module_is_imported_once_on_its_machine",
        ),
        (
            "a context that is ended while it starts has no number",
            "        os.close(self._pidfd)\n        kill_children()\n",
            "        os.close(self._pidfd)\n        self._pid = 0\n        kill_children()\n",
            "a_context_that_is_ended_while_it_starts_is_reported_with_its_number",
        ),
        (
            "a machine that can start no process counts as one that was not reached",
            '            self._send(REFUSED, f"it cannot start a process: {error}".encode())\n',
            "            raise\n",
            "a_machine_that_can_start_no_process_reports_why",
        ),
    ),
    *plants_of(
        "hosts/remote/children.py",
        (
            "any version will do",
            'if (version, protocol) == (order["version"], order["protocol"]):',
            "if wire:",
            "another_version_is_refused_with_both_numbers",
        ),
        (
            "what asks NVML outlives its guardian",
            '    _die_with(guardian)\n    entitle(b"runners:nvml")',
            '    entitle(b"runners:nvml")',
            "what_asks_nvml_ends_with_the_guardian",
        ),
    ),
    *plants_of(
        "hosts/remote/seeking.py",
        (
            "a fork server imports what lies in the folder of the login",
            "sys.path[:] = filter(None, sys.path)\nimport json",
            "import json",
            "a_script_of_the_user_is_not_taken_for_a_module",
        ),
        (
            "any user's process is taken for the fork server",
            "    if user != os.getuid():",
            "    if False:",
            "another_user_who_has_the_name_of_the_fork_server_is_not_used",
        ),
        (
            "a fork server is a child of the guardian",
            "            if os.fork() == 0:",
            "            if True:",
            "the_runners_module_is_imported_once_on_its_machine",
        ),
    ),
    *plants_of(
        "hosts/node.py",
        (
            "any user may have a guardian forked",
            "                if user_of(client) == os.getuid():",
            "                if client:",
            "another_user_gets_nothing_of_a_fork_server",
        ),
        (
            "a fork server never ends",
            "            if found := self._poll.poll(1000 * min(left, DAY)):",
            "            if found := self._poll.poll():",
            "the_runners_module_is_imported_once_on_its_machine",
        ),
        (
            "a fork server ends while it has guardians",
            "        if self._clients or self._guardians:",
            "        if self._clients:",
            "a_fork_server_lives_as_long_as_its_contexts",
        ),
        (
            "a guardian has the environment of the fork server",
            '        surroundings.adopt(Surroundings(changed, folder, state["umask"]))\n',
            "",
            "a_forked_context_has_the_surroundings_of_its_own_connection",
        ),
        (
            "a guardian serves a connection that was given up",
            '        client.send(json.dumps({"forked": os.getpid()}).encode())',
            "        self._send(client, forked=os.getpid())",
            "a_guardian_that_is_forked_too_late_ends_at_once",
        ),
        (
            "a client that can be sent nothing waits",
            "            client.shutdown(socket.SHUT_RDWR)\n",
            "            pass\n",
            "a_client_that_can_be_sent_nothing_finds_the_end_of_its_connection",
        ),
        (
            "a guardian begins before its server can notice its end",
            "                    if its.recv(1):",
            "                    if its:",
            "a_server_without_a_descriptor_for_a_guardian_leaves_its_connection_to_the_cold_start",
        ),
        (
            "a fork server waits no longer than the kernel counts",
            "            if found := self._poll.poll(1000 * min(left, DAY)):",
            "            if found := self._poll.poll(1000 * left):",
            "a_lease_and_a_load_may_have_more_seconds_than_the_kernel_counts",
        ),
        (
            "a preload may take for ever",
            '        signal.setitimer(signal.ITIMER_REAL, min(self._order["fork"]["timeout"], _LONGEST))\n',
            "",
            "no_start_there_waits_for_a_preload_for_long",
        ),
        (
            "a guardian keeps the connections of others open",
            "        for descriptor in (*streams, *others, *listeners, *self._guardians):",
            "        for descriptor in streams:",
            "a_forked_context_has_the_surroundings_of_its_own_connection",
        ),
    ),
    *plants_of(
        "hosts/remote/link.py",
        (
            "a far Python imports what lies in the folder of the login",
            "import os,sys;sys.path[:]=filter(None,sys.path);",
            "import os,sys;",
            "a_script_of_the_user_is_not_taken_for_a_module",
        ),
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
            "a lost connection is a death like any other",
            "return ContextDied if self._fate is not None else ContextUnreachable",
            "return ContextDied",
            "a_guardian_or_a_connection_that_is_killed_frees_the_device_when_the_lease_is_over",
        ),
        (
            "a record may have any length",
            "if length > (guardian.LINES if kind in _WRITTEN else _LONGEST) or kind not in _KINDS:",
            "if kind not in _KINDS:",
            "records_that_cannot_be_read_lose_the_connection",
        ),
        (
            "a silent machine is never lost",
            "elif trio.current_time() >= self._last_came + self._order.lease:",
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
        (
            "an answer of NVML that is late says nothing",
            "return nvml.silence if self._nvml is None else self._nvml or None",
            "return self._nvml or None",
            "a_driver_of_another_machine_that_hangs_makes_its_device_unrecoverable",
        ),
        (
            "unread data hides the answer of NVML",
            """nothing is known if it cannot be reached.\"\"\"
        self._ignore_data()
""",
            """nothing is known if it cannot be reached.\"\"\"
""",
            "what_is_not_read_does_not_hide_what_nvml_says",
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
        (
            "a preload that cannot work is tried again there",
            "        if kind == guardian.HOPELESS or self._failures >= TRIES:\n",
            "        if False:\n",
            "a_failure_of_the_preload_that_comes_late_is_reported_too",
        ),
        (
            "fork servers that are lost are counted for ever",
            "            self._failures = 0\n",
            "            pass\n",
            "a_fork_server_that_is_lost_now_and_then_is_tried_again",
        ),
    ),
    *plants_of(
        "hosts/remote/ray.py",
        (
            "any connection is taken for that of the actor",
            "if hmac.compare_digest(await _read(caller), token) and not found:",
            "if await _read(caller) and not found:",
            "only_a_connection_with_the_token_is_taken",
        ),
        (
            "a node is used again while a lost context may be alive there",
            "            await self._fences.without(actor.node)\n",
            "",
            "a_node_is_used_again_only_when_the_lease_of_a_lost_context_is_over",
        ),
        (
            "the next context waits until a lost one is known to be dead",
            "if self._fate is None and self.pid and self._reserve.reap_later(self, seconds):",
            "if False:",
            "a_standby_is_on_another_node_and_serves_at_once",
        ),
        (
            "a standby is on any node",
            "actor.place({peer.node for peer in self._peers}, ",
            "actor.place((), ",
            "a_standby_is_on_another_node_and_serves_at_once",
        ),
        (
            "Ray's word ends nothing",
            "            self._reserve.check_later(self)\n",
            "            pass\n",
            "streams_of_a_node_equal_their_undisturbed_text[raylet]",
        ),
    ),
    *plants_of(
        "hosts/remote/host.py",
        (
            "a program without its launcher gets no error that names what it lacks",
            "if why := self._refusal():",
            "if why := None:",
            "a_machine_without_ray_is_named_when_a_context_starts",
        ),
    ),
    *plants_of(
        "hosts/remote/actor.py",
        (
            "Ray kills on the thread of the loop",
            "trio.lowlevel.start_thread_soon(functools.partial(_kill, self._handles), self._ignore)",
            "_kill(self._handles)",
            "a_stream_of_a_node_arrives_whole_and_stamped",
        ),
        (
            "a place that is not given has no name",
            'raise NoPlace(f"Ray has found',
            'raise LoadFailed(f"Ray has found',
            "a_place_that_ray_cannot_give_is_named_with_what_was_asked_for",
        ),
        (
            "a preemption is a death like any other",
            'if "RayActorError" in names and getattr(outcome, "preempted", False):',
            "if False:",
            "an_end_of_an_actor_has_its_error",
        ),
        (
            "a cluster that has failed is tried again",
            "    if names & {",
            "    if not names and names & {",
            "a_start_that_ray_refuses_has_its_error",
        ),
        (
            "a program serves two clusters at once",
            "    if not _same(cluster, there):",
            "    if False:",
            "another_cluster_than_that_of_the_program_is_refused",
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
