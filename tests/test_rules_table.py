"""`docs/project/rules.md` and `docs/project/device-rules.md` against the code and the tests."""

from __future__ import annotations

import ast
import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
PROJECT = DOCS / "project"
SUPERVISE = ("supervise._core", "supervise._trio", "supervise")
RUNNERS = ("runners", "runners.worker", "runners.diagnosis", *SUPERVISE)
RULES = [f"R{number}" for number in range(1, 39)]
DEVICE_RULES = [f"D{number}" for number in range(1, 18)]
FEATURES = [f"F{number}" for number in range(1, 23)]
MISTAKES = [f"M{number}" for number in range(1, 25)]


def rows_of(page):
    """The rows of a page's tables by their first cell, in their order, each as its other cells."""
    lines = re.findall(r"^\| ([A-Z]\d+) \| (.*) \|$", (PROJECT / page).read_text(), re.MULTILINE)
    assert len(dict(lines)) == len(lines)
    return {first: rest.split(" | ") for first, rest in lines}


def names_in(cell):
    return re.findall(r"`(.*?)`", cell)


ROWS = rows_of("rules.md")
DEVICE_ROWS = rows_of("device-rules.md")
SECTIONS = ("deciding", "directives", "strategies", "starting", "stopping", "changing", "addresses", "seeing")


def by_docstring():
    """Each test of the project, with the rules that its docstring begins with."""
    found = {}
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                head, colon, _ = (ast.get_docstring(node) or "").partition(":")
                named = re.fullmatch(r"[RD]\d+(, [RD]\d+)*", head) if colon else None
                found.setdefault(node.name, set()).update(head.split(", ") if named else ())
    return found


NAMED = by_docstring()


def resolve(name, *packages):
    """What `module.Class.method` names in the first of the packages that has such a module."""
    for package in packages:
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                module = import_module(".".join([package, *parts[:cut]]))
            except ModuleNotFoundError:
                continue
            return reduce(getattr, parts[cut:], module)
    raise LookupError(name)


def test_there_is_one_row_for_each_rule():
    """R1 to R38, and in the other page D1 to D17, each feature and each mistake, in their order."""
    assert list(ROWS) == RULES
    assert list(DEVICE_ROWS) == [*DEVICE_RULES, *FEATURES, *MISTAKES]


@pytest.mark.parametrize("rule", [*RULES, *DEVICE_RULES, *FEATURES])
def test_a_row_names_code_that_exists(rule):
    """Whatever is renamed must be renamed here."""
    row, packages = (ROWS[rule], SUPERVISE) if rule in ROWS else (DEVICE_ROWS[rule], RUNNERS)
    names = names_in(row[1])
    assert names
    for name in names:
        resolve(name, *packages)


@pytest.mark.parametrize("rule", [*RULES, *DEVICE_RULES])
def test_a_row_names_tests_that_exist_and_name_the_rule(rule):
    """Each by its function, and the docstring of each begins with the rule."""
    names = names_in({**ROWS, **DEVICE_ROWS}[rule][2])
    assert names
    for name in names:
        assert rule in NAMED.get(name, ()), name


@pytest.mark.parametrize("row", [*FEATURES, *MISTAKES])
def test_a_feature_and_a_mistake_name_tests_that_exist(row):
    """Each by its function."""
    names = names_in(DEVICE_ROWS[row][2])
    assert names
    assert set(names) <= set(NAMED)


@pytest.mark.parametrize("rule", [*RULES, *DEVICE_RULES])
def test_every_rule_has_a_test(rule):
    """Whose docstring names it."""
    assert any(rule in rules for rules in NAMED.values())


@pytest.mark.parametrize("section", [*SECTIONS, "not_like_that"])
def test_every_test_of_a_section_names_its_rules(section):
    """These tests are the rules, so each names its own."""
    tree = ast.parse((TESTS / "tree" / f"test_{section}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            assert NAMED[node.name], node.name


@pytest.mark.parametrize(
    "rule", [*(f"R{number}" for number in range(1, 39)), *(f"D{number}" for number in range(1, 16))]
)
def test_every_rule_stands_whole_under_its_anchor(rule):
    """Once, in `docs/semantics.md`; one that the tables leave out is not built, and says so there."""
    page = (DOCS / "semantics.md").read_text()
    parts = re.findall(
        rf'^<a id="{rule.lower()}"></a>\n\n### {rule}: .+?\n(.*?)(?=^<a id=|^## |\Z)',
        page,
        re.MULTILINE | re.DOTALL,
    )
    assert len(parts) == 1
    assert parts[0].strip()
    assert rule in ROWS or rule in DEVICE_ROWS or "Not built yet." in parts[0]
