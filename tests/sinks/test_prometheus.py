"""Metrics for Prometheus, under virtual time, and the dashboard and the alerts that use them."""

import subprocess
import sys
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from supervise import (
    Backoff,
    Child,
    Decider,
    Limit,
    Mailbox,
    Pool,
    Restart,
    Rule,
    Stop,
    Supervisor,
    events,
    open_tree,
)

pytest.importorskip("prometheus_client", reason="needs trio-supervise[prometheus]")

from prometheus_client import CollectorRegistry, Counter, generate_latest, start_http_server
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from supervise.sinks.prometheus import PrometheusSink
from supervise.testing import echo, idle, run_virtual

ROOT = Path(__file__).parents[2]


async def fails():
    """A body that fails after a second."""
    await trio.sleep(1)
    raise ConnectionError("gone")


async def deaf(inbox):
    """A body that takes no message."""
    await trio.sleep_forever()


def phone(**options):
    return Child("phone", fails, backoff=Backoff(initial=2, factor=1, jitter=0), **options)


def run(sink, tree, use=None, seconds=10.5):
    """Run a tree with this sink for so long, and `use(tree)` first."""

    async def main():
        async with open_tree(tree, sinks=[sink]) as t:
            sink.attach(t)
            if use is not None:
                await use(t)
            await trio.sleep(seconds)
            return sink.expose()

    body, _ = run_virtual(main)
    return samples(body)


def samples(body):
    """Each sample of an exposition: its name, and its labels without their names, to its value."""
    found = {}
    for family in parse_text(body.decode()):
        for sample in family.samples:
            key = sample.name, *(sample.labels[name] for name in sorted(sample.labels))
            assert key not in found
            found[key] = sample.value
    return found


def of(found, name):
    """The samples of one metric."""
    return {key[1:]: value for key, value in found.items() if key[0] == f"supervise_{name}"}


def test_failures_restarts_and_times_have_exact_figures():
    """R31: A failure each three seconds: one to run, two to back off."""
    tree = Supervisor(
        "app",
        [phone(), Child("door", idle)],
        limit=Limit(5, within=60),
        decider=Decider({"net": Restart}, rules=[Rule(OSError, "net.gone")]),
    )
    found = run(PrometheusSink(tree), tree)
    assert of(found, "failures_total") == {("Restart", "app/phone", "net.gone"): 4}
    assert of(found, "restarts_total") == {("app",): 0, ("app/phone",): 3, ("app/door",): 0}
    assert of(found, "recovery_seconds_sum") == {("app/phone",): 6.0}
    assert of(found, "recovery_seconds_count") == {("app/phone",): 3}
    assert found["supervise_recovery_seconds_bucket", "1.0", "app/phone"] == 0
    assert found["supervise_recovery_seconds_bucket", "2.5", "app/phone"] == 3
    assert of(found, "start_seconds_count") == {("app",): 1, ("app/phone",): 4, ("app/door",): 1}
    assert of(found, "limit_used") == {("app",): 4}
    assert of(found, "limit_allowed") == {("app",): 5}


def test_children_are_counted_by_their_state():
    """R33: Every state of every supervisor has a value, also 0, so that a graph has no gaps."""
    inner = Supervisor("in", [Child("a", idle), Child("b", idle)])
    tree = Supervisor("app", [phone(), inner], limit=Limit(5, within=60))

    async def stop_one(t):
        await t["app/in/b"].stop()

    found = of(run(PrometheusSink(tree), tree, stop_one), "children")
    assert {key: value for key, value in found.items() if value} == {
        ("app", "up"): 1,
        ("app", "restarting"): 1,
        ("app/in", "up"): 1,
        ("app/in", "down"): 1,
    }
    assert len(found) == 2 * 8


def test_mailboxes_have_a_depth_a_size_and_a_count():
    """R29: The count is that of `Status.handled`, as a counter."""
    tree = Supervisor("app", [Child("echo", echo, mailbox=4), Child("deaf", deaf, mailbox=Mailbox(7))])

    async def ask(t):
        for _ in range(3):
            await t["app/echo"].call("hello")
        for _ in range(2):
            await t["app/deaf"].send("hello")

    found = run(PrometheusSink(tree), tree, ask)
    assert of(found, "mailbox_waiting") == {("app/echo",): 0, ("app/deaf",): 2}
    assert of(found, "mailbox_size") == {("app/echo",): 4, ("app/deaf",): 7}
    assert of(found, "mailbox_handled_total") == {("app/echo",): 3, ("app/deaf",): 0}


def test_the_size_of_a_mailbox_is_that_of_the_declaration_in_force():
    """R38: And a child whose new declaration has no mailbox has no size of one."""
    tree = Supervisor("app", [Child("echo", echo, mailbox=4), Child("deaf", deaf, mailbox=7)])

    async def adopt(t):
        await t.adopt(Supervisor("app", [Child("echo", echo, mailbox=9), Child("deaf", trio.sleep_forever)]))

    found = run(PrometheusSink(tree), tree, adopt)
    assert of(found, "mailbox_size") == {("app/echo",): 9}


def test_what_takes_long_and_what_fails_in_stopping_is_counted():
    """R17, R20, R23, R31: The reports of overdue starts and stops, stop errors, and sinks that are dropped."""
    tree = Supervisor("app", [Child("slow", idle), Child("a", idle)])
    sink = PrometheusSink(tree)
    where = {"at": 1.0, "incarnation": 1}
    sink(events.StartOverdue(path="app/slow", seconds=30.0, **where))
    for seconds in (5.0, 10.0):
        sink(events.Overdue(path="app/slow", seconds=seconds, **where))
    sink(events.StopError(path="app/a", exc=OSError(), **where))
    sink(events.SinkFailed(path="app", sink="<sink>", exc=OSError(), **where))
    found = samples(sink.expose()[0])
    assert of(found, "overdue_total") == {
        **{(path, phase): 0 for path in ("app", "app/a") for phase in ("start", "stop")},
        ("app/slow", "start"): 1,
        ("app/slow", "stop"): 2,
    }
    assert of(found, "stop_errors_total") == {("app",): 0, ("app/slow",): 0, ("app/a",): 1}
    assert of(found, "sinks_failed_total") == {("app",): 1}


def test_what_is_given_up_has_no_recovery_time():
    """R31: It has not recovered."""
    tree = Supervisor("app", [phone()], decider=Decider({OSError: Stop}))
    found = run(PrometheusSink(tree), tree)
    assert of(found, "failures_total") == {("Stop", "app/phone", ""): 1}
    assert of(found, "recovery_seconds_count") == {}
    assert of(found, "children")["app", "condemned"] == 1


def test_a_failure_without_a_decider_has_the_directive_none():
    """R16: Each failure is counted once, whatever becomes of it."""
    tree = Supervisor("app", [phone()])
    sink = PrometheusSink(tree)
    sink(events.Decided(1.0, "app/phone", 1, directive=None, by="app", exc=OSError(), because="absorbed"))
    assert of(samples(sink.expose()[0]), "failures_total") == {("none", "app/phone", ""): 1}


# --- cardinality


def test_members_and_added_children_share_a_label():
    """R31: However many there are, and whatever their names; what is declared below a member has its own."""
    member = Supervisor("session", [Child("reader", idle), phone(restart="temporary")])
    tree = Supervisor("app", [Pool("pool", member), Supervisor("in", [])])

    async def add(t):
        for _ in range(20):
            await t["app/pool"].add()
        for number in range(20):
            await t["app/in"].add(Supervisor(f"added-{number}", [Child(f"x-{number}", deaf, mailbox=2)]))
            await t[f"app/in/added-{number}/x-{number}"].send(1)

    found = run(PrometheusSink(tree), tree, add)
    paths = {key[0] for key in of(found, "start_seconds_count")}
    assert paths == {
        "app",
        "app/pool",
        "app/in",
        "app/in/*",
        "app/pool/*",
        "app/pool/*/reader",
        "app/pool/*/phone",
    }
    assert of(found, "start_seconds_count")["app/pool/*/reader",] == 20
    assert of(found, "failures_total") == {("Stop", "app/pool/*/phone", ""): 20}
    children = of(found, "children")
    assert children["app/pool", "up"] == 20
    assert children["app/pool/*", "up"] == 20
    assert children["app/in/*", "up"] == 20
    assert of(found, "mailbox_waiting") == {("app/in/*",): 20}
    assert of(found, "mailbox_handled_total") == {}
    assert {key[0] for key in of(found, "limit_used")} == {"app", "app/in"}


@pytest.mark.slow
def test_the_children_of_a_large_tree_are_one_series_for_each_supervisor():
    """R31: Beyond `nodes`; supervisors keep their own."""
    inner = [
        Supervisor(f"in-{number}", [Child(f"a-{each}", echo, mailbox=2) for each in range(50)])
        for number in range(20)
    ]
    tree = Supervisor("app", [*inner, phone()], limit=None)
    found = run(PrometheusSink(tree), tree)
    assert len(of(found, "restarts_total")) == 1 + 20 + 20 + 1
    assert of(found, "restarts_total")["app/*",] == 3
    assert of(found, "start_seconds_count")["app/in-7/*",] == 50
    assert of(found, "children")["app/in-7", "up"] == 50
    assert of(found, "mailbox_waiting")["app/in-7/*",] == 0
    assert of(found, "mailbox_size") == {}
    assert len(found) < 4000
    assert len(of(run(PrometheusSink(tree, nodes=2000), tree), "restarts_total")) == 1 + 20 + 1000 + 1


def test_tags_beyond_the_bound_are_other():
    """R31: And they are counted, so that one learns of it."""
    numbers = iter(range(100))
    tree = Supervisor("app", [phone()])
    sink = PrometheusSink(tree, tags=2)
    for number in numbers:
        tag = f"net.{number % 4}"
        sink(events.Decided(1.0, "app/phone", 1, directive=None, by="app", exc=OSError(), tag=tag))
    found = samples(sink.expose()[0])
    assert of(found, "failures_total") == {
        ("none", "app/phone", "net.0"): 25,
        ("none", "app/phone", "net.1"): 25,
        ("none", "app/phone", "other"): 50,
    }
    assert of(found, "other_tags_total") == {(): 50}


def test_odd_names_and_tags_can_be_exposed():
    """R31: A name may have any characters but `/`."""
    odd = 'a"\n\\\ud800'
    tree = Supervisor(odd, [Child(odd, echo, mailbox=4)])

    async def ask(t):
        await t.root.add(Child("added", idle))
        await t[f"{odd}/{odd}"].call(1)

    sink = PrometheusSink(tree)
    sink(events.Decided(1.0, odd, 1, directive=None, by=odd, exc=OSError(), tag=odd))
    (handled,) = of(run(sink, tree, ask), "mailbox_handled_total").values()
    assert handled == 1


# --- several trees, other threads, the end


def test_a_sink_serves_several_trees():
    """R31: Their paths begin with the names of their roots."""
    trees = [Supervisor(name, [phone()], limit=None) for name in ("one", "two")]
    sink = PrometheusSink(*trees)

    async def main():
        async with open_tree(trees[0], sinks=[sink]) as one, open_tree(trees[1], sinks=[sink]) as two:
            sink.attach(one)
            sink.attach(two)
            await trio.sleep(4.5)
            return samples(sink.expose()[0])

    found = run_virtual(main)
    assert {key[1]: value for key, value in of(found, "failures_total").items()} == {
        "one/phone": 2,
        "two/phone": 2,
    }
    assert {key[0] for key in of(found, "children")} == {"one", "two"}


def test_a_tree_that_it_was_not_made_for_is_refused(caplog):
    """R31: As a sink it is reported once, and dropped."""
    mine, other = Supervisor("app", [phone()]), Supervisor("other", [phone()], limit=None)
    sink, seen = PrometheusSink(mine), []

    async def main():
        async with open_tree(other, sinks=[sink, seen.append]) as t:
            await trio.sleep(5)
            with pytest.raises(ValueError, match="made for 'app', got a node of 'other'"):
                sink.attach(t)

    run_virtual(main)
    assert [type(event).__name__ for event in seen].count("SinkFailed") == 1
    assert sum("gets no further events" in record.message for record in caplog.records) == 1


def test_two_sinks_need_two_registries():
    """R31: A registry refuses a second metric of the same name; the global one is not used."""
    tree = Supervisor("app", [])
    registry = CollectorRegistry()
    assert PrometheusSink(tree, registry=registry).registry is registry
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        PrometheusSink(tree, registry=registry)
    assert generate_latest(registry).count(b"# TYPE supervise_children gauge") == 1
    PrometheusSink(tree)
    PrometheusSink(tree)


@pytest.mark.parametrize(
    ("trees", "options", "kind", "says"),
    [
        ([], {}, ValueError, "roots have different names, got \\[\\]"),
        (["app"], {}, TypeError, "made for Supervisors and Pools, got 'app'"),
        ([Supervisor("a", []), Pool("a", Child("b", idle))], {}, ValueError, "different names"),
        ([Supervisor("a", [])], {"nodes": 0}, ValueError, "nodes must be >= 1"),
        ([Supervisor("a", [])], {"tags": -1}, ValueError, "tags must be >= 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(trees, options, kind, says):
    """R31: When the sink is made."""
    with pytest.raises(kind, match=says):
        PrometheusSink(*trees, **options)


def test_attaching_also_subscribes_a_running_tree():
    """R31: Once: an event is never counted twice. A later tree of that name takes the place of an earlier one."""
    tree = Supervisor("app", [phone()], limit=None)
    sink = PrometheusSink(tree)

    async def main():
        found = []
        for _ in range(2):
            async with open_tree(tree, sinks=[]) as t:
                await trio.sleep(0.5)
                sink.attach(t)
                sink.attach(t)
                await trio.sleep(1)
                found.append(samples(sink.expose()[0]))
        return found

    first, second = run_virtual(main)
    for count, found in enumerate((first, second), 1):
        assert of(found, "failures_total") == {("Restart", "app/phone", ""): count}
        assert {key: value for key, value in of(found, "children").items() if value} == {
            ("app", "restarting"): 1
        }


def test_a_scrape_may_come_from_another_thread_and_after_the_end():
    """R31: Another thread waits for the event loop. After the end of the run there are counters, and no gauges."""
    tree = Supervisor("app", [Child("a", idle)])
    sink = PrometheusSink(tree)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=sink.registry)
    address = f"http://127.0.0.1:{server.server_port}/metrics"

    def scrape():
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read()

    async def main():
        async with open_tree(tree, sinks=[sink]) as t:
            sink.attach(t)
            return await trio.to_thread.run_sync(scrape)

    async def later():
        return await trio.to_thread.run_sync(scrape)

    try:
        assert of(samples(trio.run(main)), "children")["app", "up"] == 1
        for body in (scrape(), trio.run(later), sink.expose()[0]):
            found = samples(body)
            assert of(found, "restarts_total") == {("app",): 0, ("app/a",): 0}
            assert of(found, "children") == {}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_program_attaches_it_by_its_watch(capfd):
    """R31: `run_tree` ends as it would without it."""
    program = """
import trio
from supervise import Child, Supervisor, run_tree
from supervise.sinks.prometheus import PrometheusSink

async def body():
    await trio.testing.wait_all_tasks_blocked()
    print(sink.expose()[0].decode())

tree = Supervisor("app", [Child("a", body, restart="transient", significant=True)], auto_shutdown="any_significant")
sink = PrometheusSink(tree)
run_tree(tree, sinks=[sink], watch=sink.watch)
"""
    done = subprocess.run(
        [sys.executable, "-c", "import trio.testing\n" + program], capture_output=True, cwd=ROOT, check=True
    )
    assert of(samples(done.stdout), "children")["app", "up"] == 1
    assert done.stderr == b""


def test_the_answer_is_in_the_format_that_is_asked_for():
    """R31: Both formats have the same values; no header means the text format."""
    sink = PrometheusSink(Supervisor("app", []))
    body, content_type = sink.expose()
    assert content_type.startswith("text/plain; version=0.0.4")
    assert {family.name for family in parse_text(body.decode())} > {
        "supervise_restarts",
        "supervise_children",
    }
    body, content_type = sink.expose("application/openmetrics-text; version=1.0.0,text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert {family.name for family in parse_openmetrics(body.decode())} > {
        "supervise_restarts",
        "supervise_children",
    }


def test_without_the_extra_one_line_names_it():
    """A user without prometheus-client learns what to install."""
    program = "import sys; sys.modules['prometheus_client'] = None; import supervise.sinks.prometheus"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: supervise.sinks.prometheus needs prometheus-client: "
        "pip install 'trio-supervise[prometheus]'"
    )


# --- metrics of other kinds of nodes


class Measured:
    """A resource whose class has metrics of its own."""

    made = []

    def __init__(self):
        self.prometheus_metrics = None  # an attribute of the object is not asked

    @staticmethod
    def prometheus_metrics(sink):
        Measured.made.append(More(sink))
        return Measured.made[-1]

    @asynccontextmanager
    async def __call__(self):
        yield self


class More:
    def __init__(self, sink):
        self.sink = sink
        self.trees = []
        self.count = Counter("more", "Trees.", ["path"], registry=sink.registry)

    def attach(self, tree):
        self.trees.append(tree)
        self.count.labels(self.sink.label("app/pool/x")).inc()


def test_a_kind_of_node_may_have_metrics_of_its_own():
    """R31: Made once for all children of the kind, in the registry of the sink, and told of each tree that is attached."""

    async def body(resource):
        await trio.sleep_forever()

    Measured.made.clear()
    pool = Pool("pool", Child("member", body, resource=Measured()))
    tree = Supervisor(
        "app", [Child("a", body, resource=Measured()), Child("b", body, resource=Measured()), pool]
    )
    sink = PrometheusSink(tree)
    (more,) = Measured.made
    sink.include(Measured.prometheus_metrics)
    assert Measured.made == [more]
    assert more.trees == []
    found = run(sink, tree)
    assert len(more.trees) == 1
    assert found["more_total", "app/pool/*"] == 1


def test_the_age_of_the_first_message_in_a_mailbox():
    """R29: From its sending; of several mailboxes with one label that of the oldest. One-way messages have none."""
    tree = Supervisor(
        "app",
        [Child("a", deaf, mailbox=4), Child("b", deaf, mailbox=4), Pool("pool", Child("m", deaf, mailbox=4))],
    )

    async def main():
        sink = PrometheusSink(tree)
        async with open_tree(tree, sinks=[sink]) as t, trio.open_nursery() as nursery:
            sink.attach(t)
            await t["app/b"].send("one way")
            for ref in [t["app/a"], await t["app/pool"].add(), await t["app/pool"].add()]:
                nursery.start_soon(ref.call, "hello")
                await trio.sleep(1)
            body, _ = sink.expose()
            nursery.cancel_scope.cancel()
            return samples(body)

    assert of(run_virtual(main), "mailbox_oldest_seconds") == {
        ("app/a",): 3,
        ("app/b",): 0,
        ("app/pool/*",): 2,
    }
