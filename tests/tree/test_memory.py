"""R31: nothing accumulates. The short form of `python -m benchmarks.memory`."""

import pytest

from benchmarks import memory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("question", "turns"),
    [
        (memory.leaf, 5_000), (memory.group, 60), (memory.nested, 500), (memory.members, 1_000),
        (memory.supervisors, 3_000), (memory.named, 1_000),
    ],
)  # fmt: skip
def test_memory_is_flat(question, turns):
    """R31: Restarts of a leaf, a group or a supervisor, and members that come and go, leave nothing behind."""
    meter = memory.measure(question, turns)
    assert meter.flat(), meter.points
