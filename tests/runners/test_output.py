"""What a context writes to its standard output and error becomes log records."""

import errno
import itertools
import logging
import math
import os
import signal

import pytest
import trio
from contexts import (
    contexts,
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    opened,
    until,
)
from hypothesis import given
from hypothesis import strategies as st
from rogues import Preloads, Redirects, Writes
from sessions import (
    BATCH,
    until_failure,
    whole,
)

from runners.errors import ContextDied
from runners.hosts.process import standard
from runners.hosts.process.host import ProcessHost
from runners.hosts.process.parent.output import LINES_PER_SECOND, MAX_LINE, Lines, Output, Ration
from runners.models.scripted import Scripted

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def records(caplog):
    """The records of contexts so far, as (stream, level, line)."""
    caplog.set_level(logging.INFO, "runners.context")

    def get():
        return [
            (record.stream, record.levelno, record.args[-1])
            for record in caplog.records
            if record.name == "runners.context"
        ]

    return get


@pytest.mark.parametrize("end", [1, 2])
def test_a_pipe_that_cannot_be_lifted_leaves_no_descriptor(end, monkeypatch):
    """As where a standard stream is closed, and this process has no descriptor left for either end."""
    numbers, lift = itertools.count(1), standard.above_standard

    def refused(descriptor):
        if next(numbers) == end:
            os.close(descriptor)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return lift(descriptor)

    monkeypatch.setattr(standard, "above_standard", refused)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        Output("any")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
@pytest.mark.trio
async def test_output_becomes_records_that_name_their_context(start, caplog, records):
    """Standard output is INFO, standard error WARNING; each has path, incarnation and pid."""
    trio.lowlevel.current_task().name = "app/llm/context"
    async with opened(Writes("both"), ProcessHost(start=start), incarnation=3) as session:
        await whole(session)
    assert sorted(records()) == [("stderr", 30, "to error"), ("stdout", 20, "to output")]
    record = caplog.records[0]
    assert (record.context, record.pid) == ("app/llm/context[3]", session.pid)
    assert record.getMessage().startswith(f"app/llm/context[3] (pid {session.pid}): to ")


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
@pytest.mark.trio
async def test_output_before_a_death_is_not_lost(start, records):
    """Text written before a SIGKILL arrives, also a line without its end, and stands in the error."""
    async with opened(Writes("last words"), ProcessHost(start=start)) as session:
        session.begin(BATCH)
        _, error = await until_failure(session, ContextDied)
        assert sorted(records()) == [("stderr", 30, "neither here"), ("stdout", 20, "no end of line")]
        assert error.__notes__ == ["the context process wrote last:\nneither here"]


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
@pytest.mark.trio
async def test_all_output_is_read_before_a_death_is_reported(start):
    """This holds however much of it there is: the end of it stands in the error."""
    async with opened(Writes("many last words"), ProcessHost(start=start)) as session:
        session.begin(BATCH)
        _, error = await until_failure(session, ContextDied)
        assert error.__notes__[0].endswith("0999")


@pytest.mark.parametrize("runner", [Writes("segfault"), Redirects("segfault")], ids=["plain", "redirected"])
@pytest.mark.trio
async def test_a_crash_is_reported_with_its_python_stack(runner, records):
    """A segmentation fault is reported with its stack, also if a preload has replaced `sys.stderr`."""
    async with opened(runner) as session:
        session.begin(BATCH)
        _, error = await until_failure(session, ContextDied)
    assert str(error).endswith("was killed by SIGSEGV")
    assert "Fatal Python error: Segmentation fault" in error.__notes__[0]
    assert "rogues.py" in error.__notes__[0]
    (first, level, line), *others = [record for record in records() if record[0] == "stderr"]
    assert (first, level, line) == ("stderr", logging.WARNING, "Fatal Python error: Segmentation fault")
    assert {level for _, level, _ in others} == {logging.INFO}
    assert any("rogues.py" in line for _, _, line in others)


@pytest.mark.trio
async def test_lines_after_the_report_of_a_crash_count_again(records):
    """Only the lines of the report have a lower level, wherever they come from."""
    async with opened(Writes("as if it crashed")) as session:
        await whole(session)
    assert [(level, line) for _, level, line in records()] == [
        (logging.WARNING, "  indented"),
        (logging.WARNING, "Fatal Python error: so it says"),
        (logging.INFO, "Current thread 0x1:"),
        (logging.INFO, '  File "here"'),
        (logging.WARNING, "something else"),
        (logging.WARNING, "  indented"),
    ]


@pytest.mark.trio
async def test_a_flood_is_bounded_and_delays_no_context(records):
    """The context goes on as fast as its output is read; lines beyond so many a second are counted, not logged."""
    began = trio.current_time()
    async with opened(Writes("flood")) as session:
        await whole(session)
    seconds = math.ceil(trio.current_time() - began)
    lines = [line for _, _, line in records()]
    dropped = sum(int(line[1:].split()[0]) for line in lines if line.endswith("dropped)"))
    logged = [line for line in lines if line.isdigit()]
    assert dropped + len(logged) == 100_000
    assert len(logged) <= LINES_PER_SECOND * (seconds + 1)
    assert logged[0] == "0"


@pytest.mark.trio
async def test_a_long_line_is_cut(records):
    """So memory is bounded."""
    async with opened(Writes("long")) as session:
        await whole(session)
    assert [len(line) for _, _, line in records()] == [MAX_LINE, MAX_LINE, 10_000 - 2 * MAX_LINE]


@pytest.mark.trio
async def test_the_buffer_of_c_is_written_at_the_end(records):
    """Leaving by `_exit` flushes it first."""
    async with opened(Writes("C")) as session:
        await whole(session)
    assert records() == [("stdout", 20, "from C")]


@pytest.mark.trio
async def test_a_process_that_inherits_the_pipe_does_not_delay_the_end():
    """D10: A process in a session of its own outlives the context; its output has no owner and is not waited for."""
    async with opened(Writes("lets another write on")) as session:
        await whole(session)


@pytest.mark.trio
async def test_a_standby_and_a_server_have_a_name_too(records, caplog, tmp_path):
    """Output that is written before there is an incarnation has that name."""
    async with opened(Preloads(str(tmp_path), "fails")):
        pass
    assert "fork server of Preloads" not in {record.getMessage() for record in caplog.records}
    os.environ["PYTHONWARNINGS"] = "nonsense"  # the interpreter complains of it
    try:
        async with opened(Scripted(2)) as session:
            await whole(session)
    finally:
        del os.environ["PYTHONWARNINGS"]
    assert any(
        record.context == "fork server of Scripted" for record in caplog.records if hasattr(record, "context")
    )


class _Raises(logging.Filter):
    def __init__(self, exc):
        super().__init__()
        self.exc = exc

    def filter(self, record):
        raise self.exc


@pytest.mark.parametrize("exc", [ZeroDivisionError(), SystemExit(3), GeneratorExit()])
@pytest.mark.trio
async def test_a_log_filter_that_raises_is_reported_once_and_harms_no_context(exc, capsys):
    """A failure of a log handler must not harm the context that it logs. It is raised in a system task, which none may leave."""
    raises = _Raises(exc)
    logger = logging.getLogger("runners.context")
    logger.addFilter(raises)
    try:
        async with opened(Writes("flood")) as session:
            await whole(session)
    finally:
        logger.removeFilter(raises)
    assert capsys.readouterr().err.count("Traceback") == 1


@pytest.mark.trio
async def test_a_log_filter_that_raises_does_no_harm_in_the_hosts_own_reports(capsys):
    """R24: A failed standby is reported from a system task, which no exception may leave."""
    raises = _Raises(ZeroDivisionError())
    logger = logging.getLogger("runners.hosts")
    logger.addFilter(raises)
    host = ProcessHost(standby=1)
    try:
        for incarnation in (1, 2):
            async with opened(Scripted(4), host, incarnation=incarnation) as session:
                await until(lambda: len(contexts()) == 2)
                (standby,) = contexts() - {session.pid}
                os.kill(standby, signal.SIGKILL)
                await until(lambda: len(contexts()) == 1)
                await whole(session)
    finally:
        logger.removeFilter(raises)
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.trio
async def test_signals_that_do_not_end_a_context_are_not_reported():
    """SIGTERM and SIGINT end no context, and give no line either."""
    async with opened(Scripted(4)) as session:
        os.kill(session.pid, signal.SIGTERM)
        await whole(session)
        assert session._peer.output.last_lines() == ""


@given(st.lists(st.text("ab\n", max_size=8)), st.lists(st.integers(0, 40), max_size=6))
def test_lines_are_the_same_however_the_bytes_are_cut(texts, cuts):
    """A line is a line, whatever the pieces."""
    data = "\n".join(texts).encode()
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    lines = Lines()
    got = [line for a, b in zip([0, *ends], ends, strict=False) for line in lines.feed(data[a:b])]
    assert [*got, *lines.end()] == [line for line in data.decode().split("\n") if line]


@given(st.binary(max_size=3 * MAX_LINE))
def test_any_bytes_are_lines_of_bounded_length(data):
    """Bytes that are no text are shown as what they are."""
    lines = Lines()
    for line in [*lines.feed(data), *lines.end()]:
        assert 0 < len(line) <= 4 * MAX_LINE


def test_a_ration_is_counted_anew_each_second():
    """What is refused is counted."""
    ration = Ration(2)
    assert [ration.take(0.1 * i) for i in range(11)] == [True, True, *[False] * 8, True]
    assert ration.refused == 8


@pytest.mark.parametrize(
    ("written", "logged"),
    [
        (b"\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        (b"10%\r20%\r30%", r"10%\r20%\r30%"),
        (b"\x9b31m \xc2\x9b31m", r"\x9b31m \x9b31m"),
        (b"bell\a, back\b\b, null\0", r"bell\x07, back\x08\x08, null\x00"),
        ("a\u2028b\u202ec".encode(), r"a\u2028b\u202ec"),
        ("tab\t, Käse, 日本, 🙂".encode(), "tab\t, Käse, 日本, 🙂"),
        (b"dos\r", "dos"),
    ],
)
def test_what_would_act_on_a_terminal_is_made_visible(written, logged):
    """A context's lines reach terminals and files that believe what they read."""
    assert list(Lines().feed(written + b"\n")) == [logged]
