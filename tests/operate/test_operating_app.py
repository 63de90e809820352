"""The operating app over its real sockets: what it shows, what it changes, and whom it refuses."""

from __future__ import annotations

import json
import socket
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
import trio.testing

from supervise import Child, Supervisor, events, open_tree
from supervise._core.changes import changes
from supervise.operate import operate
from supervise.operate.client import Client, OperateError
from tests.tree.scene import Boom, Puppet

TOKEN = "a-token-of-the-tests-0"

pytestmark = pytest.mark.trio


@asynccontextmanager
async def operated(tmp_path, *children, token=TOKEN, port=None, sinks=(), **options):
    """A running tree `app` with an operating child, and an HTTP client of it."""
    where = tmp_path / "s"
    child = operate(None if port is not None else where, port=port, token=token)
    spec = Supervisor("app", [child, *(getattr(one, "spec", one) for one in children)], **options)
    with trio.fail_after(120):
        async with open_tree(spec, sinks=sinks) as tree:
            url = await tree["app/operate"].ready()
            transport = (
                httpx.AsyncHTTPTransport() if port is not None else httpx.AsyncHTTPTransport(uds=str(where))
            )
            base = url if port is not None else "http://anything"
            async with httpx.AsyncClient(transport=transport, base_url=base, trust_env=False) as http:
                yield tree, http


def bearer(token=TOKEN):
    return {"authorization": f"Bearer {token}"}


async def test_it_shows_health_readiness_status_reasons_and_stacks(tmp_path):
    """R33: What `curl --unix-socket` gets, for people, probes and scripts."""
    a = Puppet("a")
    async with operated(tmp_path, a, Puppet("box", mailbox=3)) as (tree, http):
        assert (await http.get("/healthz")).text == "ok\n"
        assert (await http.get("/readyz")).json() == {"ready": True, "waits_for": []}
        a.fail()
        await tree["app/a"].ready()
        status = (await http.get("/status")).json()
        assert (status["v"], status["name"], status["acts"]) == (1, "app", False)
        rows = {row["path"]: row for row in status["nodes"]}
        assert list(rows) == ["app", "app/operate", "app/a", "app/box"]
        assert (rows["app/a"]["incarnation"], rows["app/a"]["failures_total"]) == (2, 1)
        assert rows["app/a"]["failure"] == {"type": "Boom", "text": "a"}
        assert rows["app/a"]["decision"]["directive"] == "Restart"
        assert abs(rows["app/a"]["since"] - status["time"]) < 10
        assert rows["app/box"]["mailbox"] == 0
        assert "The decision: Restart" in (await http.get("/why/app/a")).text
        as_json = (await http.get("/why/app/a", headers={"accept": "application/json"})).json()
        assert as_json["path"] == "app/a"
        assert "_body" in (await http.get("/stack/app/a")).text
        assert (await http.get("/status", headers=bearer())).json()["acts"] is True
        metrics = await http.get("/metrics")
        assert 'supervise_restarts_total{path="app/a"} 1.0' in metrics.text
        assert metrics.headers["content-type"].startswith("text/plain")


async def test_a_tree_that_is_not_ready_says_for_what_it_waits(tmp_path):
    """`/readyz` is 503 then, with the reason; `/healthz` stays 200, since a restart would not help."""
    async with operated(tmp_path) as (tree, http):
        slow = Puppet("slow", "hang")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree["app"].add, slow.spec)
            while tree.status().children[-1].path != "app/slow":  # noqa: ASYNC110 - the start has no event that one could wait for here
                await trio.sleep(0.01)
            answer = await http.get("/readyz")
            assert answer.status_code == 503
            assert answer.json()["waits_for"] == [
                {"path": "app/slow", "state": "starting", "why": "it has not been ready yet"}
            ]
            assert (await http.get("/healthz")).status_code == 200
            nursery.cancel_scope.cancel()


async def test_a_request_restarts_a_group_and_every_sink_learns_who_and_why(tmp_path):
    """R25, R31: The steps of the answer are those that were done; a dry run does nothing."""
    seen = []
    async with operated(
        tmp_path, *[Puppet(name) for name in "ab"], strategy="rest_for_one", sinks=[seen.append]
    ) as (
        tree,
        http,
    ):
        body = {"who": "ann", "reason": "new\nsettings"}
        before = len(seen)
        dry = (await http.post("/restart/app/a?dry_run=1", json=body, headers=bearer())).json()
        assert len(seen) == before
        done = (await http.post("/restart/app/a", json=body, headers=bearer())).json()
        assert dry["steps"] == done["steps"]
        assert [f"{step['do']} {step['path']}" for step in done["steps"]] == [
            "stop app/b", "stop app/a", "start app/a", "start app/b",
        ]  # fmt: skip
        assert (dry["dry_run"], done["dry_run"]) == (True, False)
        reasons = {event.reason for event in seen[before:] if isinstance(event, events.Stopping)}
        assert reasons == {"'app/a' was asked to restart: ann: new\\nsettings"}
        assert (await http.post("/stop/app/b", json=body, headers=bearer())).status_code == 200
        assert tree["app/b"].status().state == "down"
        assert (await http.post("/start/app/b", json=body, headers=bearer())).status_code == 200
        assert tree["app/b"].status().state == "up"


async def test_a_reload_says_what_differs_and_goes_on_when_it_stops_the_one_who_asks(tmp_path):
    """R38: With a dry run, a reason and the token; what cannot be declared is refused, and a start that fails is reported."""
    a, b, bad = Puppet("a"), Puppet("b"), Puppet("bad", Boom("no"))
    body = {"who": "ann", "reason": "ticket 71"}
    seen = []
    async with operated(tmp_path, a, sinks=[seen.append]) as (tree, http):

        async def ask(query=""):
            answer = await http.post(f"/reload{query}", json=body, headers=bearer())
            return answer.status_code, answer.json()

        status, answer = await ask()
        assert (status, "`supervise run --reload` allows it" in answer["error"]) == (409, True)
        children = tree._spec.children
        declared = Supervisor("app", [*children, b.spec])
        tree.declare = lambda: declared
        added = {"kind": "added", "path": "app/b", "restarts": False, "text": "+ app/b added"}
        assert await ask("?dry_run=1") == (200, {"dry_run": True, "changes": [added]})
        assert b.lives == 0
        assert await ask() == (200, {"dry_run": False, "changes": [added]})
        assert b.lives == 1
        assert [one.reason for one in seen if isinstance(one, events.Adopting)] == ["ann: ticket 71"]
        tree.declare = lambda: Supervisor("other", [])
        assert await ask() == (409, {"error": "the root must stay Supervisor 'app', got Supervisor 'other'"})
        tree.declare = lambda: 1 / 0
        assert await ask() == (409, {"error": "division by zero"})
        tree.declare = lambda: Supervisor("app", [*children, b.spec, bad.spec])
        assert await ask() == (500, {"error": "'app/bad' failed to start: Boom('no')"})
        assert (await http.post("/reload", json=body)).status_code == 401
        tree.declare = lambda: Supervisor("app", [a.spec])  # without the operating child, which answers
        status, answer = await ask()
        assert (status, {change["kind"] for change in answer["changes"]}) == (202, {"removed"})
        while [one.path for one in tree.status().children] != ["app/a"]:  # noqa: ASYNC110 - the adoption goes on without a caller
            await trio.sleep(0.01)


async def test_of_two_reloads_at_once_the_second_says_that_nothing_differs(tmp_path):
    """R38: It waits for the first one, which takes the same declaration."""
    asked, begins, added = [], trio.Event(), []

    async def slow(*, task_status):
        await begins.wait()
        task_status.started()
        await trio.sleep_forever()

    async with operated(tmp_path) as (tree, http), trio.open_nursery() as nursery:
        declared = Supervisor("app", [*tree._spec.children, Child("slow", slow)])

        def declare():
            asked.append(1)
            if len(asked) == 2:
                begins.set()
            return declared

        async def ask():
            answer = await http.post("/reload", json={"reason": "x"}, headers=bearer())
            added.append([change["path"] for change in answer.json()["changes"]])

        tree.declare = declare
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        while len(added) < 2:  # noqa: ASYNC110 - the answers have no event that one could wait for here
            await trio.sleep(0.01)
        assert sorted(added) == [[], ["app/slow"]]


async def test_an_operating_child_that_is_declared_alike_goes_on(tmp_path):
    """R38: A file that is loaded anew makes another body, which is equal."""
    first, again = (operate(tmp_path / "s", token=TOKEN, required=["app/a"]) for _ in range(2))
    tree = Supervisor("app", [first])
    assert changes(tree, Supervisor("app", [again]), lambda _: None, lambda _: None) == []
    other = operate(tmp_path / "t", token=TOKEN, required=["app/a"])
    (change,) = changes(tree, Supervisor("app", [other]), lambda _: None, lambda _: None)
    assert change.restarts


@pytest.mark.parametrize(
    ("method", "url", "headers", "content", "status", "message"),
    [
        ("POST", "/restart/app/a", {}, b'{"reason": "x"}', 401, "Authorization: Bearer TOKEN"),
        ("POST", "/restart/app/a", bearer("wrong"), b'{"reason": "x"}', 401, "the right token"),
        ("POST", "/restart/app/a", {"authorization": f"Basic {TOKEN}"}, b'{"reason": "x"}', 401, "Bearer"),
        ("POST", "/restart/app/a", {"cookie": f"token={TOKEN}"}, b'{"reason": "x"}', 401, "Bearer"),
        ("POST", f"/restart/app/a?token={TOKEN}", {}, b'{"reason": "x"}', 401, "Bearer"),
        ("POST", "/restart/app/a", bearer(), b"", 400, "a change needs a reason"),
        ("POST", "/restart/app/a", bearer(), b'{"reason": "  "}', 400, "a change needs a reason"),
        ("POST", "/restart/app/a", bearer(), b"{", 400, "must be JSON"),
        ("POST", "/restart/app/a", bearer(), b"[" * 50_000, 400, "must be JSON"),
        ("POST", "/restart/app/a", bearer(), b'["x"]', 400, "must be JSON"),
        ("POST", "/restart/app/a", bearer(), b'{"reason": 7}', 400, "with texts"),
        ("POST", "/restart/app/a", bearer(), b"x" * 100_000, 413, "a body may have 65536 bytes"),
        ("POST", "/restart/app/z", bearer(), b'{"reason": "x"}', 404, "has no node 'app/z'"),
        ("POST", "/restart/a", bearer(), b'{"reason": "x"}', 404, "did you mean 'app/a'"),
        ("POST", "/start/app/a", bearer(), b'{"reason": "x"}', 409, "'app/a' is running"),
        ("POST", "/restart/app/operate", bearer(), b'{"reason": "x"}', 409, "would wait for ever"),
        ("POST", "/remove/app/a", bearer(), b'{"reason": "x"}', 404, "Not Found"),
        ("GET", "/restart/app/a", bearer(), b"", 405, "Method Not Allowed"),
        ("DELETE", "/restart/app/a", bearer(), b"", 405, "Method Not Allowed"),
        ("PUT", "/status", bearer(), b"", 405, "Method Not Allowed"),
        ("GET", "/why/app/%1b%5b", {}, b"", 404, "has no node"),
        ("GET", "/stack/app/z", {}, b"", 404, "has no node"),
        ("GET", "/events?after=-1", {}, b"", 400, "after must be the number of an event, got '-1'"),
        ("GET", "/events?after=" + "9" * 30, {}, b"", 400, "after must be"),
        ("GET", "/events?after=٣", {}, b"", 400, "after must be"),
        ("GET", "/page/..%2fapp.py", {}, b"", 404, ""),
    ],
)  # fmt: skip
async def test_a_wrong_request_gets_one_clear_line_and_changes_nothing(
    tmp_path, method, url, headers, content, status, message
):
    """A token counts only in its header, so a page of another site cannot send it along; and every method is checked."""
    async with operated(tmp_path, Puppet("a")) as (tree, http):
        answer = await http.request(method, url, headers=headers, content=content)
        assert (answer.status_code, "\n" in answer.text) == (status, False)
        assert message in answer.json()["error"]
        assert [node.incarnation for node in tree.status().walk()] == [1, 1, 1]


async def test_without_a_token_the_tree_can_only_be_looked_at(tmp_path):
    """Whatever the request has in its header."""
    async with operated(tmp_path, Puppet("a"), token=None) as (tree, http):
        for headers in ({}, bearer(), bearer("None")):
            answer = await http.post("/stop/app/a", json={"reason": "x"}, headers=headers)
            assert answer.status_code == 403
            assert answer.json()["error"].startswith("changes need a token, and this program was given none")
        assert tree["app/a"].status().state == "up"
        assert (await http.get("/status")).json()["acts"] is False


async def test_a_port_shows_no_secrets_without_the_token_and_answers_to_no_other_name(tmp_path):
    """A page of another site may have its name point to this address; other users of the machine can connect to a port."""
    a = Puppet("a")
    async with operated(tmp_path, a, port=0) as (tree, http):
        a.fail(ValueError("x"))
        await tree["app/a"].ready()
        assert (await http.get("/status", headers={"host": "evil.example"})).status_code == 400
        refused = await http.get("/stack/app/a")
        assert (refused.status_code, refused.json()["error"].partition(" the right token")[0]) == (
            401,
            "on a port, a stack needs",
        )
        assert (await http.get("/stack/app/a", headers=bearer())).status_code == 200
        bare = (await http.get("/events?follow=0")).text
        whole = (await http.get("/events?follow=0", headers=bearer())).text
        assert "ValueError" in bare
        assert "Traceback" not in bare
        assert "Traceback" in whole


def data(text):
    """The events of a stream of them."""
    return [
        json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")
    ]


async def test_events_go_on_after_the_last_one_that_a_reader_has(tmp_path):
    """`Last-Event-ID` is what a browser sends when it connects again; a number of an earlier program begins anew."""
    async with operated(tmp_path, Puppet("a")) as (tree, http):
        await tree["app/a"].restart()
        every = data((await http.get("/events?follow=0")).text)
        numbers = [event["seq"] for event in every]
        assert numbers == list(range(1, len(every) + 1))
        assert every[-1]["text"] == "is ready again: 2"
        for options in ({"headers": {"last-event-id": "3"}}, {"params": {"after": "3"}}):
            options.setdefault("params", {})["follow"] = "0"
            assert data((await http.get("/events", **options)).text) == every[3:]
        assert data((await http.get("/events?follow=0&after=99999")).text) == every


async def test_a_reader_follows_a_tree_to_its_end(tmp_path):
    """The last event that it gets is that of the operating child's own stop, or a later one."""
    got = []
    async with trio.open_nursery() as nursery, operated(tmp_path, Puppet("a")) as (tree, _):

        async def read():
            async with Client(str(tmp_path / "s")) as client:
                async for event in client.events():
                    got.append(event)  # noqa: PERF401 - The test looks at the list while it grows.

        nursery.start_soon(read)
        while not got:  # noqa: ASYNC110 - the reader has no event for this
            await trio.sleep(0.01)
        await tree["app/a"].restart(reason="ann: now")
        while not any("ann: now" in event["text"] for event in got):  # noqa: ASYNC110 - likewise
            await trio.sleep(0.01)
    assert got[-1]["kind"] in ("Stopping", "Stopped")
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
async def test_the_history_outlives_a_restart_of_the_operating_child(tmp_path):
    """Its socket is opened anew, and the events are those of the whole time."""
    async with operated(tmp_path, Puppet("a")) as (tree, http):
        before = data((await http.get("/events?follow=0")).text)
        await tree["app/operate"].restart()
        after = data((await http.get("/events?follow=0")).text)
        assert after[: len(before)] == before
        assert len(after) > len(before)
        with trio.socket.socket(socket.AF_UNIX) as client:
            await client.connect(str(tmp_path / "s"))
            await client.send(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n")
            got = b""
            for awaited in (f'"seq":{len(after)},'.encode(), b"ann: now"):
                while awaited not in got:
                    more = await client.recv(2**20)
                    assert b"\r\n0\r\n\r\n" not in more, "a reader does not follow the events that come"
                    got += more
                await trio.testing.wait_all_tasks_blocked()
                await tree["app/a"].restart(reason="ann: now")


@pytest.mark.slow
async def test_a_slow_or_broken_client_harms_nobody(tmp_path):
    """Half requests, huge headers, and readers that do not read; others are served meanwhile, and the stop does not wait."""
    sockets = []
    async with operated(tmp_path, Puppet("a")) as (tree, http):
        for sent in (b"", b"GET /status HT", b"POST /stop/app/a HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n"
                     b"authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n{", b"GET /" + b"x" * 100_000, b"\x00\xff" * 50,
                     b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n"):  # fmt: skip
            for _ in range(30):
                client = socket.socket(socket.AF_UNIX)
                client.setblocking(False)
                try:
                    client.connect(str(tmp_path / "s"))
                    client.send(sent)
                except BlockingIOError:
                    await trio.sleep(0.01)
                except BrokenPipeError:
                    pass
                sockets.append(client)
        for _ in range(20):
            assert (await http.get("/status")).status_code == 200
        await tree["app/a"].restart()
        assert tree["app/a"].status().state == "up"
        began = trio.current_time()
    assert trio.current_time() - began < 30
    for client in sockets:
        client.close()


@pytest.mark.slow
async def test_a_reader_that_stalls_learns_what_it_missed_and_does_not_hold_up_the_stop(tmp_path):
    """R20: The buffer of its socket is full, so a write to it waits. That costs no other reader an event, and the stop no time."""
    a = Puppet("a")
    stalled, late = trio.socket.socket(socket.AF_UNIX), trio.socket.socket(socket.AF_UNIX)
    with stalled, late:
        async with trio.open_nursery() as nursery:
            async with operated(tmp_path, a, limit=None) as (tree, http):
                for client in (stalled, late):
                    await client.connect(str(tmp_path / "s"))
                    await client.send(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n")
                assert b"200" in await late.recv(100)
                for _ in range(2_500):
                    a.fail(ValueError("x" * 400))
                while tree["app/a"].status().failures_total < 2_500:  # noqa: ASYNC110 - the count has no event that one could wait for
                    await trio.sleep(0.01)
                last = (await http.get("/status")).json()["seq"]
                got = b""
                while f'"seq":{last},'.encode() not in got:
                    got += await late.recv(2**20)
                lines = got.decode().splitlines()
                (missed,) = [
                    json.loads(line[6:])["missed"] for line in lines if line.startswith('data: {"missed"')
                ]
                first = int(next(line for line in lines if line.startswith("id: "))[4:])
                assert missed > 100
                assert missed + sum(line.startswith("id: ") for line in lines) == last - first + 1
                began = trio.current_time()

                async def release():
                    await trio.sleep(60)
                    stalled.close()

                nursery.start_soon(release)
            nursery.cancel_scope.cancel("the tree has ended")
    assert trio.current_time() - began < 50


async def test_a_client_reports_what_went_wrong_in_one_line(tmp_path):
    """A refusal has its status, a missing program none."""
    async with operated(tmp_path, Puppet("a")), Client(str(tmp_path / "s"), token=TOKEN) as client:
        assert (await client.status())["acts"] is True
        assert "app/a is up" in await client.why("app/a")
        assert "_body" in await client.stack("app/a")
        assert await client.act("stop", "app/a", reason="r", who="w", dry_run=True) == [
            {"do": "stop", "path": "app/a"}
        ]
        with pytest.raises(OperateError, match="'app/a' is running") as refused:
            await client.act("start", "app/a", reason="r", who="w")
        assert refused.value.status == 409
    async with Client(str(tmp_path / "s")) as client:
        for asked in (client.status, client.events(follow=False).__anext__):
            with pytest.raises(OperateError, match=r"^no program answers at ") as refused:
                await asked()
            assert refused.value.status is None


async def test_a_socket_in_use_fails_the_start_with_its_path(tmp_path):
    """R16: Two trees do not take each other's socket."""
    async with operated(tmp_path, Puppet("a")) as (_, http):
        with pytest.raises(Exception, match="another program listens at"):
            async with open_tree(Supervisor("other", [operate(tmp_path / "s")]), sinks=[]):
                pass
        assert (await http.get("/status")).json()["name"] == "app"


async def test_an_operating_child_that_is_declared_anew_goes_on_with_its_events_and_metrics(tmp_path):
    """R31, R38: Alike or not, and whenever it is restarted; nothing gets the events twice."""
    a = Puppet("a")
    async with operated(tmp_path, a) as (tree, http):
        sinks = len(tree._driver._sinks)
        await tree["app/a"].restart()
        for required, is_restarted in (((), False), (["app/a"], True), (["app"], True)):
            again = operate(tmp_path / "s", token=TOKEN, required=required)
            changes = await tree.adopt(Supervisor("app", [again, a.spec]))
            assert any(change.restarts for change in changes) is is_restarted
            await tree["app/operate"].restart()
            events = (await http.get("/events?follow=0")).text
            assert '"seq":1,"kind":"Ready","path":"app/operate","incarnation":1' in events
            assert 'supervise_restarts_total{path="app/a"} 1.0' in (await http.get("/metrics")).text
            assert len(tree._driver._sinks) == sinks
