"""The pytest plugin: the story of a failed run, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEST = """
import trio
from supervise import Child, Decider, Restart, Supervisor, open_tree
from supervise.testing import Fail, FaultPlan, Injected, Script, idle, run_virtual

TREE = Supervisor("app", [Child("a", idle), Child("b", idle)], strategy="one_for_all")
PLAN = FaultPlan({"app/b": Script(body=Fail(Injected("x", tag="net.gone"), after=2.5))})

async def main():
    async with open_tree(PLAN.over(TREE), sinks=[]) as tree:
        await trio.sleep(4)

def test_that_passes():
    run_virtual(main, seed=1)

def test_without_a_tree():
    assert 1 == 2

def test_that_fails():
    run_virtual(main, seed=2)
    assert 1 == 2
"""
STORY = """
0.000  app #1    starts
0.000  app/a #1  starts
0.000  app/a #1  is ready
0.000  app/b #1  starts
0.000  app/b #1  is ready
0.000  app #1    is ready
2.500  app/b #1  failed: Injected: x
2.500  app/b #1  → Restart for 'net.gone', decided by 'app' (built-in rule)
2.500  app/b #1  has stopped
2.500  app/a #1  is being stopped: one_for_all: sibling 'app/b' failed
2.500  app/a #1  has stopped
2.500  app/a #2  starts
2.500  app/a #2  is ready again
2.500  app/b #2  starts
2.500  app/b #2  is ready again
"""


def pytest_in(folder, *options):
    """Run pytest there, with the plugin alone of all that is installed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "supervise.testing.plugin", *options]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_failed_test_that_ran_a_tree_prints_its_story(tmp_path):
    """The story has virtual time, path, incarnation, each event, each verdict with its decider and reason, and the seed that replays the run."""
    (tmp_path / "test_it.py").write_text(TEST)
    out = pytest_in(tmp_path).stdout
    assert out.count("supervision tree") == 1
    assert "run_virtual(…, seed=2)" in out
    assert STORY in out
    assert "1 passed" in out


def test_the_plugin_loads_neither_trio_nor_hypothesis_nor_the_tree(tmp_path):
    """A session without a tree pays nothing, and a coverage tool that starts later misses nothing."""
    body = """
import sys

def test_it():
    loaded = {name for name in sys.modules if name.split(".")[0] in ("trio", "hypothesis", "attrs", "supervise")}
    assert loaded == {"supervise", "supervise.testing", "supervise.testing.plugin"}
"""
    (tmp_path / "test_it.py").write_text(body)
    result = pytest_in(tmp_path)
    assert result.returncode == 0, result.stdout


def test_the_tools_load_hypothesis_only_for_strategies():
    """Everything but `trees`, `scripts` and `fault_plans` works without it; `supervise` alone needs no pytest either."""
    code = """
import sys
import supervise
supervise.open_tree, supervise.run_tree
assert "pytest" not in sys.modules
from supervise.testing import Fail, FaultPlan, assert_lifecycle, run_virtual, simulate
assert "hypothesis" not in sys.modules
from supervise.testing import trees
assert "hypothesis" in sys.modules
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
