"""Record the inputs of a tree's machines during a real run, and replay them without tasks, clock or randomness.

    with recording("run.log"):
        run_tree(tree)

writes one line for each input, with the time, the random number and the effects.

    $ python -m supervise.testing.replay run.log myapp:tree

gives the same inputs to fresh machines of the same declared tree, prints each input with its effects, and exits with 1 at
the first effect that differs. Effects differ if the machines or the declaration have changed, or if a decider depends on more
of an exception than a log keeps: its class, its text, its tag, and the members of a group.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from attrs import fields, has

from .. import events
from .._core import effect
from .._core._brief import brief, members
from .._core._check import plain
from .._core.effect import Effect, Input
from .._core.forest import Forest
from .._core.machine import Machine
from .._core.node import Failure
from .._core.spec import Child, Pool, Supervisor
from .._trio import reports
from .._trio.driver import forests
from ..cli.load import NoTree, load
from ..cli.output import write, write_error, write_line

T = TypeVar("T")
_INPUTS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (effect.Boot, effect.Up, effect.Exited, effect.Ended, effect.Request, effect.Withdraw, effect.Stop, effect.Wake)
}  # fmt: skip
_TAKEN_APART = {effect.__name__, events.__name__, Failure.__module__}
_START = {"tree", "now", "listening", "effects"}
_INPUT = {"machine", "incarnation", "now", "u", "listening", "input", "fields", "effects"}
_PLAIN = (str, int, float, bool, type(None))
_LEVELS = 20
"""Of groups of exceptions in each other, and of tuples: a value that is nested without end would end the run."""
_LONGEST = 1000
"""Bits of an integer: Python does not write one with some thousand digits."""


class Mismatch(Exception):
    """The log is not one of this tree, or of these machines; the message has the line and the difference."""


@contextmanager
def recording(path: str | PathLike[str]) -> Generator[None, None, None]:
    """Write a log of each tree that is opened in this block to the file at `path`; the trees must run one after the other.

    Each line is written at once, so that the log of a killed program is complete. These trees do not use the one-step
    restart, whose inputs would be missing. A child that was added by its spec cannot be replayed, because a log contains no
    functions. A log that cannot be written any more, as on a full disk, ends, which a record of the logger `supervise` says.
    """
    file = Path(path).open("w", encoding="utf-8", buffering=1)  # noqa: SIM115 - it is closed below, where closing may fail
    before = forests.set(lambda spec: _Recorder(spec, file))
    try:
        yield
    finally:
        forests.reset(before)
        # Every line was written at once, so this is the failure of one, and the log has it.
        with suppress(OSError):
            file.close()


class _Recorder(Forest):
    """A forest that writes each input and its effects to a file."""

    one_step = False

    def __init__(self, spec: Supervisor | Pool, file: TextIO) -> None:
        super().__init__(spec)
        self._file = file
        self._requests: dict[effect.Request, int] = {}
        self._failed = False

    def start(self, now: float) -> list[Effect]:
        out = super().start(now)
        self._try(self._note, {"tree": self.root.spec.name, "now": now}, out)
        return out

    def handle(self, machine: Machine, item: Input, now: float, u: float = 0.5) -> list[Effect]:
        line: dict[str, Any] = {
            "machine": machine.path,
            "incarnation": machine.incarnation,
            "now": now,
            "u": u,
        }
        line |= {"input": type(item).__name__, "fields": self._try(self._fields, item)}
        out = super().handle(machine, item, now, u)
        self._try(self._note, line, out)
        return out

    def _try(self, act: Callable[..., T], *args: Any) -> T | None:
        """A recording that fails, as on a full disk, is logged and ends there: it must not hurt the tree (R31)."""
        if not self._failed:
            try:
                return act(*args)
            except BaseException as problem:  # noqa: BLE001 - The file may fail, and an exception of the program may raise anything when it is printed.
                self._failed = True
                reports.complain(
                    logging.ERROR, f"the recording of tree {self.root.path!r} ends here", problem
                )
        return None

    def _fields(self, item: Any) -> dict[str, Any]:
        if isinstance(item, effect.Withdraw):
            return {"request": self._requests[item.request]}
        if isinstance(item, effect.Request):
            self._requests[item] = len(self._requests)
        return {
            one.name: (_kept_value if one.name == "value" else _kept)(getattr(item, one.name))
            for one in _fields(item)
        }

    def _note(self, line: dict[str, Any], out: list[Effect]) -> None:
        line |= {"listening": self.ledger.listening, "effects": list(map(line_of, out))}
        self._file.write(json.dumps(line) + "\n")


def _fields(value: object) -> Sequence[Any]:
    """The fields of an input, an effect or a failure; none for another value, which a log keeps as a text."""
    cls: Any = type(value)
    return fields(cls) if cls.__module__ in _TAKEN_APART and has(cls) else ()


def _kept(value: Any, levels: int = _LEVELS) -> Any:
    """The form in which a log keeps one value, and so many levels of what is in it."""
    if isinstance(value, BaseException):
        return _kept_exception(value, levels)
    if type(value) in _PLAIN and not (type(value) is int and value.bit_length() > _LONGEST):
        return value
    if type(value) is tuple and levels:
        return [_kept(item, levels - 1) for item in cast("Any", value)]
    return (
        {"spec": value.name}
        if isinstance(value, Child | Supervisor | Pool)
        else {"value": brief(cast("object", value))}
    )


def _kept_value(value: Any) -> Any:
    """The form of a value that a child has given: a machine only prints it, so of a tuple or a spec the log keeps the text."""
    as_text = type(value) is tuple or isinstance(value, Child | Supervisor | Pool)
    return {"value": _text_of(value)} if as_text else _kept(value)


def _kept_exception(exc: BaseException, levels: int) -> dict[str, Any]:
    is_group = isinstance(exc, BaseExceptionGroup)
    cls = type(exc) if levels or not is_group else Exception
    kept: dict[str, Any] = {
        "exception": f"{cls.__module__}:{cls.__qualname__}",
        "text": _text(exc),
        "repr": brief(exc),
    }
    try:
        tag = getattr(exc, "tag", None)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a user's property may raise anything; then the class decides, or the replay finds a difference
        tag = None
    if isinstance(tag, str):
        kept["tag"] = plain(tag)
    if is_group and levels:  # its class may have a property of this name, which is not asked
        group = cast("BaseExceptionGroup[BaseException]", exc)
        kept["members"] = [_kept_exception(one, levels - 1) for one in members(group)]
    return kept


def _text(exc: BaseException) -> str:
    try:
        return cast("str", plain(str(exc)))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a user's `__str__` may raise anything; its repr is bounded and never raises
        return brief(exc)


def line_of(one: Effect) -> str:
    """An effect in one line, equal for equal effects of two runs."""
    if isinstance(one, effect.Reply):
        return f"Reply {_text_of(one.value if one.error is None else one.error)}"
    # The driver adds the stack of an `Overdue`; no machine knows it.
    names = [each.name for each in _fields(one) if each.name != "stack"]
    return " ".join([type(one).__name__, *(f"{name}={_text_of(getattr(one, name))}" for name in names)])


def _text_of(value: Any) -> str:
    if isinstance(value, BaseException):
        return f"{type(value).__qualname__}({_text(value)!r})"
    if isinstance(value, Child | Supervisor | Pool):
        return value.name
    if _fields(value):
        return f"{type(value).__name__}({', '.join(_text_of(getattr(value, one.name)) for one in _fields(value))})"
    return brief(value)


# --- from a log to inputs


class _Value:
    """Replaces a value that the log does not keep; it prints like the original."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _made(kept: Any) -> Any:
    if type(kept) is list:
        return tuple(map(_made, cast("Any", kept)))
    if not isinstance(kept, dict):
        return kept
    wrapped = cast("dict[str, Any]", kept)
    if "spec" in wrapped:
        raise Mismatch(f"{wrapped['spec']!r} was added or adopted by its spec, which a log does not have")
    return _exception(wrapped) if "exception" in wrapped else _Value(wrapped["value"])


def _exception(kept: dict[str, Any]) -> BaseException:
    """An exception of the same class, with the same text, repr, tag and members; its constructor is not called."""
    module, _, name = kept["exception"].partition(":")
    try:
        cls: Any = importlib.import_module(module)
        for part in name.split("."):
            cls = getattr(cls, part)
    except (ImportError, AttributeError):  # the class was made in a function, or has been removed
        cls = Exception
    methods: dict[str, Any] = {
        "__str__": _returning(kept["text"]),
        "__repr__": _returning(kept["repr"]),
        "__qualname__": name,
    }
    like: Any = type(name.rpartition(".")[2], (cls,), methods)
    if "members" in kept:
        made = like.__new__(like, "", list(map(_exception, kept["members"])))
    else:
        made = like.__new__(like, kept["text"])
    if "tag" in kept and getattr(made, "tag", None) != kept["tag"]:
        made.tag = kept["tag"]
    return cast("BaseException", made)


def _returning(text: str) -> Callable[[object], str]:
    return lambda _: text


def replay(lines: Iterable[str], spec: Supervisor | Pool) -> Iterator[tuple[str, list[str]]]:
    """Replay a log: give its inputs to fresh machines of the tree, and compare the effects of each.

    Args:
        lines: those of the log.
        spec: the tree, declared as in the recorded run.

    Yields:
        A line for each input, and the lines of its effects.

    Raises:
        Mismatch: the effects differ from those of the log, or a line cannot be replayed.
    """
    replayed: _Replay | None = None
    for number, text in enumerate(lines, 1):
        try:
            line = _parsed(text)
            replayed = _Replay(spec) if "tree" in line else _begun(replayed)
            shown, out = replayed.take(line)
            found = list(map(line_of, out))
            at = f"{line['now']:.3f}"
        except Mismatch as problem:
            raise Mismatch(f"line {number}: {problem}") from None
        except Exception as problem:  # what `recording` has not written may be anything
            raise Mismatch(f"line {number}: this line cannot be replayed: {brief(problem)}") from problem
        if found != line["effects"]:
            raise Mismatch(f"line {number}: {shown}\n" + "\n".join(_difference(line["effects"], found)))
        yield f"{at} {shown}", found


def _parsed(text: str) -> dict[str, Any]:
    """A line of a log, checked for the keys that it must have."""
    try:
        line: Any = json.loads(text)
        keys: Any = line.keys()
    except (ValueError, AttributeError):
        raise Mismatch("this line does not belong to a log") from None
    if missing := (_START if "tree" in keys else _INPUT) - set(keys):
        raise Mismatch(f"this line of a log lacks {', '.join(sorted(missing))}")
    effects = line["effects"]
    if not isinstance(effects, list) or not all(
        isinstance(one, str) for one in cast("list[object]", effects)
    ):
        raise Mismatch("the effects in this line of a log must be a list of texts")
    return cast("dict[str, Any]", line)


def _begun(replayed: _Replay | None) -> _Replay:
    if replayed is None:
        raise Mismatch("a log begins with the start of a tree")
    return replayed


class _Replay:
    """The replay of one tree."""

    def __init__(self, spec: Supervisor | Pool) -> None:
        self._forest = Forest(spec)
        self._machines: dict[tuple[str, int], Machine] = {}
        self._requests: list[effect.Request] = []

    def take(self, line: dict[str, Any]) -> tuple[str, list[Effect]]:
        """Replay one line. Returns the input as text, and the effects."""
        forest = self._forest
        forest.ledger.listening = line["listening"]
        if "tree" in line:
            name = forest.root.spec.name
            if line["tree"] != name:
                raise Mismatch(f"the log is of a tree {line['tree']!r}, not of {name!r}")
            shown, out = f"{name} starts", forest.start(line["now"])
        else:
            machine = self._machines.get((line["machine"], line["incarnation"]))
            if machine is None:
                raise Mismatch(f"there was no supervisor {line['machine']!r} #{line['incarnation']}")
            item = self._item(line["input"], line["fields"])
            shown = f"{line['machine']} <- {_text_of(item)}"
            out = forest.handle(machine, item, line["now"], line["u"])
        for one in out:
            if isinstance(one, effect.Start) and one.path in forest.machines:
                machine = forest.machines[one.path]
                self._machines[machine.path, machine.incarnation] = machine
        return shown, out

    def _item(self, kind: str, kept: dict[str, Any]) -> Any:
        try:
            if kind == "Withdraw":
                number: int = kept["request"]
                return effect.Withdraw(self._requests[number])
            cls: Any = _INPUTS[kind]
            item: Any = cls(**{name: _made(value) for name, value in kept.items()})
        except (LookupError, TypeError, AttributeError) as problem:
            raise Mismatch(f"this is no input of a machine: {kind} {brief(kept)}") from problem
        if kind == "Request":
            self._requests.append(item)
        return item


def _difference(logged: list[str], found: list[str]) -> Iterator[str]:
    yield from (f"    only in the log:  {one}" for one in logged if one not in found)
    yield from (f"    only in a replay: {one}" for one in found if one not in logged)
    if sorted(logged) == sorted(found):
        yield "    the same effects in another order"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m supervise.testing.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("log", type=Path, help="the file that `recording` has written")
    parser.add_argument("tree", help="MODULE[:ATTR] or FILE[:ATTR], as for `supervise run`")
    options = parser.parse_args()
    inputs = effects = 0
    try:
        spec = load(options.tree)
        assert spec is not None
        with options.log.open(encoding="utf-8", errors="replace") as lines:
            for shown, out in replay(lines, spec):
                write("".join([f"{shown}\n", *(f"    {one}\n" for one in out)]))
                inputs, effects = inputs + 1, effects + len(out)
        write_line(f"{inputs} inputs, {effects} effects: the same as in the log")
    except (Mismatch, NoTree, OSError) as problem:
        write_error(str(problem))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
