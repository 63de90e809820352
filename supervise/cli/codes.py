"""The one table of what `supervise check` reports: each code with its title, its reason, and an example before and after.

A code keeps its meaning for ever; one that is given up is not used again. SUP1xx are errors: a constructor, or the start of the
tree, refuses the declaration. The others are warnings: the tree runs, but a part of it cannot do what it is declared for.
"""

from __future__ import annotations

import re
from textwrap import dedent, fill, indent
from typing import Literal

from attrs import field, frozen

Severity = Literal["error", "warning"]


def _example(code: str) -> str:
    return dedent(code).strip("\n")


@frozen
class Code:
    """A row of the table.

    Args:
        name: `SUP` and three digits.
        title: what is wrong, in a few words.
        why: why it matters, and what to do.
        wrong: an example, which has this finding and no other. `PRELUDE` stands before it.
        right: the same example without the finding.
        severity: whether the tree can be started at all.
        optional: it is only looked for if it is selected, because a sensible tree may well have it.
        says: of an error: how the messages of the constructors begin that have this code, as a regular expression.
    """

    name: str
    title: str
    why: str
    wrong: str = field(converter=_example)
    right: str = field(converter=_example)
    severity: Severity = field(default="warning", kw_only=True)
    optional: bool = field(default=False, kw_only=True)
    says: str = field(default="", kw_only=True)

    @property
    def explanation(self) -> str:
        """All that the table says about this code."""
        kind = f"{self.severity}, only if selected" if self.optional else self.severity
        wrong, right = indent(self.wrong, " " * 4), indent(self.right, " " * 4)
        return f"{self.name} ({kind}): {self.title}\n\n{fill(self.why, 100)}\n\nFor example:\n\n{wrong}\n\nBetter:\n\n{right}\n"


def _error(name: str, title: str, why: str, wrong: str, right: str, *, says: str = "") -> Code:
    return Code(name, title, why, wrong, right, severity="error", says=says)


PRELUDE = """\
import asyncio
import time
from contextlib import asynccontextmanager
from functools import partial

import trio
from supervise import *

async def serve():
    await trio.sleep_forever()
async def answer(inbox):
    await trio.sleep_forever()
async def query(resource):
    await trio.sleep_forever()
@asynccontextmanager
async def database():
    yield "connection"

"""
"""What stands before each example, so that it is a file which can be checked."""

_NODE = r"(child|supervisor|pool) .+?"

TABLE = (
    _error(
        "SUP001",
        "the target cannot be loaded",
        "The file or module cannot be imported, raises while it is loaded, starts a tree, or has no tree of that "
        "name. A tree must not run while its file is loaded, since checking or drawing it would start it: call "
        'run_tree under `if __name__ == "__main__":`, or leave it to `supervise run`. The exit status is 2.',
        """
        tree = Supervisor("app", [Child("serve", serve)])
        run_tree(tree)
        """,
        """
        tree = Supervisor("app", [Child("serve", serve)])
        if __name__ == "__main__":
            run_tree(tree)
        """,
    ),
    _error(
        "SUP101",
        "a body is not an async function",
        "The body of a child is called anew for each incarnation, so it must be the function itself, not what a call "
        "of it gave. It must be async: a plain function would block the whole program. Call blocking code by "
        "trio.to_thread.run_sync.",
        'tree = Supervisor("app", [Child("serve", serve())])',
        'tree = Supervisor("app", [Child("serve", serve)])',
        says=rf"{_NODE}: body must be",
    ),
    _error(
        "SUP102",
        "a body does not take the arguments that it gets",
        "A body is called as body(resource, inbox, *args): with its resource only if the child declares one, and with "
        "its inbox only if it declares a mailbox. It also gets task_status by name if it has a parameter of that "
        "name.",
        'tree = Supervisor("app", [Child("answer", answer)])',
        'tree = Supervisor("app", [Child("answer", answer, mailbox=16)])',
        says=rf"{_NODE}: body is",
    ),
    _error(
        "SUP103",
        "a resource makes no async context manager",
        "A resource is a function without arguments. It is called anew for each incarnation and makes an async "
        "context manager, which is entered before the body and left after it. Bind arguments with functools.partial.",
        """
        async def lock():
            yield trio.Lock()

        tree = Supervisor("app", [Child("query", query, resource=lock)])
        """,
        """
        @asynccontextmanager
        async def lock():
            yield trio.Lock()

        tree = Supervisor("app", [Child("query", query, resource=lock)])
        """,
        says=rf"{_NODE}: resource ",
    ),
    _error(
        "SUP104",
        "something among the children is not a spec",
        "The children of a supervisor are a list of Child, Supervisor and Pool; the template of a pool is one of "
        "them.",
        'tree = Supervisor("app", [serve])',
        'tree = Supervisor("app", [Child("serve", serve)])',
        says=rf"{_NODE}: (children must|each child must|template must)",
    ),
    _error(
        "SUP105",
        "two nodes have one name, or one spec has two places",
        "The names of siblings are the last parts of their paths, so they must differ. A spec is also the address of "
        "its node (`tree[spec]`), so each place in the tree needs a spec of its own, even where two nodes run the "
        "same function.",
        'tree = Supervisor("app", [Child("serve", serve), Child("serve", serve)])',
        'tree = Supervisor("app", [Child("serve-1", serve), Child("serve-2", serve)])',
        says=rf"{_NODE} has two children named|one spec stands",
    ),
    _error(
        "SUP106",
        "a name is not a string that can be part of a path",
        "A name must be a string, not empty, without `/`, and without spaces at its ends. It comes before the body.",
        'tree = Supervisor("app", [Child("web/serve", serve)])',
        'tree = Supervisor("app", [Supervisor("web", [Child("serve", serve)])])',
        says=r"(child|supervisor|pool)'s name",
    ),
    _error(
        "SUP107",
        "two options contradict each other",
        "A significant child may end its supervisor, so that needs auto_shutdown, and the child must be able to end. "
        'A front must be one of the children. A child with mailbox="shared" needs a supervisor that has a mailbox.',
        'tree = Supervisor("app", [Child("serve", serve, restart="transient", significant=True)])',
        """
        child = Child("serve", serve, restart="transient", significant=True)
        tree = Supervisor("app", [child], auto_shutdown="any_significant")
        """,
        says=rf"{_NODE}: (child .+? (is to take|needs)|child .+?: significant|significant needs|front must)|"
        rf"{_NODE} must have a front or|the root ",
    ),
    _error(
        "SUP108",
        "a decider or a rule has a wrong entry",
        "A decider maps exception classes and dotted tags to Resume, Restart, Stop or Escalate. A rule gives a tag to "
        "exceptions of its classes.",
        'tree = Supervisor("app", [Child("serve", serve)], decider=Decider({OSError: "restart"}))',
        'tree = Supervisor("app", [Child("serve", serve)], decider=Decider({OSError: Restart}))',
        says=r"a decider|a rule's (?!when )",
    ),
    _error(
        "SUP109",
        "a function that is called without await has the wrong form",
        "`init`, a rule's `when` and a mailbox's `deadline` are called where nothing can be awaited: they are plain "
        "functions. `init` takes no arguments, `when` takes the exception, and `deadline` takes the value of a "
        "message.",
        """
        async def prepare():
            await trio.sleep(1)

        tree = Supervisor("app", [Child("serve", serve)], init=prepare)
        """,
        """
        def prepare():
            print("ready")

        tree = Supervisor("app", [Child("serve", serve)], init=prepare)
        """,
        says=rf"{_NODE}: init |a rule's when |a mailbox's deadline ",
    ),
    _error(
        "SUP110",
        "an option has a value that is not allowed",
        "The message names the option, the values that are allowed, and the one that came. Times are numbers of "
        "seconds. Limits, backoffs and deciders are values of their classes.",
        'tree = Supervisor("app", [Child("serve", serve)], limit=(3, 5))',
        'tree = Supervisor("app", [Child("serve", serve)], limit=Limit(3, within=5))',
        says="",
    ),
    Code(
        "SUP201",
        "a limit can never be passed, for the backoffs take longer than its window",
        "A limit ends a crash loop: it counts the restarts within its window (R14). If the waits between so many "
        "restarts are longer than the window, the count never gets there and the child is restarted for ever. Make "
        "the window longer, or write limit=None if that is what you want.",
        'tree = Supervisor("app", [Child("serve", serve, backoff=Backoff(initial=10))])',
        """
        child = Child("serve", serve, backoff=Backoff(initial=10))
        tree = Supervisor("app", [child], limit=Limit(3, within=300))
        """,
    ),
    Code(
        "SUP202",
        "a temporary child has a limit or a backoff",
        "A temporary child is never restarted (R7), so neither has an effect. Leave them out, or write "
        'restart="transient" if it is to be restarted after failures.',
        'tree = Supervisor("app", [Child("serve", serve, restart="temporary", backoff=Backoff())])',
        'tree = Supervisor("app", [Child("serve", serve, restart="transient", backoff=Backoff())])',
    ),
    Code(
        "SUP203",
        "a supervisor has a limit, but all its children are temporary",
        "Temporary children are never restarted (R7), so the limit counts nothing. Leave it out.",
        'tree = Supervisor("app", [Child("serve", serve, restart="temporary")], limit=Limit(9, within=60))',
        'tree = Supervisor("app", [Child("serve", serve, restart="temporary")])',
    ),
    Code(
        "SUP204",
        "a decider answers Resume, but no child there has a resource",
        "Resume enters the body again and keeps its resource (R8). Without a resource there is nothing to keep, and "
        "Resume becomes Restart. Write Restart, or move what should be kept into a resource.",
        'tree = Supervisor("app", [Child("serve", serve)], decider=Decider({OSError: Resume}))',
        'tree = Supervisor("app", [Child("serve", serve)], decider=Decider({OSError: Restart}))',
    ),
    Code(
        "SUP205",
        "the default of a decider is never used",
        "Only an Exception is ever decided (R4), so an entry for Exception answers all that the other entries do not, "
        "and `default` remains without effect (R2). Keep one of the two.",
        """
        tree = Supervisor(
            "app", [Child("serve", serve)], decider=Decider({Exception: Restart}, default=Stop)
        )
        """,
        'tree = Supervisor("app", [Child("serve", serve)], decider=Decider({OSError: Restart}, default=Stop))',
    ),
    Code(
        "SUP206",
        "an entry names an exception that is never decided",
        "KeyboardInterrupt, SystemExit, GeneratorExit and Cancelled are not failures of a child: no decider is asked, "
        "and the tree stops in order (R4). An entry or a rule for them has no effect.",
        'tree = Supervisor("app", [Child("serve", serve)], decider=Decider({SystemExit: Stop}))',
        'tree = Supervisor("app", [Child("serve", serve)], decider=Decider({RuntimeError: Stop}))',
    ),
    Code(
        "SUP207",
        "a rule never fits, for an earlier rule fits whatever it does",
        "The first rule that fits gives the tag (R1). Put the rule for the narrower class first.",
        """
        rules = [Rule(OSError, "disk"), Rule(ConnectionError, "net")]
        decider = Decider({"net": Restart, "disk": Stop}, rules=rules)
        tree = Supervisor("app", [Child("serve", serve)], decider=decider)
        """,
        """
        rules = [Rule(ConnectionError, "net"), Rule(OSError, "disk")]
        decider = Decider({"net": Restart, "disk": Stop}, rules=rules)
        tree = Supervisor("app", [Child("serve", serve)], decider=decider)
        """,
    ),
    Code(
        "SUP208",
        "the tag of an entry is nearly that of a rule",
        "A tag that matches no entry is decided by the class of the exception, or by the default, without a word "
        "(R2). Write the same tag in the rule and in the entry.",
        """
        decider = Decider({"database.gnoe": Stop}, rules=[Rule(ConnectionError, "database.gone")])
        tree = Supervisor("app", [Child("serve", serve)], decider=decider)
        """,
        """
        decider = Decider({"database.gone": Stop}, rules=[Rule(ConnectionError, "database.gone")])
        tree = Supervisor("app", [Child("serve", serve)], decider=decider)
        """,
    ),
    Code(
        "SUP209",
        "no child takes messages from the mailbox of its supervisor",
        'The mailbox of a supervisor or a pool is served by its children with mailbox="shared" (R37). Without one, '
        "each caller waits for ever. To have one child answer at the address of its supervisor, write front=… "
        "instead. If the program adds such children at run time, ignore this warning.",
        'tree = Supervisor("app", [Child("answer", answer, mailbox=16)], mailbox=16)',
        'tree = Supervisor("app", [Child("answer", answer, mailbox="shared")], mailbox=16)',
    ),
    Code(
        "SUP210",
        "auto_shutdown has no significant child",
        "A supervisor with auto_shutdown ends when its significant children have ended (R18). Mark the child whose "
        'end should end it: significant=True, with restart="transient" or "temporary".',
        'tree = Supervisor("app", [Child("serve", serve, restart="transient")], auto_shutdown="any_significant")',
        """
        child = Child("serve", serve, restart="transient", significant=True)
        tree = Supervisor("app", [child], auto_shutdown="any_significant")
        """,
    ),
    Code(
        "SUP211",
        "a child may be restarted at once, for ever",
        "Neither a limit nor a backoff holds its restarts back (R14, R15). A child that fails as soon as it starts "
        "would then take all of the processor and fill the log. Give the child a backoff, or leave the limit of its "
        "supervisor as it is.",
        'tree = Supervisor("app", [Child("serve", serve)], limit=None)',
        'tree = Supervisor("app", [Child("serve", serve, backoff=Backoff())], limit=None)',
    ),
    Code(
        "SUP212",
        "a backoff never waits as long as it says",
        "With initial=0 or maximum=0 each delay is 0, whatever the factor is; with a maximum below the initial delay, "
        "every delay is the maximum (R15).",
        'tree = Supervisor("app", [Child("serve", serve, backoff=Backoff(initial=0, maximum=0.5))])',
        'tree = Supervisor("app", [Child("serve", serve, backoff=Backoff(initial=0.1, maximum=0.5))])',
    ),
    Code(
        "SUP213",
        "a body takes its inbox where its resource comes",
        "A body is called as body(resource, inbox, *args): the resource is always the first. A body that takes "
        "`inbox` first gets its resource under that name, and fails at its first message.",
        """
        async def serve(inbox, connection):
            await trio.sleep_forever()

        tree = Supervisor("app", [Child("serve", serve, resource=database, mailbox=16)])
        """,
        """
        async def serve(connection, inbox):
            await trio.sleep_forever()

        tree = Supervisor("app", [Child("serve", serve, resource=database, mailbox=16)])
        """,
    ),
    Code(
        "SUP214",
        "an argument of a body or a resource is a coroutine",
        "A coroutine can be awaited once, but each incarnation gets the same arguments: the second one fails. Give "
        "the function, and call it in the body.",
        """
        async def address():
            return "localhost"
        async def serve(where):
            print(await where)
            await trio.sleep_forever()

        tree = Supervisor("app", [Child("serve", serve, args=[address()])])
        """,
        """
        async def address():
            return "localhost"
        async def serve(find):
            print(await find())
            await trio.sleep_forever()

        tree = Supervisor("app", [Child("serve", serve, args=[address])])
        """,
    ),
    Code(
        "SUP215",
        "a stop may take longer than service managers wait",
        "Children are stopped one after another (R12), so their drain times add up. systemd kills a service 90 s "
        "after it asked it to stop, Kubernetes after 30 s, Docker after 10 s, unless they are configured otherwise "
        "(TimeoutStopSec, terminationGracePeriodSeconds, --stop-timeout). Shorten the drains; if the manager does "
        "wait, ignore this warning.",
        'tree = Supervisor("app", [Child("one", serve, drain=60), Child("two", serve, drain=60)])',
        'tree = Supervisor("app", [Child("one", serve, drain=10), Child("two", serve, drain=10)])',
    ),
    Code(
        "SUP216",
        "the root has a backoff",
        "A backoff is the wait before its own node is restarted (R15), and the root is never restarted: its failure "
        "ends the tree. Give the backoff to the children.",
        'tree = Supervisor("app", [Child("serve", serve)], backoff=Backoff())',
        'tree = Supervisor("app", [Child("serve", serve, backoff=Backoff())])',
    ),
    Code(
        "SUP217",
        "a lambda in a loop uses the variable of the loop",
        "The lambda reads the variable when the child runs, long after the loop: each child gets the last value. Give "
        "the value as an argument.",
        """
        async def serve(port):
            await trio.sleep_forever()

        tree = Supervisor("app", [Child(f"serve-{port}", lambda: serve(port)) for port in (8000, 8001)])
        """,
        """
        async def serve(port):
            await trio.sleep_forever()

        tree = Supervisor("app", [Child(f"serve-{port}", serve, args=[port]) for port in (8000, 8001)])
        """,
    ),
    Code(
        "SUP301",
        "an async function is called without await",
        "The call makes a coroutine and drops it: nothing of the function runs. In a loop this also blocks the whole "
        "program.",
        """
        async def tick():
            while True:
                trio.sleep(1)

        tree = Supervisor("app", [Child("tick", tick)])
        """,
        """
        async def tick():
            while True:
                await trio.sleep(1)

        tree = Supervisor("app", [Child("tick", tick)])
        """,
    ),
    Code(
        "SUP302",
        "a function of asyncio is called",
        "A tree runs on Trio, where no asyncio loop runs: the call fails. Use what Trio has instead, or run asyncio "
        "code with trio-asyncio; docs/howto/embedding.md shows a tree within a program for asyncio.",
        """
        async def tick():
            while True:
                await asyncio.sleep(1)

        tree = Supervisor("app", [Child("tick", tick)])
        """,
        """
        async def tick():
            while True:
                await trio.sleep(1)

        tree = Supervisor("app", [Child("tick", tick)])
        """,
    ),
    Code(
        "SUP303",
        "a call blocks the whole program",
        "All children run in one thread. While one of them waits in a blocking call, no other runs, no message is "
        "answered, and no stop is obeyed. Use the function of Trio for it, or trio.to_thread.run_sync.",
        """
        async def tick():
            while True:
                time.sleep(1)
                await trio.sleep(0)

        tree = Supervisor("app", [Child("tick", tick)])
        """,
        """
        async def tick():
            while True:
                await trio.sleep(1)

        tree = Supervisor("app", [Child("tick", tick)])
        """,
    ),
    Code(
        "SUP304",
        "a loop never waits",
        "A loop without an await never lets another task run: no other child runs, and the tree cannot be stopped. "
        "Wait for something in it, at least `await trio.lowlevel.checkpoint()`, or move it to a thread.",
        """
        async def work():
            while True: print("working")

        tree = Supervisor("app", [Child("work", work)])
        """,
        """
        async def work():
            while True:
                print("working")
                await trio.sleep(1)

        tree = Supervisor("app", [Child("work", work)])
        """,
    ),
    Code(
        "SUP305",
        "a body takes task_status and never uses it",
        "A body with a parameter of that name is ready only when it calls task_status.started() (R17). Until then no "
        "later sibling is started. Call it, or leave the parameter out.",
        """
        async def serve(task_status):
            await trio.sleep_forever()

        tree = Supervisor("app", [Child("serve", serve)])
        """,
        """
        async def serve(task_status):
            task_status.started()
            await trio.sleep_forever()

        tree = Supervisor("app", [Child("serve", serve)])
        """,
    ),
    Code(
        "SUP306",
        "a permanent child ends at once",
        "A permanent child is to run for ever: its return is a failure (R7). A body that waits for nothing returns at "
        "once, is restarted a few times within milliseconds, and the limit ends its supervisor. For a task that is "
        'done some time write restart="transient".',
        """
        async def hello():
            print("hello")

        tree = Supervisor("app", [Child("hello", hello)])
        """,
        """
        async def hello():
            print("hello")

        tree = Supervisor("app", [Child("hello", hello, restart="transient")])
        """,
    ),
    Code(
        "SUP307",
        "a loop swallows its cancellation",
        "Trio stops a child by raising Cancelled in it, again at each await. A loop that catches it (by a bare except, or "
        "BaseException) and goes on can never be stopped, and takes all of the processor. Catch Exception.",
        """
        async def poll():
            while True:
                try: await trio.sleep(1)
                except BaseException: print("again")

        tree = Supervisor("app", [Child("poll", poll)])
        """,
        """
        async def poll():
            while True:
                try: await trio.sleep(1)
                except Exception: print("again")

        tree = Supervisor("app", [Child("poll", poll)])
        """,
    ),
    Code(
        "SUP308",
        "a lambda gives nothing that can be awaited",
        "A body is awaited. A lambda can give the coroutine of an async function, but what a plain function gives cannot be "
        "awaited: the child fails at each start. Write an async function, or call a blocking one by trio.to_thread.run_sync.",
        'tree = Supervisor("app", [Child("sleep", lambda: time.sleep(60))])',
        'tree = Supervisor("app", [Child("sleep", lambda: trio.sleep(60))])',
    ),
    Code(
        "SUP401",
        "a child is restarted without a backoff",
        "A child that fails as soon as it starts passes the default limit (3 within 5 s) in milliseconds, and ends "
        "its supervisor before a database or a network has come back. Erlang/OTP restarts at once too, so this is "
        "only looked for if it is selected.",
        'tree = Supervisor("app", [Child("serve", serve)])',
        'tree = Supervisor("app", [Child("serve", serve, backoff=Backoff())])',
        optional=True,
    ),
    Code(
        "SUP402",
        "the tree has no child",
        "Such a tree starts, and then waits until it is stopped. A program may add the children at run time, so this "
        "is only looked for if it is selected.",
        'tree = Supervisor("app", [])',
        'tree = Supervisor("app", [Child("serve", serve)])',
        optional=True,
    ),
    Code(
        "SUP901",
        "a comment silences nothing, for it names no warning",
        "The comment is `# supervise: ignore[SUP204]`, with the codes of warnings between the brackets. An error "
        "cannot be silenced, because the tree does not start with it.",
        'tree = Supervisor("app", [Child("serve", serve)])  # supervise: ignore',
        'tree = Supervisor("app", [Child("serve", serve)])',
    ),
)

CODES = {code.name: code for code in TABLE}


def code_of(problem: str) -> Code:
    """The code of a message of a constructor."""
    return next(code for code in TABLE if code.name > "SUP001" and re.match(code.says, problem))
