"""What is planted in the restart of the root, in plans, and in what a running tree shows and takes from outside."""

from __future__ import annotations

from .plant import Plant

_FOREST = "supervise/_core/forest.py"
_REHEARSAL = "supervise/_core/rehearsal.py"
_APP = "supervise/operate/app.py"
_SOCKETS = "supervise/operate/sockets.py"
_HISTORY = "supervise/operate/history.py"
_ROOT = ("tests/tree/test_root_restart.py",)
_PLANS = ("tests/tree/test_plans_of_requests.py",)
_OPERATING = ("tests/operate/test_operating_app.py",)
_AT_SOCKETS = ("tests/operate/test_sockets.py",)

OPERATING = tuple(
    Plant(name, file, old, new, tests)
    for name, file, old, new, tests in (
        (
            "an exception that is no Exception does not give the restart of the root up",
            _FOREST,
            "        out += self._give_up_restart()\n",
            "",
            _ROOT,
        ),
        (
            "a hard exit takes the restart of the root for its end",
            "supervise/_trio/driver.py",
            ' and self._root.phase == "ending" and self.forest.restarting is None:',
            ' and self._root.phase == "ending":',
            _ROOT,
        ),
        (
            "the block goes on after a restart of the root has failed",
            "supervise/_trio/driver.py",
            "            self._fail(start_failed(report.failure))  # the first start, or that of a restart of the root\n",
            "            self.failure = start_failed(report.failure)\n",
            _ROOT,
        ),
        (
            "what is under way is not played before a plan",
            _REHEARSAL,
            "    play.finish_what_is_under_way()\n",
            "",
            _PLANS,
        ),
        (
            "a request without a token is served",
            _APP,
            "        if not self._has_token(request):\n            raise HTTPException(\n                401",
            "        if False:\n            raise HTTPException(\n                401",
            _OPERATING,
        ),
        (
            "a port answers to every host name",
            _APP,
            "        middleware=[] if trusted else [hosts],\n",
            "        middleware=[],\n",
            _OPERATING,
        ),
        (
            "a port shows tracebacks to everyone",
            _APP,
            "traced=self._trusted or self._has_token(request)",
            "traced=True",
            _OPERATING,
        ),
        (
            "a dry run is carried out",
            _APP,
            "            if not is_dry:\n                await getattr",
            "            if True:\n                await getattr",
            _OPERATING,
        ),
        (
            "everyone can connect to the socket",
            _SOCKETS,
            "            os.fchmod(listener.fileno(), 0o600)\n",
            "",
            _AT_SOCKETS,
        ),
        (
            "a socket that is in use is taken over",
            _SOCKETS,
            "    if _is_served(path):\n        raise OSError(errno.EADDRINUSE",
            "    if False:\n        raise OSError(errno.EADDRINUSE",
            _AT_SOCKETS,
        ),
        (
            "any file at the path of a socket is removed",
            _SOCKETS,
            "    if not stat.S_ISSOCK(there.st_mode):\n",
            "    if False:\n",
            _AT_SOCKETS,
        ),
        (
            "a reader does not learn what it has missed",
            _HISTORY,
            "        return max(0, oldest - number - 1), entries\n",
            "        return 0, entries\n",
            ("tests/operate/test_history.py",),
        ),
        (
            "a reload says what it expected, not what it did",
            _APP,
            "            for each in (expected if changes is None else changes)\n",
            "            for each in expected\n",
            _OPERATING,
        ),
    )
)
