"""The public names, exactly, each with a docstring."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import runners
import supervise
from supervise import errors, events, programs, testing

PACKAGE = Path(supervise.__file__).parent

FACE = [
    "AKKA",
    "Backoff",
    "CallLost",
    "Child",
    "ChildRestarted",
    "ChildStopped",
    "CurrentChild",
    "DEVICE",
    "Decider",
    "Directive",
    "Escalate",
    "IGNORE",
    "Inbox",
    "Limit",
    "Mailbox",
    "MailboxFull",
    "Message",
    "OTP",
    "Pool",
    "Ref",
    "Refused",
    "Restart",
    "Resume",
    "Rule",
    "StartFailed",
    "Status",
    "Stop",
    "Stream",
    "StreamMessage",
    "SuperviseError",
    "Supervisor",
    "Tree",
    "TreeFailed",
    "current_child",
    "errors",
    "events",
    "open_tree",
    "run_tree",
    "stop_requested",
]

ERRORS = [
    "CallLost",
    "ChildRestarted",
    "ChildReturned",
    "ChildStopped",
    "ForeignCancelled",
    "LimitExceeded",
    "MailboxFull",
    "Refused",
    "StartFailed",
    "StartReturned",
    "StartTimeout",
    "SuperviseError",
    "TreeFailed",
]

EVENTS = [
    "describe",
    "BackingOff",
    "StartOverdue",
    "Adopted",
    "Adopting",
    "Decided",
    "Event",
    "Failed",
    "Ignored",
    "Overdue",
    "Ready",
    "Resumed",
    "Returned",
    "Sink",
    "SinkFailed",
    "StartFailed",
    "Starting",
    "StopError",
    "Stopped",
    "Stopping",
]


def defined(module):
    """The public names that a module defines itself."""
    tree = ast.parse(inspect.getsource(module))
    names = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    names += [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return sorted(name for name in names if not name.startswith("_") and name not in ("Because", "Reason"))


@cache
def documented():
    """The names in the whole package that have a docstring, or a string beneath their assignment."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
                node
            ):
                found.add(node.name)
            if isinstance(node, ast.Module | ast.ClassDef):
                found.update(name for name in explained(node.body))
    return found


def explained(body):
    for before, after in pairwise(body):
        if (
            isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            targets = before.targets if isinstance(before, ast.Assign) else [getattr(before, "target", None)]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_the_face_is_exactly_this():
    """What `supervise` offers."""
    assert sorted(supervise.__all__) == sorted(FACE)
    assert dir(supervise) == sorted(FACE)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = supervise.nonsense


def test_dir_lists_the_public_names_and_no_others():
    """For completion, in a REPL or in a notebook."""
    for module in (supervise, runners, testing):
        assert dir(module) == sorted(module.__all__)


@pytest.mark.parametrize(("module", "names"), [(errors, ERRORS), (events, EVENTS)])
def test_the_public_modules_are_exactly_this(module, names):
    """What `supervise.errors` and `supervise.events` offer."""
    assert defined(module) == sorted(names)


@pytest.mark.parametrize("name", [*FACE, *ERRORS, *EVENTS])
def test_every_public_name_has_a_docstring(name):
    """Classes, functions and modules in the usual place, constants in a string beneath."""
    found = getattr(supervise, name, None)
    assert inspect.ismodule(found) and found.__doc__ or name in documented()  # noqa: RUF021


@pytest.mark.parametrize("name", FACE)
def test_public_classes_explain_their_public_methods(name):
    """No public method without a docstring."""
    found = getattr(supervise, name)
    if not inspect.isclass(found):
        return
    for method, value in vars(found).items():
        if inspect.isfunction(value) and not method.startswith("_"):
            assert value.__doc__, f"{name}.{method} has no docstring"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_can_be_copied_and_pickled(again):
    """So that a fault plan may raise it, and another process may return it; it keeps what its constructor was given, and its notes."""
    plain = [getattr(errors, name)("text") for name in ERRORS if getattr(errors, name) is not errors.Refused]
    for error in [*plain, errors.Refused("text", reason="full"), programs.CommandExited("text", -9)]:
        error.add_note("a note")
        other = again(error)
        assert (type(other), other.args, vars(other)) == (type(error), error.args, vars(error))


def test_errors_are_one_family():
    """One base class catches whatever this library raises by itself."""
    for name in ERRORS:
        assert issubclass(getattr(errors, name), errors.SuperviseError)
