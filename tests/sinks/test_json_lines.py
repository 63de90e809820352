"""Events as data, and as lines of JSON in files (R31)."""

import errno
import itertools
import json
import math
import os
import time
from pathlib import Path

import attrs
import pytest
import trio

from supervise import Child, Directive, Supervisor, events, open_tree
from supervise.sinks.data import MOST, VERSION, as_data
from supervise.sinks.jsonl import JsonLinesSink
from supervise.testing import run_virtual

WHERE = {"at": 1.5, "path": "app/a", "incarnation": 2}
FIRST = ["v", "time", "at", "seq", "kind", "path", "incarnation"]


class Odd(Exception):
    """An exception of which nothing works."""

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__

    @property
    def __class__(self):
        raise RuntimeError("no class")


def filled(kind):
    """An event of a class, with values that are hard to write."""
    values = {
        "exc": Odd(),
        "value": object(),
        "directive": Directive.Restart,
        "instead_of": Directive.Resume,
        "stack": "x" * 2 * MOST + "the end",
        "by": "\ud800\n",
    }
    more = {
        field.name: values.get(field.name, 3.0) for field in attrs.fields(kind) if field.name not in WHERE
    }
    return kind(**WHERE, **more)


@pytest.mark.parametrize("kind", events.KINDS)
def test_every_event_is_plain_data(kind):
    """R31: It begins with the fields of all events, and can be written whatever its values are."""
    data = as_data(filled(kind), number=7, time=1e9)
    assert list(data)[: len(FIRST)] == FIRST
    assert [data[name] for name in FIRST] == [VERSION, 1e9, 1.5, 7, kind.__name__, "app/a", 2]
    assert set(data) == {*FIRST, *(field.name for field in attrs.fields(kind))}
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert len(data.get("stack", "")) <= MOST


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, pytest.param(10**5000, id="huge"), 2**64, 1.5, True, "x"]
)
def test_a_value_of_the_program_is_its_text(value):
    """R31: JSON does not have every number, and a reader may refuse the whole line with one that it has not."""
    data = as_data(events.Returned(**WHERE, value=value), number=1, time=0.0)
    assert type(data["value"]) is str
    json.loads(json.dumps(data, allow_nan=False))


def test_the_fields_of_a_decision_and_of_its_failure():
    """R31: Directives have their names; only a failure has its traceback, whose end is kept."""

    def fails(depth):
        if depth:
            fails(depth - 1)
        raise ConnectionError("gone")

    try:
        fails(900)
    except ConnectionError as exc:
        failed = as_data(events.Failed(**WHERE, exc=exc), number=1, time=0.0)
        decided = as_data(
            events.Decided(**WHERE, directive=Directive.Restart, by="app", exc=exc, tag="db"),
            number=2,
            time=0.0,
        )
    assert (failed["exc"]["type"], failed["exc"]["text"]) == ("ConnectionError", "gone")
    assert failed["exc"]["traceback"].endswith("ConnectionError: gone")
    assert len(failed["exc"]["traceback"]) <= MOST
    assert decided["exc"] == {"type": "ConnectionError", "text": "gone"}
    names = ("directive", "by", "because", "tag", "instead_of", "limit")
    assert [decided[name] for name in names] == ["Restart", "app", "table", "db", None, None]


async def raises():
    await trio.sleep(1)
    raise ConnectionError("gone")


def run(*sinks):
    async def main():
        async with open_tree(Supervisor("app", [Child("a", raises)], limit=None), sinks=sinks):
            await trio.sleep(20.5)

    run_virtual(main)


def numbers(path):
    return [json.loads(line)["seq"] for line in path.read_text().splitlines()]


def test_a_file_has_a_line_for_each_event(tmp_path):
    """R31: They are numbered from 1, and have the time of the wall beside that of Trio."""
    seen = []
    sink = JsonLinesSink(tmp_path / "events.jsonl")
    run(sink, seen.append)
    sink.close()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(seen) + 1))
    assert [(line["kind"], line["path"], line["at"]) for line in lines] == [
        (type(event).__name__, event.path, event.at) for event in seen
    ]
    assert all(abs(line["time"] - time.time()) < 60 for line in lines)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_full_files_are_renamed_and_the_oldest_is_deleted(tmp_path, kept):
    """R31: A program that fails for months fills no disk."""
    sink = JsonLinesSink(str(tmp_path / "log"), most=4000, kept=kept)
    run(sink)
    sink.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["log", *(f"log.{number}" for number in range(1, kept + 1))]
    assert all(file.stat().st_size <= 4000 for file in files)
    kept_numbers = [number for file in reversed(files) for number in numbers(file)]
    assert kept_numbers == list(range(kept_numbers[0], sink._number + 1))


def test_any_number_of_files_can_be_kept(tmp_path):
    """R31: A rename takes time only for the files that exist, and a missing one is not an error."""
    sink = JsonLinesSink(tmp_path / "log", most=4000, kept=2**62)
    run(sink, lambda event: (tmp_path / "log").unlink(missing_ok=True) if event.at == 10 else None)
    sink.close()
    assert len(list(tmp_path.iterdir())) > 4


@pytest.mark.parametrize("kept", [0, 3])
def test_what_is_no_regular_file_keeps_its_name(tmp_path, kept):
    """R31: As `/dev/null`, which root could rename: every program of the machine needs it."""
    os.mkfifo(tmp_path / "pipe")
    end = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    seen = []
    sink = JsonLinesSink(tmp_path / "pipe", most=1000, kept=kept)
    run(sink, lambda event: seen.append(len(os.read(end, 100_000))))
    sink.close()
    os.close(end)
    assert sum(seen) > 4000
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


def test_a_pipe_without_a_reader_is_an_error(tmp_path):
    """R31: It is reported once, and the tree goes on: to wait for a reader would block the loop."""
    os.mkfifo(tmp_path / "pipe")
    seen = []
    run(JsonLinesSink(tmp_path / "pipe"), seen.append)
    (failed,) = [event for event in seen if isinstance(event, events.SinkFailed)]
    assert failed.exc.errno == errno.ENXIO
    assert seen[-1].at > 20


@pytest.mark.parametrize("how", ["replaced by a pipe", "in another folder"])
def test_only_the_file_that_the_sink_has_opened_is_renamed(tmp_path, monkeypatch, how):
    """R31: The program of an operator may move it while it is open, or link its name to `/dev/null`; the tree may change its folder."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/log").touch()
    monkeypatch.chdir(tmp_path)
    sink = JsonLinesSink("log", most=2000, kept=3)
    os.mkfifo(tmp_path / "pipe")
    end = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    numbers = itertools.count()

    def strike(_event):
        if next(numbers) == 0:
            if how == "in another folder":
                os.chdir("other")
                return
            Path("log").rename("moved")
            Path("log").symlink_to("pipe")

    run(sink, strike)
    sink.close()
    os.close(end)
    left = {file.name for file in tmp_path.iterdir()} - {"pipe", "other"}
    assert (
        left
        == {
            "replaced by a pipe": {"moved", "log"},
            "in another folder": {"log", "log.1", "log.2", "log.3"},
        }[how]
    )
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "other/log").stat().st_size == 0


def test_a_link_leads_to_the_file_that_is_renamed(tmp_path):
    """R31: `/dev/stdout` is a link too."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "log")
    sink = JsonLinesSink(tmp_path / "link", most=4000, kept=1)
    run(sink)
    sink.close()
    assert (tmp_path / "link").is_symlink()
    assert sorted(file.name for file in (tmp_path / "folder").iterdir()) == ["log", "log.1"]


def test_a_line_longer_than_a_file_has_a_file_for_itself(tmp_path):
    """R31: No line is cut, and no empty file is kept."""
    sink = JsonLinesSink(tmp_path / "log", most=1, kept=2)
    for _ in range(3):
        sink(events.Starting(**WHERE))
    sink.close()
    assert [numbers(tmp_path / name) for name in ("log.2", "log.1", "log")] == [[1], [2], [3]]


def test_a_file_is_appended_to(tmp_path):
    """R31: The events of an earlier run are not lost."""
    for _ in range(2):
        sink = JsonLinesSink(tmp_path / "log")
        sink(events.Starting(**WHERE))
        sink.close()
    assert numbers(tmp_path / "log") == [1, 1]


@pytest.mark.parametrize("before", ["", "{}\n", '{}\n{"v":1,"time":17'])
def test_half_a_line_at_the_end_of_a_file_spoils_no_other(tmp_path, before):
    """R31: A full disk, or a program that is killed, leaves it there."""
    log = tmp_path / "log"
    log.write_text(before)
    sink = JsonLinesSink(log, most=len(before) + 2_000)
    sink(events.Starting(**WHERE))
    sink.close()
    *others, event = log.read_text().splitlines()
    assert others == before.splitlines()
    assert json.loads(event)["seq"] == 1


def test_a_full_disk_is_reported_once_and_hurts_nothing(caplog):
    """R31: The tree goes on without the sink."""
    seen = []
    with Path("/dev/full").open("a") as full:
        run(JsonLinesSink(full), seen.append)
        with pytest.raises(OSError, match="No space left"):
            full.close()
    (failed,) = [event for event in seen if isinstance(event, events.SinkFailed)]
    assert "No space left on device" in str(failed.exc)
    assert sum("gets no further events" in record.message for record in caplog.records) == 1
    assert seen[-1].at > 20


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"target": 7}, TypeError, "target must be a path, a text file or None, got 7"),
        ({"most": 0}, ValueError, "most must be"),
        ({"kept": -1}, ValueError, "kept must be"),
        ({"kept": math.nan}, (TypeError, ValueError), "kept must be"),
    ],
)
def test_what_is_no_target_is_refused(arguments, kind, says):
    """R31: When the sink is made, not at its first event."""
    with pytest.raises(kind, match=says):
        JsonLinesSink(**arguments)
