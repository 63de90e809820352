"""Faults planted in the host of an engine, and in how it judges the errors of streams."""

from __future__ import annotations

from .devices import plants_of

ENGINES = (
    *plants_of(
        "hosts/engine.py",
        (
            "an engine that has ended is not noticed",
            "                    nursery.start_soon(engine.fail_at_end, session)\n",
            "",
            "an_engine_that_ends_with_status_0_has_died",
        ),
        (
            "an engine is ready when its port is open",
            "                    await engine.until_it_works(session)\n",
            "",
            "an_engine_that_gives_no_first_token_fails",
        ),
        (
            "a refusal is asked again until the time is up",
            "                if not is_a(error, NetworkError):\n",
            "                if False:\n",
            "an_engine_is_ready_when_it_has_given_a_token",
        ),
        (
            "an engine may take for ever to load",
            "        with trio.move_on_at(self._deadline):\n",
            "        with trio.move_on_at(self._deadline + 60):\n",
            "an_engine_is_ready_when_it_has_given_a_token",
        ),
        (
            "the server of another process is taken for the engine",
            "            ready=tcp(port),  # this also refuses the port of another process\n",
            "",
            "a_port_that_another_process_has_taken_is_refused",
        ),
        (
            "a failed engine gets time to stop",
            "                in_order = False  # leaving the program kills it\n",
            "                pass\n",
            "an_engine_is_stopped_in_order_but_killed_after_a_failure",
        ),
        (
            "an engine is killed when it is stopped",
            "                if in_order:\n",
            "                if False:\n",
            "an_engine_is_stopped_in_order_but_killed_after_a_failure",
        ),
        (
            "all errors are those of requests",
            "                    owned.works, session.pid = True, engine.program.pid\n",
            "                    session.pid = engine.program.pid\n",
            "streams_go_on_in_the_next_engine",
        ),
        (
            "nvml is not asked",
            "        return await self._host.nvml.judge(error, self._host.device)\n",
            "        return error\n",
            "nvml_is_asked_about_the_device_of_a_dead_engine",
        ),
        (
            "the last lines are lost",
            "        self.program.output.note(error)\n",
            "",
            "an_engine_that_ends_with_status_0_has_died",
        ),
        (
            "a missing program is started again for ever",
            "    kind: type[DeviceError] = LoadFailed\n",
            "    kind: type[DeviceError] = ContextDied\n",
            "a_program_that_is_not_there_is_a_failed_load",
        ),
        (
            "the reason of an engine that cannot start is left out",
            '        text = ": ".join([text, *map(one_line, lines[-1:])])\n',
            "",
            "an_engine_that_gives_no_first_token_fails",
        ),
        (
            "a fixed port will do",
            "        if not _texts_with_port(runner):\n",
            "        if False:\n",
            "what_cannot_work_is_refused_where_it_is_declared",
        ),
        (
            "an option of a child is ignored",
            "    for given, usual in ((program, plain.resource), (command, plain)):\n",
            "    for given, usual in ((program, plain.resource),):\n",
            "what_cannot_work_is_refused_where_it_is_declared",
        ),
    ),
    *plants_of(
        "hosts/owned.py",
        (
            "every error is one of the engine",
            "        await self._one_token()\n",
            "        raise NetworkError\n",
            "an_engine_that_still_gives_a_token_keeps_its_context",
        ),
        (
            "each stream asks for itself",
            "            if self._asked >= failed:\n                return\n",
            "",
            "an_engine_that_still_gives_a_token_keeps_its_context",
        ),
        (
            "a late stream condemns a busy engine",
            "        with trio.move_on_at(self._last + seconds):\n",
            "        with trio.move_on_at(-math.inf):\n",
            "a_stream_that_is_late_beside_one_that_goes_on_fails_alone",
        ),
        (
            "a stream that is late fails alone",
            "        with trio.move_on_at(self._last + seconds):\n            await self._tokens.park()\n            return\n",
            "        return\n",
            "an_engine_that_stalls_is_hung_and_no_request_pays_for_it",
        ),
        (
            "a token wakes no late stream",
            "                    self._tokens.unpark_all()\n",
            "",
            "a_stream_that_is_late_beside_one_that_goes_on_fails_alone",
        ),
        (
            "a question that is late condemns a busy engine",
            "if failure is not None and not (is_a(failure, ContextHung) and self._last > last):",
            "if failure is not None:",
            "a_question_that_is_late_beside_streams_that_go_on_shows_nothing",
        ),
        (
            "a broken connection comes before the end of the program",
            "            await self._check_end()\n",
            "",
            "the_end_of_the_engine_comes_before_that_of_its_connections",
        ),
        (
            "an error of the request is asked about",
            "        elif concerns_server(error):\n",
            "        else:\n",
            "an_error_of_the_request_asks_nothing",
        ),
        (
            "the streams of the runner are left open",
            "            async with Entered(closing(chunks)):\n                while (chunk := await _next(chunks)) is not None:\n                    self._last",
            "            if True:\n                while (chunk := await _next(chunks)) is not None:\n                    self._last",
            "a_stream_that_waits_for_its_reader_is_closed_with_the_runners_own",
        ),
    ),
)
