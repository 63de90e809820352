"""The pages of `docs/reference/api` have every public name, with all its parameters and an example."""

import inspect
import re
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest

import runners
import runners.errors
import supervise
import supervise.operate
import supervise.programs
from supervise import cli, errors, events, testing

FOLDER = Path(__file__).parents[1] / "docs" / "reference" / "api"
BLOCK = re.compile(r"^```\{api\} (\S+)\n(:given:\n)?(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SINKS = ("jsonl", "lines", "log", "opentelemetry", "prometheus", "queue", "systemd")

FOR_THE_LIBRARY = {
    "Decider": "answer at directive layers looked_up",
    "every": "until_it_fails",
    "EngineHost": "check open",
    "Fail": "fresh",
    "FaultPlan": "check script",
    "http": "attempt host port",
    "Inbox": "end_loops fails relieved settle stops_waiting",
    "InlineHost": "check open",
    "Message": "back let_go taken_by",
    "Price": "of",
    "Pool": "member pattern",
    "PrometheusSink": "collect describe",
    "probe": "attempt",
    "Program": "longest_stop order",
    "ProcessHost": "check open",
    "Ref": "refuse_to_wait_for_itself",
    "Rule": "fits",
    "Running": "close listen_to_lines notifications owns run_beside runs start started until_it_ends",
    "Script": "bodies entry",
    "RayHost": "check open",
    "SshHost": "check command open",
    "StreamMessage": "back carried fail left let_go on_left on_loss reply requeue sent_at taken_by",
    "tcp": "attempt",
    "ThreadHost": "open",
    "ExecuteBatch": "estimated_input estimated_tokens on_clock with_seed",
    "RunnerInfo": "estimated_cost",
    "OpenAIModel": "build",
    "Scripted": "build",
    "TorchLM": "build preload prepare",
    "TransformersLM": "build preload prepare",
}
"""Methods and properties that other modules of this project call, and those that a base class on the same page has."""

UNDOCUMENTED = {"origin", "_node", "self", "cls", "_"}
"""Parameters that only this project gives, or that a function ignores."""


def documented():
    """Each entry of the pages: its page, module and name, whether the library makes its instances, and its members."""
    for page in sorted(FOLDER.glob("*.md")):
        for module, given, lines in BLOCK.findall(page.read_text()):
            for line in lines.splitlines():
                name, _, members = line.partition(":")
                yield page, module, name, bool(given), members.split()


ENTRIES = list(documented())


def of_class(cls, module):
    """The names of the subclasses of `cls` in a module."""
    return {name for name, found in vars(module).items() if inspect.isclass(found) and issubclass(found, cls)}


def public():
    """Every public name, as the module from which it is imported and its name there."""
    own = {name for name in supervise.__all__ if name not in ("errors", "events")}
    found = {("supervise", name) for name in own}
    found |= {("supervise.errors", name) for name in of_class(errors.SuperviseError, errors) - own}
    found |= {("supervise.events", name) for name in of_class(events.Event, events) | {"Sink", "describe"}}
    found |= {("supervise.testing", name) for name in testing.__all__}
    found |= {("supervise.operate", name) for name in supervise.operate.__all__}
    found |= {("supervise.programs", name) for name in supervise.programs.__all__}
    found |= {("runners", name) for name in runners.__all__}
    found |= {("runners.errors", name) for name in of_class(runners.errors.InferenceError, runners.errors)}
    for sink in SINKS:
        module = import_module(f"supervise.sinks.{sink}")
        own = [
            name for name, found in vars(module).items() if inspect.isclass(found) and name.endswith("Sink")
        ]
        found |= {(module.__name__, name) for name in own if not name.startswith("_")}
    return found


def test_every_public_name_has_its_place():
    """Exactly one; the pages may have further names, such as those of `runners.types`."""
    places = [(module, name) for _, module, name, _, _ in ENTRIES]
    assert sorted(set(places)) == sorted(places)
    assert public() - set(places) == set()


@pytest.mark.parametrize(
    ("page", "name"), [(page, name) for page, _, name, _, _ in ENTRIES if page.name != "runners.md"]
)
def test_an_example_uses_each_name(page, name):
    """In the program of its page, which tests/test_docs.py runs."""
    assert re.search(rf"\b{name}\b", "\n".join(EXAMPLE.findall(page.read_text())))


def is_called(cls):
    """Whether a program calls the constructor of this class as its docstring describes it."""
    return not issubclass(cls, (Exception, Enum)) and not getattr(cls, "_is_protocol", False)


def parameters(function):
    try:
        return set(inspect.signature(function).parameters) - UNDOCUMENTED
    except ValueError:  # an exception class without a constructor of its own
        return set()


def texts(cls):
    """The docstrings of a class and of its bases in this project, since events have the fields of `Event`."""
    return " ".join(
        inspect.getdoc(base) or ""
        for base in cls.__mro__
        if base.__module__.startswith(("supervise", "runners"))
    )


def missing(function, text):
    return {name for name in parameters(function) if not re.search(rf"\b{name}\b", text)}


@pytest.mark.parametrize(
    ("module", "name", "given", "members"),
    [entry[1:] for entry in ENTRIES],
    ids=[entry[2] for entry in ENTRIES],
)
def test_each_parameter_is_documented(module, name, given, members):
    """By its name, in the docstring of its function, or of its class."""
    found = getattr(import_module(module), name)
    if inspect.isroutine(found):
        assert missing(found, inspect.getdoc(found)) == set()
    if not inspect.isclass(found):
        return
    if not given and is_called(found):
        assert missing(found, texts(found)) == set()
    for member in members:
        value = inspect.getattr_static(found, member)
        if inspect.isfunction(value):
            assert missing(value, inspect.getdoc(value) or "") == set(), member


@pytest.mark.parametrize(
    ("module", "name", "members"),
    [(module, name, members) for _, module, name, _, members in ENTRIES],
    ids=[entry[2] for entry in ENTRIES],
)
def test_each_public_method_and_property_has_its_place(module, name, members):
    """But for those that only this project calls."""
    found = getattr(import_module(module), name)
    if inspect.isclass(found) and is_called(found):
        own = {
            member
            for member, value in inspect.getmembers_static(found)
            if not member.startswith("_") and isinstance(value, (property, classmethod, FunctionType))
        }
        assert own - set(members) - set(FOR_THE_LIBRARY.get(name, "").split()) == set()


def commands(parser):
    """The parser of each command of `supervise`, by its name."""
    (choices,) = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return choices


@pytest.mark.parametrize(("command", "parser"), commands(cli._parser()).items())
def test_the_page_has_every_command_and_option(command, parser):
    """docs/reference/commands.md; options that all commands share are there once."""
    page = (FOLDER.parent / "commands.md").read_text()
    assert re.search(rf"`supervise {command}\b|`{command}\b", page)
    options = {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}
    assert {option for option in options if not re.search(rf"`{option}\b", page)} == set()
