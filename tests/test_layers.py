"""Who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from . import layers

PACKAGE = Path(__file__).parents[1] / "supervise"
CORE = sorted((PACKAGE / "_core").glob("*.py"))
WORLDLY = {
    "time",
    "random",
    "asyncio",
    "threading",
    "socket",
    "os",
    "subprocess",
    "io",
    "pathlib",
    "logging",
    "signal",
}
WORLDLY |= {"selectors", "multiprocessing", "concurrent", "datetime", "sys", "secrets", "tempfile", "shutil"}
SIBLINGS = {"events", "errors"}


def imports(file: Path):
    """The absolute names of all modules that a file imports, wherever in it."""
    package = ["supervise", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ([base] if node.module else [f"{base}.{alias.name}" for alias in node.names])


@pytest.mark.parametrize("file", CORE, ids=lambda file: file.name)
def test_the_core_is_pure(file):
    """The core imports itself, `events`, `errors`, attrs, and of the standard library only what touches no world."""
    for name in imports(file):
        top, _, rest = name.partition(".")
        if top == "supervise":
            assert rest.partition(".")[0] in SIBLINGS | {"_core"}, name
        else:
            assert top == "attrs" or (top in sys.stdlib_module_names and top not in WORLDLY), name


@pytest.mark.parametrize("file", CORE, ids=lambda file: file.name)
def test_the_core_opens_and_prints_nothing(file):
    """I/O needs no import: `open`, `print` and `input` are not called either."""
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    assert {call.id for call in calls if isinstance(call, ast.Name)}.isdisjoint({"open", "print", "input"})


@pytest.mark.parametrize("name", sorted(SIBLINGS))
def test_the_siblings_of_the_core_are_pure_too(name):
    """`events` and `errors` import the core and attrs, and nothing else of ours."""
    for imported in imports(PACKAGE / f"{name}.py"):
        if imported.startswith("supervise"):
            assert imported.startswith("supervise._core")


def test_supervise_knows_neither_torch_nor_runners():
    """No file of `supervise` imports either, wherever in it."""
    for file in PACKAGE.rglob("*.py"):
        tops = {name.partition(".")[0] for name in imports(file)}
        assert tops.isdisjoint({"torch", "runners", "numpy"}), file


def test_importing_supervise_loads_no_more_than_it_needs():
    """Every public name, in a fresh interpreter: no torch, no runners, no Hypothesis, no pytest."""
    code = """
import sys, supervise
for name in supervise.__all__: getattr(supervise, name)
print(*sorted({"torch", "runners", "numpy", "hypothesis", "pytest", "asyncio"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.split() == []


def test_no_module_imports_itself_over_others():
    """Not even for its types alone."""
    assert layers.circles(layers.imports()) == []


def test_every_room_imports_only_what_stands_below_it():
    """The floors are listed in `tests/layers.py`; each module stands on one."""
    assert layers.against_the_floors(layers.imports()) == []


def test_no_import_is_one_of_the_nevers():
    """They are listed in `tests/layers.py`; each names two packages that exist."""
    assert layers.forbidden(layers.imports()) == []
    assert {name for pair in layers.NEVERS for name in pair} <= layers.modules().keys()


def test_a_circle_an_arrow_upwards_and_a_never_are_found():
    """The three tests above can fail."""
    assert layers.forbidden(
        {"runners.models.a": {"runners.worker"}, "runners.modelsx": {"runners.worker"}}
    ) == ["runners.models.a imports runners.worker"]
    graph = {
        "supervise._core.node": {"supervise._trio.leaf"},
        "supervise._trio.leaf": {"supervise._core.node"},
    }
    assert layers.circles(graph) == ["supervise._core.node", "supervise._trio.leaf"]
    assert layers.against_the_floors(graph) == ["supervise._core.node imports supervise._trio.leaf"]


def test_the_pictures_of_the_architecture_are_those_of_the_code():
    """`python -m tests.layers` draws them anew."""
    page = layers.PAGE.read_text()
    assert layers.drawn(page) == page
