"""Mistakes that new users make in a declaration, and the one line that `check` prints for each; none ends in a traceback."""

import re
import sys
import textwrap

import pytest

from supervise.cli import main

HEAD = """
from contextlib import asynccontextmanager, contextmanager
from functools import partial, wraps
import asyncio
import trio
from supervise import *

async def idle(): await trio.sleep_forever()
async def serve(inbox): await trio.sleep_forever()
async def work(resource, inbox): await trio.sleep_forever()
async def add(one, two): await trio.sleep_forever()
async def by_name(*, user): await trio.sleep_forever()
async def starts(task_status): task_status.started()
def sync(): print("I am not async")
def blocks():
    while True: pass
async def numbers():
    yield 1
async def open_database():
    yield "database"
@contextmanager
def open_file():
    yield "file"
@asynccontextmanager
async def open_link(address):
    yield "link"
@asynccontextmanager
async def opened():
    yield "opened"
class Server:
    async def run(self): await trio.sleep_forever()
class Lying:
    @property
    def __class__(self): return Child
class Shy:
    def __repr__(self): raise RuntimeError("no repr")
    def __eq__(self, other): raise RuntimeError("no eq")
    def __hash__(self): raise RuntimeError("no hash")
    def __bool__(self): raise RuntimeError("no bool")
class Text(str):
    def __eq__(self, other): raise RuntimeError("no eq")
    def __hash__(self): raise RuntimeError("no hash")
    def __repr__(self): raise RuntimeError("no repr")
class Liar(Exception):
    def __repr__(self): raise RuntimeError("no repr")
"""

MISTAKES = {
    # children of a supervisor
    "a function as children": (
        'Supervisor("app", idle)',
        "supervisor 'app': children must be a list of Child, Supervisor and Pool, got <function idle",
    ),
    "functions in a list": (
        'Supervisor("app", [idle])',
        "supervisor 'app': each child must be a Child or Supervisor or Pool, got <function idle",
    ),
    "pairs": (
        'Supervisor("app", [("a", idle)])',
        "supervisor 'app': each child must be a Child or Supervisor or Pool, got ('a', <function idle",
    ),
    "a dict": (
        'Supervisor("app", {"a": idle})',
        "supervisor 'app': children must be a list of Child, Supervisor and Pool, got {'a': <function idle",
    ),
    "one child without brackets": (
        'Supervisor("app", Child("a", idle))',
        "supervisor 'app': children must be a list of Child, Supervisor and Pool, got Child('a', idle); write it in brackets",
    ),
    "None as children": ('Supervisor("app", None)', "supervisor 'app': children must be a list of"),
    "a text as children": ('Supervisor("app", "ab")', "supervisor 'app': children must be a list of"),
    "the class itself": ('Supervisor("app", [Child])', "each child must be a Child or Supervisor or Pool, got <class"),
    "two of one name": (
        'Supervisor("app", [Child("a", idle), Child("a", idle)])',
        "supervisor 'app' has two children named 'a'",
    ),
    "one spec twice": (
        '(lambda a: Supervisor("app", [a, Supervisor("b", [a])]))(Child("a", idle))',
        "one spec stands at two places: 'app/a' and 'app/b/a'; make two",
    ),
    "what says it is a Child": ('Supervisor("app", [Lying()])', "each child must be a Child or Supervisor or Pool, got <"),
    "what cannot be looked at": (
        'Supervisor("app", [Shy()])',
        "each child must be a Child or Supervisor or Pool, got <Shy whose repr raised RuntimeError>",
    ),
    # names
    "a slash in a name": ('Supervisor("app", [Child("a/b", idle)])', "child's name must be non-empty, without '/'"),
    "no name": ('Supervisor("app", [Child("", idle)])', "child's name must be non-empty"),
    "a number as a name": ('Supervisor("app", [Child(1, idle)])', "child's name must be a string, got 1"),
    "name and body swapped": (
        'Supervisor("app", [Child(idle, "a")])',
        "child's name must be a string, got <function idle",
    ),
    # options
    "a tuple as a limit": (
        'Supervisor("app", [], limit=(3, 5))',
        "supervisor 'app': limit must be a Limit or None, got (3, 5), such as Limit(3, within=5)",
    ),
    "a number as a limit": ('Supervisor("app", [], limit=3)', "supervisor 'app': limit must be a Limit or None, got 3"),
    "a number as a backoff": (
        'Supervisor("app", [Child("a", idle, backoff=2)])',
        "child 'a': backoff must be a Backoff or None, got 2, such as Backoff(initial=0.5)",
    ),
    "a dict as a decider": (
        'Supervisor("app", [], decider={OSError: Restart})',
        "supervisor 'app': decider must be a Decider or None, got {",
    ),
    "a dash in a strategy": (
        'Supervisor("app", [], strategy="one-for-all")',
        ("supervisor 'app': strategy must be one of 'one_for_one', 'one_for_all', 'rest_for_one', "
        "got 'one-for-all'; did you mean 'one_for_all'?"),
    ),
    "a restart type in capitals": (
        'Supervisor("app", [Child("a", idle, restart="Transient")])',
        "got 'Transient'; did you mean 'transient'?",
    ),
    "a bool as a restart type": (
        'Supervisor("app", [Child("a", idle, restart=True)])',
        "child 'a': restart must be one of 'permanent', 'transient', 'temporary', got True",
    ),
    "significant without auto_shutdown": (
        'Supervisor("app", [Child("a", idle, restart="transient", significant=True)])',
        "child 'a': significant needs auto_shutdown 'any_significant' or 'all_significant', got 'never'",
    ),
    "significant and permanent": (
        'Supervisor("app", [Child("a", idle, significant=True)], auto_shutdown="any_significant")',
        "child 'a': significant needs restart 'transient' or 'temporary', got 'permanent'",
    ),
    "a misspelt front": (
        'Supervisor("app", [Child("server", idle)], front="sever")',
        "supervisor 'app': front must be one of its children (server), got 'sever'; did you mean 'server'?",
    ),
    "a misspelt option": (
        'Supervisor("app", [Child("a", idle, resorce=opened)])',
        "got an unexpected keyword argument 'resorce'",
    ),
    "a forgotten body": ('Supervisor("app", [Child("a")])', "missing 1 required positional argument: 'body'"),
    "a time as a text": ('Supervisor("app", [Child("a", idle, drain="5s")])', "child 'a': drain must be a number, got '5s'"),
    "a time below zero": ('Supervisor("app", [Child("a", idle, grace=-1)])', "child 'a': grace must be >= 0, got -1"),
    "no time to start": (
        'Supervisor("app", [Child("a", idle, start_timeout=0)])',
        "child 'a': start_timeout must be > 0, got 0",
    ),
    "a time beyond all numbers": (
        'Supervisor("app", [Child("a", idle, drain=10**400)])',
        "child 'a': drain must be <= 9223372036854775807, got 1000",
    ),
    "a limit beyond all numbers": ('Supervisor("app", [], limit=Limit(10**30))', "restarts must be <= 9223372036854775807"),
    "a limit of no time": ('Supervisor("app", [], limit=Limit(1, within=0))', "within must be > 0, got 0"),
    "a jitter of 200 %": ('Supervisor("app", [Child("a", idle, backoff=Backoff(jitter=2))])', "jitter must be <= 1, got 2"),
    "an endless first delay": (
        'Supervisor("app", [Child("a", idle, backoff=Backoff(initial=float("inf")))])',
        "initial must be finite, got inf",
    ),
    "a mailbox of no size": ('Supervisor("app", [Child("a", serve, mailbox=0)])', "a mailbox's size must be >= 1, got 0"),
    "a mailbox that says True": (
        'Supervisor("app", [Child("a", serve, mailbox=True)])',
        "a mailbox's size must be an integer, got True",
    ),
    "a misspelt on_loss": (
        'Supervisor("app", [Child("a", serve, mailbox=Mailbox(on_loss="requeu"))])',
        "a mailbox's on_loss must be one of 'fail', 'requeue', got 'requeu'; did you mean 'requeue'?",
    ),
    # bodies
    "a sync body": ('Supervisor("app", [Child("a", sync)])', "child 'a': body must be an async function, and sync is not an async function"),
    "a body that blocks": ('Supervisor("app", [Child("a", blocks)])', "child 'a': body must be an async function, and blocks is not"),
    "a body that was called": (
        'Supervisor("app", [Child("a", idle())])',
        "child 'a': body must be an async function, and idle(…) was called already: give the function itself",
    ),
    "an async generator as a body": (
        'Supervisor("app", [Child("a", numbers)])',
        "child 'a': body must be an async function, and is an async generator function",
    ),
    "a resource as a body": (
        'Supervisor("app", [Child("a", opened)])',
        "child 'a': body must be an async function, and is an async context manager; give it as resource=…",
    ),
    "a class as a body": ('Supervisor("app", [Child("a", Server)])', "child 'a': body must be an async function, got the class Server"),
    "an unbound method": (
        'Supervisor("app", [Child("a", Server.run)])',
        ("child 'a': body is called as Server.run(), but it is Server.run(self): missing a required argument: 'self'; "
        "it is a method: give that of an instance"),
    ),
    "too few arguments": (
        'Supervisor("app", [Child("a", add, args=(1,))])',
        "child 'a': body is called as add(args[0]), but it is add(one, two): missing a required argument: 'two'",
    ),
    "too many arguments": (
        'Supervisor("app", [Child("a", idle, args=(1,))])',
        "child 'a': body is called as idle(args[0]), but it is idle(): too many positional arguments",
    ),
    "a text as args": (
        'Supervisor("app", [Child("a", serve, args="x")])',
        "child 'a': args must be a tuple or list of arguments, got 'x'",
    ),
    "a number as args": ('Supervisor("app", [Child("a", serve, args=5)])', "child 'a': args must be a tuple or list of arguments, got 5"),
    "a dict as args": ('Supervisor("app", [Child("a", serve, args={"b": 1})])', "child 'a': args must be a tuple or list"),
    "a mailbox for a body that takes none": (
        'Supervisor("app", [Child("a", idle, mailbox=8)])',
        "child 'a': body is called as idle(inbox), but it is idle(): too many positional arguments; it gets its mailbox",
    ),
    "a body that takes a mailbox, and has none": (
        'Supervisor("app", [Child("a", serve)])',
        "missing a required argument: 'inbox'; declare mailbox=…",
    ),
    "a partial that gives too much": (
        'Supervisor("app", [Child("a", partial(idle, 1))])',
        "child 'a': body is a partial whose arguments do not fit idle",
    ),
    "task_status and an argument": (
        'Supervisor("app", [Child("a", starts, args=(1,))])',
        "child 'a': body is called as starts(args[0], task_status=…), but it is starts(task_status)",
    ),
    # resources
    "a resource without its decorator": (
        'Supervisor("app", [Child("a", serve, resource=open_database)])',
        "child 'a': resource must make an async context manager: decorate open_database with @asynccontextmanager",
    ),
    "a sync resource": (
        'Supervisor("app", [Child("a", serve, resource=open_file)])',
        "child 'a': resource must make an async context manager, and open_file is a sync one",
    ),
    "an async function as a resource": (
        'Supervisor("app", [Child("a", serve, resource=idle)])',
        "child 'a': resource must make an async context manager, and idle is an async function",
    ),
    "a resource that was called": (
        'Supervisor("app", [Child("a", serve, resource=opened())])',
        "child 'a': resource must be a function that makes an async context manager, and is one already",
    ),
    "a resource that wants an argument": (
        'Supervisor("app", [Child("a", serve, resource=open_link)])',
        ("child 'a': resource is called as open_link(), but it is open_link(address): "
        "missing a required argument: 'address'; bind arguments with functools.partial"),
    ),
    "a class that is no context manager": (
        'Supervisor("app", [Child("a", serve, resource=Server)])',
        "child 'a': resource must make an async context manager, and the class Server has no __aenter__",
    ),
    "a path as a resource": (
        'Supervisor("app", [Child("a", serve, resource="data.db")])',
        "child 'a': resource must be a function, got 'data.db'",
    ),
    # deciders
    "a text as a directive": (
        'Supervisor("app", [], decider=Decider({OSError: "restart"}))',
        "a decider maps <class 'OSError'> to Resume, Restart, Stop or Escalate, got 'restart'",
    ),
    "an instance as a key": (
        'Supervisor("app", [], decider=Decider({OSError(): Restart}))',
        "a decider's key, if not an exception class, must be a dotted tag such as 'device.oom', got OSError()",
    ),
    "a tuple as a key": ('Supervisor("app", [], decider=Decider({(OSError, KeyError): Restart}))', "must be a dotted tag"),
    "an odd tag": ('Supervisor("app", [], decider=Decider({"device oom": Restart}))', "must be a dotted tag such as 'device.oom', got 'device oom'"),
    "a pair of lists as a table": ('Supervisor("app", [], decider=Decider([(OSError, Stop)]))', "a decider's table must be a mapping, got ["),
    "one rule without brackets": (
        'Supervisor("app", [], decider=Decider(rules=Rule(OSError, "net")))',
        "a decider's rules must be a list of Rules, got Rule(",
    ),
    "a broken regular expression": (
        'Supervisor("app", [], decider=Decider(rules=[Rule(OSError, "net", match="(")]))',
        "a rule's match must be a regular expression, got '('",
    ),
    "a predicate that waits": (
        'Supervisor("app", [], decider=Decider(rules=[Rule(OSError, "net", when=serve)]))',
        "a rule's when must be a plain function, and serve is an async function",
    ),
    "a rule about a text": ('Supervisor("app", [], decider=Decider(rules=[Rule("OSError", "net")]))', "a rule's first argument must be an exception class"),
    "a table whose keys raise": (
        'Supervisor("app", [], decider=Decider({"a": Stop, KeyError: Shy()}))',
        "a decider maps <class 'KeyError'> to Resume, Restart, Stop or Escalate, got <Shy whose repr raised",
    ),
    # pools
    "a function as a template": ('Pool("app", idle)', "pool 'app': template must be a Child or Supervisor or Pool, got <function idle"),
    "a list as a template": ('Pool("app", [Child("a", idle)])', "pool 'app': template must be a Child or Supervisor or Pool, got [Child("),
    "a pool of none": ('Pool("app", Child("a", idle), maximum=0)', "pool 'app': maximum must be >= 1, got 0"),
    "a template that wants an argument by name": (
        'Pool("app", Child("a", by_name))',
        "child 'a': body is called as by_name(), but it is by_name(*, user): missing a required ",
    ),
    "a template whose init wants one": (
        'Pool("app", Supervisor("a", [], init=lambda *, user: None))',
        "supervisor 'a': init is called as <lambda>(), but it is <lambda>(*, user): missing a required ",
    ),
    # init
    "an init that waits": (
        'Supervisor("app", [], init=idle)',
        "supervisor 'app': init must be a plain function, and idle is an async function",
    ),
    "an init that is a context manager": (
        'Supervisor("app", [], init=opened)',
        "supervisor 'app': init must be a plain function, and opened is an async context manager",
    ),
    "a predicate that is a context manager": (
        'Supervisor("app", [], decider=Decider(rules=[Rule(OSError, "net", when=open_file)]))',
        "a rule's when must be a plain function, and open_file is a context manager",
    ),
    "an init that wants an argument": (
        'Supervisor("app", [], init=lambda path: None)',
        "supervisor 'app': init is called as <lambda>(), but it is <lambda>(path): missing a required argument: 'path'",
    ),
    # hostile values
    "a name that raises": ('Supervisor("app", [Child(Shy(), idle)])', "child's name must be a string, got <Shy whose repr raised RuntimeError>"),
    "a restart type that raises": (
        'Supervisor("app", [Child("a", idle, restart=Shy())])',
        "child 'a': restart must be one of 'permanent', 'transient', 'temporary', got <Shy whose repr raised RuntimeError>",
    ),
    "a front that raises": (
        'Supervisor("app", [Child("a", idle)], front=Shy())',
        "supervisor 'app': front must be one of its children (a), got <Shy whose repr raised RuntimeError>",
    ),
    "args that raise": ('Supervisor("app", [Child("a", idle, args=Shy())])', "child 'a': args must be a tuple or list of arguments, got <Shy"),
    "a bool that raises": (
        'Supervisor("app", [Child("a", idle, significant=Shy())])',
        "child 'a': significant must be a bool, got <Shy whose repr raised RuntimeError>",
    ),
    "a number that raises": ('Supervisor("app", [Child("a", idle, drain=Shy())])', "child 'a': drain must be a number, got <Shy"),
    "a huge value": (
        'Supervisor("app", [Child("a", idle, drain=["x" * 1000] * 100_000)])',
        "child 'a': drain must be a number, got ['xxx",
    ),
    # what is there to load
    "no tree": ("None", "must be a Supervisor or a Pool, got None"),
    "a child alone": ('Child("a", idle)', "must be a Supervisor or a Pool, got Child('a', idle); put the child into a Supervisor"),
    "a list alone": ('[Child("a", idle)]', "must be a Supervisor or a Pool, got [Child('a', idle)]; put the children into a Supervisor"),
    "a factory": ('lambda: Supervisor("app", [])', "must be a Supervisor or a Pool, got <function <lambda>"),
    "what open_tree gives": ('open_tree(Supervisor("app", []))', "must be a Supervisor or a Pool, got <open_tree of 'app'>"),
    "a name that is not there": ('Supervisor("app", [Child("a", idel)])', "NameError: name 'idel' is not defined"),
    "a misspelt import": ('__import__("supervise", fromlist=["x"]).Supervsor("app", [])', "has no attribute 'Supervsor'"),
    "an exit": ("exit(3)", "ended the program while it was loaded: SystemExit(3)"),
    "an exception that cannot be printed": (
        "(_ for _ in ()).throw(Liar(1))",
        "failed to load: ",
    ),
    "a bare BaseException": ("(_ for _ in ()).throw(GeneratorExit())", "failed to load: GeneratorExit"),
    "a tree that is run": (
        'run_tree(Supervisor("app", [Child("a", idle)]))',
        "failed to load: RuntimeError: a tree is started while the file that declares it is loaded: do that under if __name__",
    ),
    "a trio.run": ("trio.run(idle, 5)", "failed to load: TypeError"),
}  # fmt: skip


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """What `check` prints for a file, and its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def check(text, command="check"):
        (tmp_path / "declared.py").write_text(textwrap.dedent(text))
        try:
            main([command, "declared.py"])
            status = 0
        except SystemExit as left:
            status = left.code
        finally:
            sys.modules.pop("declared", None)
        return status, *capsys.readouterr()

    return check


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_declaration_gives_one_line(check, mistake):
    """The line names the thing, what is allowed, and what came; the exit status is 1 or 2."""
    wrong, expected = MISTAKES[mistake]
    status, out, errors = check(f"{HEAD}\ntree = {wrong}\n")
    lines = errors.splitlines()
    assert status in (1, 2), errors
    assert expected in lines[0]
    assert "Traceback" not in errors
    assert len(lines) == 1 or mistake in SEVERAL, errors
    assert all(len(line) < 1000 for line in lines)
    assert not out


SEVERAL = {"name and body swapped"}
"""Two mistakes, of which each has its line."""


@pytest.mark.parametrize("command", ["run", "tree"])
@pytest.mark.parametrize(
    "mistake", ["pairs", "a tuple as a limit", "a sync body", "an exit", "args that raise"]
)
def test_the_other_commands_report_a_mistake_in_the_same_line(check, command, mistake):
    """The line has the line number in the file."""
    wrong, expected = MISTAKES[mistake]
    status, _, errors = check(f"{HEAD}\ntree = {wrong}\n", command)
    assert status == 2
    assert expected in errors
    assert errors.count("\n") == 1


SOUND = {
    "a method of an instance": 'Supervisor("app", [Child("a", Server().run)])',
    "what gives a coroutine": 'Supervisor("app", [Child("a", lambda: trio.sleep(1))])',
    "a wrapper": 'Supervisor("app", [Child("a", wraps(add)(lambda: trio.sleep(1)))])',
    "a wrapper that gives an argument": 'Supervisor("app", [Child("a", wraps(add)(partial(add, 1, 2)))])',
    "partials": 'Supervisor("app", [Child("a", partial(work), resource=partial(open_link, "x"), mailbox=1)])',
    "a callable object": 'Supervisor("app", [Child("a", type("C", (), {"__call__": lambda self: trio.sleep(1)})())])',
    "a built-in function": 'Supervisor("app", [Child("a", print, args=(1,))])',
    "a class that is a resource": 'Supervisor("app", [Child("a", serve, resource=trio.open_nursery)])',
    "a mock": 'Supervisor("app", [Child("a", __import__("unittest.mock").mock.AsyncMock(), args=(1,))])',
    "a mock of a resource": 'Supervisor("app", [Child("a", serve, resource=__import__("unittest.mock").mock.MagicMock())])',
    "a template whose arguments come later": 'Pool("app", Child("a", add))',
    "a template whose argument by name is bound": 'Pool("app", Child("a", partial(by_name, user=1)))',
    "a template whose init gets them": 'Pool("app", Supervisor("a", [], init=lambda path: None))',
    "a text of one's own": 'Supervisor(Text("app"), [Child(Text("a"), idle, restart=Text("transient"))])',
    "an enum": 'Supervisor("app", [Child("a", idle, grace=__import__("http").HTTPStatus.OK)])',
    "args that cannot be looked at": 'Supervisor("app", [Child("a", serve, args=(Shy(),))])',
}


@pytest.mark.parametrize("sound", SOUND)
def test_a_declaration_that_may_be_right_is_not_refused(check, sound):
    """Only a declaration that surely cannot work is refused."""
    assert check(f"{HEAD}\ntree = {SOUND[sound]}\n") == (0, "declared.py: ok\n", "")


def test_all_mistakes_of_a_file_are_found_in_one_go(check):
    """Each mistake has a line, and none that only follows from another."""
    status, _, errors = check(
        f"""{HEAD}
tree = Supervisor("app", [
    Child("a", sync, limit=3), ("b", idle), Child("c", serve, args="x"),
    Supervisor("d", idle, strategy="all", front="x"), Pool("e", 5, maximum=0),
    Child("f", idle, backoff=Backoff(initial=-1, jitter="x"), mailbox=0),
], limit=(1, 2), decider=Decider(5, rules=[5], default="x", beneath=5), init=5)
"""
    )
    assert status == 1
    assert errors.count("\n") == 19
    assert "Traceback" not in errors


def test_a_misspelt_option_or_name_is_answered_with_a_near_match(check):
    """This holds on every version of Python; since 3.13 Python itself adds the suggestion."""
    _, _, errors = check('from supervise import *\ntree = Supervisor("app", [], stratgy="one_for_all")\n')
    assert "id you mean 'strategy'?" in errors
    _, _, errors = check("from supervise import Supervizor\n")
    assert "id you mean" in errors
    assert "'Supervisor'" in errors


def test_a_misspelt_attribute_is_answered_with_a_near_match(check, monkeypatch, capsys):
    """This holds for an attribute in the target too."""
    check(f'{HEAD}\nshop = Supervisor("app", [])\n')
    with pytest.raises(SystemExit):
        main(["check", "declared.py:shopp"])
    assert (
        capsys.readouterr().err
        == "supervise: error: declared.py has no attribute 'shopp'; did you mean 'shop'? [SUP001]\n"
    )


def test_a_failure_of_several_lines_is_reported_whole_in_one_line(check):
    """The line has its class and its notes, and no control characters for a terminal; a long one keeps both ends."""
    _, _, errors = check("raise ValueError('one\\ntwo\\x1b[31m')")
    start = "declared.py:1: error: declared.py failed to load: "
    assert errors == f"{start}ValueError: one\\ntwo\\x1b[31m (line 1) [SUP001]\n"
    _, _, errors = check("exc = KeyError('one')\nexc.add_note('of two')\nraise exc")
    assert errors.endswith(": declared.py failed to load: KeyError: 'one'\\nof two (line 3) [SUP001]\n")
    _, _, errors = check("raise ValueError('x' * 10**6)")
    assert len(errors) < 1000


@pytest.mark.parametrize("name", ["run", "tree"])
def test_the_line_number_is_one_of_the_file_itself(tmp_path, monkeypatch, capsys, name):
    """It is not a line of a file of ours that has the same name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / f"{name}.py").write_text('from supervise import *\n\nrun_tree(Supervisor("app", []))\n')
    with pytest.raises(SystemExit):
        main(["check", f"{name}.py"])
    sys.modules.pop(name, None)
    assert capsys.readouterr().err.endswith("if __name__ == '__main__' (line 3) [SUP001]\n")


def test_a_syntax_error_in_an_imported_file_names_that_file(check, tmp_path):
    """The line number is one of that file."""
    (tmp_path / "parted.py").write_text("\n\nx = (\n")
    expected = "SyntaxError: '(' was never closed (line 3 of parted.py, from line 2) [SUP001]\n"
    _, _, errors = check("\nimport parted\n")
    assert errors.startswith("parted.py:3: error: ")
    assert errors.endswith(expected)


@pytest.mark.parametrize(
    "declared",
    [
        'part = Supervisor("part", [Child("a", idle)])\napp = Supervisor("app", [Supervisor("mid", [part])])',
        'member = Supervisor("m", [])\napp = Supervisor("app", [Pool("p", member)])',
        'app = shop = Supervisor("app", [Child("a", idle)])',
    ],
)
def test_the_only_root_is_found_at_any_depth(check, declared):
    """A supervisor within another, or the template of a pool, is no root; two names of one root count as one."""
    assert check(f"{HEAD}\n{declared}\n") == (0, "declared.py: ok\n", "")


def test_a_module_that_exits_when_its_tree_is_looked_up_is_reported(check):
    """It is reported like one that exits while it is loaded."""
    status, _, errors = check("def __getattr__(name): raise SystemExit(0)")
    assert (status, errors.count("\n")) == (2, 1)
    assert "declared.py ended the program while it was loaded: SystemExit(0)" in errors


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (".", ". is a folder: give a file in it"),
        ("..", ".. is a folder: give a file in it"),
        ("", ". is a folder: give a file in it"),
        (".declared", "no such file: .declared"),
    ],
)
def test_a_target_that_begins_with_a_dot_is_no_module(capsys, target, expected):
    """A folder is a likely mistake."""
    with pytest.raises(SystemExit):
        main(["check", target])
    assert capsys.readouterr().err == f"supervise: error: {expected} [SUP001]\n"


WARNINGS = {
    "a limit that can never trip": (
        'Supervisor("app", [Child("a", idle, backoff=Backoff(initial=10))])',
        (
            "the limit of 'app' (3 within 5 s) can never trip by 'a': 4 restarts take at least 72 s of backoff; "
            "give 'app' a longer window, such as limit=Limit(3, within=144), or write limit=None"
        ),
    ),
    "a limit that a thousand million restarts do not pass": (
        'Supervisor("app", [Child("a", idle, backoff=Backoff(initial=1e-3, factor=1.0000001))], limit=Limit(10**9))',
        "the limit of 'app' (1000000000 within 5 s) can never trip by 'a': 1000000001 restarts take at least 2.45e+10 s of backoff",
    ),
    "a limit whose backoff grows beyond all numbers": (
        'Supervisor("app", [Child("a", idle, backoff=Backoff(initial=1, factor=2, maximum=float("inf")))], limit=Limit(5000))',
        "5001 restarts take at least inf s of backoff; give 'app' a longer window, such as limit=Limit(5000, within=…)",
    ),
    "a backoff that is never used": (
        'Supervisor("app", [Child("a", idle, backoff=Backoff(), limit=Limit(9, within=60), restart="temporary")])',
        "the limit and the backoff of 'app/a' have no effect, for a temporary child is never restarted; leave them out",
    ),
    "a limit over temporary children": (
        'Supervisor("app", [Child("a", idle, restart="temporary")], limit=Limit(9, within=60))',
        "the limit of 'app' (9 within 60 s) can never trip, for all its children are temporary",
    ),
    "a Resume of nothing": (
        'Supervisor("app", [Child("a", idle)], decider=Decider({OSError: Resume}))',
        "the decider of 'app' answers Resume, but no child there has a resource to keep: Resume becomes Restart (R8)",
    ),
}


@pytest.mark.parametrize("warning", WARNINGS)
def test_a_warning_says_what_to_do(check, warning):
    """A warning is no error."""
    declared, expected = WARNINGS[warning]
    status, out, errors = check(f"{HEAD}\ntree = {declared}\n")
    assert (status, out) == (0, "declared.py: ok\n")
    assert re.match(r"declared\.py:\d+: warning: ", errors)
    assert expected in errors
    assert errors.count("\n") == 1


def test_a_sensible_tree_has_no_warning(check):
    """The defaults give no warning either."""
    tree = 'Supervisor("app", [Child("a", idle, backoff=Backoff()), Pool("p", Child("m", idle, restart="temporary"))])'
    assert check(f"{HEAD}\ntree = {tree}\n")[2] == ""
