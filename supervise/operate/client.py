"""A client of the operating app, for the commands and for other programs."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from math import inf
from typing import Any, Self, cast
from urllib.parse import quote

import httpx
import trio

from .._core._brief import brief
from . import forms

Data = dict[str, Any]

_LONGEST_LOOK = 30.0
"""Seconds for a whole answer: the status of a tree of 20,000 nodes takes less than one."""
_NOT_OURS = (ValueError, KeyError, TypeError, RecursionError)
"""The exceptions of reading an answer that is not JSON, is nested too deeply, or does not have the fields of our answers."""
_NO_ANSWER = (httpx.HTTPError, UnicodeError, trio.TooSlowError)
"""The exceptions of a request without an answer. A `UnicodeError` is that of a host whose name cannot be looked up."""


class OperateError(Exception):
    """The program at the socket refused a request, or does not answer; the message gives the reason in one line.

    Args:
        message: the reason.
        status: the status of HTTP; None if there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """The running tree at a Unix socket, or at the URL of a port.

    Args:
        where: the path of the socket, or a URL such as `http://127.0.0.1:8123`.
        token: that changes need.

    Every method raises `OperateError`.
    """

    def __init__(self, where: str, *, token: str | None = None) -> None:
        self.where = where
        is_url = where.startswith(("http://", "https://"))
        if is_url and not _is_url(where):
            raise OperateError(f"{brief(where)} is not the URL of a port, such as http://127.0.0.1:8123")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise OperateError("the token has characters that no token of `supervise.operate` has")
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport() if is_url else httpx.AsyncHTTPTransport(uds=where),
            base_url=where if is_url else "http://localhost",
            headers=headers,
            timeout=httpx.Timeout(10.0, read=None),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def status(self) -> Data:
        """The status of all nodes, see `docs/operating/operating.md`."""
        return self._read(forms.status, (await self._asked("GET", "/status")).json)

    async def why(self, path: str) -> str:
        """Why the node at `path` is as it is, in sentences."""
        return (await self._asked("GET", f"/why/{_quoted(path)}")).text

    async def stack(self, path: str) -> str:
        """Where the tasks of the node at `path` wait."""
        return (await self._asked("GET", f"/stack/{_quoted(path)}")).text

    async def act(self, verb: str, path: str, *, reason: str, who: str, dry_run: bool = False) -> list[Data]:
        """Have a node started, stopped or restarted; gives the steps, each as `{"do": …, "path": …}`.

        Args:
            verb: `start`, `stop` or `restart`.
            path: of the node.
            reason: why; the events have it.
            who: the name of the person or program that asks; the events have it too.
            dry_run: give the steps without taking them.

        Raises:
            OperateError: the request is refused, or no program answers.
        """
        answer = await self._post(f"/{verb}/{_quoted(path)}", reason, who, dry_run=dry_run)
        steps: list[Data] = self._read(forms.steps, answer.json)["steps"]
        return steps

    async def reload(self, *, reason: str, who: str, dry_run: bool = False) -> list[Data]:
        """Have the program load its files anew; gives the changes. `reason`, `who` and `dry_run` are as for `act`."""
        answer = await self._post("/reload", reason, who, dry_run=dry_run)
        changes: list[Data] = self._read(forms.changes, answer.json)["changes"]
        return changes

    async def _post(self, url: str, reason: str, who: str, *, dry_run: bool) -> httpx.Response:
        return await self._asked(
            "POST",
            url,
            params={"dry_run": "1"} if dry_run else {},
            headers={"content-type": "application/json"},
            content=json.dumps(
                {"reason": reason, "who": who}
            ),  # in ASCII: an argument of a command need not be UTF-8
        )

    async def events(self, after: int = 0, *, follow: bool = True) -> AsyncIterator[Data]:
        """The events after a number, as data; `{"kind": "Missed", "missed": n}` in place of events that are no longer kept.

        Ends when the tree has ended; without `follow` after those that there are.
        """
        params = {"after": str(after), "follow": "1" if follow else "0"}
        read = self._reader_of_events()
        if not follow:
            answer = await self._asked("GET", "/events", params=params)
            for kept in filter(None, map(read, answer.text.split("\n"))):
                yield kept
            return
        try:
            async with self._http.stream("GET", "/events", params=params) as answer:
                await self._check(answer)
                async with aclosing(cast("AsyncGenerator[str]", answer.aiter_lines())) as lines:
                    async for line in lines:
                        event = read(line)
                        if event is not None:
                            yield event
        except _NO_ANSWER as problem:
            raise self._no_answer(problem) from problem

    def _reader_of_events(self) -> Callable[[str], Data | None]:
        """A function that takes one line of server-sent events after another, and gives the event that it completes."""
        missed = False

        def read(line: str) -> Data | None:
            nonlocal missed
            if not line.startswith("data: "):
                missed = missed or line.startswith("event: missed")
                return None
            is_missed, missed = missed, False
            form = forms.missed if is_missed else forms.event
            data = self._read(form, partial(json.loads, line.removeprefix("data: ")))
            return {**data, "kind": "Missed"} if is_missed else data

        return read

    async def _asked(self, method: str, url: str, **options: Any) -> httpx.Response:
        # An act is answered when it is done, which may take any time.
        longest = _LONGEST_LOOK if method == "GET" else inf
        try:
            # What comes drop by drop passes each timeout of `httpx`.
            with trio.fail_after(longest):
                answer = await self._http.request(method, url, **options)
        except _NO_ANSWER as problem:
            raise self._no_answer(problem) from problem
        await self._check(answer)
        return answer

    async def _check(self, answer: httpx.Response) -> None:
        if answer.status_code < 400:  # noqa: PLR2004 - HTTP's errors begin there.
            return
        with trio.fail_after(_LONGEST_LOOK):
            await answer.aread()
        try:
            text = str(answer.json()["error"])
        except _NOT_OURS:
            text = f"the program at {self.where} answered with status {answer.status_code}"
        raise OperateError(text, answer.status_code)

    def _read(self, form: forms.Form, load: Callable[[], Any]) -> Data:
        """What an answer says, which has the form of ours."""
        try:
            data = load()
        except _NOT_OURS:
            data = None
        if not form(data):
            raise OperateError(
                f"what answers at {self.where} is not a tree of `supervise`, or one of another version"
            )
        return cast("Data", data)

    def _no_answer(self, problem: Exception) -> OperateError:
        if isinstance(problem, trio.TooSlowError):
            return OperateError(
                f"the program at {self.where} did not answer within {_LONGEST_LOOK:g} s: is its event loop blocked?"
            )
        return OperateError(f"no program answers at {self.where}: {str(problem) or type(problem).__name__}")


def _is_url(where: str) -> bool:
    try:
        return bool(httpx.URL(where).host)
    except (httpx.InvalidURL, ValueError):
        return False


def _quoted(path: str) -> str:
    """A path for a URL. What UTF-8 cannot encode is sent as it is shown, by which the app finds the node too.

    Raises:
        OperateError: a part of it is `.` or `..`, with which a URL would lead to another node.
    """
    if not {".", ".."}.isdisjoint(path.split("/")):
        raise OperateError(f"no node has '.' or '..' in its path, got {brief(path)}")
    return quote(path, errors="backslashreplace")
