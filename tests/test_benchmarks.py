"""The benchmarks measure, and what the page shows is what was measured."""

import json
import sys
from pathlib import Path

import pytest
import trio

from benchmarks import counted
from benchmarks.__main__ import BEGIN, END, PAGE, RESULTS, pictures
from benchmarks.engine_trial import trial
from benchmarks.measure import measure
from benchmarks.rows import ROWS
from benchmarks.table import Line, as_markdown, as_text, number
from runners import EngineHost, OpenAIModel
from supervise.programs import Command

SHORT = [row for row in ROWS if row.name in ("storm 500", "crash p50", "frames", "deep")]


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text())


def test_the_page_shows_the_last_results(results):
    """The tables of the page are those of the results."""
    shown = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert shown == f"{as_markdown(results)}\n"


def test_the_pictures_are_drawn_from_the_last_results(results):
    """The pictures of the page, and of the README, are those of the results."""
    for name, picture in pictures(results).items():
        assert (PAGE.parent / name).read_text() == picture, name


@pytest.mark.slow
def test_a_short_run_gives_a_number_for_ours_and_for_the_reference():
    """Each measurement runs in a process of its own and gives what its row reads."""
    short = measure(SHORT, ["trio_floor", "trio_task", "ours"], 1, quick=True)
    for row in SHORT:
        line = Line(row, short)
        assert line.value("ours") is not None, row.name
        if row.reference in ("trio_floor", "trio_task"):
            assert line.ratio > 0, row.name
    assert as_text(short).count("\n") == sum(row.work in [each.work for each in SHORT] for row in ROWS)


def test_a_rate_is_to_be_at_least_its_target_and_a_time_at_most():
    """Whether a target is met depends on which way is better."""
    rows = {row.name: row for row in ROWS}
    assert rows["storm"].met(rows["storm"].target)
    assert not rows["storm"].met(rows["storm"].target - 0.01)
    assert rows["deep"].met(rows["deep"].target)
    assert not rows["deep"].met(rows["deep"].target + 0.01)
    assert rows["declare"].met(1.0) is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0000123, "s", "12.3 µs"),
        (1.5, "s", "1.5 s"),
        (123456.7, "/s", "123,000/s"),
        (2, "", "2"),
        (None, "s", ""),
    ],
)
def test_a_number_has_three_digits_and_its_unit(value, unit, text):
    """A table's numbers claim no more than was measured."""
    assert number(value, unit) == text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "looks"),
    [
        ("start_stop", {"ours": 5, "trio_task": 4, "trio_order": 4}),
        ("group", dict.fromkeys(("ours", "trio_floor"), 2)),
    ],
)
def test_what_is_counted_lies_between_looks_at_the_clock(function, looks):
    """`Operation.begin` and `end` are looks of the adapters: ours declares its children between the first two."""
    assert {who: counted.looks(function, who, 3) for who in looks} == looks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "options", "faults"),
    [
        ([], {"token_ids": True}, []),
        (["interrupts"], {"done_is_enough": True}, ["the beginning of an answer is given for the whole one"]),
    ],
    ids=["good", "interrupts"],
)
def test_the_trial_of_an_engine_finds_part_of_an_answer(how, options, faults, capsys):
    """With `done_is_enough` a stream that another request interrupts looks whole; nothing else is a fault of that engine."""
    pytest.importorskip("httpx2", reason="needs trio-supervise[openai]: httpx2 is not installed")
    engines = str(Path(__file__).parent / "runners" / "engines.py")
    host = EngineHost(Command("engine", [sys.executable, engines, "{port}", "sums", *how]))
    model = OpenAIModel("http://127.0.0.1:{port}/v1", "m", next_chunk_timeout=2, **options)

    found = trio.run(trial, host, model, None)

    assert [fault.partition(":")[0] for fault in found] == faults
    assert "was killed by SIGKILL" in capsys.readouterr().out
