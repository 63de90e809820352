"""Find a declared tree in a module or in a file."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import supervise

from .._core._brief import MOST, brief, printable, shortened
from .._core._check import being_loaded, did_you_mean, is_a
from .._core.spec import Child, Pool, Spec, Supervisor
from .._trio.tree import Tree


class NoTree(Exception):
    """The target has no tree; the message gives the reason in one line.

    Args:
        reason: the message.
        place: the file and the line, if the problem has one.
    """

    def __init__(self, reason: str, place: tuple[str, int] | None = None) -> None:
        super().__init__(reason)
        self.place = place


def load(
    target: str, noted: Sequence[object] = (), module: ModuleType | None = None
) -> Supervisor | Pool | None:
    """The tree that `MODULE[:ATTR]` or `FILE[:ATTR]` names, or that a call such as `FILE:make_tree(3, name="x")` makes.

    Args:
        target: the attribute defaults to `tree`, then to the module's only supervisor. The arguments of a call are literals.
        noted: for a check: the problems that constructors have noted so far. If there are any, a module that fails to load
            counts as a consequence of them, and the result is None.
        module: that of the target, if it is loaded and has not changed; None loads it.

    Raises:
        NoTree: the module cannot be imported, has no such name, or the name is no tree.
    """
    where, attribute, call = _split(target)
    loaded = being_loaded.set(True)
    try:
        module = _module(where) if module is None else module
        return _made(module, where, attribute, call) if call else _attribute(module, where, attribute)
    except NoTree:
        if noted:
            return None
        raise
    except KeyboardInterrupt:
        raise
    except SystemExit as exc:
        raise _failed(f"{where} ended the program while it was loaded: {brief(exc)}", exc, where) from exc
    except BaseException as exc:
        if noted:
            return None
        raise _failed(f"{where} failed to load: {_last_line(exc)}", exc, where) from exc
    finally:
        being_loaded.reset(loaded)


_TARGET = re.compile(r"(.+?):([^\W\d]\w*)(\(.*\))?", re.DOTALL)


def _split(target: str) -> tuple[str, str, str]:
    """Split a target into the module or file, the attribute, and the arguments of a call; each of the latter may be empty.

    A colon after a single letter belongs to a Windows drive.
    """
    found = _TARGET.fullmatch(target)
    if found is None or len(found[1]) == 1:
        return target, "", ""
    return found[1], found[2], found[3] or ""


def _module(where: str) -> ModuleType:
    """Import a module. The current folder is appended to the path, so that no file in it shadows an installed module."""
    with suppress(OSError):  # it may have been removed, and a file has a path of its own
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)
    if where.endswith(".py") or "/" in where or where.startswith(".") or not where:
        return _from_file(Path(where))
    _refuse_foreign_runners(where)
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (where == exc.name or where.startswith(f"{exc.name}.")):
            raise NoTree(f"no module named {where!r}") from exc
        raise


def _refuse_foreign_runners(where: str) -> None:
    """Refuse a package `runners` on the path that is not this project's: the name is common."""
    if where.partition(".")[0] != "runners":
        return
    spec = importlib.util.find_spec("runners")
    if spec is not None and spec.origin is not None and not Path(spec.origin).with_name("worker").is_dir():
        raise NoTree(
            f"the package 'runners' at {spec.origin} is not the one of trio-supervise, which it hides"
        )


def _from_file(path: Path) -> ModuleType:
    if path.is_dir():
        raise NoTree(f"{path} is a folder: give a file in it")
    if not path.is_file():
        raise NoTree(f"no such file: {path}")
    _refuse_taken_name(path)
    spec = importlib.util.spec_from_file_location(_name(str(path)), path)
    if spec is None or spec.loader is None:
        raise NoTree(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    folder = str(path.parent.absolute())
    if folder not in sys.path:  # it is, if the file is loaded anew
        sys.path.append(folder)
    spec.loader.exec_module(module)
    return module


def _refuse_taken_name(path: Path) -> None:
    """Refuse a file that would be loaded in place of a module which this program uses, such as `time.py` or `trio.py`."""
    name = _name(str(path))
    if name in sys.modules and (name in sys.stdlib_module_names or name in ("supervise", "trio")):
        raise NoTree(
            f"{path} has the name of the module {name!r}, which is loaded already: give it another name"
        )


def name_of_module(target: str) -> str:
    """The module name under which the file or the module of a target is loaded."""
    return _name(_split(target)[0])


def wherever(target: str) -> str:
    """The target with the whole path of its file, if it is one: the program may change its current folder."""
    where = _split(target)[0]
    return f"{Path(where).absolute()}{target[len(where) :]}" if where.endswith(".py") else target


def _name(where: str) -> str:
    """The module name under which a target is loaded."""
    return Path(where).stem.replace("-", "_") if where.endswith(".py") else where


def _made(module: ModuleType, where: str, attribute: str, call: str) -> Supervisor | Pool:
    """The tree that a function of the module returns."""
    what = f"{where}:{attribute}{call}"
    function: Any = _named(module, where, attribute)
    if not callable(function):
        raise NoTree(f"{what} must be the call of a function, got {brief(function)}")
    positional, named = _literals(what, call)
    try:
        made = function(*positional, **named)
    except Exception as exc:
        raise _failed(f"{what} raised {_last_line(exc)}", exc, where) from exc
    return _tree(made, what)


def _literals(what: str, call: str) -> tuple[list[object], dict[str, object]]:
    """The arguments of a call."""
    try:
        parsed = ast.parse(f"f{call}", mode="eval").body
        if isinstance(parsed, ast.Call) and isinstance(parsed.func, ast.Name):
            named = {str(each.arg): ast.literal_eval(each.value) for each in parsed.keywords if each.arg}
            if len(named) == len(parsed.keywords):
                return list(map(ast.literal_eval, parsed.args)), named
    except (ValueError, SyntaxError, RecursionError):
        pass
    raise NoTree(f"{what} must have literals as its arguments, as in make_tree(3, name='x')")


def _named(module: ModuleType, where: str, attribute: str) -> object:
    names = [name for name in vars(module) if not name.startswith("_")]
    return _looked_up(
        module, attribute, f"{where} has no attribute {attribute!r}{did_you_mean(attribute, names)}"
    )


def _attribute(module: ModuleType, where: str, attribute: str) -> Supervisor | Pool:
    if attribute:
        return _tree(_named(module, where, attribute), f"{where}:{attribute}")
    if "tree" in vars(module) or _has(module, "tree"):
        return _tree(module.tree, f"{where}:tree")
    roots = _roots(module)
    if len({id(root) for root in roots.values()}) != 1:
        found = (
            f"its supervisors are {', '.join(sorted(roots))}: name one"
            if roots
            else "it has no supervisor either"
        )
        raise NoTree(f"{where} has no 'tree', and {found}")
    return next(iter(roots.values()))


def _has(module: ModuleType, name: str) -> bool:
    try:
        return hasattr(module, name)
    except Exception:  # noqa: BLE001 - a module's own `__getattr__` may raise anything
        return False


def _looked_up(module: ModuleType, name: str, missing: str) -> object:
    try:
        return getattr(module, name)
    except AttributeError as exc:
        raise NoTree(missing) from exc
    except Exception as exc:
        raise NoTree(f"{missing}: {_last_line(exc)}") from exc


def _roots(module: ModuleType) -> dict[str, Supervisor | Pool]:
    """The supervisors of a module that are not below another of its supervisors."""
    found = {name: value for name, value in vars(module).items() if is_a(value, _ROOTS)}
    below: set[int] = set()
    waiting: list[Spec] = list(found.values())
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Child):
            its = (node.template,) if isinstance(node, Pool) else node.children
            waiting += [child for child in its if id(child) not in below]
            below.update(map(id, its))
    return {name: value for name, value in found.items() if id(value) not in below}


def _tree(value: object, what: str) -> Supervisor | Pool:
    if is_a(value, _ROOTS):
        return cast("Supervisor | Pool", value)
    hint = ""
    if is_a(value, Child):
        hint = "; put the child into a Supervisor"
    elif is_a(value, (list, tuple)):
        hint = "; put the children into a Supervisor"
    elif inspect.iscoroutine(value):
        value.close()  # otherwise Python warns that it was never awaited
    elif callable(value):
        hint = f"; to call it, write {what}()"
    elif is_a(value, Tree):
        hint = "; give the Supervisor, not a tree that runs"
    raise NoTree(f"{what} must be a Supervisor or a Pool, got {brief(value)}{hint}")


_ROOTS = (Supervisor, Pool)


def _last_line(exc: BaseException) -> str:
    """The exception in one line, with a hint if a name of this library is misspelt."""
    try:
        lines = "".join(traceback.format_exception_only(exc)).strip().splitlines()
    except Exception:  # noqa: BLE001 - a user's exception may raise when it is printed
        lines = []
    if isinstance(exc, SyntaxError):
        lines = lines[-1:]  # the lines before show the place
    text = "\n".join(lines) or brief(exc)
    return printable(shortened(text, MOST)) + ("" if "id you mean" in text else _misspelt(text))


_OPTION = re.compile(r"\b(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")
_NAME = re.compile(r"cannot import name '(\w+)' from '(supervise|runners)(?:\.\w+)*'")


def _misspelt(text: str) -> str:
    """A hint at the nearest existing name, for a misspelt option or import."""
    option, name = _OPTION.search(text), _NAME.search(text)
    if option is not None:
        made = getattr(supervise, option[1], None) if option[1] in supervise.__all__ else None
        if made is not None:
            return did_you_mean(option[2], inspect.signature(made).parameters)
    if name is not None:
        return did_you_mean(name[1], sys.modules[name[2]].__all__)
    return ""


def _failed(problem: str, exc: BaseException, where: str) -> NoTree:
    """With the line of the file that raised, or that called the code that did; other folders may have files of its name."""
    steps = traceback.walk_tb(exc.__traceback__)
    lines = [
        (frame.f_code.co_filename, line)
        for frame, line in steps
        if frame.f_globals.get("__name__") == _name(where)
    ]
    if isinstance(exc, SyntaxError) and exc.lineno is not None:
        other = f" of {Path(exc.filename or '?').name}, from line {lines[-1][1]}" if lines else ""
        return NoTree(f"{problem} (line {exc.lineno}{other})", (exc.filename or where, exc.lineno))
    return NoTree(f"{problem} (line {lines[-1][1]})", lines[-1]) if lines else NoTree(problem)
