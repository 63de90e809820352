"""Record the inputs of a tree's machines during a real run, and replay them without tasks, clock or chance.

    with recording("run.log"):
        run_tree(tree)

writes one line for each input, with the time, the chance and its effects.

    $ python -m supervise.testing.replay run.log myapp:tree

puts the same inputs into fresh machines of the same declared tree, prints each input with its effects, and exits with 1 at
the first effect that differs. That happens if the machines or the declaration have changed, or if a decider looks at more of
an exception than a log keeps: its class, its text, its tag, and the members of a group.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TextIO, cast

from attrs import fields, has

from .._core import effect
from .._core._brief import brief
from .._core.effect import Effect, Input
from .._core.forest import Forest
from .._core.machine import Machine
from .._core.spec import Child, Pool, Supervisor
from .._trio.driver import forests
from ..cli.load import NoTree, load

_INPUTS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (effect.Boot, effect.Up, effect.Exited, effect.Ended, effect.Request, effect.Withdraw, effect.Stop, effect.Wake)
}  # fmt: skip
_START = {"tree", "now", "listening", "effects"}
_INPUT = {"machine", "incarnation", "now", "u", "listening", "input", "fields", "effects"}
_PLAIN = (str, int, float, bool, type(None))


class Mismatch(Exception):
    """A log that is not of this tree, or of these machines; says where and how."""


@contextmanager
def recording(path: str | PathLike[str]) -> Generator[None, None, None]:
    """Write a log of each tree that is opened in this block; they must run one after the other.

    Each line is written at once, so that the log of a program that was killed is complete. The one-step restart is not used
    meanwhile, since its inputs would be missing. A child that was added by its spec cannot be replayed, because a log does
    not contain functions.
    """
    with Path(path).open("w", encoding="utf-8", buffering=1) as file:
        before = forests.set(lambda spec: _Recorder(spec, file))
        try:
            yield
        finally:
            forests.reset(before)


class _Recorder(Forest):
    """Writes down what goes in and what comes out."""

    one_step = False

    def __init__(self, spec: Supervisor | Pool, file: TextIO) -> None:
        super().__init__(spec)
        self._file = file
        self._requests: dict[effect.Request, int] = {}

    def start(self, now: float) -> list[Effect]:
        return self._note({"tree": self.root.spec.name, "now": now}, super().start(now))

    def handle(self, machine: Machine, item: Input, now: float, u: float = 0.5) -> list[Effect]:
        line: dict[str, Any] = {
            "machine": machine.path,
            "incarnation": machine.incarnation,
            "now": now,
            "u": u,
        }
        line |= {"input": type(item).__name__, "fields": self._fields(item)}
        return self._note(line, super().handle(machine, item, now, u))

    def _fields(self, item: Any) -> dict[str, Any]:
        if isinstance(item, effect.Withdraw):
            return {"request": self._requests[item.request]}
        if isinstance(item, effect.Request):
            self._requests[item] = len(self._requests)
        return {one.name: _kept(getattr(item, one.name)) for one in _fields(item)}

    def _note(self, line: dict[str, Any], out: list[Effect]) -> list[Effect]:
        line |= {"listening": self.ledger.listening, "effects": list(map(told, out))}
        self._file.write(json.dumps(line) + "\n")
        return out


def _fields(value: object) -> Sequence[Any]:
    """Those of an attrs class, or none."""
    cls: Any = type(value)
    return fields(cls) if has(cls) else ()


def _kept(value: Any) -> Any:
    """What a log keeps of one value."""
    if isinstance(value, BaseException):
        return _kept_exception(value)
    if type(value) in _PLAIN:
        return value
    if type(value) is tuple:
        return list(map(_kept, cast("Any", value)))
    return {"spec": value.name} if isinstance(value, Child | Supervisor | Pool) else {"value": brief(value)}


def _kept_exception(exc: BaseException) -> dict[str, Any]:
    cls = type(exc)
    kept: dict[str, Any] = {
        "exception": f"{cls.__module__}:{cls.__qualname__}",
        "text": _text(exc),
        "repr": brief(exc),
    }
    try:
        tag = getattr(exc, "tag", None)
    except Exception:  # noqa: BLE001 - a user's property; without a tag its class decides, or the replay says that it did not
        tag = None
    if isinstance(tag, str):
        kept["tag"] = tag
    members = cast("tuple[BaseException, ...] | None", getattr(exc, "exceptions", None))
    if isinstance(exc, BaseExceptionGroup) and members is not None:
        kept["members"] = list(map(_kept_exception, members))
    return kept


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - a user's `__str__`; its repr is bounded and never raises
        return brief(exc)


def told(one: Effect) -> str:
    """An effect in one line, the same for two runs in which the same happened."""
    if isinstance(one, effect.Reply):
        return f"Reply {_told(one.value if one.error is None else one.error)}"
    # The stack of an `Overdue` is the driver's: no machine knows one.
    names = [each.name for each in _fields(one) if each.name != "stack"]
    return " ".join([type(one).__name__, *(f"{name}={_told(getattr(one, name))}" for name in names)])


def _told(value: Any) -> str:
    if isinstance(value, BaseException):
        return f"{type(value).__qualname__}({_text(value)!r})"
    if isinstance(value, Child | Supervisor | Pool):
        return value.name
    if _fields(value):
        return (
            f"{type(value).__name__}({', '.join(_told(getattr(value, one.name)) for one in _fields(value))})"
        )
    return brief(value)


# --- the way back


class _Value:
    """Stands for what was no plain value; prints as that did."""

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
        raise Mismatch(f"child {wrapped['spec']!r} was added by its spec, which a log does not have")
    return _exception(wrapped) if "exception" in wrapped else _Value(wrapped["value"])


def _exception(kept: dict[str, Any]) -> BaseException:
    """One of the same class, of which the same can be said; its constructor is not called."""
    module, _, name = kept["exception"].partition(":")
    try:
        cls: Any = importlib.import_module(module)
        for part in name.split("."):
            cls = getattr(cls, part)
    except (ImportError, AttributeError):  # it was made in a function, or has gone
        cls = Exception
    says: dict[str, Any] = {
        "__str__": _saying(kept["text"]),
        "__repr__": _saying(kept["repr"]),
        "__qualname__": name,
    }
    like: Any = type(name.rpartition(".")[2], (cls,), says)
    if "members" in kept:
        made = like.__new__(like, "", list(map(_exception, kept["members"])))
    else:
        made = like.__new__(like, kept["text"])
    if "tag" in kept and getattr(made, "tag", None) != kept["tag"]:
        made.tag = kept["tag"]
    return cast("BaseException", made)


def _saying(text: str) -> Callable[[object], str]:
    return lambda _: text


def replay(lines: Iterable[str], spec: Supervisor | Pool) -> Iterator[tuple[str, list[str]]]:
    """Replay a log: put its inputs into fresh machines of the tree, and compare what comes of each.

    Yields:
        Each input in words, and its effects.

    Raises:
        Mismatch: the effects are not those of the log, or a line cannot be replayed.
    """
    replayed: _Replay | None = None
    for number, text in enumerate(lines, 1):
        try:
            line = _parsed(text)
            replayed = _Replay(spec) if "tree" in line else _begun(replayed)
            said, out = replayed.take(line)
        except Mismatch as problem:
            raise Mismatch(f"line {number}: {problem}") from None
        found = list(map(told, out))
        if found != line["effects"]:
            raise Mismatch(f"line {number}: {said}\n" + "\n".join(_difference(line["effects"], found)))
        yield f"{line['now']:.3f} {said}", found


def _parsed(text: str) -> dict[str, Any]:
    """A line of a log, which has all that it must have."""
    try:
        line: Any = json.loads(text)
        keys: Any = line.keys()
    except (ValueError, AttributeError):
        raise Mismatch("this is no line of a log") from None
    if missing := (_START if "tree" in keys else _INPUT) - set(keys):
        raise Mismatch(f"this line of a log lacks {', '.join(sorted(missing))}")
    return cast("dict[str, Any]", line)


def _begun(replayed: _Replay | None) -> _Replay:
    if replayed is None:
        raise Mismatch("a log begins with the start of a tree")
    return replayed


class _Replay:
    """One tree that is replayed."""

    def __init__(self, spec: Supervisor | Pool) -> None:
        self._forest = Forest(spec)
        self._machines: dict[tuple[str, int], Machine] = {}
        self._requests: list[effect.Request] = []

    def take(self, line: dict[str, Any]) -> tuple[str, list[Effect]]:
        """Put one line in; gives what it was, in words, and the effects."""
        forest = self._forest
        forest.ledger.listening = line["listening"]
        if "tree" in line:
            name = forest.root.spec.name
            if line["tree"] != name:
                raise Mismatch(f"the log is of a tree {line['tree']!r}, not of {name!r}")
            said, out = f"{name} starts", forest.start(line["now"])
        else:
            machine = self._machines.get((line["machine"], line["incarnation"]))
            if machine is None:
                raise Mismatch(f"there was no supervisor {line['machine']!r} #{line['incarnation']}")
            item = self._item(line["input"], line["fields"])
            said = f"{line['machine']} <- {_told(item)}"
            out = forest.handle(machine, item, line["now"], line["u"])
        for one in out:
            if isinstance(one, effect.Start) and one.path in forest.machines:
                machine = forest.machines[one.path]
                self._machines[machine.path, machine.incarnation] = machine
        return said, out

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
    parser.add_argument("log", type=Path, help="what `recording` has written")
    parser.add_argument("tree", help="MODULE[:ATTR] or FILE[:ATTR], as for `supervise run`")
    options = parser.parse_args()
    inputs = effects = 0
    try:
        spec = load(options.tree)
        assert spec is not None
        with options.log.open(encoding="utf-8") as lines:
            for said, out in replay(lines, spec):
                sys.stdout.write("".join([f"{said}\n", *(f"    {one}\n" for one in out)]))
                inputs, effects = inputs + 1, effects + len(out)
    except (Mismatch, NoTree, OSError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    sys.stdout.write(f"{inputs} inputs, {effects} effects: the same as in the log\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
