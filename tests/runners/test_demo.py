"""The demo, run as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.holdings import abandoned

ROOT = Path(__file__).parents[2]
KEYS = [
    "requests",
    "tokens",
    "restarts",
    "lost",
    "duplicated",
    "expected_errors",
    "identical",
    "longest_gap_ms",
    "tree_failed",
    "streams",
    "faults",
]


def demo(*arguments, cwd=ROOT, **options):
    command = [sys.executable, "-m", "runners.demo", *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, **options
    )


def children(pid):
    """The processes that `pid` has started and that are still there."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for child in task.read_text().split()
    ]


def state(pid):
    """The state letter of a process; Z or nothing is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def eventually(condition, what, seconds=60.0):
    """Wait, in real time, for something outside of this process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def marked(mark):
    """The processes whose environment holds `mark`."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [environ.parent.name] * (mark.encode() in environ.read_bytes())
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def calm():
    return json.loads(demo("--json", "--fault", "none").stdout)


def test_without_a_fault_nothing_restarts(calm):
    """The report has exactly its keys; a run without faults equals itself."""
    assert list(calm) == KEYS
    assert calm["requests"] == 8
    assert calm["tokens"] > 0
    assert (calm["restarts"], calm["lost"], calm["duplicated"], calm["faults"]) == (0, 0, 0, [])
    assert calm["expected_errors"] == 0
    assert calm["identical"] is True
    assert calm["tree_failed"] is False


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "segv", "poison", "hang"])
def test_a_fault_costs_no_token(calm, kind, tmp_path):
    """D6, D10: Whatever happens to the process in mid-stream, every stream equals its fault-free text, and nothing is left behind."""
    shared = abandoned()
    result = demo("--json", "--fault", kind, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert marked(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []
    # Another program may be about to map some.
    eventually(lambda: abandoned() <= shared, "no shared memory is left")
    report = json.loads(result.stdout)
    assert (report["lost"], report["duplicated"], report["tree_failed"]) == (0, 0, False)
    assert report["identical"] is True
    assert report["streams"] == calm["streams"]
    assert report["restarts"] == 1
    (fault,) = report["faults"]
    assert fault["kind"] == kind
    assert 0 < fault["token"] < report["tokens"] // report["requests"] - 1
    assert fault["pid_before"] != fault["pid_after"]


@pytest.mark.slow
def test_an_oversized_request_alone_fails(calm):
    """D5: It gets `OutOfMemory`; nothing restarts, the process stays, and every other stream is as without it."""
    result = demo("--json", "--fault", "oom")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["requests"], report["expected_errors"], report["restarts"]) == (8, 1, 0)
    assert (report["lost"], report["duplicated"], report["tree_failed"]) == (0, 0, False)
    assert report["streams"] == calm["streams"]
    (fault,) = report["faults"]
    assert fault["kind"] == "oom"
    assert fault["pid_before"] == fault["pid_after"]


@pytest.mark.slow
def test_all_faults_in_one_run_cost_no_token(calm):
    """D5, D6: The faults come one after the other; each but the oversized request kills a process."""
    result = demo("--json", "--fault", "all")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["streams"] == calm["streams"]
    assert (report["restarts"], report["expected_errors"], report["tree_failed"]) == (4, 1, False)
    faults = report["faults"]
    assert [fault["kind"] for fault in faults] == ["kill", "segv", "poison", "hang", "oom"]
    assert [fault["pid_before"] == fault["pid_after"] for fault in faults] == [False] * 4 + [True]
    assert [fault["pid_after"] for fault in faults[:-1]] == [fault["pid_before"] for fault in faults[1:]]


@pytest.mark.slow
def test_more_faults_than_streams_are_refused():
    """One line, and exit status 2."""
    result = demo("--json", "--fault", "all", "--prompts", "-", input="The import statement\n")
    assert result.returncode == 2
    assert result.stderr == "runners.demo: 5 faults need as many streams of 8 tokens, got 1\n"


def test_a_live_report_is_refused():
    """`--json` is for machines, `--live` for a person."""
    assert demo("--json", "--live").returncode == 2


@pytest.mark.slow
def test_prompts_come_from_standard_input(calm):
    """`--prompts -` reads standard input, and a seed gives the same streams in any invocation."""
    first = (ROOT / "runners" / "demo.txt").read_text().splitlines()[0]
    report = json.loads(demo("--json", "--fault", "none", "--prompts", "-", input=f"\n{first}\n").stdout)
    assert report["streams"] == calm["streams"][:1]


@pytest.mark.slow
def test_a_run_in_which_a_request_got_nothing_is_no_success():
    """D8: The model refuses the prompt, with and without faults."""
    result = demo("--json", "--fault", "none", "--prompts", "-", input=f"{'x' * 100_000}\n")
    assert (result.returncode, json.loads(result.stdout)["identical"]) == (1, False)


@pytest.mark.parametrize("content", [None, "", "\n \n"])
def test_missing_or_empty_prompts_are_one_line(tmp_path, content):
    """A prompt file that is not there, or holds none, is one line and exit status 2."""
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_text(content)
    result = demo("--json", "--prompts", str(file))
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert str(file) in result.stderr


@pytest.mark.slow
def test_supervise_run_shows_what_happens():
    """`supervise run runners.demo` prints tokens, failures, directives, new incarnations, and a summary."""
    command = [sys.executable, "-m", "supervise.cli", "run", "runners.demo"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    for says in (
        "SIGKILL",
        "SIGSEGV",
        "poison",
        "within 1 s",
        "→ Restart",
        "#5] is ready again",
        "→ Resume for 'device.oom'",
        "is resumed with its resource",
    ):
        assert says in result.stderr
    assert "request 1 of 8: 'The import statement'" in result.stdout
    assert "the oversized request: OutOfMemory: " in result.stdout
    assert "8 requests, 1280 tokens, 4 restarts, 0 lost, 0 duplicated" in result.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_live_demo_needs_a_terminal():
    """`--live` without one gives plain lines, and the same streams."""
    result = demo("--live", "--fault", "kill", "--prompts", "-", input="The import statement\n")
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("supervise: no live view, plain lines instead: standard output is not")
    assert "killed by SIGKILL" in result.stderr
    assert "1 restarts, 0 lost" in result.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_no_process_outlives_a_killed_parent(stopped):
    """D10: A host's process dies with its parent, whatever kills the parent, even if it is itself stopped."""
    command = [sys.executable, "-m", "runners.demo", "--fault", "none"]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    while b"request 1" not in parent.stdout.readline():
        pass
    parent.stdout.readline()  # the first stream is under way
    found = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in children(parent.pid)}
    cleaner = found.pop("runners:cleaner")
    (child,) = found.values()
    if stopped:
        os.kill(child, signal.SIGSTOP)
        eventually(lambda: state(child) == "T", "the child is stopped")
    parent.kill()
    parent.communicate()
    eventually(lambda: state(child) == "Z", "the child is gone")
    eventually(lambda: state(cleaner) == "Z", "the cleaner is gone")


def test_the_parent_never_imports_torch():
    """The demo's own process has no torch: importing and declaring its tree brings none."""
    code = "import sys, runners.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
