"""The mistakes of new users, each in a short file: `check` names the line, what is allowed, and what came."""

import re
import sys
import textwrap

import pytest

from supervise.cli.check import report

HEAD = """
import asyncio, datetime, subprocess, time
from contextlib import asynccontextmanager, contextmanager
from functools import partial
import trio
from supervise import *
async def idle(): await trio.sleep_forever()
async def serve(inbox): await trio.sleep_forever()
async def query(db): await trio.sleep_forever()
async def add(one, two): await trio.sleep_forever()
@asynccontextmanager
async def database(): yield "connection"
"""


def app(*lines):
    """A file whose tree has these children; each is a line."""
    return "\n".join(["tree = Supervisor('app', [", *lines, "])"])


MISTAKES = {
    # bodies
    "a coroutine in place of a function": ("SUP101", app("Child('a', idle()),  # here"), "idle(…) was called already: give the function itself"),
    "a plain function": ("SUP101", "def work(): print('x')\n" + app("Child('a', work),  # here"), "work is not an async function: write async def"),
    "a plain function in a partial": ("SUP101", "def work(n): print(n)\n" + app("Child('a', partial(work, 1)),  # here"), "write async def"),
    "a plain method": (
        "SUP101", "class Job:\n    def run(self): print('x')\n" + app("Child('a', Job().run),  # here"), "write async def",
    ),
    "no body": ("SUP101", app("Child('a', None),  # here"), "body must be an async function, got None"),
    "the name of a function": ("SUP101", app("Child('a', 'idle'),  # here"), "body must be an async function, got 'idle'"),
    "a class": ("SUP101", "class Job: pass\n" + app("Child('a', Job),  # here"), "must be an async function, got the class Job"),
    "an object that cannot be called": (
        "SUP101", "class Job: pass\n" + app("Child('a', Job()),  # here"), "body must be an async function, got <",
    ),
    "an async generator": ("SUP101", "async def count(): yield 1\n" + app("Child('a', count),  # here"), "a body has no yield"),
    "a generator": ("SUP101", "def count(): yield 1\n" + app("Child('a', count),  # here"), "is a generator function"),
    "a resource for a body": ("SUP101", app("Child('a', database),  # here"), "give it as resource="),
    "an asyncio loop": ("SUP001", "loop = asyncio.get_running_loop()  # here", "no running event loop"),
    # arguments
    "a mailbox that the body does not take": ("SUP102", app("Child('a', idle, mailbox=8),  # here"), "it gets its mailbox"),
    "an inbox without a mailbox": ("SUP102", app("Child('a', serve),  # here"), "declare mailbox=…"),
    "a resource that the body does not take": ("SUP102", app("Child('a', idle, resource=database),  # here"), "it gets its resource"),
    "too few arguments": ("SUP102", app("Child('a', add, args=[1]),  # here"), "missing a required argument: 'two'"),
    "too many arguments": ("SUP102", app("Child('a', add, args=[1, 2, 3]),  # here"), "too many positional arguments"),
    "a lambda that takes what is not given": ("SUP102", app("Child('a', lambda inbox: serve(inbox)),  # here"), "declare mailbox=…"),
    "a method of a class": (
        "SUP102", "class Job:\n    async def run(self): ...\n" + app("Child('a', Job.run),  # here"), "give that of an instance",
    ),
    "a partial that gives too much": ("SUP102", app("Child('a', partial(idle, 1)),  # here"), "whose arguments do not fit idle"),
    "an argument by name only": (
        "SUP102", "async def work(*, user): ...\n" + app("Child('a', work, args=['me']),  # here"), "but it is work(*, user)",
    ),
    "task_status beside too many": (
        "SUP102", "async def work(task_status): ...\n" + app("Child('a', work, args=[1]),  # here"), "task_status=…",
    ),
    "args without brackets": ("SUP110", app("Child('a', serve, args='x'),  # here"), "args must be a tuple or list of arguments, got 'x'"),
    "args as a dict": ("SUP110", app("Child('a', serve, args={'inbox': 1}),  # here"), "args must be a tuple or list"),
    "an argument that is a coroutine": ("SUP214", app("Child('a', serve, args=[idle()]),  # here"), "give the function"),
    "the inbox before the resource": (
        "SUP213", "async def work(inbox, db): await trio.sleep(1)\n" + app("Child('a', work, resource=database, mailbox=8),  # here"),
        "called as body(resource, inbox, …)",
    ),
    "a forgotten body": ("SUP001", app("Child('a'),  # here"), "missing 1 required positional argument: 'body'"),
    "a misspelt option": ("SUP001", app("Child('a', idle, restarts='transient'),  # here"), "did you mean 'restart'?"),
    # resources
    "a resource without its decorator": (
        "SUP103", "async def db(): yield 1\n" + app("Child('a', query, resource=db),  # here"), "decorate db with @asynccontextmanager",
    ),
    "a sync resource": (
        "SUP103", "@contextmanager\ndef db(): yield 1\n" + app("Child('a', query, resource=db),  # here"), "write async def",
    ),
    "a resource that was called": ("SUP103", app("Child('a', query, resource=database()),  # here"), "without calling it"),
    "a resource that only returns": (
        "SUP103", "async def db(): return 1\n" + app("Child('a', query, resource=db),  # here"), "give it a yield",
    ),
    "a resource that wants an argument": (
        "SUP103", "@asynccontextmanager\nasync def db(url): yield 1\n" + app("Child('a', query, resource=db),  # here"),
        "bind arguments with functools.partial",
    ),
    "a value as a resource": ("SUP103", app("Child('a', query, resource='app.db'),  # here"), "must be a function, got 'app.db'"),
    "a class that is no context manager": (
        "SUP103", "class Db: pass\n" + app("Child('a', query, resource=Db),  # here"), "the class Db has no __aenter__",
    ),
    # children and names
    "functions as children": ("SUP104", "tree = Supervisor('app', [idle])  # here", "each child must be a Child or Supervisor or Pool, got <func"),
    "pairs as children": ("SUP104", "tree = Supervisor('app', [('a', idle)])  # here", "each child must be a Child"),
    "a dict of children": ("SUP104", "tree = Supervisor('app', {'a': idle})  # here", "children must be a list"),
    "one child without brackets": ("SUP104", "tree = Supervisor('app', Child('a', idle))  # here", "write it in brackets"),
    "a list in a list": ("SUP104", "tree = Supervisor('app', [[Child('a', idle)]])  # here", "each child must be a Child"),
    "a function as a template": ("SUP104", app("Pool('p', idle),  # here"), "template must be a Child or Supervisor or Pool"),
    "two of one name": ("SUP105", "tree = Supervisor('app', [Child('a', idle), Child('a', idle)])  # here", "two children named 'a'"),
    "one child at two places": (
        "SUP105", "a = Child('a', idle)  # here\ntree = Supervisor('app', [a, Supervisor('in', [a])])", "'app/a' and 'app/in/a'; make two",
    ),
    "a path as a name": ("SUP106", app("Child('web/http', idle),  # here"), "without '/'"),
    "a number as a name": ("SUP106", app("Child(8080, idle),  # here"), "child's name must be a string, got 8080"),
    "an empty name": ("SUP106", app("Child('', idle),  # here"), "must be non-empty"),
    # options
    "a tuple as a limit": ("SUP110", "tree = Supervisor('app', [], limit=(3, 5))  # here", "such as Limit(3, within=5)"),
    "a number as a backoff": ("SUP110", app("Child('a', idle, backoff=2),  # here"), "such as Backoff(initial=0.5)"),
    "a limit below zero": ("SUP110", "tree = Supervisor('app', [], limit=Limit(-1))  # here", "restarts must be >= 0, got -1"),
    "a limit by position": ("SUP001", "tree = Supervisor('app', [], limit=Limit(3, 5))  # here", "takes from 1 to 2 positional"),
    "a duration as a timedelta": (
        "SUP110", app("Child('a', idle, drain=datetime.timedelta(seconds=5)),  # here"), "drain must be a number, got datetime",
    ),
    "a strategy with dashes": ("SUP110", "tree = Supervisor('app', [], strategy='one-for-all')  # here", "did you mean 'one_for_all'?"),
    "a bool as a restart type": ("SUP110", app("Child('a', idle, restart=False),  # here"), "must be one of 'permanent'"),
    "a mailbox of no size": ("SUP110", app("Child('a', serve, mailbox=0),  # here"), "size must be >= 1, got 0"),
    "a dict as a decider": ("SUP110", "tree = Supervisor('app', [], decider={OSError: Stop})  # here", "such as Decider({"),
    "significant without shutdown": (
        "SUP107", "tree = Supervisor('app', [Child('a', idle, restart='transient', significant=True)])  # here", "needs auto_shutdown",
    ),
    "significant and permanent": ("SUP107", "tree = Supervisor('app', [Child('a', idle, significant=True)], auto_shutdown='any_significant')  # here", "significant needs restart 'transient'"),
    "an unknown front": ("SUP107", "tree = Supervisor('app', [Child('web', idle)], front='wbe')  # here", "did you mean 'web'?"),
    "a shared mailbox of nobody": ("SUP107", "tree = Supervisor('app', [Child('a', serve, mailbox='shared')])  # here", "declare mailbox=… there too"),
    "a root that shares": ("SUP107", "tree = Supervisor('app', [Child('a', serve, mailbox='shared')], mailbox='shared')  # here", "has none"),
    # deciders
    "a text as a directive": ("SUP108", "decider = Decider({OSError: 'stop'})  # here\n" + app("Child('a', idle),"), "Resume, Restart, Stop or Escalate"),
    "an instance as a key": ("SUP108", "decider = Decider({OSError(): Stop})  # here\n" + app("Child('a', idle),"), "must be a dotted tag"),
    "a rule without a class": ("SUP108", "rule = Rule('refused', 'net')  # here\n" + app("Child('a', idle),"), "must be an exception class"),
    "a broken expression": ("SUP108", "rule = Rule(OSError, 'net', match='(')  # here\n" + app("Child('a', idle),"), "regular expression, got '('"),
    "a predicate that waits": ("SUP109", "rule = Rule(OSError, 'net', when=query)  # here\n" + app("Child('a', idle),"), "is not awaited"),
    "an init that waits": ("SUP109", "tree = Supervisor('app', [], init=idle)  # here", "init must be a plain function, and idle is an async"),
    # code
    "a missing await": (
        "SUP301", "async def work():\n    trio.sleep(1)  # here\n    await trio.sleep(1)\n" + app("Child('a', work),"), "write await trio.sleep(…)",
    ),
    "a missing await as the whole body": ("SUP301", "async def work():\n    trio.sleep(1)  # here\n" + app("Child('a', work),"), "write await"),
    "a missing await at a return": (
        "SUP301", "async def work():\n    return trio.sleep(1)  # here\n" + app("Child('a', work),"), "write await trio.sleep(…)",
    ),
    "a missing await in a method": (
        "SUP301",
        "class Job:\n    async def step(self): await trio.sleep(1)\n    async def run(self):\n        while True:\n"
        "            self.step()  # here\n" + app("Child('a', Job().run),"),
        "write await self.step(…)",
    ),
    "a missing await in a resource": (
        "SUP301", "@asynccontextmanager\nasync def db():\n    trio.sleep(1)  # here\n    yield 1\n" + app("Child('a', query, resource=db),"),
        "write await trio.sleep(…)",
    ),
    "a missing await in a closure": (
        "SUP301",
        "def make(step):\n    async def work():\n        step()  # here\n        await trio.sleep(1)\n    return work\n"
        + app("Child('a', make(idle)),"),
        "write await step(…)",
    ),
    "a sleep that blocks": (
        "SUP303", "async def work():\n    time.sleep(1)  # here\n    await trio.sleep(0)\n" + app("Child('a', work),"), "write await trio.sleep(…)",
    ),
    "a process that blocks": (
        "SUP303", "async def work():\n    subprocess.run(['ls'])  # here\n    await trio.sleep(0)\n" + app("Child('a', work),"), "trio.run_process",
    ),
    "a sleep of asyncio": (
        "SUP302", "async def work():\n    await asyncio.sleep(1)  # here\n" + app("Child('a', work),"), "a tree runs on Trio",
    ),
    "a queue of asyncio": (
        "SUP302", "async def work():\n    q = asyncio.Queue()  # here\n    await trio.sleep(1)\n" + app("Child('a', work),"), "a tree runs on Trio",
    ),
    "a loop that cannot be stopped": (
        "SUP307",
        "async def work():\n    while True:\n        try:\n            await trio.sleep(1)\n        except:  # here\n            pass\n"
        + app("Child('a', work),"),
        "catch Exception",
    ),
    "a loop that never waits": (
        "SUP304", "async def work():\n    while True:  # here\n        print('x')\n" + app("Child('a', work),"), "await something in it",
    ),
    "a start that is never done": (
        "SUP305", "async def work(task_status): await trio.sleep(1)\n" + app("Child('a', work),  # here"), "call task_status.started()",
    ),
    "a body that ends at once": ("SUP306", "async def work(): print('x')\n" + app("Child('a', work),  # here"), "write restart='transient'"),
    "lambdas in a loop": (
        "SUP217", "tree = Supervisor('app', [Child(str(i), lambda: trio.sleep(i)) for i in range(3)])  # here", "args=[i]",
    ),
    "a lambda of a plain function": ("SUP308", "def work(): print('x')\n" + app("Child('a', lambda: work()),  # here"), "write an async function"),
    "a lambda of print": ("SUP308", app("Child('a', lambda: print('x')),  # here"), "cannot be awaited"),
    # loading
    "a tree that runs while it is loaded": ("SUP001", "run_tree(Supervisor('app', []))  # here", "do that under if __name__ == '__main__'"),
    "a tree that runs in a program that is loaded": (
        "SUP001",
        "async def main():\n    async with open_tree(Supervisor('app', [])):  # here\n        pass\ntrio.run(main)",
        "do that under if __name__ == '__main__'",
    ),
    "an await outside of a function": ("SUP001", "tree = await idle()  # here", "'await' outside function"),
    "a misspelt name": ("SUP001", app("Child('a', idel),  # here"), "name 'idel' is not defined"),
    "a misspelt import": ("SUP001", "from supervise import Supervisr  # here", "did you mean 'Supervisor'?"),
    "a module that is not there": ("SUP001", "import no_such_module_at_all  # here", "No module named 'no_such_module_at_all'"),
    "a file without a tree": ("SUP001", "", "has no 'tree', and it has no supervisor either"),
    "a child as the tree": ("SUP001", "tree = Child('a', idle)", "put the child into a Supervisor"),
    "a function as the tree": ("SUP001", "def tree(): ...", "to call it, write new.py:tree()"),
    "an async function as the tree": ("SUP001", "async def tree(): ...", "must be a Supervisor or a Pool, got <function tree"),
    "a coroutine as the tree": ("SUP001", "async def make(): ...\ntree = make()", "must be a Supervisor or a Pool, got <coroutine"),
}  # fmt: skip


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """The report about a file with this text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def checked(text, target="new.py", **options):
        (tmp_path / "new.py").write_text(textwrap.dedent(text))
        try:
            return report(target, **options)
        finally:
            sys.modules.pop("new", None)

    return checked


def test_there_are_sixty_of_them():
    """Fewer would be a table that lost its rows."""
    assert len(MISTAKES) >= 60


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_at_its_line(checked, mistake):
    """One line of report, with its code, the line of the file, what is allowed and what came."""
    code, wrong, expected = MISTAKES[mistake]
    text = HEAD + wrong + "\n"
    lines, status = checked(text)
    assert [line.code for line in lines] == [code], lines
    (line,) = lines
    # Later versions of Python have suggestions of their own, as `Did you mean: …` or `. Did you mean …`.
    assert expected in re.sub("Did you mean:?", "did you mean", line.text)
    assert status == {"error": 1, "warning": 0}[line.severity] + (code == "SUP001")
    marked = [number for number, one in enumerate(text.splitlines(), 1) if one.endswith("# here")]
    assert [line.line] == (marked or [None])
    assert line.file == ("new.py" if marked else None)
