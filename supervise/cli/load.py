"""Find a declared tree: in a module by name, or in a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from .._core.spec import Child, Pool, Supervisor


class NoTree(Exception):
    """There is no tree to be had there; the message says why in one line."""


def load(target: str, noted: list[Exception] | None = None) -> object:
    """The tree that `MODULE[:ATTR]` or `FILE[:ATTR]` names.

    Args:
        target: the attribute defaults to `tree`, then to the module's only supervisor.
        noted: given for a check: what constructors have refused so far. If there is anything, a module that fails for
            want of what they refused is no further problem, and None comes back.

    Raises:
        NoTree: nothing to import, nothing there, or not a tree.
    """
    where, _, attribute = _split(target)
    try:
        module = _module(where)
    except NoTree:
        raise
    except Exception as exc:
        if noted:
            return None
        raise NoTree(f"{where} failed to load: {_last_line(exc)}{_where(exc, where)}") from exc
    return _attribute(module, where, attribute)


def _split(target: str) -> tuple[str, str, str]:
    """A Windows drive is no attribute."""
    where, colon, attribute = target.rpartition(":")
    return (
        (where, colon, attribute)
        if colon and attribute.isidentifier() and len(where) > 1
        else (target, "", "")
    )


def _module(where: str) -> ModuleType:
    """The current folder is appended to the path, never prepended: nothing there shadows what is installed."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    if where.endswith(".py") or "/" in where:
        return _from_file(Path(where))
    _refuse_foreign_runners(where)
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (where == exc.name or where.startswith(f"{exc.name}.")):
            raise NoTree(f"no module named {where!r}") from exc
        raise


def _refuse_foreign_runners(where: str) -> None:
    """`runners` is a common name: say so if the one on the path is not this project's."""
    if where.partition(".")[0] != "runners":
        return
    spec = importlib.util.find_spec("runners")
    if spec is not None and spec.origin is not None and not Path(spec.origin).with_name("worker.py").exists():
        raise NoTree(
            f"the package 'runners' at {spec.origin} is not the one of trio-supervise, which it hides"
        )


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise NoTree(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    if spec is None or spec.loader is None:
        raise NoTree(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.append(str(path.parent.absolute()))
    spec.loader.exec_module(module)
    return module


def _attribute(module: ModuleType, where: str, attribute: str) -> object:
    if attribute:
        if not hasattr(module, attribute):
            raise NoTree(f"{where} has no attribute {attribute!r}")
        return _tree(getattr(module, attribute), f"{where}:{attribute}")
    if hasattr(module, "tree"):
        return _tree(module.tree, f"{where}:tree")
    roots = _roots(module)
    if len(roots) != 1:
        found = (
            f"its supervisors are {', '.join(sorted(roots))}: name one"
            if roots
            else "it has no supervisor either"
        )
        raise NoTree(f"{where} has no 'tree', and {found}")
    return next(iter(roots.values()))


def _roots(module: ModuleType) -> dict[str, object]:
    """The supervisors of a module that stand in no other of its supervisors."""
    found = {name: value for name, value in vars(module).items() if isinstance(value, Supervisor | Pool)}
    below = {id(child) for value in found.values() for child in value.children}
    return {name: value for name, value in found.items() if id(value) not in below}


def _tree(value: object, what: str) -> object:
    if not isinstance(value, Supervisor | Pool):
        hint = "; put the child into a Supervisor" if isinstance(value, Child) else ""
        raise NoTree(f"{what} must be a Supervisor or a Pool, got {value!r}{hint}")
    return value


def _last_line(exc: Exception) -> str:
    return "".join(traceback.format_exception_only(exc)).strip().splitlines()[-1]


def _where(exc: Exception, where: str) -> str:
    """The line of the file that raised, if it was the file itself."""
    frames = traceback.extract_tb(exc.__traceback__)
    lines = [
        frame for frame in frames if frame.filename.endswith(Path(where).name) or where in frame.filename
    ]
    return f" (line {lines[-1].lineno})" if lines else ""
