"""A sample of `python -m tests.refusals`."""

from __future__ import annotations

import pytest

from ..chance import chance
from .programs import PROGRAMS
from .refuse import Refusal, refusals, run, why_not, wrong_with

SAMPLE = 4
"""Refusals of each program."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_is_refused_a_call_goes_on_or_ends_in_order(name):
    """D10: It leaves no process, no request without an answer, and no exception that reaches no code."""
    reason = why_not(name)
    if reason is not None:
        pytest.skip(reason)
    for refusal in chance().sample(refusals(name, 6), SAMPLE):
        ended = run(name, refusal)
        assert not ended.wrong, str(refusal)


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
    assert wrong_with(status, said, errors, Refusal("pipe2", 1)) == wrong


def test_a_failure_without_a_refusal_is_a_violation_of_the_search_itself():
    """Such a program would show nothing."""
    assert wrong_with(0, '[["StartFailed", "it"]]', "", None) == "it raised [['StartFailed', 'it']]"
