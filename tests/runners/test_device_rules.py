"""`docs/device-worker.md` against the code and the tests."""

import ast
import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "device-worker.md").read_text()
RULES = [f"D{number}" for number in range(1, 11)]
FEATURES = [f"F{number}" for number in range(1, 23)]
FLAWS = [str(number) for number in range(1, 25)]
ROWS = {
    cells[0]: cells[1:]
    for line in TEXT.splitlines()
    if re.match(r"\| [DF]?\d+ \|", line)
    for cells in [line.strip("| ").split(" | ")]
}


def by_name():
    """Each test of the project, and the rules that it names at the head of its docstring."""
    found = {}
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                head = (ast.get_docstring(node) or "").partition(":")[0]
                found.setdefault(node.name, set()).update(re.findall(r"\b[DR]\d+\b", head))
    return found


NAMED = by_name()


def resolve(name):
    """What `module.Class.method` names in `runners`."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            module = import_module(".".join(["runners", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[cut:], module)
    raise LookupError(name)


def test_there_is_one_row_for_each():
    """D1 to D10, F1 to F22, and 24 flaws, in their order."""
    assert list(ROWS) == [*RULES, *FEATURES, *FLAWS]


@pytest.mark.parametrize("row", [*RULES, *FEATURES, *FLAWS])
def test_every_row_names_code_and_tests_that_exist(row):
    """Whatever is renamed must be renamed here; a rule's tests name the rule."""
    *_, tests = ROWS[row]
    names = re.findall(r"`(test_\w+)`", tests)
    assert names
    assert set(names) <= set(NAMED)
    if row in RULES:
        for name in re.findall(r"`([\w.]+)`", ROWS[row][1]):
            assert resolve(name)
        assert all(row in NAMED[name] for name in names)


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_has_tests_that_name_it(rule):
    """Five at least, all over the tests."""
    assert len([name for name, rules in NAMED.items() if rule in rules]) >= 5
