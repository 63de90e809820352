"""Answers of a tree that were made up: a status with every state, and a client that gives them."""

from attrs import evolve

from supervise.operate.client import OperateError
from supervise.operate.rows import waits_for
from supervise.operate.top.state import opened

NOW = 1_700_000_000.0
HOSTILE = [
    "\x1b[31mred\x07",
    "日本語の名前",
    "שלום",
    "e\u0301\u202egnp.exe",
    "a\tb\nc",
    "👨‍👩‍👧",
    "x" * 300,
    "\ud800",
]


def row(path, state="up", **more):
    child = {"kind": "child", "limit": None, "allowed": None, "strategy": None}
    supervisor = {"kind": "supervisor", "limit": "3 within 5 s", "allowed": 3, "strategy": "one_for_one"}
    return {
        "path": path,
        "state": state,
        "incarnation": 1,
        "restarts": 0,
        "failure": None,
        "due": None,
        "mailbox": None,
        "handled": None,
        "restart": "permanent",
        "front": None,
        "since": NOW - 100,
        "ready_at": NOW - 100,
        "restarts_total": 0,
        "failures_total": 0,
        "decision": None,
        **(supervisor if more.pop("parent", False) else child),
        **more,
    }


GONE = {
    "failures_total": 4,
    "failure": {"type": "ConnectionError", "text": "the server does not answer"},
    "decision": {
        "directive": "Restart",
        "tag": "db.gone",
        "by": "shop/store",
        "because": "table",
        "at": NOW - 12,
    },
}
ROWS = [
    row("shop", parent=True, since=NOW - 7200, ready_at=NOW - 7199, restarts=1),
    row("shop/feed", since=NOW - 7200, mailbox=3, handled=100),
    row("shop/store", parent=True, restarts=3, incarnation=2),
    row("shop/store/cache", "releasing", **GONE),
    row("shop/store/jobs", "restarting", incarnation=4, due=NOW + 29.9, mailbox=1234, handled=7, **GONE),
    row("shop/store/log", "failed", **GONE),
    row("shop/mailer", "starting", incarnation=1, since=NOW - 3, ready_at=None),
    row("shop/printer", "stopping", since=NOW - 1),
    row("shop/poller", "condemned", since=NOW - 400_000, **GONE),
    row("shop/migrate", "down", restart="transient", since=NOW - 7199),
]


def status(rows=ROWS, **more):
    return {
        "v": 1,
        "time": NOW,
        "seq": 10,
        "name": "shop",
        "pid": 4711,
        "acts": True,
        "waits_for": waits_for(rows) if rows else [],
        "nodes": list(rows),
        **more,
    }


def event(seq, kind="Ready", path="shop/feed", text="is ready again", **more):
    return {"seq": seq, "time": NOW, "kind": kind, "path": path, "incarnation": 2, "text": text, **more}


FAILED = {
    "type": "ConnectionError",
    "text": "x",
    "traceback": 'Traceback:\n  File "feed.py", line 3\nConnectionError: x',
}


def many(count):
    """A tree of about `count` nodes under twenty supervisors."""
    rows = [row("shop", parent=True)]
    for number in range(20):
        rows.append(row(f"shop/group-{number}", parent=True))
        rows += [
            row(f"shop/group-{number}/worker-{each}", mailbox=0, handled=0) for each in range(count // 20)
        ]
    return rows


def state(rows=ROWS, *, size=(80, 24), read_only="", **more):
    return evolve(opened(status(rows), NOW, read_only=read_only, size=size), **more)


def text(lines):
    return "\n".join("".join(part for _, part in line).rstrip() for line in lines)


class Client:
    """Answers from what it was given; an exception among the statuses is raised."""

    def __init__(self, *statuses, events=()):
        self.statuses = list(statuses)
        self.events_ = list(events)
        self.asked = []
        self.where = "made up"

    async def status(self):
        self.asked.append("status")
        answer = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(answer, BaseException):
            raise answer
        self.last = answer["seq"]
        return answer

    async def events(self, after, *, follow):
        assert not follow
        self.asked.append(f"events after {after}")
        yield {"kind": "Missed", "missed": 1}
        for each in self.events_:
            if after < each["seq"]:
                yield each
                assert each["seq"] < self.last  # more than was asked for is never read

    async def why(self, path):
        self.asked.append(f"why {path}")
        return f"{path} is up, {self.asked.count(f'why {path}')}."

    async def stack(self, path):
        return f"{path}: trio.sleep_forever()"

    async def act(self, verb, path, *, reason, who, dry_run=False):
        assert who
        self.asked.append((verb, path, reason, dry_run))
        if path == "shop/migrate":
            raise OperateError("'shop/migrate' is not running", 409)
        return [{"do": "stop", "path": path}, {"do": "start", "path": path}]

    async def aclose(self):
        self.asked.append("close")
