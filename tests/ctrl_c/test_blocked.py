"""Programs that cannot stop by themselves: a child's code keeps the event loop, or does not yield. Real signals, real processes."""

import faulthandler
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import trio

from supervise import Child, Supervisor, run_tree
from supervise._trio import last_resort

ROOT = Path(__file__).parents[2]
IN_TIME = 120.0

HEAD = """
import os, re, sys, threading, time
import trio
from supervise import *

def say(text):
    os.write(3, f"{text}\\n".encode())

async def spins():
    say("up")
    while True:
        pass

async def sleeps():
    say("up")
    time.sleep(1000)

async def searches():
    say("up")
    re.match(r"(a+)+$", "a" * 60 + "b")

async def stubborn():
    say("up")
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()

async def waits():
    say("up")
    await trio.sleep_forever()

"""


RUNNING = []


class Program:
    """A program under test. Its messages come through a pipe of its own, so that its standard streams are free."""

    def __init__(self, code, **options):
        self.told, tell = os.pipe()
        of_the_terminal = signal.SIG_IGN if options.pop("ignored", False) else signal.SIG_DFL

        def prepare():
            signal.signal(signal.SIGINT, of_the_terminal)
            signal.signal(signal.SIGHUP, of_the_terminal)
            os.dup2(tell, 3)

        self.process = subprocess.Popen(
            [sys.executable, "-c", HEAD + textwrap.dedent(code)],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            preexec_fn=prepare,  # noqa: PLW1509 - a signal that is ignored is inherited, and no thread runs here
            pass_fds=(3, tell),
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
        )
        os.close(tell)
        RUNNING.append(self.process)

    def says(self):
        """The next message of the program."""
        assert select.select([self.told], [], [], IN_TIME)[0], "it says nothing"
        return os.read(self.told, 100).decode().strip()

    def ends(self):
        """Its exit status, and what it wrote to standard error."""
        try:
            _, err = self.process.communicate(timeout=IN_TIME)
        finally:
            os.close(self.told)
        return self.process.returncode, err or ""

    def signal(self, number):
        self.process.send_signal(number)


@pytest.fixture(autouse=True)
def _descriptor_3():
    """There is one to be replaced in the child."""
    made = []
    while not made or made[-1] < 3:
        made.append(os.open(os.devnull, os.O_RDONLY))
    if made[-1] > 3:
        made.append(None)
    yield
    for number in made:
        if number is not None:
            os.close(number)
    while RUNNING:
        process = RUNNING.pop()
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def is_asked(program):
    """The handler of the first signal has run, as a later one of a higher number has; two that are pending are one."""
    program.signal(signal.SIGWINCH)
    assert program.says() == "asked"


ASKED = "import signal; signal.signal(signal.SIGWINCH, lambda *_: say('asked'))\n"


@pytest.mark.parametrize("held", ["spins", "sleeps", "searches", "stubborn"])
@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        (signal.SIGINT, signal.SIGINT, 130),
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGINT, signal.SIGHUP, 129),
    ],
)
def test_the_second_signal_ends_a_program_whatever_keeps_the_loop(held, first, second, status):
    """R20: The loop is kept by Python code, a wait in C, a search in C that holds the interpreter, or a task that does not yield."""
    program = Program(f"{ASKED}run_tree(Supervisor('app', [Child('bad', {held})]), sinks=[])")
    assert program.says() == "up"
    program.signal(first)
    is_asked(program)
    program.signal(second)
    assert program.ends()[0] == status


@pytest.mark.slow
@pytest.mark.parametrize("held", ["spins", "sleeps", "searches", "stubborn"])
def test_the_hard_exit_ends_a_program_whatever_keeps_the_loop(held):
    """R20: Its time counts from the first signal, and it names the child and the place in its code."""
    program = Program(f"run_tree(Supervisor('app', [Child('bad', {held})]), sinks=[], hard_exit_after=0.2)")
    assert program.says() == "up"
    program.signal(signal.SIGTERM)
    status, err = program.ends()
    assert status == 70
    assert "not stopped within 0.2 s" in err
    assert "app/bad" in err
    assert f"in {held}" in err
    assert ("blocked by the code of child 'app/bad'" in err) == (held != "stubborn")


WAYS = {
    "a signal during the start": (
        "Supervisor('app', [Child('a', stubborn_start)])",
        "",
        signal.SIGTERM,
    ),
    "the start fails": (
        "Supervisor('app', [Child('a', stubborn), Child('b', trio.sleep, resource=broken)])",
        "",
        None,
    ),
    "auto_shutdown": (
        "Supervisor('app', [Child('a', stubborn), Child('b', soon, **once)], auto_shutdown='any_significant')",
        "",
        None,
    ),
    "on_limit": (
        "Supervisor('app', [Child('a', stubborn), Child('b', fails)], on_limit='shutdown', limit=Limit(1))",
        "",
        None,
    ),
    "the limit": ("Supervisor('app', [Child('a', stubborn), Child('b', fails)], limit=Limit(1))", "", None),
    "root.stop": ("Supervisor('app', [Child('a', stubborn)])", "stops", None),
    "an interrupt of a child": (
        "Supervisor('app', [Child('a', stubborn), Child('b', interrupted)])",
        "",
        None,
    ),
    "an init that exits": (
        "Supervisor('app', [Child('a', stubborn), Supervisor('s', [], init=sys.exit)])",
        "",
        None,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_hard_exit_counts_however_the_root_begins_to_stop(way):
    """R20: Its time counts from the moment at which the root begins to stop."""
    tree, watch, number = WAYS[way]
    program = Program(
        f"""
        async def stubborn_start(*, task_status):
            await stubborn()

        def broken():
            raise ValueError

        once = {{"restart": "transient", "significant": True}}

        async def soon():
            await trio.sleep(0.1)

        async def fails():
            await trio.sleep(0.05)
            raise ValueError

        async def interrupted():
            await trio.sleep(0.05)
            raise KeyboardInterrupt

        async def stops(tree):
            await trio.sleep(0.1)
            await tree.root.stop()

        run_tree({tree}, sinks=[], hard_exit_after=0.2, watch={watch if watch == "stops" else None})
        """
    )
    assert program.says() == "up"
    if number is not None:
        program.signal(number)
    status, err = program.ends()
    assert status == 70
    assert "app/a" in err


def test_a_healthy_tree_stops_within_a_limit_of_0_seconds():
    """R20: 0 seconds ends only a stop that has to wait; a hundred children that end at once make no such stop."""
    program = Program(
        """
        children = [Child(f"c{n}", trio.sleep_forever) for n in range(100)]
        run_tree(Supervisor("app", [*children, Child("last", waits)]), sinks=[], hard_exit_after=0)
        """
    )
    assert program.says() == "up"
    program.signal(signal.SIGTERM)
    assert program.ends() == (0, "")


def test_a_hard_exit_names_the_overdue_children_and_warns_of_longer_drains():
    """R20: It does not print the stacks of a hundred tasks that are not overdue."""
    program = Program(
        """
        async def drains():
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep_forever()

        children = [Child(f"c{n}", trio.sleep_forever) for n in range(100)]
        slow = Child("slow", waits, drain=9)
        run_tree(Supervisor("app", [*children, slow]), sinks=[], hard_exit_after=0.2)
        """
    )
    assert program.says() == "up"
    program.signal(signal.SIGTERM)
    status, err = program.ends()
    assert status == 70
    assert "app/slow #1: draining, for up to 9 s" in err
    assert "100 other children had not been asked to stop yet" in err
    assert "the declared drains add up to 9 s, more than the limit of 0.2 s" in err
    assert err.count("\n") < 40


BROKEN = {
    "closed": "sys.stdout.close(); sys.stderr.close()",
    "closed below": "os.close(1); os.close(2)",
    "None": "sys.stdout = sys.stderr = None",
    "objects that raise": "sys.stdout = sys.stderr = type('X', (), {'__getattr__': lambda *_: 1 / 0})()",
    "objects that wait": (
        "sys.stdout = sys.stderr = type('X', (), {'write': lambda *_: time.sleep(1000), 'flush': lambda *_: time.sleep(1000)})()"
    ),
    "full": "",
    "no reader": "",
}


@pytest.mark.slow
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("streams", BROKEN)
def test_no_standard_stream_keeps_a_program_alive(streams, hard):
    """R20: The second signal and the hard exit end the program even if their report cannot be written."""
    ours = {}
    reader = writer = None
    if streams in ("full", "no reader"):
        reader, writer = os.pipe()
        ours = {"stdout": writer, "stderr": writer}
        if streams == "full":
            os.set_blocking(writer, False)
            with pytest.raises(BlockingIOError):
                while True:
                    os.write(writer, b"x" * 4096)
            os.set_blocking(writer, True)
        else:
            os.close(reader)
    limit = 0.2 if hard else None
    program = Program(
        f"""
        {ASKED.strip()}
        sys.stdout.write("kept in its buffer")
        {BROKEN[streams] or "pass"}
        run_tree(Supervisor("app", [Child("bad", stubborn)]), sinks=[], hard_exit_after={limit})
        """,
        **ours,
    )
    assert program.says() == "up"
    program.signal(signal.SIGTERM)
    if not hard:
        is_asked(program)
        program.signal(signal.SIGTERM)
    assert program.ends()[0] == (70 if hard else 143)
    for number in (writer, reader if streams == "full" else None):
        if number is not None:
            os.close(number)


@pytest.mark.slow
@pytest.mark.parametrize("held", ["spins", "sleeps", "searches"])
def test_the_watchdog_names_the_child_whose_code_keeps_the_loop(held):
    """R20: It prints the stack while the code runs, also if that code runs in a nursery of the child's own."""
    program = Program(
        f"""
        async def bad():
            async with trio.open_nursery() as nursery:
                nursery.start_soon({held})

        tree = Supervisor("app", [Child("good", trio.sleep_forever), Supervisor("in", [Child("bad", bad)])])
        run_tree(tree, sinks=[], watchdog=0.2)
        """
    )
    assert program.says() == "up"
    lines = []
    while not any(f"in {held}" in line for line in lines):
        lines.append(program.process.stderr.readline())
        assert lines[-1], "it ended"
    assert any("by the code of child 'app/in/bad'" in line for line in lines)
    program.signal(signal.SIGTERM)
    program.signal(signal.SIGINT)
    program.ends()


@pytest.mark.slow
def test_the_watchdog_reports_when_the_loop_turns_again_and_nothing_otherwise():
    """R20: A loop that turns is not reported."""
    program = Program(
        """
        async def blocks():
            await trio.sleep(0.5)
            say("well so far")
            time.sleep(3)
            say("up")
            await trio.sleep_forever()

        import logging
        logging.basicConfig(level="WARNING")
        run_tree(Supervisor("app", [Child("bad", blocks)]), sinks=[], watchdog=0.5)
        """
    )
    assert program.says() == "well so far"
    assert program.says() == "up"
    line = program.process.stderr.readline()
    assert "blocked for" in line
    while "turns again" not in line:
        line = program.process.stderr.readline()
    program.signal(signal.SIGTERM)
    assert program.ends() == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("line", ["blocked for", "turns again"])
def test_a_log_that_exits_at_a_line_of_the_watchdog_stops_the_tree_in_order(line):
    """R4: In the thread of the watchdog the exit would end that thread alone."""
    program = Program(
        f"""
        import logging

        class Exits(logging.Handler):
            def emit(self, record):
                if {line!r} in record.getMessage():
                    raise SystemExit(3)

        async def drains():
            await stop_requested()
            say("drained")

        async def blocks():
            await trio.sleep(0.5)
            time.sleep(2)
            await trio.sleep_forever()

        logging.getLogger("supervise").addHandler(Exits())
        tree = Supervisor("app", [Child("drains", drains, drain=9), Child("bad", blocks)])
        run_tree(tree, sinks=[], watchdog=0.5)
        """
    )
    assert program.says() == "drained"
    assert program.ends()[0] == 3


@pytest.mark.slow
def test_the_watchdog_does_not_take_a_stopped_process_for_a_blocked_loop():
    """R20: While the process was stopped the loop did not run either, so the watchdog looks once more."""
    program = Program(
        """
        run_tree(Supervisor("app", [Child("idle", waits)]), sinks=[], watchdog=0.2)
        """
    )
    assert program.says() == "up"
    for _ in range(3):
        program.signal(signal.SIGSTOP)
        time.sleep(1.5)  # longer than the watchdog's patience and its margin
        program.signal(signal.SIGCONT)
        time.sleep(0.3)
    program.signal(signal.SIGTERM)
    assert program.ends() == (0, "")


def test_a_watchdog_does_not_put_off_the_end_of_a_stop():
    """R20: Watchdog and hard exit set one timer, which lets threads run beside code that holds the interpreter; the earlier of the two counts."""
    with last_resort.alarms():
        last_resort.HardExit(5, lambda: None).begin()
        faulthandler.cancel_dump_traceback_later()
        last_resort.set_alarm(60)
        assert signal.getitimer(signal.ITIMER_REAL)[0] <= 6
        last_resort.set_alarm(2)
        assert signal.getitimer(signal.ITIMER_REAL)[0] <= 2
    with last_resort.alarms():
        last_resort.set_alarm(60)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_of_three_signals_stops_in_order(number):
    """R20: SIGHUP, which a closing terminal sends, does so too."""
    program = Program(
        """
        async def drains():
            say("up")
            await stop_requested()
            say("drained")
        run_tree(Supervisor("app", [Child("a", drains, drain=30)]), sinks=[])
        """
    )
    assert program.says() == "up"
    program.signal(number)
    assert program.says() == "drained"
    assert program.ends()[0] == 0


def test_a_signal_that_was_ignored_from_the_start_stays_ignored():
    """R20: `nohup`, and `&` in a script, ignore SIGINT or SIGHUP for the program that they start."""
    program = Program(f"{ASKED}run_tree(Supervisor('app', [Child('a', waits)]), sinks=[])", ignored=True)
    assert program.says() == "up"
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGINT, signal.SIGHUP):
        program.signal(number)
    is_asked(program)
    program.signal(signal.SIGTERM)
    assert program.ends()[0] == 0


def test_sighup_reloads_if_a_declaration_can_be_made_anew_even_under_nohup():
    """R20, R38: If it cannot, that is one line in the log, and the tree goes on."""
    program = Program(
        """
        import logging
        class Says(logging.Handler):
            def emit(self, record):
                say(record.getMessage())
        logging.getLogger("supervise").addHandler(Says())
        made = []
        async def says(n):
            say(f"body {n}")
            await trio.sleep_forever()
        def make():
            made.append(1)
            if len(made) == 3:
                raise ValueError("line 7")
            return Supervisor("app", [Child("a", says, args=[len(made)])])
        run_tree(make(), reload=make, sinks=[])
        """,
        ignored=True,
    )
    assert program.says() == "body 1"
    program.signal(signal.SIGHUP)
    assert program.says() == "body 2"
    program.signal(signal.SIGHUP)
    assert program.says() == "reload: line 7"
    program.signal(signal.SIGHUP)
    assert program.says() == "body 4"
    program.signal(signal.SIGTERM)
    assert program.ends()[0] == 0


def test_what_makes_a_declaration_anew_is_a_plain_function():
    """R38."""

    async def never():
        raise AssertionError

    for wrong, message in (
        (never, "reload must be a plain function"),
        (3, "reload must be a function"),
        (len, "reload"),
    ):
        with pytest.raises(TypeError, match=message):
            run_tree(Supervisor("app", []), reload=wrong)


@pytest.mark.parametrize(("held", "lives"), [("waits", True), ("spins", False)])
def test_sigusr1_writes_all_stacks_and_stops_nothing(held, lives):
    """R20: It writes those of the threads in any case, and those of the tasks as soon as the loop turns."""
    program = Program(f"run_tree(Supervisor('app', [Child('a', {held})]), sinks=[])")
    assert program.says() == "up"
    program.signal(signal.SIGUSR1)
    lines = []
    while not (("app/a\n" in lines) if lives else any(f"in {held}" in line for line in lines)):
        lines.append(program.process.stderr.readline())
        assert lines[-1], "it ended"
    assert any("most recent call first" in line for line in lines)
    program.signal(signal.SIGTERM)
    if not lives:
        program.signal(signal.SIGINT)
    assert program.ends()[0] in (0, 130, 143)


def test_run_tree_outside_the_main_thread_is_refused_in_one_line():
    """Only the main thread gets signals."""
    raised = []

    def other():
        try:
            run_tree(Supervisor("app", [Child("a", trio.sleep_forever)]))
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert isinstance(raised[0], RuntimeError)
    assert "main thread" in str(raised[0])


@pytest.mark.parametrize("name", ["hard_exit_after", "watchdog"])
@pytest.mark.parametrize("value", [-1, float("nan"), "x", True])
def test_a_wrong_limit_is_refused_by_its_name(name, value):
    """It is refused before anything starts."""
    with pytest.raises((TypeError, ValueError), match=name):
        run_tree(Supervisor("app", [Child("a", trio.sleep_forever)]), **{name: value})


@pytest.mark.parametrize("watch", [5, [None], "wx"])
def test_a_watch_that_cannot_be_called_is_refused(watch):
    """It is refused before anything starts, by its name."""
    with pytest.raises(TypeError, match=r"^watch must be an async function, or several, got "):
        run_tree(Supervisor("app", [Child("a", trio.sleep_forever)]), watch=watch)


def test_nothing_of_ours_is_left_behind_in_the_process():
    """Signal handlers, timer and threads are the same as before."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]

    async def once():
        pass

    tree = Supervisor(
        "app", [Child("a", once, restart="transient", significant=True)], auto_shutdown="any_significant"
    )
    run_tree(tree, sinks=[], hard_exit_after=float("inf"), watchdog=60)
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    for thread in threading.enumerate():
        if thread.name.startswith("supervise: "):
            thread.join(IN_TIME)
            assert not thread.is_alive()


@pytest.mark.slow
def test_the_hard_exit_reaches_code_that_holds_the_interpreter_and_checks_no_signal():
    """R20: No thread of ours and no handler runs then; a last timer ends the program ten seconds later, with status 1."""
    program = Program(
        """
        async def adds():
            say("up")
            try:
                await trio.sleep_forever()
            finally:
                sum(range(10**13))

        run_tree(Supervisor("app", [Child("adds", adds)]), sinks=[], hard_exit_after=0.5)
        """
    )
    assert program.says() == "up"
    program.signal(signal.SIGTERM)
    assert program.ends()[0] == 1
