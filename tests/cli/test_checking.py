"""`supervise check` as a linter: its table of codes, its formats, what silences a warning, and what it does not say."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from supervise.cli import main
from supervise.cli.check import report, rows
from supervise.cli.codes import CODES, PRELUDE, TABLE, code_of

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "checking.md"
WARNED = [code for code in TABLE if code.severity == "warning" and not code.optional and code.name < "SUP9"]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a file of this text into the current folder; the tree in it can be checked once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "lint", raising=False)

    def written(text):
        sys.modules.pop("lint", None)
        (tmp_path / "lint.py").write_text(f"{PRELUDE}{text}\n")
        return "lint.py"

    yield written
    sys.modules.pop("lint", None)


@pytest.fixture
def command(capsys):
    """The exit status, the output and the errors of the command."""

    def command(*arguments):
        try:
            main(["check", *arguments])
            status = 0
        except SystemExit as left:
            status = left.code
        return status, *capsys.readouterr()

    return command


# --- the table


@pytest.mark.parametrize("code", TABLE, ids=lambda code: code.name)
def test_each_example_has_its_finding_and_no_other(written, code):
    """The better one has none."""
    select = [code.name] if code.optional else None
    found, _ = report(written(code.wrong), select)
    assert [line.code for line in found] == [code.name]
    assert report(written(code.right), select) == ([], 0)


def test_the_codes_are_in_order_and_each_is_there_once():
    """A code keeps its meaning, so that no two rows share one."""
    names = [code.name for code in TABLE]
    assert names == sorted(set(names))
    assert all(re.fullmatch(r"SUP\d{3}", name) for name in names)


def test_the_page_has_the_table():
    """docs/reference/checking.md shows the rows that `check.rows` makes; copy them there if they have changed."""
    page = PAGE.read_text()
    assert "\n".join(rows()) in page


def test_the_page_shows_what_is_printed(tmp_path, monkeypatch, command):
    """Each console block of docs/reference/checking.md is a command and its output, in the order in which a terminal shows it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    page = PAGE.read_text()
    (tmp_path / "shop.py").write_text(re.search(r"```python\n(# shop.py\n.*?)```", page, re.DOTALL)[1])
    shown = re.findall(r"```console\n\$ supervise check (.+?)\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 2
    for arguments, output in shown:
        _, out, errors = command(*arguments.split())
        assert errors + out == output
    sys.modules.pop("shop")


def test_a_message_of_a_constructor_has_one_code():
    """Also if a name in it looks like another message."""
    assert code_of("child 'a': body must be an async function, got None").name == "SUP101"
    assert code_of("supervisor 'app': limit must be a Limit or None, got 3").name == "SUP110"
    assert code_of("a rule's when must be a plain function").name == "SUP109"
    assert code_of("a rule's match must be a regular expression").name == "SUP108"


@pytest.mark.parametrize("name", CODES)
def test_a_code_is_explained(command, name):
    """The explanation has the reason and both examples; capitals do not matter."""
    status, out, errors = command("--explain", name.lower())
    assert (status, errors) == (0, "")
    code = CODES[name]
    assert code.why in " ".join(out.split())
    for part in (name, code.title, *code.wrong.splitlines(), *code.right.splitlines()):
        assert part in out


def test_explain_without_a_code_lists_all(command):
    """Each with its title, one a line."""
    status, out, _ = command("--explain")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(CODES)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--explain", "SUP2O4"), "unknown code 'SUP2O4': --explain alone lists all"),
        (("--ignore", "SUP999", "lint.py"), "unknown code 'SUP999'"),
        (("--select", "W1", "lint.py"), "unknown code 'W1'"),
        (("--ignore", "SUP101", "lint.py"), "SUP101 is an error, and errors are always reported"),
        (("--format", "xml", "lint.py"), "invalid choice: 'xml'"),
        ((), "the following arguments are required: MODULE[:ATTR]|FILE[:ATTR]"),
    ],
)
def test_a_wrong_option_is_one_error(command, arguments, expected):
    """The exit status is 2."""
    status, out, errors = command(*arguments)
    assert (status, out) == (2, "")
    assert expected in errors
    assert "Traceback" not in errors


# --- what is reported

VOID = 'tree = Supervisor(\n    "app",\n    [Child("serve", serve, restart="temporary", backoff=Backoff())],\n    backoff=Backoff(),\n)'
LINE = PRELUDE.count("\n") + 1


def test_warnings_are_reported_and_are_no_failure(written, command):
    """Unless `--strict` is given."""
    status, out, errors = command(written(VOID))
    assert (status, out) == (0, "lint.py: ok\n")
    assert re.fullmatch(
        rf"lint.py:{LINE}: warning: the backoff of the root .+ \[SUP216\]\n"
        rf"lint.py:{LINE + 2}: warning: the backoff of 'app/serve' .+ \[SUP202\]\n",
        errors,
    )
    status, out, strict = command("--strict", written(VOID))
    assert (status, out, strict) == (1, "", errors)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"select": ["SUP202"]}, ["SUP202"]),
        ({"select": ["SUP20"]}, ["SUP202"]),
        ({"select": ["SUP2", "SUP4"], "ignore": ["SUP216"]}, ["SUP202"]),
        ({"ignore": ["SUP2"]}, []),
        ({"ignore": ["SUP202", "SUP216"]}, []),
    ],
)
def test_warnings_are_selected_and_ignored_by_the_beginnings_of_their_codes(written, options, expected):
    """What is ignored is not selected."""
    lines, status = report(written(VOID), **options)
    assert ([line.code for line in lines], status) == (expected, 0)


def test_the_options_take_several_codes(written, command):
    """They are separated by commas, with or without spaces."""
    assert command("--ignore", "SUP202, sup216", written(VOID)) == (0, "lint.py: ok\n", "")


def test_an_error_is_reported_whatever_is_selected(written):
    """The tree does not start with it."""
    lines, status = report(written('tree = Supervisor("app", [serve])'), ["SUP4"])
    assert ([line.code for line in lines], status) == (["SUP104"], 1)


@pytest.mark.parametrize("code", WARNED, ids=lambda code: code.name)
def test_a_comment_silences_a_warning(written, code):
    """It stands in the first or the last line of what is reported, or of the declaration of its node."""
    lines, _ = report(written(code.wrong))
    for end in {lines[0].line, lines[0].last}:
        text = code.wrong.splitlines()
        text[end - LINE] += f"  # supervise: ignore[{code.name}]"
        assert report(written("\n".join(text))) == ([], 0)
    other = code.wrong.splitlines()
    other[lines[0].line - LINE] += "  # supervise: ignore[SUP401]"
    assert [line.code for line in report(written("\n".join(other)))[0]] == [code.name]


def test_a_comment_at_the_declaration_silences_a_warning_in_the_body(written):
    """So that a function which cannot be changed needs no comment in it."""
    declared = 'tree = Supervisor("app", [Child("tick", tick)])'
    text = f"async def tick():\n    time.sleep(1)\n    await trio.sleep(1)\n{declared}"
    assert [line.code for line in report(written(text))[0]] == ["SUP303"]
    assert report(written(f"{text}  # supervise: ignore[SUP204, SUP303]")) == ([], 0)


def test_a_comment_within_a_text_is_none(written):
    """Only a comment of the file counts."""
    text = 'tree = Supervisor("app", [Child("# supervise: ignore[SUP202]", serve, restart="temporary", limit=Limit(1))])'
    assert [line.code for line in report(written(text))[0]] == ["SUP202"]


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("# supervise: ignore", "the comment has no code"),
        ("# supervise: ignore[]", "the comment has no code"),
        ("# supervise: ignore[SUP2O2]", "names 'SUP2O2', which is no warning"),
        ("# supervise: ignore[SUP101]", "names 'SUP101', which is no warning"),
    ],
)
def test_a_comment_that_silences_nothing_is_reported(written, comment, expected):
    """Otherwise one would believe that it does."""
    (line,), status = report(written(f'tree = Supervisor("app", [Child("serve", serve)])  {comment}'))
    assert (line.code, line.line, status) == ("SUP901", LINE, 0)
    assert expected in line.text


def test_a_helper_of_the_user_is_where_a_node_is_declared(written):
    """The line is that of the constructor's call, which is where a comment belongs."""
    text = (
        "def worker(name):\n"
        '    return Child(name, serve, restart="temporary", limit=Limit(1))\n'
        'tree = Supervisor("app", [worker("a"), worker("b")])'
    )
    lines, _ = report(written(text))
    assert [(line.path, line.line) for line in lines] == [("app/a", LINE + 1), ("app/b", LINE + 1)]


def test_problems_in_another_file_name_that_file(written, tmp_path):
    """A tree may be declared in several files."""
    (tmp_path / "part_of_lint.py").write_text(
        "from supervise import *\n\nlimit = Limit(-1)\nchild = Child('a', None)\n"
    )
    lines, status = report(written('from part_of_lint import child\ntree = Supervisor("app", [child])'))
    sys.modules.pop("part_of_lint")
    assert status == 1
    assert [(line.file, line.line) for line in lines] == [("part_of_lint.py", 3), ("part_of_lint.py", 4)]


def test_a_template_is_checked_too(written):
    """Its path ends in `*`."""
    text = "async def work():\n    time.sleep(1)\n    await trio.sleep(1)\ntree = Supervisor('app', [Pool('p', Child('w', work))])"
    (line,), _ = report(written(text))
    assert (line.code, line.path) == ("SUP303", "app/p/*")


def test_a_call_that_makes_the_tree_has_lines_too(written):
    """The tree is made after the file was loaded."""
    target = written('def make(name):\n    return Supervisor(name, [Child("a", serve)], backoff=Backoff())')
    (line,), _ = report(f"{target}:make('x')")
    assert (line.code, line.path, line.line) == ("SUP216", "x", LINE + 1)


# --- formats


def test_json_is_an_array_of_findings(written, command):
    """It is empty if there is none; nothing else is on standard output."""
    status, out, errors = command("--format", "json", written('tree = Supervisor("app", [serve])'))
    assert (status, errors) == (1, "")
    (found,) = json.loads(out)
    assert found.pop("text").startswith("supervisor 'app': each child must be a Child")
    assert found == {
        "code": "SUP104",
        "severity": "error",
        "path": None,
        "file": "lint.py",
        "line": LINE,
        "end_line": LINE,
    }
    assert command("--format", "json", written('tree = Supervisor("app", [Child("a", serve)])')) == (
        0,
        "[]\n",
        "",
    )


def test_a_target_that_cannot_be_loaded_is_a_finding(written, command):
    """Its status is 2, in every format."""
    target = written("1 / 0")
    status, out, _ = command("--format", "json", target)
    (found,) = json.loads(out)
    assert (status, found["code"], found["file"], found["line"]) == (2, "SUP001", "lint.py", LINE)
    status, out, _ = command("--format", "github", "no_such_file.py")
    assert (status, out) == (2, "::error title=SUP001::no such file: no_such_file.py\n")


def test_github_gets_workflow_commands(written, command):
    """A property has no colon or comma, and a message no line break, unescaped."""
    status, out, errors = command("--format", "github", written(VOID))
    assert (status, errors) == (0, "")
    first, second = out.splitlines()
    assert first.startswith(
        f"::warning file=lint.py,line={LINE},endLine={LINE + 4},title=SUP216::the backoff"
    )
    assert second.startswith(
        f"::warning file=lint.py,line={LINE + 2},endLine={LINE + 2},title=SUP202::the backoff"
    )
    _, out, _ = command("--format", "github", written("raise ValueError('100 %,\\n::')"))
    assert out.endswith(r"ValueError: 100 %25,\n:: " + f"(line {LINE})\n")


# --- what is not said

RIGHT = {
    "C functions and built-ins": "[Child('a', trio.sleep_forever), Child('b', print), Child('c', map, args=[1, 2])]",
    "a partial of a C function": "[Child('a', partial(print, 1))]",
    "a callable object": "[Child('a', Calls(), args=[1])]",
    "a single dispatch": "[Child('a', by_type, args=[1])]",
    "a decorated function": "[Child('a', decorated), Child('b', decorated, restart='temporary')]",
    "a sync wrapper of an async function": "[Child('a', calls_wrapped)]",
    "an async generator that is used": "[Child('a', consumes)]",
    "a name that is local": "[Child('a', local_name)]",
    "a blocking call in a thread": "[Child('a', in_a_thread)]",
    "a function within a function": "[Child('a', inner_functions)]",
    "a loop that is left": "[Child('a', left, restart='transient')]",
    "a loop with an async comprehension": "[Child('a', comprehends)]",
    "a loop that raises its cancellation again": "[Child('a', catches), Child('b', catches_before)]",
    "a body that only raises": "[Child('a', raises)]",
    "a task_status that is passed on": "[Child('a', passes_on), Child('b', declines)]",
    "a generated function": "[Child('a', generated)]",
    "code of trio-asyncio": "[Child('a', trio_asyncio_user)]",
    "lambdas that bind the variable of their loop": "[Child(str(i), lambda i=i: trio.sleep(i)) for i in range(3)]",
    "lambdas that use another variable": "[Child(str(i), lambda: trio.sleep(LONG)) for i in range(3)]",
    "one function for many": "[Child(str(i), serve) for i in range(3)]",
    "a permanent child whose return is decided": "[Child('a', ends, decider=Decider({'returned': Stop}))]",
    "an awaitable class": "[Child('a', Awaitable)]",
    "a lambda for a resource": "[Child('a', query, resource=lambda: database())]",
    "a resource called inbox": "[Child('a', answer, resource=database)]",
    "the deciders that come along": "[Child('a', serve, decider=AKKA), Child('b', serve, decider=OTP)]",
    "rules of groups": (
        "[Child('a', serve, decider=Decider({'one': Stop, 'many': Stop}, "
        "rules=[Rule(Exception, 'one'), Rule(ExceptionGroup, 'many')]))]"
    ),
    "rules with conditions": (
        "[Child('a', serve, decider=Decider({'one': Stop, 'two': Stop}, "
        "rules=[Rule(OSError, 'one', match='x'), Rule(OSError, 'two')]))]"
    ),
    "tags with numbers": "[Child('a', serve, decider=Decider({'disk.1': Stop}, rules=[Rule(OSError, 'disk.2')]))]",
    "tags that exceptions carry": "[Child('a', serve, decider=Decider({'disk.full': Stop}))]",
    "a limit that stops by its decider": "[Supervisor('s', [Child('a', serve)], limit=None, decider=Decider(default=Stop))]",
    "a pool of workers": "[Pool('p', Child('a', answer, mailbox='shared'), mailbox=9)]",
    "a pool of tasks": "[Pool('p', Child('a', trio.sleep, restart='temporary'), maximum=9)]",
    "a class whose metaclass raises": "[Child('a', makes_weird)]",
    "objects that raise": "[Child('a', Raises(), args=[Raises()])]",
}
SETUP = """
import functools
LONG = 3600
class Calls:
    async def __call__(self, one): await trio.sleep(1)
class Raises:
    def __getattr__(self, name): raise RuntimeError(name)
    def __call__(self): return trio.sleep(1)
class Meta(type):
    def __getattribute__(cls, name): raise RuntimeError(name)
    def __subclasscheck__(cls, other): raise RuntimeError
class Weird(metaclass=Meta): pass
async def makes_weird():
    Weird()
    await trio.sleep(1)
class Awaitable:
    def __await__(self): yield
@functools.singledispatch
async def by_type(one): await trio.sleep(1)
def decorate(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs): return function(*args, **kwargs)
    return wrapper
@decorate
async def decorated(): await trio.sleep(1)
async def calls_wrapped():
    decorated()
    await trio.sleep(1)
async def numbers(): yield 1
async def consumes():
    numbers()
    async for _ in numbers(): pass
async def local_name():
    sleep = print
    sleep(1)
    time = Calls()
    time.sleep(1)
    await trio.sleep(1)
async def in_a_thread(): await trio.to_thread.run_sync(time.sleep, 1)
async def inner_functions():
    def blocks(): time.sleep(1)
    async def waits(): pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits)
        nursery.start_soon(trio.to_thread.run_sync, blocks)
async def left():
    while True:
        break
async def comprehends():
    while True:
        [n async for n in numbers()]
async def catches():
    while True:
        try: await trio.sleep(1)
        except BaseException:
            print("x")
            raise
async def catches_before():
    while True:
        try: await trio.sleep(1)
        except trio.Cancelled: raise
        except BaseException: print("x")
        try: print("y")
        except: pass
async def raises(): raise OSError
async def passes_on(task_status): await trio.sleep(1, **locals())
async def declines(task_status): return IGNORE
exec("async def generated():\\n    trio.sleep(1)\\n    await trio.sleep(1)")
async def trio_asyncio_user(): await asyncio.sleep(1)
async def ends(): print("x")
"""


@pytest.mark.parametrize("right", RIGHT)
def test_nothing_is_said_of_what_may_be_right(written, right):
    """A false warning is worse than a missing one."""
    setup = (
        SETUP.replace("import functools", "import functools\ntrio_asyncio = 1")
        if "asyncio" in right
        else SETUP
    )
    assert report(written(f"{setup}\ntree = Supervisor('app', {RIGHT[right]})")) == ([], 0)


def test_a_deep_tree_is_checked(written):
    """Nothing here recurses over a tree."""
    text = "tree = Supervisor('s', [Child('a', serve)])\nfor _ in range(3000):\n    tree = Supervisor('s', [tree])"
    assert report(written(text)) == ([], 0)


def test_source_code_that_is_nested_deeply_is_read(written):
    """Also where a recursion over it would take the whole stack."""
    sum_of_ones = "+".join(["1"] * 900)
    text = f"async def work():\n    x = {sum_of_ones}\n    await trio.sleep(1)\ntree = Supervisor('app', [Child('a', work)])"
    assert report(written(text)) == ([], 0)


# --- its time


def test_a_file_is_read_once_however_many_lambdas_it_has(written, monkeypatch):
    """Otherwise the time would grow with the square of the number of its nodes."""
    file = written(
        "tree = Supervisor('app', [\n"
        + "".join(
            f"    Child('c{number}', lambda: trio.sleep({number}), backoff=Backoff()),\n"
            for number in range(50)
        )
        + "])"
    )
    walks, walk = [], ast.walk
    monkeypatch.setattr(ast, "walk", lambda node: walks.append(node) or walk(node))
    assert report(file) == ([], 0)
    assert sum(isinstance(node, ast.Module) for node in walks) == 1
