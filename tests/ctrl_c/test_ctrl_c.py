"""A sample of `python -m tests.ctrl_c`."""

import faulthandler
import os
import signal
import time

import pytest
import trio

from supervise import Child, Supervisor, run_tree

from ..chance import chance
from . import devices, moments, verdict
from .devices import DEVICES
from .fronts import FRONTS
from .moments import BUSY, campaign
from .programs import PROGRAMS
from .strike import CONTEXTLIB, Striker
from .verdict import FOLDERS, Scene, judge, run, tidy

LINES = 60
PAIRS = 15
DEVICE_LINES = 6
FRONT_LINES = 12


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_interrupt_at_any_line_stops_the_tree_in_order_and_leaves_bare(name):
    """R4: This holds for every line of ours, whatever the tree is doing there."""
    program, drawn = PROGRAMS[name], chance()
    problem, plain = run(program)
    assert problem is None
    for line in sorted(drawn.sample(range(1, plain.lines + 1), LINES)):
        problem, striker = run(program, [line])
        if problem is not None:
            tidy()
        assert problem is None, f"at line {line}, {striker.struck}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_second_interrupt_anywhere_leaves_nothing_behind_either(name):
    """R4: Draining ends with it, but the order, every event and the bare exception stay."""
    program, drawn = PROGRAMS[name], chance()
    _, plain = run(program)
    for _ in range(PAIRS):
        first = drawn.randint(1, plain.lines)
        lines = [first, first + drawn.randint(1, 300)]
        problem, striker = run(program, lines)
        if problem is not None:
            tidy()
        assert problem is None, f"at lines {lines}, {striker.struck}"


def test_an_interrupt_between_a_generator_and_its_caller_leaves_no_session_open(monkeypatch):
    """R4: The interrupt strikes in contextlib, which is no code of ours, between the lines of a worker that runs in the task itself."""
    program, found = PROGRAMS["sync_device"], set()

    class Finder(Striker):
        def _is_due(self, frame):
            if frame.f_code.co_filename == CONTEXTLIB:
                found.add(self.lines)
            return super()._is_due(frame)

    with monkeypatch.context() as patch:
        patch.setattr(verdict, "Striker", Finder)
        run(program)
    for line in chance().sample(sorted(found), LINES):
        problem, striker = run(program, [line])
        assert problem is None, f"at line {line}, {striker.struck}"


class OfRunTree(Striker):
    """Keeps the numbers of the lines at which nothing of the tree itself runs."""

    def __init__(self, strikes=()):
        super().__init__(FOLDERS, strikes)
        self.found = []

    def _is_due(self, frame):
        if frame.f_code.co_filename.endswith(("run.py", "last_resort.py", CONTEXTLIB)):
            self.found.append(self.lines)
        return super()._is_due(frame)


def test_an_interrupt_at_any_line_of_run_tree_leaves_nothing_that_ends_the_program_later():
    """R4, R20: The hard exit has begun to count as the tree ended, and would end a program that goes on after the interrupt."""
    threads = len(os.listdir("/proc/self/task"))

    async def once():
        await trio.lowlevel.checkpoint()

    def struck(*lines):
        only = Child("only", once, restart="transient", significant=True)
        striker = OfRunTree(lines)
        try:
            with striker.watching():
                run_tree(
                    Supervisor("app", [only], auto_shutdown="any_significant"),
                    sinks=[],
                    hard_exit_after=60,
                    watchdog=60,
                )
        except KeyboardInterrupt:
            assert lines
        return striker

    # A process in the background of a script has SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = struck().found
        assert len(found) > LINES
        for line in found:
            at = struck(line).struck
            end = time.monotonic() + devices.GONE
            while (
                len(os.listdir("/proc/self/task")) > threads
            ):  # the C library's thread of faulthandler is one of them
                assert time.monotonic() < end, at
                time.sleep(0.001)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, at
            assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL, at
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
def test_an_interrupt_at_any_line_stops_a_device_worker_and_leaves_nothing(name):
    """R4, D10: At every line of the parent's side it leaves no process, no descriptor and no ignored exception."""
    problem, plain = devices.run(DEVICES[name])
    assert problem is None
    drawn = chance()
    strikes = devices.strikes(plain, drawn)
    ours = [at for at in strikes if "/runners/" in at[0][0] or "/programs/" in at[0][0]]
    for at in drawn.sample(ours, DEVICE_LINES):
        problem, striker = devices.strike(DEVICES[name], at)
        if problem is not None:
            tidy()
        assert problem is None, f"at {at}, {striker.struck}"


@pytest.mark.slow
@pytest.mark.parametrize("name", FRONTS)
def test_an_interrupt_at_any_line_that_answers_a_request_stops_the_tree_and_leaves_bare(name):
    """R4: The server of HTTP neither swallows it, nor wraps it in the groups of its nurseries, nor goes on for ever."""
    drawn = chance()
    problem, plain = devices.run(FRONTS[name])
    assert problem is None
    strikes = devices.strikes(plain, drawn)
    ours = [at for at in strikes if any(part in at[0][0] for part in ("/operate/", "/http/", "/serve.py"))]
    for at in drawn.sample(ours, FRONT_LINES):
        problem, striker = devices.strike(FRONTS[name], at)
        if problem is not None:
            tidy()
        assert problem is None, f"at {at}, {striker.struck}"


@pytest.mark.slow
def test_real_signals_at_random_moments_stop_device_workers_in_order():
    """R4, D10: Meanwhile the context is killed again and again."""
    assert moments.devices(4, seed=chance().getrandbits(32), quiet=True) == 0


@pytest.mark.slow
def test_real_signals_at_random_moments_stop_busy_trees_in_order():
    """R4: Each of the busy programs gets two signals."""
    assert campaign(2 * len(BUSY), seed=chance().getrandbits(32), quiet=True) == 0


def test_the_search_strikes_each_line_once_and_at_the_same_place():
    """A program runs the same lines each time; otherwise the search would miss some of them."""
    program = PROGRAMS["crash_loop"]
    _, plain = run(program)
    assert plain.lines > 1000
    assert run(program)[1].lines == plain.lines
    first, second = (run(program, [700])[1].struck for _ in range(2))
    assert first == second
    assert len(first) == 1


def test_the_search_finds_every_kind_of_violation():
    """An exception in a group, a missing exception, an incarnation that does not end and an ignored exception are violations."""
    scene = Scene()
    assert judge(scene, KeyboardInterrupt()) is None
    assert judge(scene, None) == "swallowed"
    assert "leaves as" in judge(scene, BaseExceptionGroup("", [KeyboardInterrupt()]))
    with scene.life("open"):
        assert judge(scene, KeyboardInterrupt()) == "never closed: ['open']"
    scene = Scene()
    scene.ignored.append("RuntimeWarning('never awaited')")
    assert "ignored" in judge(scene, KeyboardInterrupt())
    assert Striker(FOLDERS).lines == 0
