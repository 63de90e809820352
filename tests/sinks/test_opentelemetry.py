"""Spans and log records for OpenTelemetry, under virtual time, with the exporters of its SDK that keep them in memory."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trio

from supervise import (
    Backoff,
    Child,
    Decider,
    Limit,
    Resume,
    Rule,
    StartFailed,
    Stop,
    Supervisor,
    events,
    open_tree,
)
from supervise.testing import run_virtual

pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk, which is in trio-supervise[dev]")

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from supervise.sinks.opentelemetry import OpenTelemetrySink

ROOT = Path(__file__).parents[2]


class Kept:
    """A sink, and what it has exported."""

    def __init__(self):
        self._spans, self._records = InMemorySpanExporter(), InMemoryLogRecordExporter()
        self.traces, logs = TracerProvider(shutdown_on_exit=False), LoggerProvider(shutdown_on_exit=False)
        self.traces.add_span_processor(SimpleSpanProcessor(self._spans))
        logs.add_log_record_processor(SimpleLogRecordProcessor(self._records))
        self.sink = OpenTelemetrySink(self.traces.get_tracer("test"), logs.get_logger("test"))

    def spans(self, name=None, path=None):
        return [
            span
            for span in self._spans.get_finished_spans()
            if name in (None, span.name) and path in (None, span.attributes["supervise.path"])
        ]

    def records(self):
        return [each.log_record for each in self._records.get_finished_logs()]


def seconds(span):
    return round((span.end_time - span.start_time) / 1e9, 6)


async def slow_start(task_status):
    """A body that takes three seconds to start, and fails four seconds later."""
    await trio.sleep(3)
    task_status.started()
    await trio.sleep(4)
    raise ConnectionError("gone")


def played(tree, *sinks, last=10.0):
    async def main():
        async with open_tree(tree, sinks=sinks):
            await trio.sleep(last)

    run_virtual(main)


def test_a_span_goes_from_a_failure_until_the_node_is_ready_again():
    """R31: Its length is that on Trio's clock, and its attributes are the decision; the exception is an event in it."""
    kept = Kept()
    child = Child("a", slow_start, backoff=Backoff(initial=2, jitter=0))
    decider = Decider({"net": Resume}, rules=[Rule(OSError, "net.gone")])
    before = time.time_ns()
    played(Supervisor("app", [child], decider=decider), kept.sink, last=12.5)
    starts = kept.spans("supervise.start", "app/a")
    assert [(seconds(span), span.attributes["supervise.outcome"]) for span in starts] == [
        (3.0, "ready"),
        (3.0, "ready"),
    ]
    (recovery,) = kept.spans("supervise.recovery")
    assert seconds(recovery) == 5.0
    assert dict(recovery.attributes) == {
        "supervise.path": "app/a",
        "supervise.incarnation": 1,
        "supervise.outcome": "ready",
        "supervise.failures": 1,
        "supervise.directive": "Restart",
        "supervise.instead_of": "Resume",
        "supervise.tag": "net.gone",
        "supervise.by": "app",
        "supervise.because": "table",
        "supervise.decider": "app",
        "supervise.entry": "tag 'net'",
        "supervise.attempt": 1,
    }
    (event,) = recovery.events
    assert (event.attributes["exception.type"], event.attributes["exception.message"]) == (
        "ConnectionError",
        "gone",
    )
    assert event.attributes["exception.stacktrace"].endswith("ConnectionError: gone")
    assert event.timestamp == recovery.start_time
    assert recovery.status.status_code is StatusCode.UNSET
    assert before <= recovery.end_time <= time.time_ns()


def test_what_is_given_up_and_what_fails_to_start_are_errors():
    """R10, R16: Such a span has the status ERROR, with the reason; what is stopped in order has not."""
    kept = Kept()
    played(Supervisor("app", [Child("a", slow_start)], decider=Decider({OSError: Stop})), kept.sink)
    (recovery,) = kept.spans("supervise.recovery")
    assert (recovery.status.status_code, recovery.status.description) == (StatusCode.ERROR, "given up")
    assert recovery.attributes["supervise.directive"] == "Stop"

    async def not_ready(task_status):
        await trio.sleep(2)
        raise KeyError("no such setting")

    kept = Kept()
    with pytest.raises(StartFailed):
        played(Supervisor("app", [Child("a", not_ready)]), kept.sink)
    (start,) = kept.spans(path="app/a")
    assert (start.name, seconds(start), start.status.description) == ("supervise.start", 2.0, "failed")
    assert start.attributes["supervise.because"] == "first start"
    assert start.events[0].attributes["exception.type"] == "KeyError"

    kept = Kept()
    child = Child("a", slow_start, backoff=Backoff(initial=30, jitter=0))
    played(Supervisor("app", [child]), kept.sink)
    (recovery,) = kept.spans("supervise.recovery")
    assert (recovery.status.status_code, recovery.attributes["supervise.outcome"]) == (
        StatusCode.UNSET,
        "stopped",
    )


def test_each_event_is_a_record_in_the_schema_of_events():
    """R31: Its body is that of a line of JSON, without keys that have no value; its severity is as that of a log record."""
    kept, seen = Kept(), []
    played(Supervisor("app", [Child("a", slow_start)]), kept.sink, seen.append)
    records = kept.records()
    assert [record.event_name for record in records] == [
        f"supervise.{type(event).__name__}" for event in seen
    ]
    assert [record.body["seq"] for record in records] == list(range(1, len(seen) + 1))
    assert all(None not in record.body.values() for record in records)
    assert all(json.dumps(dict(record.body)) for record in records)
    decided = next(record for record in records if record.event_name == "supervise.Decided")
    assert {key: decided.body[key] for key in ("v", "kind", "path", "directive", "by", "at")} == {
        "v": 1,
        "kind": "Decided",
        "path": "app/a",
        "directive": "Restart",
        "by": "app",
        "at": 7.0,
    }
    assert (decided.severity_text, dict(decided.attributes)) == (
        "WARN",
        {"supervise.path": "app/a", "supervise.incarnation": 1},
    )
    assert decided.body["text"] == events.describe(
        next(each for each in seen if type(each) is events.Decided)
    )
    assert decided.timestamp == pytest.approx(decided.body["time"] * 1e9)
    severities = {record.event_name.partition(".")[2]: record.severity_text for record in records[:4]}
    assert severities == {"Starting": "DEBUG", "Ready": "INFO"}


def test_no_span_and_no_record_belongs_to_the_span_in_which_the_tree_was_opened():
    """R31: That is the current one in each task of the tree, for as long as it runs."""
    kept = Kept()
    with kept.traces.get_tracer("test").start_as_current_span("outer"):
        played(Supervisor("app", [Child("a", slow_start)]), kept.sink)
    spans = kept.spans("supervise.start")
    assert spans
    assert all(span.parent is None for span in spans)
    assert len({span.context.trace_id for span in spans}) == len(spans)
    assert {record.trace_id for record in kept.records()} == {0}


class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize("exc", [Odd(), ValueError("\ud800" * 2000)])
def test_every_text_can_be_sent(exc):
    """R31: An exporter encodes a batch as UTF-8; one text that is not would lose it."""
    kept = Kept()
    sink = kept.sink
    for kind in (events.Starting, events.Ready):
        sink(kind(1.0, "app/\udcff", 1))
    sink(events.Failed(2.0, "app/\udcff", 1, exc=exc))
    sink(
        events.Decided(2.0, "app/\udcff", 1, directive=None, by="app", exc=exc, because="stop", tag="\ud800")
    )
    (recovery,) = kept.spans("supervise.recovery")
    records = [data for each in kept.records() for data in (each.body, each.attributes)]
    for data in (recovery.attributes, recovery.events[0].attributes, *records):
        json.dumps(dict(data), ensure_ascii=False).encode()


def test_the_global_providers_are_used_and_none_is_made():
    """R31: Without an SDK this costs nothing but time; the program's own providers may come later."""
    program = """
import trio
from opentelemetry import trace, _logs
from supervise import Child, Supervisor, open_tree
from supervise.sinks.opentelemetry import OpenTelemetrySink

async def main():
    async with open_tree(Supervisor("app", [Child("a", trio.sleep_forever)]), sinks=[OpenTelemetrySink()]):
        pass

before = trace.get_tracer_provider(), _logs.get_logger_provider()
trio.run(main)
assert (trace.get_tracer_provider(), _logs.get_logger_provider()) == before
import sys
assert "opentelemetry.sdk" not in sys.modules

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
kept = InMemorySpanExporter()
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(kept))
sink = OpenTelemetrySink()
trace.set_tracer_provider(provider)
trio.run(main)
print(len(kept.get_finished_spans()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == ("2\n", "")


# --- exporters that do not work


class Raising(SpanExporter):
    """An exporter that raises."""

    def export(self, spans):
        raise RuntimeError("no disk")


class Unreachable(SpanExporter):
    """An exporter whose collector does not answer."""

    def __init__(self):
        self.asked, self.given_up = threading.Event(), threading.Event()

    def export(self, spans):
        self.asked.set()
        self.given_up.wait(60)
        return SpanExportResult.FAILURE


def test_an_exporter_that_raises_hurts_nothing():
    """R31: The SDK logs it; the tree and its other sinks do not notice."""
    provider, seen = TracerProvider(shutdown_on_exit=False), []
    provider.add_span_processor(SimpleSpanProcessor(Raising()))
    played(
        Supervisor("app", [Child("a", slow_start)]),
        OpenTelemetrySink(provider.get_tracer("test")),
        seen.append,
    )
    kinds = {type(event).__name__ for event in seen}
    assert {"Failed", "Decided"} <= kinds
    assert "SinkFailed" not in kinds


def test_a_tracer_that_raises_is_reported_once(caplog):
    """R31: The tree goes on without the sink."""

    class Broken:
        def start_span(self, *_, **__):
            raise RuntimeError("no tracer")

    seen = []
    played(Supervisor("app", [Child("a", slow_start)]), OpenTelemetrySink(Broken()), seen.append)
    (failed,) = [event for event in seen if isinstance(event, events.SinkFailed)]
    assert str(failed.exc) == "no tracer"
    assert sum("gets no further events" in record.message for record in caplog.records) == 1
    assert seen[-1].at == 13.0


def test_a_collector_that_does_not_answer_blocks_no_event_loop():
    """R31: A batch processor sends in a thread of its own, and drops what finds no room."""
    exporter = Unreachable()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=8, max_export_batch_size=2, schedule_delay_millis=5)
    )
    sink = OpenTelemetrySink(provider.get_tracer("test"))
    for number in range(1, 5):
        sink(events.Starting(1.0, "app", number))
        sink(events.Ready(1.0, "app", number))
    assert exporter.asked.wait(60)

    async def dies():
        raise ConnectionError("gone")

    tree, seen = Supervisor("app", [Child("a", dies)], limit=Limit(50, within=60)), []
    try:
        with pytest.raises(Exception, match="app"):
            played(tree, sink, seen.append)
        assert not exporter.given_up.is_set()
        assert sum(isinstance(event, events.Failed) for event in seen) >= 50
        assert not any(isinstance(event, events.SinkFailed) for event in seen)
    finally:
        exporter.given_up.set()
        provider.shutdown()


def test_without_the_extra_one_line_names_it():
    """A user without opentelemetry-api learns what to install."""
    program = "import sys; sys.modules['opentelemetry'] = None; import supervise.sinks.opentelemetry"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: supervise.sinks.opentelemetry needs opentelemetry-api: "
        "pip install 'trio-supervise[opentelemetry]'"
    )
