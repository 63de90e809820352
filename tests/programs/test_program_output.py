"""The output of a program: one line, one log record."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import Decider, Stop
from supervise.programs import output
from supervise.programs.output import Output

from .little import FOR_EVER, Seen, little, opened, until


class Records(logging.Handler):
    """A handler that keeps the records of one program."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@contextmanager
def recorded(handler=None):
    handler = handler or Records()
    logger = logging.getLogger("supervise.programs.little")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


@pytest.mark.trio
async def test_each_line_is_a_record_with_the_level_of_its_stream(tmp_path):
    """Its path, pid and stream are attributes; an empty line is none, and a control character cannot act on a terminal."""
    script = (
        r"import sys; print('one\n\n\tt\x1b[2Jwo\r'); print('three', file=sys.stderr, flush=True); print('up', flush=True)"
        "\n"
    )
    with recorded() as log:
        async with opened(little(script + FOR_EVER, tmp_path), tmp_path) as (_, running):
            await until(lambda: len(log.records) == 4)
    seen = {(record.levelname, record.stream, record.getMessage()) for record in log.records}
    who = f"app/little (pid {running.pid}): "
    assert seen == {
        ("INFO", "stdout", f"{who}one"),
        ("INFO", "stdout", who + r"	t\x1b[2Jwo"),
        ("WARNING", "stderr", f"{who}three"),
        ("INFO", "stdout", f"{who}up"),
    }
    assert {(record.path, record.pid) for record in log.records} == {("app/little", running.pid)}


@pytest.mark.trio
async def test_a_flood_is_read_to_its_end_and_what_is_dropped_is_counted(tmp_path):
    """A program whose pipe is full would stand still; this one writes ten times as much as a pipe holds."""
    script = "for number in range(100_000): print('line', number)\nprint('up', flush=True)\n"
    with recorded() as log:
        async with opened(little(script + FOR_EVER, tmp_path), tmp_path):
            pass
    dropped = [record for record in log.records if "too many in a second, dropped" in record.getMessage()]
    lines = len(log.records) - len(dropped)
    assert dropped
    assert (
        lines
        + sum(
            int(record.getMessage().partition("(pid ")[2].partition("(")[2].split()[0]) for record in dropped
        )
        == 100_001
    )


@pytest.mark.trio
async def test_a_long_line_becomes_several_records(tmp_path):
    """And a last line without an end is a line too."""
    script = "import sys; sys.stdout.write('x' * 10_000 + '\\nup\\n'); sys.stdout.flush(); sys.stdout.write('end'); sys.exit(1)"
    with recorded() as log:
        spec = little(script, tmp_path, decider=Decider({"command": Stop}))
        async with opened(spec, tmp_path) as (tree, _):
            await tree[spec].ended()
    lengths = [len(record.args[2]) for record in log.records]
    assert sum(length for length in lengths if length > 3) == 10_000
    assert max(lengths) <= 8192
    assert log.records[-1].args[2] == "end"


@pytest.mark.trio
async def test_the_last_lines_are_a_note_of_the_error(tmp_path):
    """Forty of them, also those that the log did not get."""
    seen = Seen()
    script = "print('up', flush=True)\nfor number in range(5000): print(number)\nimport sys; sys.exit(1)"
    spec = little(script, tmp_path, decider=Decider({"command": Stop}))
    async with opened(spec, tmp_path, seen) as (tree, _):
        await tree[spec].ended()
    head, *lines = seen.failures()[0].__notes__[0].splitlines()
    assert head == "the last lines of its output:"
    assert lines == [str(number) for number in range(4960, 5000)]


@pytest.mark.trio
async def test_a_handler_that_raises_silences_the_log_and_hurts_nothing(tmp_path, capsys):
    """Its traceback is printed once."""

    class Broken(logging.Handler):
        def emit(self, record):
            raise RuntimeError("the disk is full")

    with recorded(Broken()):
        script = "print('one', flush=True)\nprint('up', flush=True)\n" + FOR_EVER
        async with opened(little(script, tmp_path), tmp_path):
            pass
    assert capsys.readouterr().err.count("RuntimeError: the disk is full") == 1


@pytest.mark.trio
@pytest.mark.parametrize("end", [FOR_EVER, ""])
async def test_what_is_no_exception_leaves_a_handler_bare(tmp_path, end):
    """R4: A system task reads the output, and would end the run of Trio with it; the tree stops in order instead."""

    class Leaves(logging.Handler):
        def emit(self, record):
            raise SystemExit("from the log")

    spec = little(f"print('up', flush=True)\n{end}", tmp_path, ready=None)
    with recorded(Leaves()), pytest.raises(SystemExit, match="from the log"):
        async with opened(spec, tmp_path) as (tree, _):
            await tree.root.ended()


def test_a_flood_of_short_lines_costs_what_is_logged_and_kept():
    """To make a text of each of a hundred thousand lines a second would block the loop; those that nothing needs are counted."""

    async def main():
        with recorded() as log:
            one = Output("little", "app/little")
            taken = []
            take = one.take
            one.take = lambda line, *which, **how: taken.append(line) or take(line, *which, **how)
            os.write(one.streams[0].theirs, b"\n".join(b"%d" % number for number in range(10_000)) + b"\n")
            one.streams[0]._read()
            os.write(one.streams[0].theirs, b"more\n" * 10_000)
            one.streams[0]._read()
            assert len(taken) == output.LINES_PER_SECOND + 2 * output.LAST_LINES
            assert taken[output.LINES_PER_SECOND] == "9960"
            assert list(one.last) == ["more"] * output.LAST_LINES
            one.streams[0]._end()
            one.close()
        assert log.records[-1].args[2] == "(19500 lines too many in a second, dropped)"

    trio.run(main, clock=trio.testing.MockClock())


def test_a_line_that_is_waited_for_is_found_in_a_flood():
    """Every line goes to those who listen."""

    async def main():
        with recorded():
            one = Output("little", "app/little")
            heard = []
            one.listeners.append(heard.append)
            os.write(one.streams[0].theirs, b"x\n" * 5_000 + b"up\n" + b"x\n" * 5_000)
            one.streams[0]._read()
            one.close()
            assert heard.count("up") == 1
            assert len(heard) == 10_001

    trio.run(main, clock=trio.testing.MockClock())


def test_the_number_of_lines_in_a_second_is_bounded():
    """Those of the next second count anew, and tell how many were dropped."""

    async def main():
        with recorded() as log:
            one = Output("little", "app/little")
            for _ in range(output.LINES_PER_SECOND + 3):
                one.streams[0]._take("x")
            await trio.sleep(1)
            one.streams[0]._take("y")
            one.close()
        texts = [record.args[2] for record in log.records]
        assert texts[-2:] == ["(3 lines too many in a second, dropped)", "y"]
        assert len(texts) == output.LINES_PER_SECOND + 2

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@given(
    st.lists(
        st.sampled_from(
            [
                b"a",
                b"'",
                b'"',
                b"\\",
                b"\\udcff",
                b"\0",
                b"\t",
                b"\x1b[0m",
                b"\xff",
                b"\xed\xb3\xbf",
                "é\u2028".encode(),
            ]
        )
    )
)
def test_what_cannot_be_printed_is_escaped(pieces):
    """Each byte that is not UTF-8, and each control character but the tabulator, as Python writes it in a literal."""
    text = b"".join(pieces).decode(errors="backslashreplace").rstrip()
    shown = "".join(char if char.isprintable() or char == "\t" else repr(char)[1:-1] for char in text)
    assert list(output._texts(b"".join(pieces))) == ([shown] if text else [])


@pytest.mark.parametrize("byte", [b"\0", b"\x1b"])
def test_binary_data_costs_no_step_for_each_byte(byte):
    """A program that writes an image, say, does not hold up the loop."""
    steps = 0

    def count(*_):
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        texts = list(output._texts(byte * 4 * output.MAX_LINE))
    finally:
        sys.setprofile(None)
    assert len(texts) == 4
    assert steps < output.MAX_LINE
