"""The command `supervise plot`: any files give a picture or a table, and a mistake gives one line."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from supervise import Backoff, Child, Supervisor, cli, open_tree
from supervise.cli import plot
from supervise.sinks.data import as_data
from supervise.testing import run_virtual

BEGAN = 1_796_000_000.0


async def gone():
    await trio.sleep(1)
    raise ConnectionError("gone")


def events(until, *, began=BEGAN):
    """The lines of a run of `app`, whose `feed` fails each second and a half."""
    lines = []

    def sink(event):
        data = as_data(event, number=len(lines) + 1, time=began + event.at)
        if "exc" in data:
            data["exc"].pop("traceback", None)  # it has paths of this machine
        lines.append(json.dumps(data) + "\n")

    async def main():
        feed = Child("feed", gone, backoff=Backoff(initial=0.5, factor=1, jitter=0))
        tree = Supervisor("app", [feed, Child("other", trio.sleep_forever)], limit=None)
        async with open_tree(tree, sinks=[sink]):
            await trio.sleep(until)

    run_virtual(main, seed=1)
    return lines


def supervise(*arguments):
    """Its exit status, and what it writes."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main(["plot", *map(str, arguments)])
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("closed", [False, True])
def test_standard_input_may_be_anything(closed):
    """Bytes that are not UTF-8 are read, also if the locale is strict. A standard input that was closed gives one line."""
    command = f"exec {sys.executable} -m supervise plot - {'<&-' if closed else ''}"
    given = b"\xff\n" + "".join(events(3)).encode()
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(["sh", "-c", command], input=given, capture_output=True, env=strict, check=False)
    if closed:
        assert (done.returncode, done.stderr) == (2, b"supervise: cannot read -: Bad file descriptor\n")
    else:
        assert done.stderr == b"supervise: lines left out: 1 that are no events\n"
        assert ET.fromstring(done.stdout).tag.endswith("svg")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text("".join(events(3.75)))
    return path


def refused(result, expected):
    """One line says why; a usage error of argparse has its usage before that."""
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("supervise")
    assert expected in err.splitlines()[-1]
    assert err.count("\n") == 1 or err.startswith("usage:")
    assert "Traceback" not in err


def test_a_picture_goes_to_standard_output_or_to_a_file(file, tmp_path):
    """The same SVG."""
    status, out, err = supervise(file)
    assert (status, err) == (0, "")
    assert ET.fromstring(out).get("width") == "1000"
    assert supervise(file, "-o", tmp_path / "a.svg") == (0, "", "")
    assert (tmp_path / "a.svg").read_text() == out
    assert ET.fromstring(supervise(file, "--width", 400)[1]).get("width") == "400"


def test_a_png(file, tmp_path):
    """It needs the extra, which draws it without a browser."""
    pytest.importorskip("resvg_py", reason="needs trio-supervise[plot]")
    assert supervise(file, "-o", tmp_path / "a.png", "--width", 500) == (0, "", "")
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert int.from_bytes(content[16:20]) == 500


def test_without_the_extra_one_line_names_it(file, tmp_path, monkeypatch):
    """Before any file is read."""
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    refused(supervise(file, "-o", tmp_path / "a.png"), "pip install 'trio-supervise[plot]'")
    refused(supervise("nowhere", "-o", tmp_path / "a.png"), "trio-supervise[plot]")


def test_the_tables(file):
    """As text, and a line of JSON for each row."""
    assert supervise(file, "--startup")[1].startswith("app was ready after 0.000 s\n")
    assert "2 failures, 2 recovered" in supervise(file, "--recovery")[1]
    rows = [json.loads(line) for line in supervise(file, "--recovery", "--json")[1].splitlines()]
    assert [(row["path"], round(row["gap"], 6)) for row in rows] == [("app/feed", 0.5), ("app/feed", 0.5)]
    starts = [json.loads(line) for line in supervise(file, "--startup", "--json")[1].splitlines()]
    assert [(row["path"], row["outcome"]) for row in starts] == [
        (path, "ready") for path in ("app", "app/feed", "app/other")
    ]
    assert supervise(file, "--recovery", "--node", "app/other")[1] == "no failures\n"
    assert supervise(file, "--recovery", "-o", file.with_name("table.txt")) == (0, "", "")
    assert "2 failures" in file.with_name("table.txt").read_text()


def test_a_node_is_found_by_its_name_and_as_it_is_shown(file):
    """A name may have characters that are shown as escapes."""
    lines = file.read_text().splitlines()
    data = [json.loads(line) for line in lines]
    file.write_text(
        "".join(json.dumps({**one, "path": one["path"].replace("feed", "fe\ned")}) + "\n" for one in data)
    )
    starts = supervise(file, "--startup", "--json", "--node", "app/fe\ned")
    assert starts == supervise(file, "--startup", "--json", "--node", r"app/fe\ned")
    assert json.loads(starts[1])["path"] == r"app/fe\ned"


def test_renamed_files_are_read_from_the_oldest(tmp_path):
    """In whatever order they are given, and each once."""
    lines = events(9)
    for name, part in (("log.2", lines[:9]), ("log.1", lines[9:20]), ("log", lines[20:])):
        (tmp_path / name).write_text("".join(part))
    (tmp_path / "whole").write_text("".join(lines))
    whole = supervise(tmp_path / "whole")
    names = [tmp_path / name for name in ("log", "log.1", "log.2", "log")]
    assert supervise(*names) == supervise(*reversed(names)) == whole


def test_several_runs(tmp_path):
    """The last one is drawn, unless `--run` names another."""
    (tmp_path / "log").write_text(
        "".join([*events(2), *events(3.75, began=BEGAN + 60), *events(6, began=BEGAN + 120)])
    )
    rows = [
        supervise(tmp_path / "log", "--recovery", *run)[1].splitlines()[-1][:11]
        for run in ((), ("--run", 1), ("--run", 2))
    ]
    assert rows == ["4 failures,", "1 failure, ", "2 failures,"]
    assert "run 3 of 3" in supervise(tmp_path / "log")[1]
    refused(supervise(tmp_path / "log", "--run", 4), "--run must be from 1 to 3")
    refused(supervise(tmp_path / "log", "--run", 0), "--run must be from 1 to 3")


def test_lines_that_are_no_events_are_counted_in_one_line(tmp_path):
    """Torn lines, other versions, unknown kinds; log records are no trouble."""
    odd = [
        '{"v":1,"ti\n',
        "Traceback (most recent call last):\n",
        '{"v":1,"time":1.0,"kind":"Log"}\n',
        '{"v":3,"kind":"X"}\n',
        '{"v":1,"kind":"New"}\n',
    ]
    (tmp_path / "log").write_text("".join([*odd, *events(3)]))
    status, out, err = supervise(tmp_path / "log", "--recovery")
    assert (status, err.count("\n")) == (0, 1)
    assert out.endswith("longest 0.500 s\n")
    parts = (
        "2 that are no events",
        "1 of version 3, where this program knows version 1",
        "1 of the unknown kind 'New'",
    )
    assert all(part in err for part in parts), err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "has no events"),
        ("\n\n", "has no events"),
        ("[" * 100_000, "has no events"),
        ('{"v":2}\n', "has no events"),
    ],
    ids=["empty", "blank", "nested", "version"],
)
def test_a_file_without_events(tmp_path, content, expected):
    """One line says so, after one that says what there was instead."""
    (tmp_path / "log").write_text(content)
    status, out, err = supervise(tmp_path / "log")
    assert (status, out) == (2, "")
    assert expected in err.splitlines()[-1]
    assert err.count("\n") <= 2


def test_a_file_of_any_bytes(tmp_path):
    """Not even a picture is mistaken for events."""
    (tmp_path / "log").write_bytes(bytes(range(256)) * 8)
    status, out, err = supervise(tmp_path / "log")
    assert (status, out) == (2, "")
    assert "has no events" in err


LINES = "".join(events(3)).encode()


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    return tmp_path_factory.mktemp("cut") / "log"


@settings(max_examples=60)
@given(
    st.integers(0, len(LINES)),
    st.integers(0, len(LINES)),
    st.sampled_from([(), ("--startup",), ("--recovery",)]),
)
def test_a_file_that_is_cut_anywhere(cut, one, other, options):
    """It gives a picture or a table, and at most one line about the torn lines; or one line, if no event is left."""
    cut.write_bytes(LINES[min(one, other) : max(one, other)])
    status, out, err = supervise(cut, *options)
    assert "Traceback" not in err
    if status:
        assert (status, out) == (2, "")
        assert err.splitlines()[-1].endswith("has no events")
    else:
        assert out.startswith("<svg") or options
        assert err.count("\n") <= 1
        assert not err or "that are no events" in err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--width", "12"], "invalid number of pixels from 300 to 10000 value: '12'"),
        (["--width", "wide"], "invalid number of pixels"),
        (["--json"], "--json needs --startup or --recovery"),
        (["--startup", "--recovery"], "not allowed with argument"),
        (["--startup", "--from", "1"], "are for the picture"),
        (["--recovery", "-o", "a.png"], "are for the picture"),
        (["--node", "app/fed"], "no node 'app/fed' in this run; did you mean 'app/feed'?"),
        (["--from", "noon"], "--from must be seconds since the run began, or a local time"),
        (["--to", "25:00"], "--to must be seconds"),
        (["--from", "3", "--to", "2"], "--from must be before --to"),
        (
            ["--from", "99"],
            "--from must be before --to and before the end of the run, 3.75 s after its beginning",
        ),
        (["-o", "no/such/folder/a.svg"], "cannot write to no/such/folder/a.svg: No such file or directory"),
    ],
)
def test_a_mistake_gives_one_line(file, options, expected, monkeypatch):
    """It names the option, what is allowed, and what came."""
    monkeypatch.chdir(file.parent)
    refused(supervise("events.jsonl", *options), expected)


def test_files_that_cannot_be_read(tmp_path):
    """One line names the file."""
    refused(supervise(tmp_path / "nowhere"), f"cannot read {tmp_path / 'nowhere'}: No such file or directory")
    refused(supervise(tmp_path), f"cannot read {tmp_path}: Is a directory")


def test_a_window_by_seconds_and_by_local_time(file, monkeypatch):
    """`--from` and `--to` mean the same in every form."""
    monkeypatch.setenv("TZ", "UTC")
    import time

    time.tzset()
    by_seconds = supervise(file, "--from", "0.5", "--to", "2")
    assert "1 failure" in by_seconds[1]
    assert supervise(file, "--from", "00:53:20.500", "--to", "2026-11-30T00:53:22") == by_seconds
    monkeypatch.undo()
    time.tzset()


def test_standard_input_and_a_pipe_whose_reader_has_left(file):
    """`-` reads events from a pipe; as any command it ends quietly if nothing reads its own."""
    command = [sys.executable, "-P", "-m", "supervise.cli", "plot", "-"]
    root = str(Path(__file__).parents[2])
    result = subprocess.run(
        ["sh", "-c", '"$@" | head -c 4', "sh", *command],
        input=file.read_bytes(),
        capture_output=True,
        env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin"},
        timeout=60,
        check=False,
    )
    assert (result.stdout, result.stderr) == (b"<svg", b"")


COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in the background of a script
from supervise.cli import main
main()
"""


@pytest.mark.parametrize("command", ["plot", "check", "tree"])
def test_an_interrupt_ends_a_command_in_silence(command, tmp_path):
    """With 130, as it ends those for a running tree. The command is struck while it reads a file, or loads one."""
    if command == "plot":
        file = tmp_path / "events.jsonl"
        os.mkfifo(file)
    else:
        file = tmp_path / "app.py"
        file.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    run = subprocess.Popen(
        [sys.executable, "-c", COMMAND, command, file],
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
        stderr=subprocess.PIPE,
    )
    if command == "plot":
        with file.open("w"):  # waits until the command has opened it
            run.send_signal(signal.SIGINT)
            _, errors = run.communicate(timeout=60)
    else:
        _, errors = run.communicate(timeout=60)
    assert (run.returncode, errors) == (130, b"")
