"""Tools for testing trees: virtual time with a seeded schedule, faults as data, and a check of events.

`FaultPlan.over` puts faults into a declared tree; `run_virtual` runs it, `simulate` predicts its events without running it;
`assert_lifecycle` checks the events of either; `transcript` makes text of them. `trees`, `scripts` and `fault_plans` are Hypothesis
strategies: Hypothesis is imported at the first use of one of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .children import echo, idle, nothing, starter
    from .faults import Delay, Fail, FaultPlan, Hang, Injected, Return, Script
    from .lifecycle import assert_lifecycle
    from .simulation import simulate
    from .story import transcript
    from .strategies import fault_plans, scripts, trees
    from .virtual import run_virtual

_HOMES = {
    "Delay": "faults",
    "Fail": "faults",
    "FaultPlan": "faults",
    "Hang": "faults",
    "Injected": "faults",
    "Return": "faults",
    "Script": "faults",
    "assert_lifecycle": "lifecycle",
    "echo": "children",
    "fault_plans": "strategies",
    "idle": "children",
    "nothing": "children",
    "run_virtual": "virtual",
    "scripts": "strategies",
    "simulate": "simulation",
    "starter": "children",
    "transcript": "story",
    "trees": "strategies",
}

__all__ = [
    "Delay",
    "Fail",
    "FaultPlan",
    "Hang",
    "Injected",
    "Return",
    "Script",
    "assert_lifecycle",
    "echo",
    "fault_plans",
    "idle",
    "nothing",
    "run_virtual",
    "scripts",
    "simulate",
    "starter",
    "transcript",
    "trees",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
