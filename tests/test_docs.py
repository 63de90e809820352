"""What the README and the docs show is what happens."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ", re.MULTILINE)
TREE, OUTPUT = (BLOCK.findall(PAGES[0].read_text())[number][1] for number in (0, 1))


def run(*command, cwd, folders=()):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *folders])}
    return subprocess.run(
        [sys.executable, "-P", *command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )


def test_the_readme_shows_its_tree_and_its_real_output(tmp_path):
    """The README's first block, run by the command, prints its second block, a restart included."""
    (tmp_path / "diner.py").write_text(TREE)
    assert run("-m", "supervise.cli", "check", "diner.py", cwd=tmp_path).stdout == "diner.py: ok\n"
    output = run("-u", "-m", "supervise.cli", "run", "diner.py", cwd=tmp_path).stdout
    assert TIME.sub("", output) == TIME.sub("", OUTPUT)


def name_of(page):
    return str(page.relative_to(ROOT))


SLOW = {"your-own-model.md", "device-worker.md", "remote-models.md", "fault-injection.md", "asyncio.md"}
"""Their blocks load models, start servers, or search."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page.name in SLOW)) for page in PAGES],
    ids=name_of,
)
def test_every_python_block_runs(page, tmp_path):
    """Every Python block of a page runs, after those before it on the page. One that begins with a file's name is that file.

    `supervise check` warns of none of the trees that they open.
    """
    blocks = [code for language, code in BLOCK.findall(page.read_text()) if language == "python"]
    if any("import transformers" in code for code in blocks):
        pytest.importorskip("transformers", reason="needs trio-supervise[transformers]")
    files = {name[1]: code for code in blocks if (name := re.match(r"# (\w+\.py)\n", code))}
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    program = [code for code in blocks if code not in files.values()]
    if program:
        (tmp_path / "page.py").write_text("\n".join(["import tests.linted", *program]))
        result = run("page.py", cwd=tmp_path, folders=[str(tmp_path)])
        assert result.returncode == 0, result.stdout


def test_the_readme_has_exactly_two_commands():
    """One installs and runs the demo, one installs and runs the tests."""
    commands = [code for language, code in BLOCK.findall(PAGES[0].read_text()) if language == "sh"]
    assert [code.count("\n") for code in commands] == [1, 1]
    assert commands[0].rstrip().endswith("supervise run runners.demo")
    assert commands[1].rstrip().endswith('python -m pytest -m "not slow"')
    assert all("-c constraints.txt" in code for code in commands)


LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)")
FENCED = re.compile(r"^(```+|~~~+).*?^\1", re.DOTALL | re.MULTILINE)


def links(page):
    """The links of a page to files of this project: each file with its anchor, which may be empty."""
    found = LINK.findall(FENCED.sub("", page.read_text()))
    return [((page.parent / target).resolve() if target else page, anchor) for target, anchor in found]


def anchors(page):
    """The anchors of a page on a forge: those of its headings, as GitHub makes them, and those that it writes itself."""
    text = FENCED.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_within_the_project_lead_somewhere(page):
    """A relative link names a file that is there, and a heading or an anchor that it has."""
    for target, anchor in links(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), (name_of(target), anchor)


def test_every_table_has_a_head():
    """The line below the first one of a table is its rule. After an empty line the rows of a table would be shown as text."""
    for page in PAGES:
        lines = BLOCK.sub("", page.read_text()).splitlines()
        for above, line, below in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
            if line.startswith("|") and not above.startswith("|"):
                assert re.fullmatch(r"[|:\- ]+", below), f"{page}: {line}"


def test_each_page_is_listed_by_the_index_of_its_folder():
    """Which lists its pages one a line, as `docs/extension.py` reads them for the navigation of the site."""
    for folder in {page.parent for page in PAGES[1:]}:
        index = folder / "index.md"
        listed = re.findall(r"^- \[[^]]+\]\(([^):#]+\.md)\)", index.read_text(), re.MULTILINE)
        pages = {page for page in folder.glob("*.md") if page != index}
        assert sorted(set(listed)) == sorted(listed)
        assert {folder / name for name in listed} == pages | set(folder.glob("*/index.md"))


def test_the_tasks_are_the_commands_of_the_page_for_contributors():
    """A task of `pyproject.toml` and a line of docs/project/contributing.md are the same command under the same name."""
    tasks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["poe"]["tasks"]
    commands = {name: task if isinstance(task, str) else task["shell"] for name, task in tasks.items()}
    page = (ROOT / "docs" / "project" / "contributing.md").read_text()
    assert dict(re.findall(r"\| `poe (\w+)` \| `([^`]+)` \|", page)) == commands
