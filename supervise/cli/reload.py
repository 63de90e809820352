"""Load the files of a program anew while it runs (R38): `supervise run --reload`."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import cache_from_source, resolve_name
from pathlib import Path
from sysconfig import get_path
from types import ModuleType

import trio

from .._core.spec import Pool, Supervisor
from .._trio.run import reload_or_log
from .._trio.tree import Tree
from . import findings
from .load import NoTree, load, name_of_module, wherever

_LOOKS = 1.0
"""Seconds between two looks at the files."""

_PYTHON = get_path("stdlib")
"""The folder of Python's own modules. It may be below that of the program, if this is the home of a user."""

_LIBRARIES = ("supervise", "runners", "__main__")


class Program:
    """The target of `supervise run`, with the modules that it imports from its own folder: these are its own modules.

    Called, it gives the tree of the target, after it has loaded anew each own module whose file has changed since it was loaded,
    and each that imports one of those. All others stay loaded, so that their classes stay the same. A target that is a call is
    called again in any case. If anything is wrong, the modules stay those that they were.

    Args:
        target: what `supervise run` got; it has been loaded.
    """

    def __init__(self, target: str) -> None:
        self._target = wherever(target)
        self._name = name_of_module(target)
        self._folder = _folder(sys.modules[self._name.partition(".")[0]])
        self._failed = False
        self._sources = _sources(self._modules())
        self._known = self._stamps()
        """The stamps with which `watch` compares: those that it has seen, and of each other file that when it was loaded."""

    def __call__(self) -> Supervisor | Pool:
        """The tree as the files declare it now.

        Raises:
            NoTree: a file cannot be loaded, has no such tree, or `supervise check` finds an error in it.
        """
        try:
            return self._loaded_anew()
        finally:
            # The adoption may take long: a file that is new, and is saved meanwhile, is another one than was loaded.
            self._known = self._stamps() | self._known

    def _loaded_anew(self) -> Supervisor | Pool:
        self._failed = True
        before = self._modules()
        # They are read before the modules are loaded: a file that is saved meanwhile counts as changed by the next call.
        sources = _sources(before)
        packages = [(vars(module), dict(vars(module))) for module in before.values() if _is_package(module)]
        for name in self._stale(before, sources):
            self._forget(name, before)
        importlib.invalidate_caches()
        try:
            tree = self._loaded()
        except BaseException:
            for name in self._modules():
                del sys.modules[name]
            sys.modules.update(before)
            for names, those in packages:  # their modules are attributes of them
                names.update(those)
                for name in names.keys() - those.keys():
                    del names[name]
            raise
        modules = self._modules()
        new = {name: module for name, module in modules.items() if name not in sources}
        self._sources = {name: sources[name] for name in modules.keys() - new.keys()} | _sources(new)
        self._failed = False
        return tree

    def _forget(self, name: str, before: dict[str, ModuleType]) -> None:
        """Have a module loaded by its next import."""
        del sys.modules[name]
        above, _, last = name.rpartition(".")
        if above in before and _is_package(before[above]):
            # Otherwise `from above import last` would find the earlier one.
            vars(before[above]).pop(last, None)
        # Bytecode is taken for that of the file by its time in whole seconds and its size alone.
        with suppress(OSError, NotImplementedError):
            Path(cache_from_source(str(before[name].__file__))).unlink(missing_ok=True)

    def _loaded(self) -> Supervisor | Pool:
        try:
            tree = load(self._target, module=sys.modules.get(self._name))
        except KeyboardInterrupt as exc:
            # It is of a module itself: a running program receives SIGINT by a handler of its own.
            raise NoTree(f"{self._target} raised KeyboardInterrupt while it was loaded") from exc
        assert tree is not None
        wrong = [problem for _, problem in findings.errors(tree)]
        if wrong:
            raise NoTree(f"{self._target}: {'; '.join(wrong)}")
        return tree

    async def watch(self, tree: Tree) -> None:
        """Have the tree reload whenever a file has changed, once it has stayed as it is from one look to the next.

        A module that is imported later, or not any more, is no change.
        """
        seen = self._stamps()
        while True:
            await trio.sleep(_LOOKS)
            earlier, seen = seen, self._stamps()
            if seen == earlier and any(self._known.get(path, stamp) != stamp for path, stamp in seen.items()):
                # A file that is saved while it is loaded is another one than this.
                self._known = seen
                await reload_or_log(tree, reason="a file has changed")
            else:
                self._known = seen | self._known

    def _stamps(self) -> dict[Path, tuple[int, ...] | None]:
        """When each of its files was changed, its size, and which file it is; None if the file is just being replaced.

        After a load that failed, the files beside them count too: the one to be mended may be of a module that was never loaded.
        """
        paths = {Path(_file(module)) for module in self._modules().values()}
        if self._failed:
            paths |= {path for folder in {path.parent for path in paths} for path in folder.glob("*.py")}
        return {path: _stamp(path) for path in paths}

    # --- its modules

    def _modules(self) -> dict[str, ModuleType]:
        """Its own modules that are loaded."""
        return {name: module for name, module in list(sys.modules.items()) if self._owns(name, module)}

    def _owns(self, name: str, module: ModuleType) -> bool:
        file = _file(module)
        if not file.endswith(".py") or name.partition(".")[0] in _LIBRARIES:
            return False
        path = Path(file).absolute()
        return path.is_relative_to(self._folder) and not (
            path.is_relative_to(_PYTHON) or {"site-packages", "dist-packages"} & set(path.parts)
        )

    def _stale(self, modules: dict[str, ModuleType], sources: dict[str, bytes]) -> list[str]:
        """The own modules that have to be loaded anew: what has changed, what is below or imports one of these."""
        imported = {name: set(_imports(name, modules[name], source)) for name, source in sources.items()}
        stale = {name for name, source in sources.items() if source != self._sources.get(name)}
        while True:
            more = {
                name
                for name, others in imported.items()
                if not others.isdisjoint(stale) or any(name.startswith(f"{above}.") for above in stale)
            }
            if more <= stale:
                return sorted(stale & modules.keys())
            stale |= more


def _folder(module: ModuleType) -> Path:
    return Path(str(module.__file__)).absolute().parent


def _file(module: ModuleType) -> str:
    """The path of its file; empty if it has none. Anything may stand in place of a module."""
    try:
        file = module.__file__
    except Exception:  # noqa: BLE001 - A lazy module may raise anything when it is asked for an attribute.
        return ""
    return file if isinstance(file, str) else ""


def _is_package(module: object) -> bool:
    return isinstance(module, ModuleType) and "__path__" in vars(module)


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    # A symlink may lead to another release, whose files all have the time of a reproducible build, and often the same size.
    return stat.st_mtime_ns, stat.st_size, stat.st_dev, stat.st_ino


def _sources(modules: dict[str, ModuleType]) -> dict[str, bytes]:
    return {name: _source(module) for name, module in modules.items()}


def _source(module: ModuleType) -> bytes:
    """What its file has now; nothing if it cannot be read, which counts as a change."""
    try:
        return Path(str(module.__file__)).read_bytes()
    except OSError:
        return b""


def _imports(name: str, module: ModuleType, source: bytes) -> Iterator[str]:
    """The names that a module imports, and those that may be modules."""
    try:
        nodes = list(_walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):  # loading it gives the error
        return
    package = name if hasattr(module, "__path__") else name.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            with suppress(ImportError):  # a relative import beyond the top: loading it gives the error
                full = resolve_name(base, package) if node.level else base
                yield full
                yield from (f"{full}.{alias.name}" for alias in node.names)


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """As `ast.walk`, but without what only a type checker sees: it is never imported."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
