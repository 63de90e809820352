"""What a person reads of events: plain lines, and log records with fields."""

import io
import logging
import re

import attrs
import pytest
import trio

from supervise import (
    Backoff,
    Child,
    Decider,
    Escalate,
    Restart,
    Resume,
    Rule,
    StartFailed,
    Stop,
    Supervisor,
    TreeFailed,
    events,
    open_tree,
)
from supervise.sinks.lines import LineSink
from supervise.sinks.log import LoggingSink
from supervise.sinks.tracebacks import exc_info, trace
from supervise.testing import idle, run_virtual


async def fails():
    """A body that fails after a second."""
    await trio.sleep(1)
    raise ConnectionError("gone")


def played(tree, sink, seconds=1.5):
    """Run a tree for so long."""

    async def main():
        async with open_tree(tree, sinks=[sink]):
            await trio.sleep(seconds)

    try:
        run_virtual(main)
    except (TreeFailed, StartFailed) as failed:
        return failed


def lines(tree, **options):
    """What a `LineSink` writes of it."""
    file = io.StringIO()
    played(tree, LineSink(file, **options))
    return file.getvalue().splitlines()


def broken(_):
    """A predicate that fails."""
    raise TypeError("not that")


def decision(decider=None, inner=None, **options):
    """The line of what is decided when a child two levels down fails."""
    inner = Supervisor("in", [Child("a", fails, **options)], decider=inner)
    written = lines(Supervisor("app", [inner, Child("b", idle)], decider=decider))
    return next(line for line in written if "→" in line).partition("→ ")[2]


def test_a_line_names_the_decider_of_a_verdict_and_the_entry():
    """R2: The decider is the child's own or its supervisor's; the entry is a tag, a class or a default."""
    assert decision(inner=Decider({OSError: Stop})) == "Stop, decided by 'app/in' (class OSError)"
    own = Decider(rules=[Rule(ConnectionError, "net.gone")]).over(Decider({"net": Stop}))
    assert decision(decider=own) == (
        "Stop for 'net.gone', decided by 'app/in' (tag 'net' in the decider of 'app')"
    )
    assert decision(decider=Decider(default=Stop)) == (
        "Stop, decided by 'app/in' (default in the decider of 'app')"
    )


def test_a_line_says_that_no_decider_named_a_failure():
    """R2: A failure that no table names is restarted by a built-in rule, and the line names no decider."""
    assert decision() == "Restart, decided by 'app/in' (built-in rule)"


def test_a_line_of_a_passed_limit_does_not_name_the_default():
    """R2, R14: `limit` ignores defaults, so a default of the root's decider has not given that verdict."""
    inner = Supervisor("in", [Child("a", fails)], decider=Decider({OSError: Restart}))
    file = io.StringIO()
    played(Supervisor("app", [inner], decider=Decider(default=Stop)), LineSink(file), seconds=4.5)
    passed = next(line for line in file.getvalue().splitlines() if "for 'limit'" in line)
    assert passed.endswith("→ Restart for 'limit', decided by 'app' (built-in rule)")


def test_a_line_says_what_a_verdict_from_above_applies_to():
    """R11: An escalated Stop condemns a whole supervisor, and the line names it."""
    written = decision(decider=Decider({ConnectionError: Stop}), inner=Decider({OSError: Escalate}))
    assert written == (
        "Stop, decided by 'app' (class ConnectionError); it applies to 'app/in': all of it is stopped, and stays down"
    )


def test_a_line_says_that_a_decider_raised():
    """R5: The line has the exception, and the supervisor above decides that one instead."""
    written = lines(
        Supervisor("app", [Child("a", fails)], decider=Decider(rules=[Rule(OSError, "x", when=broken)]))
    )
    assert written == [
        "[app/a #1] failed: ConnectionError: gone",
        "[app/a #1] → Escalate, no supervisor above decides; a decider raised TypeError: not that, and that means Escalate",
    ]
    inner = Supervisor("in", [Child("a", fails)], decider=Decider(rules=[Rule(OSError, "x", when=broken)]))
    written = lines(Supervisor("app", [inner], decider=Decider({TypeError: Stop})))
    assert written[1] == "[app/in/a #1] its decider raised TypeError: not that: that failure goes up instead"


def test_a_line_shows_how_the_rules_changed_a_verdict():
    """R8, R14, R15: The line shows a Restart in place of a Resume, a passed limit, and the number of the attempt."""
    assert decision(inner=Decider({OSError: Resume})).startswith(
        "Restart (instead of Resume), decided by 'app/in' (class OSError)"
    )
    written = lines(Supervisor("app", [Child("a", fails)], limit=Supervisor("x", []).limit))
    assert written[1].endswith("(built-in rule)")
    file = io.StringIO()
    slow = Child("a", fails, backoff=Backoff(initial=1, jitter=0))
    played(Supervisor("app", [slow]), LineSink(file), seconds=5)
    waits = [line.partition("] ")[2] for line in file.getvalue().splitlines() if "waits" in line]
    assert waits == [
        "waits 1.00 s before the next start",
        "waits 2.00 s before the next start, attempt 2",
    ]


def test_lines_of_a_program_have_a_time_and_include_its_start_and_end():
    """`supervise run` writes these lines."""
    written = lines(Supervisor("app", [Child("a", idle)]), times=True, lifecycle=True)
    time = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ")
    assert all(time.match(line) for line in written)
    assert [time.sub("", line) for line in written] == [
        "[app #1] starts",
        "[app #1] is ready",
        "[app #1] is being stopped: the block of open_tree was left",
        "[app #1] has stopped",
    ]


async def never_ready(task_status):
    """A body that fails before it is ready."""
    raise KeyError("no such setting")


def test_without_standard_error_nothing_is_written(monkeypatch, capfd):
    """A program that is started with it closed has None there, and its standard output is its own."""
    monkeypatch.setattr("sys.stderr", None)
    sink = LineSink(lifecycle=True)
    sink(events.Starting(0.0, "app", 1))
    assert capfd.readouterr().out == ""


def test_a_failed_first_start_has_its_traceback_once():
    """R16: The failure goes up through each supervisor that is starting, and its traceback is written once."""
    tree = Supervisor("app", [Supervisor("in", [Child("a", never_ready)])])
    written = lines(tree, lifecycle=True)
    assert written.count("Traceback (most recent call last):") == 1
    assert written[1] == "[app/in/a #1] failed to start: KeyError: 'no such setting'"
    assert [line for line in written if "failed to start" in line] == [written[1]]
    assert lines(tree) == []


def test_every_failure_has_its_traceback_if_tracebacks_are_on():
    """The option is `tracebacks=True`."""
    written = lines(Supervisor("app", [Child("a", fails)]), tracebacks=True)
    assert written[0] == "[app/a #1] failed: ConnectionError: gone"
    assert written[1] == "Traceback (most recent call last):"
    assert "ConnectionError: gone" in written


class Odd(Exception):
    """An exception that cannot be printed."""

    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __str__


class Long(Exception):
    """One that prints without end, over many lines."""

    def __str__(self):
        return "\x1b[31m\n" * 100_000


@pytest.mark.parametrize("exc", [Odd(), Long()])
def test_a_line_stays_a_line_whatever_an_exception_prints(exc):
    """R31: An exception whose text is hostile breaks neither the line nor the sink."""

    async def body():
        raise exc

    tree = Supervisor("app", [Child("a", body, restart="temporary")])
    written = lines(tree)
    assert len(written) == 2
    assert all(line.isprintable() and len(line) < 2500 for line in written)
    assert len(lines(tree, tracebacks=True)) > 2


# --- records


@pytest.fixture
def records(caplog):
    """What a `LoggingSink` writes of a tree."""

    def records(tree, level=logging.INFO, **options):
        caplog.clear()
        with caplog.at_level(level, "supervise"):
            played(tree, LoggingSink(**options))
        return caplog.records

    return records


def test_a_record_has_the_fields_of_its_event(records):
    """R31: A formatter can write them, for example as JSON."""
    tree = Supervisor(
        "app", [Child("a", fails)], decider=Decider({"net": Stop}, rules=[Rule(OSError, "net.gone")])
    )
    (record,) = records(tree)
    assert (record.event, record.path, record.incarnation) == ("Decided", "app/a", 1)
    assert (record.directive, record.tag, record.by) == ("Stop", "net.gone", "app")
    assert (record.decider, record.entry, record.because) == ("app", "tag 'net'", "table")
    assert record.exc == "ConnectionError('gone')"
    assert record.getMessage() == (
        "app/a #1 failed: ConnectionError: gone → Stop for 'net.gone', decided by 'app' (tag 'net')"
    )


def test_records_include_the_start_and_the_end_if_lifecycle_is_on(records):
    """With `lifecycle=True` the records of the root are at INFO, those of the other nodes at DEBUG."""
    tree = Supervisor("app", [Child("a", idle)])
    assert records(tree) == []
    assert [record.getMessage() for record in records(tree, lifecycle=True)] == [
        "app #1 starts",
        "app #1 is ready",
        "app #1 is being stopped: the block of open_tree was left",
        "app #1 has stopped",
    ]
    written = [record.getMessage() for record in records(tree, logging.DEBUG, lifecycle=True)]
    assert "app/a #1 is ready" in written


def test_a_request_is_written_with_its_reason_if_lifecycle_is_on(caplog):
    """R25: It is shown for the node that was asked, as a line and as a record at INFO, and not for its siblings."""
    file = io.StringIO()
    tree = Supervisor("app", [Child("a", idle), Child("b", idle)], strategy="one_for_all")
    asked = ["'app/a' was asked to restart: disk full", "'app/a' was asked to stop: holiday"]

    async def main():
        sinks = [
            LineSink(file, lifecycle=True),
            LineSink(quiet := io.StringIO()),
            LoggingSink(lifecycle=True),
        ]
        async with open_tree(tree, sinks=sinks) as t:
            await t["app/a"].restart(reason="disk full")
            await t["app/a"].stop(reason="holiday")
        return quiet.getvalue()

    with caplog.at_level(logging.INFO, "supervise"):
        assert "was asked" not in run_virtual(main)
    requests = [line for line in file.getvalue().splitlines() if "was asked" in line]
    assert requests == [
        f"[app/a #1] is being stopped: {asked[0]}",
        f"[app/a #2] starts: {asked[0]}",
        f"[app/a #2] is being stopped: {asked[1]}",
    ]
    assert [message for message in caplog.messages if "was asked" in message] == [
        line.replace("[", "").replace("]", "") for line in requests
    ]


def test_an_adoption_is_written_if_lifecycle_is_on(caplog):
    """R38: As a line and as a record at INFO, also if it restarts nothing."""
    file = io.StringIO()

    def tree(**options):
        return Supervisor("app", [Child("a", idle)], **options)

    async def main():
        async with open_tree(
            tree(), sinks=[LineSink(file, lifecycle=True), LoggingSink(lifecycle=True)]
        ) as t:
            await t.adopt(tree(limit=None), reason="ticket 71")

    with caplog.at_level(logging.INFO, "supervise"):
        run_virtual(main)
    adoption = [line for line in file.getvalue().splitlines() if "declaration" in line]
    assert len(adoption) == 2
    assert [message for message in caplog.messages if "declaration" in message] == [
        line.replace("[", "", 1).replace("]", "", 1) for line in adoption
    ]


def test_a_record_of_a_failed_first_start_has_its_traceback_once(records):
    """R16: It has the traceback at any level; the records of other failures have theirs at DEBUG."""
    tree = Supervisor("app", [Supervisor("in", [Child("a", never_ready)])])
    traced = [record for record in records(tree) if record.exc_info]
    assert [record.path for record in traced] == ["app/in/a"]
    (record,) = records(Supervisor("app", [Child("a", fails)]))
    assert not record.exc_info
    (record,) = records(Supervisor("app", [Child("a", fails)]), logging.DEBUG)
    assert record.exc_info


@pytest.mark.parametrize("exc", [Odd(), Long()])
def test_a_record_can_be_written_whatever_an_exception_prints(records, exc):
    """R31: A record holds only text that the sink has made."""

    async def body():
        raise exc

    (record,) = records(Supervisor("app", [Child("a", body, restart="temporary")]))
    assert len(record.getMessage()) < 2500
    assert record.directive == "Stop"


def test_a_start_that_takes_long_is_a_line_and_a_record(records):
    """R17: Both have the stack, and the node that the start waits for."""
    event = events.StartOverdue(1.0, "app/a", 1, 30.0, "the stack\n", "app/b")
    file = io.StringIO()
    LineSink(file)(event)
    assert file.getvalue() == "[app/a #1] is not ready after 30 s, and waits for 'app/b'\nthe stack\n\n"


@pytest.mark.parametrize("kind", events.KINDS, ids=lambda kind: kind.__name__)
def test_every_event_has_words_of_one_printable_line(kind):
    """R31: `describe` is the only place that puts events into words, so it must know each kind, whatever its texts contain."""
    given = {
        "exc": Long(),
        "reason": "a\nb",
        "by": "\x1b[0m",
        "sink": "s",
        "directive": Stop,
        "seconds": 1,
        "delay": 1,
        "until": 2,
        "changes": ("~ app/a\n", "+ app/b"),
        "failed": ("app/b\n",),
    }
    names = {field.name for field in attrs.fields(kind)}
    event = kind(at=0.0, path="app", incarnation=1, **{name: given[name] for name in names & given.keys()})
    words = events.describe(event)
    assert words.isprintable()
    assert 5 < len(words) < 2500


def test_the_words_of_a_decision_without_a_directive_give_its_reason():
    """R32: A failure that no decider is asked about has a `Decided` too."""
    decided = events.Decided(0.0, "app/a", 1, None, "app", ValueError(), "stop")
    assert events.describe(decided) == "→ no decision by 'app': it was being stopped"


def test_a_group_that_would_be_printed_for_ever_has_no_traceback():
    """R31: Python prints a member as often as it meets it, here 2 ** 60 times."""
    exc = ValueError("inside")
    for _ in range(60):
        exc = ExceptionGroup("outside", [exc, exc])
    assert trace(exc).endswith("is not printed: its groups may have members without end)")
    assert exc_info(exc) is None
