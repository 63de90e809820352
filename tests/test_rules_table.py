"""`docs/rules.md` against the code and the tests."""

from __future__ import annotations

import ast
import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
RULES = [f"R{number}" for number in range(1, 37)]
TEXT = (TESTS.parent / "docs" / "rules.md").read_text()
ROWS = {
    line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:]
    for line in TEXT.splitlines()
    if re.match(r"\| R\d+ \|", line)
}
SECTIONS = ("deciding", "directives", "strategies", "starting", "stopping", "changing", "addresses", "seeing")


def by_docstring():
    """Each test of the project, with the rules that its docstring begins with."""
    found = {}
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                head, colon, _ = (ast.get_docstring(node) or "").partition(":")
                named = re.fullmatch(r"R\d+(, R\d+)*", head) if colon else None
                found.setdefault(node.name, set()).update(head.split(", ") if named else ())
    return found


NAMED = by_docstring()


def resolve(name):
    """What `module.Class.method` names, in `supervise._core`, `supervise._trio` or `supervise`."""
    for package in ("supervise._core", "supervise._trio", "supervise"):
        parts = name.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            try:
                module = import_module(".".join([package, *parts[:cut]]))
            except ModuleNotFoundError:
                continue
            return reduce(getattr, parts[cut:], module)
    raise LookupError(name)


def test_there_is_one_row_for_each_rule():
    """R1 to R36, in their order."""
    assert list(ROWS) == RULES
    assert len(re.findall(r"^\| R\d+ \|", TEXT, re.MULTILINE)) == len(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_a_row_names_code_that_exists(rule):
    """Whatever is renamed must be renamed here."""
    names = re.findall(r"`(.*?)`", ROWS[rule][1])
    assert names
    for name in names:
        resolve(name)


@pytest.mark.parametrize("rule", RULES)
def test_a_row_names_tests_that_exist_and_name_the_rule(rule):
    """Each by its function, and the docstring of each begins with the rule."""
    names = re.findall(r"`(.*?)`", ROWS[rule][2])
    assert names
    for name in names:
        assert rule in NAMED.get(name, ()), name


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_test(rule):
    """Whose docstring names it."""
    assert any(rule in rules for rules in NAMED.values())


@pytest.mark.parametrize("section", [*SECTIONS, "not_like_that"])
def test_every_test_of_a_section_names_its_rules(section):
    """These tests are the rules, so each says which."""
    tree = ast.parse((TESTS / "tree" / f"test_{section}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            assert NAMED[node.name], node.name
