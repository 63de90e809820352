"""How bad an event is, and how a line shows that on a terminal, in the journal of systemd, and elsewhere."""

import io
import logging
import os
import sys

import pytest

from supervise import Escalate, Restart, Resume, Stop, events
from supervise.sinks._levels import level_of
from supervise.sinks.lines import LineSink

NODE = {"at": 0.0, "path": "app/a", "incarnation": 2}
ROOT = {"at": 0.0, "path": "app", "incarnation": 1}
GONE = ConnectionError("gone")
FAILED = events.Failed(**NODE, exc=GONE)
RED, YELLOW, GREEN = "\x1b[31m", "\x1b[33m", "\x1b[32m"


def decided(directive, exc=GONE, **options):
    """What is decided about the failure."""
    return events.Decided(**NODE, directive=directive, by="app", exc=exc, **options)


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Those of a terminal that has colours."""
    for name in ("NO_COLOR", "FORCE_COLOR", "JOURNAL_STREAM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def written(file, *given, **options):
    """What a `LineSink` writes of these events."""
    sink = LineSink(file, **options)
    for event in given:
        sink(event)
    return file.getvalue()


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (decided(Resume), logging.WARNING),
        (decided(Restart), logging.WARNING),
        (decided(Stop), logging.ERROR),
        (decided(Escalate), logging.CRITICAL),
        (decided(None), logging.ERROR),
        (events.Overdue(**NODE, seconds=1), logging.WARNING),
        (events.StartOverdue(**NODE, seconds=1), logging.WARNING),
        (events.StopError(**NODE, exc=GONE), logging.ERROR),
        (events.SinkFailed(**ROOT, sink="s", exc=GONE), logging.ERROR),
        (events.BackingOff(**NODE, delay=1, until=2), logging.INFO),
        (events.Ready(**ROOT), logging.INFO),
        (events.Ready(**NODE), logging.DEBUG),
    ],
    ids=str,
)
def test_every_event_has_a_level(event, level):
    """R31: All sinks have it from one function."""
    assert level_of(event) == level


@pytest.mark.parametrize(
    ("given", "colours"),
    [
        ([FAILED, decided(Restart)], [RED, YELLOW]),
        ([FAILED, decided(Resume), events.Resumed(**NODE)], [RED, YELLOW, GREEN]),
        ([FAILED, decided(Stop)], [RED, RED]),
        ([FAILED, decided(Escalate)], [RED, RED]),
        ([events.BackingOff(**NODE, delay=1, until=2), events.Ready(**NODE)], [YELLOW, GREEN]),
        ([events.Overdue(**NODE, seconds=1, stack="the stack\n")], [YELLOW]),
        ([events.StopError(**NODE, exc=GONE)], [RED]),
        ([decided(None, because="first start")], [RED]),
        ([events.Starting(**ROOT)], [""]),
    ],
)
def test_a_line_on_a_terminal_has_the_colour_of_its_level(given, colours):
    """R31: Times and paths are dim, and a traceback or a stack has no colour."""
    shown = written(Terminal(), *given, times=True, lifecycle=True, tracebacks=True).splitlines()
    lines = [line.split("\x1b[0m") for line in shown if line.startswith("\x1b")]
    assert [head.startswith("\x1b[2m2") and head.endswith("] ") for head, *_ in lines] == [True] * len(
        colours
    )
    assert [text.partition("m")[0] + "m" if end else "" for _, text, *end in lines] == colours
    assert not any("\x1b" in line for line in shown if not line.startswith("\x1b"))


@pytest.mark.parametrize(
    ("variables", "has_colours"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
    ],
)
def test_variables_decide_on_colours_at_each_event(monkeypatch, variables, has_colours):
    """R31: They are those that other programs know. What is standard error at the event counts."""
    sink = LineSink()
    monkeypatch.setattr(sys, "stderr", Terminal())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    sink(events.BackingOff(**NODE, delay=1, until=2))
    assert ("\x1b" in sys.stderr.getvalue()) is has_colours


def test_forced_colours_are_for_the_standard_streams(monkeypatch):
    """R31: A file that a program has opened stays plain."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    given = [FAILED, decided(Restart)]
    assert "\x1b" in written(sys.stderr, *given)
    assert "\x1b" not in written(io.StringIO(), *given)


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """A stream of which `JOURNAL_STREAM` says that it leads to the journal."""
    with (tmp_path / "journal").open("w+") as file:
        stream = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{stream.st_dev}:{stream.st_ino}")
        yield file


def lines_of(file):
    """What has been written to a file."""
    file.seek(0)
    return file.read().splitlines()


def test_a_line_in_the_journal_begins_with_its_priority(journal, monkeypatch):
    """R31: The journal has the time itself, and would escape colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", journal)
    sink = LineSink(times=True, lifecycle=True)
    for event in (
        events.Starting(**ROOT),
        FAILED,
        decided(Restart),
        events.Ready(**NODE),
        FAILED,
        decided(Stop),
    ):
        sink(event)
    assert [line.partition(",")[0] for line in lines_of(journal)] == [
        "<6>[app #1] starts",
        "<4>[app/a #2] failed: ConnectionError: gone",
        "<4>[app/a #2] → Restart",
        "<6>[app/a #2] is ready again",
        "<3>[app/a #2] failed: ConnectionError: gone",
        "<3>[app/a #2] → Stop",
    ]


def test_each_line_of_a_traceback_has_the_priority(journal):
    """R31: To the journal each is an entry; the text of an exception cannot choose another priority."""
    exc = ConnectionError("gone\n<0>panic")
    sink = LineSink(journal, tracebacks=True)
    for event in (events.Failed(**NODE, exc=exc), decided(Stop, exc)):
        sink(event)
    shown = lines_of(journal)
    assert [line[:3] for line in shown] == ["<3>"] * 4
    assert shown[2] == "<3><0>panic"


def test_another_stream_than_that_of_the_journal_is_as_ever(journal):
    """R31: A program may redirect one of them, and hands the variable to the programs that it starts."""
    assert written(io.StringIO(), FAILED, decided(Restart)).startswith("[app/a #2] failed")
    assert written(Terminal(), FAILED, decided(Restart)).startswith("\x1b")
