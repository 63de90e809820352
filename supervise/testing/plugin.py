"""The pytest plugin: a failed test that ran a tree under virtual time reports the story of that run.

It loads with pytest itself, before any coverage tool, so it imports nothing but pytest.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import pytest


def _forget() -> None:
    virtual: Any = sys.modules.get("supervise.testing.virtual")
    if virtual is not None:
        virtual.last_run = None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Forget the run of an earlier test."""
    _forget()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the story of the last run to the report of a test that failed."""
    report = yield
    virtual: Any = sys.modules.get("supervise.testing.virtual")
    if report.failed and virtual is not None and virtual.last_run is not None and virtual.last_run.report():
        report.sections.append(("supervision tree", virtual.last_run.report()))
    if call.when == "teardown":
        _forget()
    return report
