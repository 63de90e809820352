"""Pictures of declared trees and of running ones: text and Mermaid."""

import re
import sys
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from supervise import (
    AKKA,
    DEVICE,
    Backoff,
    Child,
    Decider,
    Escalate,
    Limit,
    Mailbox,
    Pool,
    Restart,
    Rule,
    Status,
    Stop,
    Supervisor,
    open_tree,
)
from supervise.testing import run_virtual
from supervise.views import mermaid, text


@asynccontextmanager
async def open_database():
    yield None


async def serve(*_):
    await trio.sleep_forever()


async def fail(*_):
    raise ValueError("no luck")


def declaration():
    return Supervisor(
        "app",
        [
            Child("feed", serve, backoff=Backoff()),
            Supervisor(
                "store",
                [Child("cache", serve), Child("jobs", serve, resource=open_database, mailbox=256)],
                strategy="rest_for_one",
                front="jobs",
                restart="transient",
                limit=Limit(3, within=60, of_ready_time=True),
            ),
            Pool("sessions", Child("session", serve, restart="temporary"), maximum=100, on_limit="shutdown"),
            Pool("guests", Supervisor("guest", [Child("one", serve)]), limit=Limit(9, within=1)),
            Child("end", serve, restart="transient", significant=True, resource=partial(open_database)),
        ],
        auto_shutdown="any_significant",
        limit=None,
    )


TEXT = """\
app             one_for_one · no limit · auto_shutdown any_significant
├─ feed         permanent · body serve · backoff 0.1 s × 2 up to 30 s
├─ store        transient · rest_for_one · limit 3 within 60 s of ready time · front jobs
│  ├─ cache     permanent · body serve
│  └─ jobs      permanent · body serve · resource open_database · mailbox 256
├─ sessions     permanent · pool of at most 100 · no limit, then shutdown
│  └─ (member)  temporary · body serve
├─ guests       permanent · pool · limit 9 within 1 s
│  └─ (member)  permanent · one_for_one · limit 3 within 5 s
│     └─ one    permanent · body serve
└─ end          transient · significant · body serve · resource open_database
"""

MERMAID = """\
flowchart TD
    n0["<b>app</b><br/>one_for_one<br/>limit 3 within 5 s<br/>front llm"]
    n0 --> n1("<b>feed</b><br/>permanent<br/>body serve")
    n0 ==> n2["<b>llm</b><br/>permanent<br/>one_for_one<br/>limit 3 within 5 s"]
    n0 --> n3[["<b>sessions</b><br/>permanent<br/>pool<br/>no limit"]]
    n2 --> n4("<b>context</b><br/>permanent<br/>body serve<br/>mailbox 8")
    n3 -.-> n5("<b>(member)</b><br/>permanent<br/>body serve<br/>limit 3 within 5 s")
"""


def test_a_declared_tree_is_a_line_for_each_node():
    """Strategies, restart types, limits, fronts, resources and mailboxes; what is as usual goes without saying."""
    assert text.declared(declaration()) == TEXT


def test_a_declared_tree_is_a_mermaid_flowchart():
    """A box for each node, in start order; a thick arrow to the front, a dotted one to what members are like."""
    inner = Supervisor("llm", [Child("context", serve, mailbox=8)])
    tree = Supervisor("app", [Child("feed", serve), inner, Pool("sessions", Child("s", serve))], front=inner)
    assert mermaid.declared(tree) == MERMAID


ODD = 'a "b" #c <d> `e`\n[f] {g} |h|\x1b[31m; %% i'


@pytest.mark.parametrize("view", [text, mermaid])
def test_no_name_breaks_a_picture(view):
    """A name is shown as plain text: it is no syntax, and does not move the cursor."""
    drawn = view.declared(Supervisor("app", [Child(ODD, serve), Child("last", serve)]))
    assert all(line.isprintable() for line in drawn.splitlines())
    assert len(drawn.splitlines()) == (3 if view is text else 4)


def test_nothing_in_a_mermaid_label_is_syntax():
    """What is no letter, digit or harmless sign is an entity; the quotes stay balanced."""
    (line,) = [
        line for line in mermaid.declared(Supervisor("app", [Child(ODD, serve)])).splitlines() if "n1" in line
    ]
    label = re.fullmatch(r' +n0 --> n1\("<b>(.*)</b><br/>permanent<br/>body serve"\)', line)
    assert label is not None
    bare = re.sub(r"#\d+;", "", label[1])
    assert set(bare) <= set("abcdefghi nx131m%") - {"%"}


def standing():
    """A tree with a child that backs off, one with a queue, and one that is down."""
    bad = Child("bad", fail, backoff=Backoff(initial=4, jitter=0))
    jobs = Child("jobs", serve, mailbox=8)
    return Supervisor("app", [bad, jobs, Supervisor("idle", [Child("done", serve, restart="temporary")])])


async def picture_of(view):
    async with open_tree(standing(), sinks=[]) as tree:
        await trio.sleep(1)
        await tree["app/jobs"].send(1)
        await tree["app/jobs"].send(2)
        await tree["app/idle"].stop()
        return view.running(tree.status(), trio.current_time())


RUNNING = """\
node     state                incarnation  restarts  waiting  last failure
app      up                   1            1/3
├─ bad   restarting in 3.0 s  1                               ValueError: no luck
├─ jobs  up                   1                      2
└─ idle  down                 1
"""

RUNNING_MERMAID = """\
flowchart TD
    n0["<b>app</b><br/>up<br/>incarnation 1<br/>restarts 1/3"]:::up
    n0 --> n1("<b>bad</b><br/>restarting in 3.0 s<br/>incarnation 1<br/>ValueError: no luck"):::restarting
    n0 --> n2("<b>jobs</b><br/>up<br/>incarnation 1<br/>waiting 2"):::up
    n0 --> n3["<b>idle</b><br/>down<br/>incarnation 1"]:::down
    classDef up fill:#d3f0d3,color:#222
    classDef restarting fill:#ffd9a8,color:#222
    classDef down fill:#e0e0e0,color:#222
"""


@pytest.mark.parametrize(("view", "drawn"), [(text, RUNNING), (mermaid, RUNNING_MERMAID)])
def test_a_running_tree_is_drawn_as_it_stands(view, drawn):
    """R33: It shows states, incarnations, restarts that count, waiting messages, the last failure, and the end of a backoff."""
    assert run_virtual(picture_of, view) == drawn


def test_a_failures_text_stays_on_its_line():
    """An exception's text is not ours: it is one line, without control characters; without text, its class."""
    statuses = [
        Status(path="app", kind="supervisor", state="up", incarnation=1, last_failure=exc)
        for exc in (ValueError("a\nb\x1b[2J"), KeyError())
    ]
    first, second = (text.running(status, 0.0).splitlines()[1] for status in statuses)
    assert first.endswith(r"ValueError: a\nb\x1b[2J")
    assert second.endswith("KeyError")


@pytest.mark.parametrize("view", [text, mermaid])
def test_no_tree_is_too_deep(view):
    """Neither view recurses."""
    tree = Supervisor("last", [])
    for number in range(sys.getrecursionlimit() + 100):
        tree = Supervisor(f"s{number}", [tree])
    assert view.declared(tree).count("\n") > sys.getrecursionlimit()


def test_a_declared_tree_shows_every_option_that_is_not_the_default():
    """It shows deciders, backoff, drain, grace, start_timeout, init, and the function in a `partial`."""
    tables = {
        "preset": AKKA,
        "own": Decider({"net.gone": Restart, OSError: Stop}, default=Escalate, rules=[Rule(KeyError, "x")]),
        "long": Decider({f"t{number}": Stop for number in range(7)}).over(DEVICE),
        "none": Decider(),
    }
    children = [Child(name, serve, decider=decider) for name, decider in tables.items()]
    slow = Child(
        "slow",
        partial(serve, 1),
        resource=partial(open_database),
        drain=2.5,
        grace=1,
        start_timeout=9,
        mailbox=Mailbox(4, on_loss="requeue"),
        backoff=Backoff(initial=1, immediate=2),
    )
    assert (
        text.declared(Supervisor("app", [*children, slow], init=partial(print, 1)))
        == """\
app        one_for_one · limit 3 within 5 s · init print
├─ preset  permanent · body serve · decider AKKA
├─ own     permanent · body serve · decider net.gone → Restart, OSError → Stop, else Escalate, 1 rule
├─ long    permanent · body serve · decider t0 → Stop, t1 → Stop, t2 → Stop, t3 → Stop, t4 → Stop, 2 more, over DEVICE
├─ none    permanent · body serve · decider empty
└─ slow    permanent · body serve · resource open_database · mailbox 4, requeue · drain 2.5 s · grace 1 s · start_timeout 9 s · backoff 1 s × 2 up to 30 s, 2 at once
"""
    )
