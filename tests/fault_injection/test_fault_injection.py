"""A sample of `python -m tests.fault_injection`."""

from __future__ import annotations

import socket

import pytest

from benchmarks.loopback import missing, serving

from ..chance import chance
from .inject import HOW, Fault, faults, run, why_not, wrong_with
from .programs import PROGRAMS

# The far host takes longer than all the others together.
NAMES = [name for name in PROGRAMS if name != "far"]
KINDS = dict(zip(NAMES, chance().sample(HOW * 3, len(NAMES)), strict=True))
"""What happens to each program, of each kind as often."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_program_goes_on_or_ends_in_order_whatever_happens_to_a_call(name):
    """D10: It leaves no process, no request without an answer, and no exception that reaches no code. It fails only if a call is refused."""
    reason = why_not(name)
    if reason is not None:
        pytest.skip(reason)
    fault = chance(name).choice([each for each in faults(name, 6) if each.how == KINDS[name]])
    ended = run(name, fault)
    assert not ended.wrong, str(fault)


@pytest.mark.parametrize(
    ("status", "said", "errors", "wrong"),
    [
        (0, "[]", "", ""),
        (0, '[["StartFailed", "it"], ["OSError", "no descriptor"]]', "a log record\nTraceback", ""),
        (-9, "", "", "it ended with status -9: "),
        (1, "", "no memory", "it ended with status 1: no memory"),
        (0, '[["TrioInternalError", "x"]]', "", "it raised [['TrioInternalError', 'x']]"),
        (
            0,
            '[["StartFailed", "x"], ["TooSlowError", ""]]',
            "",
            "it raised [['StartFailed', 'x'], ['TooSlowError', '']]",
        ),
        (0, "[]", "x\nException in thread a:\n", "it wrote x\nException in thread a:\n"),
        (
            0,
            "[]",
            "sys:1: RuntimeWarning: coroutine 'f' was never awaited",
            "it wrote sys:1: RuntimeWarning: coroutine 'f' was never awaited",
        ),
    ],
)
def test_the_search_finds_every_kind_of_violation(status, said, errors, wrong):
    """A death, a defect, a lost request and an ignored exception are violations; a failure with its reason is allowed."""
    assert wrong_with(status, said, errors, Fault("refused", "pipe2", 1)) == wrong


@pytest.mark.parametrize("fault", [None, *(Fault(how, "read", 1) for how in HOW[1:])], ids=str)
def test_a_failure_without_a_refusal_is_a_violation(fault):
    """A delay or a stop costs time alone. And a program that fails without a fault would show nothing."""
    assert wrong_with(0, '[["StartFailed", "it"]]', "", fault) == "it raised [['StartFailed', 'it']]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "struck"), [("delayed after", "(DELAYED)"), ("stopped", "--- stopped by SIGSTOP")]
)
def test_a_fault_strikes(how, struck):
    """A search whose faults did not happen would find nothing."""
    reason = why_not("printing")
    if reason is not None:
        pytest.skip(reason)
    ended = run("printing", Fault(how, "recvmsg", 1))
    assert struck in ended.calls
    assert not ended.wrong


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_an_sshd_that_cannot_listen_has_failed_at_once(tmp_path):
    """A program that is refused its own sshd fails for that reason: it is neither wrong nor waits."""
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ChildProcessError, match=r"does not listen: .*Address already in use"),
        serving(tmp_path, port=taken.getsockname()[1]),
    ):
        pytest.fail("it listens at a port that is taken")
