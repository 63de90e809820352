"""`supervise run --reload`: the files of a program are loaded anew while it runs (R38)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from supervise.cli.load import NoTree, load
from supervise.cli.reload import Program
from supervise.testing import run_virtual

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests-0"
APP = """
import trio
from supervise import Child, Supervisor
from work import serve

async def idle():
    print("idle starts", flush=True)
    await trio.sleep_forever()

tree = Supervisor("app", [Child("a", idle), Child("b", serve, args=[1])])
"""
WORK = """
import trio
import errors

def speed():
    return 1

async def serve(n):
    print("serve", n, speed(), flush=True)
    await trio.sleep_forever()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A program of three files. What is loaded from it is forgotten afterwards."""
    for name, text in (("app", APP), ("work", WORK), ("errors", "class Lost(Exception): pass\n")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "path", [str(tmp_path), *sys.path]
    )  # before the folders that other tests have left
    for name in ("app", "work", "errors"):  # another test may have left a module of that name
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def rewrite(file, old, new):
    """Edit a file, as an editor does: with another time, and at once."""
    text, before = file.read_text(), file.stat().st_mtime_ns
    assert old in text
    file.write_text(text.replace(old, new))
    if file.stat().st_mtime_ns == before:  # the clock of files turns only every few milliseconds
        os.utime(file, ns=(before + 10**7, before + 10**7))


def program(target):
    """The program of a target that has been loaded."""
    load(target)
    return Program(target)


@pytest.mark.parametrize("target", ["app.py", "app", "./app.py", "app.py:tree"])
def test_only_what_has_changed_and_what_imports_it_is_loaded_anew(folder, target):
    """R38: All other modules stay loaded, so that their classes stay the same."""
    made = program(target)
    work, errors = sys.modules["work"], sys.modules["errors"]
    tree = made()
    assert tree is sys.modules["app"].tree
    assert (sys.modules["work"], sys.modules["errors"]) == (work, errors)
    rewrite(folder / "work.py", "return 1", "return 2")
    made()
    assert sys.modules["work"] is not work
    assert sys.modules["work"].speed() == 2
    assert sys.modules["errors"] is errors
    rewrite(folder / "errors.py", "pass", "text = 1")
    work = sys.modules["work"]
    made()
    assert sys.modules["errors"] is not errors
    assert sys.modules["work"] is not work
    assert sys.modules["work"].errors is sys.modules["errors"]


def test_a_file_that_changes_within_a_second_and_keeps_its_size_is_loaded_anew(folder):
    """R38: Python's own check of its bytecode compares whole seconds and the size."""
    made = program("app")
    for number in range(2, 8):
        os.utime(folder / "work.py", (1e9, 1e9))
        rewrite(folder / "work.py", f"return {number - 1}", f"return {number}")
        os.utime(folder / "work.py", (1e9, 1e9))
        made()
        assert sys.modules["work"].speed() == number


def test_a_file_that_is_saved_while_it_is_loaded_counts_as_changed(folder):
    """R38: What was loaded is the file as it was before."""
    saves = """
from pathlib import Path
if Path("save").exists():
    Path("work.py").write_text(Path("work.py").read_text().replace("return 2", "return 3"))
"""
    (folder / "app.py").write_text(APP + saves)
    made = program("app")
    rewrite(folder / "work.py", "return 1", "return 2")
    (folder / "save").touch()
    made()
    assert sys.modules["work"].speed() == 2
    (folder / "save").unlink()
    made()
    assert sys.modules["work"].speed() == 3


def test_what_only_a_type_checker_imports_is_no_import(folder):
    """R38: Otherwise a module that names the target's types would be loaded anew each time, with all its classes."""
    only_types = "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
    only_types += "if TYPE_CHECKING:\n    from app import tree\nelse:\n    import json\n"
    (folder / "work.py").write_text(only_types + WORK)
    made = program("app")
    work = sys.modules["work"]
    made()
    assert sys.modules["work"] is work
    rewrite(folder / "errors.py", "pass", "text = 1")
    made()
    assert sys.modules["work"] is not work


def test_loading_anew_leaves_the_path_and_the_packages_as_they_were(folder):
    """R38: After any number of loads, and after one that failed."""
    (folder / "pack").mkdir()
    (folder / "pack/__init__.py").write_text("from .sub import sub\n")
    (folder / "pack/sub.py").write_text("def sub(): return 1\n")
    (folder / "pack/later.py").write_text("number = 1\n")
    (folder / "app.py").write_text(f"{APP}\nimport pack\n")
    made = program("app.py")
    before, pack = list(sys.path), sys.modules["pack"]
    names = dict(vars(pack))
    made()
    assert sys.path == before
    (folder / "app.py").write_text(f"{APP}\nfrom pack import later\n1 / later.number - later.number")
    (folder / "pack/sub.py").write_text("def sub(): return 2\n1 / 0\n")
    with pytest.raises(NoTree, match="division by zero"):
        made()
    assert sys.modules["pack"] is pack
    assert vars(pack) == names
    (folder / "pack/sub.py").write_text("def sub(): return 1\n")
    (folder / "app.py").write_text(f"{APP}\nfrom pack import later\nif later.number == 1: raise OSError")
    with pytest.raises(NoTree, match="OSError"):
        made()
    rewrite(folder / "pack/later.py", "number = 1", "number = 2")
    made()
    assert sys.modules["pack.later"].number == 2


def test_a_program_that_changes_its_folder_is_found_again(folder, tmp_path_factory):
    """R38: A service may go to another folder as soon as it runs."""
    made = program("app.py:tree")
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    rewrite(folder / "work.py", "return 1", "return 2")
    made()
    assert sys.modules["work"].speed() == 2


def test_what_stands_in_place_of_a_module_may_raise(folder, monkeypatch):
    """R38: A lazy module, for instance, that cannot import what it stands for."""

    class Lazy:
        def __getattr__(self, name):
            raise ImportError(name)

    monkeypatch.setitem(sys.modules, "lazy_of_this_test", Lazy())
    assert program("app")().name == "app"


@pytest.mark.parametrize("library", ["lib/python", "venv/site-packages", "venv/dist-packages"])
def test_libraries_below_the_folder_of_a_program_are_not_its_own(folder, monkeypatch, library):
    """R38: A Python that a user has installed at home is below each program that is there."""
    (folder / library).mkdir(parents=True)
    (folder / library / "a_library.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(folder / library), *sys.path])
    monkeypatch.setattr("supervise.cli.reload._PYTHON", str(folder / "lib/python"))
    (folder / "app.py").write_text(f"import a_library\n{APP}")
    made = program("app")
    module = sys.modules["a_library"]
    (folder / library / "a_library.py").write_text("number = 1")
    made()
    assert sys.modules["a_library"] is module


def looked_after(folder, monkeypatch, edits, *, lasts=0):
    """The results of the reloads that `Program.watch` asks for, after each of the edits; an adoption takes `lasts` seconds."""
    results = []

    async def reload(tree, *, reason):
        try:
            made()
            results[-1].append("loaded")
            await trio.sleep(lasts)
        except NoTree:
            results[-1].append("failed")

    monkeypatch.setattr("supervise.cli.reload.reload_or_log", reload)
    made = program("app.py")

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.watch, None)
            for edit in edits:
                await trio.sleep(5.5)
                results.append([])
                edit()
            await trio.sleep(5.5)
            nursery.cancel_scope.cancel()

    run_virtual(main)
    return results


@pytest.mark.slow
def test_only_files_that_change_are_a_reason_to_load_them(folder, monkeypatch):
    """R38: A module that is imported later is none, nor one that a reload has brought, or that is imported no more."""
    (folder / "late.py").write_text("number = 1\n")
    (folder / "more.py").write_text("number = 1\n")
    edits = [
        lambda: __import__("late"),
        lambda: rewrite(folder / "app.py", "import trio", "import trio, more"),
        lambda: rewrite(folder / "more.py", "1", "2"),
        lambda: rewrite(folder / "app.py", "import trio, more", "import trio"),
        lambda: (folder / "work.py").rename(folder / "gone.py"),
        lambda: (folder / "gone.py").rename(folder / "work.py"),
    ]
    expected = [[], ["loaded"], ["loaded"], ["loaded"], ["failed"], ["loaded"]]
    assert looked_after(folder, monkeypatch, edits) == expected


def test_a_file_that_never_loaded_is_loaded_once_it_is_mended(folder, monkeypatch):
    """R38: It belongs to no module, so that only its folder shows that it has changed."""
    (folder / "more.py").write_text("1 / 0\n")
    edits = [
        lambda: rewrite(folder / "app.py", "import trio", "import trio, more"),
        lambda: (folder / "more.py").write_text("number = 1\n"),
    ]
    assert looked_after(folder, monkeypatch, edits) == [["failed"], ["loaded"]]


@pytest.mark.parametrize("name", ["more", "work"])
def test_a_file_that_is_saved_while_its_adoption_lasts_is_loaded_after_it(folder, monkeypatch, name):
    """R38: Also if the reload that is being adopted has brought its module."""
    (folder / "more.py").write_text("number = 1\n")
    edits = [
        lambda: rewrite(folder / "app.py", "import trio", "import trio, more"),
        lambda: rewrite(folder / f"{name}.py", "1", "2"),
    ]
    assert looked_after(folder, monkeypatch, edits, lasts=5) == [["loaded"], ["loaded"]]
    assert (sys.modules["more"].number == 2) is (name == "more")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("app.py", "tree = 1", "must be a Supervisor"),
        ("app.py", "import missing_module", "missing_module"),
        ("app.py", "def (", "line 1"),
        ("app.py", "raise SystemExit(3)", "ended the program"),
        ("work.py", "raise KeyboardInterrupt", "raised KeyboardInterrupt while it was loaded"),
        ("work.py", "1 / 0", "division by zero"),
        ("work.py", "def serve(): pass", "must be an async function"),
        ("app.py", "from supervise import *\nasync def f(): pass\nc = Child('c', f)\ntree = Supervisor('app', [c, Supervisor('x', [c])])", "two places"),
    ],
)  # fmt: skip
def test_a_program_that_cannot_be_loaded_is_refused_and_stays_what_it_was(folder, file, text, message):
    """R38: With the reason; the modules are those of before, and the next reload may be right."""
    made = program("app.py")
    before = {name: sys.modules[name] for name in ("app", "work", "errors")}
    kept = (folder / file).read_text()
    (folder / file).write_text(text)
    with pytest.raises(NoTree, match=message):
        made()
    assert {name: sys.modules[name] for name in before} == before
    (folder / file).write_text(kept)
    made()


def test_modules_of_a_package_are_found_by_their_imports_of_every_form(tmp_path, folder):
    """R38: `import a.b`, `from . import`, `from .. import`, and a changed `__init__`."""
    package = folder / "pack"
    for name, text in {
        "__init__.py": "KIND = 1",
        "low.py": "X = 1",
        "one.py": "from . import low",
        "two.py": "import pack.low",
        "three.py": "from pack.one import low",
        "other.py": "",
        "below/__init__.py": "",
        "below/four.py": "from ..low import X",
        "tree.py": "from . import one, two, three, other\nfrom .below import four\nfrom supervise import Supervisor\ntree = Supervisor('app', [])",
    }.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(text)
    made = program("pack.tree")
    names = [f"pack.{name}" for name in ("low", "one", "two", "three", "below.four", "other")]
    before = {name: sys.modules[name] for name in names}
    rewrite(package / "low.py", "1", "2")
    made()
    assert [name for name in names if sys.modules[name] is before[name]] == ["pack.other"]
    assert sys.modules["pack"].low is sys.modules["pack.low"]
    rewrite(package / "__init__.py", "1", "2")
    made()
    assert sys.modules["pack.other"] is not before["pack.other"]
    (package / "tree.py").write_text("1 / 0")
    kept = sys.modules["pack.tree"]
    with pytest.raises(NoTree):
        made()
    assert sys.modules["pack"].tree is sys.modules["pack.tree"] is kept


def test_without_a_changed_file_nothing_is_loaded(folder):
    """R38: So a child that uses a class of its file is not restarted by a SIGHUP alone."""
    made = program("app.py")
    app, tree = sys.modules["app"], sys.modules["app"].tree
    assert made() is tree
    assert sys.modules["app"] is app
    rewrite(folder / "app.py", "args=[1]", "args=[2]")
    assert made() is not tree


def test_a_target_that_is_a_call_is_made_anew(folder):
    """R38: Also if no file has changed: it may read other files, or the environment."""
    (folder / "app.py").write_text(
        "from pathlib import Path\nfrom supervise import Supervisor\ndef make(name):\n    return Supervisor(name, [], restart=Path('kind').read_text())\n"
    )
    (folder / "kind").write_text("permanent")
    made = program("app.py:make('x')")
    assert made().restart == "permanent"
    (folder / "kind").write_text("transient")
    assert made().restart == "transient"


# --- the command


@contextmanager
def running(folder, *options):
    """`supervise run app.py` with these options."""
    environment = {
        **os.environ, "XDG_RUNTIME_DIR": str(folder / "run"), "PYTHONPATH": str(ROOT), "SUPERVISE_TOKEN": TOKEN, "COLUMNS": "200",
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    command = [sys.executable, "-P", "-m", "supervise"]
    given = {"cwd": folder, "env": environment, "text": True, "stdout": subprocess.PIPE}

    def ask(*arguments):
        return subprocess.run(
            [*command, *arguments], check=False, timeout=60, stderr=subprocess.PIPE, **given
        )

    ran = subprocess.Popen([*command, "run", "app.py", *options], stderr=subprocess.STDOUT, **given)
    try:
        until(ran, "serve 1 1")
        yield ran, ask
    finally:
        ran.kill()
        ran.wait()
        ran.stdout.close()


def until(ran, text):
    """Read its lines until one has this text."""
    lines = []
    for line in ran.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{text!r} did not come: {lines}")


def test_sighup_changes_the_running_tree_and_a_bad_file_does_not(folder):
    """R20, R38: The changed child is restarted, the other goes on; an error is one line, and SIGTERM still stops in order."""
    with running(folder, "--reload") as (ran, _):
        rewrite(folder / "work.py", "return 1", "return 2")
        ran.send_signal(signal.SIGHUP)
        lines = until(ran, "has its new declaration")
        assert "serve 1 2\n" in lines
        assert "SIGHUP (~ app/b restarts: body, since the code of speed is another)" in "".join(lines)
        assert "idle" not in "".join(lines)
        rewrite(folder / "work.py", "return 2", "return (")
        ran.send_signal(signal.SIGHUP)
        (line,) = until(ran, "reload: ")
        assert "app.py failed to load: SyntaxError" in line
        ran.send_signal(signal.SIGTERM)
        assert ran.wait(60) == 0


@pytest.mark.slow
def test_a_file_that_changes_is_loaded_by_itself(folder):
    """R38: `--auto-reload` looks at the files."""
    with running(folder, "--auto-reload") as (ran, _):
        rewrite(folder / "work.py", "return 1", "return 2")
        lines = until(ran, "has its new declaration")
        assert "a file has changed" in "".join(lines)
        assert "serve 1 2\n" in lines


@pytest.mark.slow
def test_a_link_that_leads_to_another_release_is_a_change(folder):
    """R38: Though its file has the time of the earlier one, as a reproducible build gives it, and its size."""
    for release in ("1", "2"):
        (folder / release).mkdir()
        file = folder / release / "work.py"
        file.write_text(WORK.replace("return 1", f"return {release}"))
        os.utime(file, (1e9, 1e9))
    (folder / "current").symlink_to("1")
    (folder / "work.py").unlink()
    (folder / "work.py").symlink_to("current/work.py")
    with running(folder, "--auto-reload") as (ran, _):
        (folder / "new").symlink_to("2")
        (folder / "new").rename(folder / "current")
        assert "serve 1 2\n" in until(ran, "has its new declaration")


def test_without_the_option_sighup_stops_the_tree(folder):
    """R20."""
    with running(folder) as (ran, _):
        ran.send_signal(signal.SIGHUP)
        assert ran.wait(60) == 0


@pytest.mark.slow
def test_the_command_reload_says_what_it_would_do_and_does_it(folder):
    """R38: With a reason and the token; a refusal is exit status 1, and changes nothing."""
    with running(folder, "--reload", "--socket") as (ran, ask):
        rewrite(folder / "app.py", "args=[1])]", "args=[1]), Child('c', idle)], limit=None")
        planned = ask("reload", "--dry-run")
        assert planned.stdout.splitlines() == [
            "~ app takes it at once: limit was Limit(), and is None",
            "+ app/c added",
            "(nothing was done)",
        ]
        assert "needs a reason" in ask("reload").stderr
        done = ask("reload", "--reason", "more", "-o", "json")
        assert (done.returncode, [each["path"] for each in json.loads(done.stdout)["changes"]]) == (
            0,
            ["app", "app/c"],
        )
        assert ": more (~ app takes it at once" in "".join(until(ran, "has its new declaration"))
        assert ask("reload", "--reason", "again").stdout == "nothing differs\n"
        rewrite(folder / "app.py", "tree = ", "tree = 1 or ")
        refused = ask("reload", "--reason", "oops")
        assert (refused.returncode, "must be a Supervisor" in refused.stderr) == (1, True)
        assert "app/c" not in ask("status").stderr


@pytest.mark.slow
def test_a_program_that_was_not_started_with_it_refuses_a_reload(folder):
    """R38: With what allows it."""
    with running(folder, "--socket") as (_, ask):
        refused = ask("reload", "--reason", "x")
        assert (refused.returncode, "`supervise run --reload` allows it" in refused.stderr) == (1, True)
