"""Load the files of a program anew while it runs (R38): `supervise run --reload`."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import cache_from_source, resolve_name
from pathlib import Path
from types import ModuleType

import trio

from .._core.spec import Pool, Supervisor
from .._trio.run import reload_or_log
from .._trio.tree import Tree
from . import findings
from .load import NoTree, load, name_of_module

_LOOKS = 1.0
"""Seconds between two looks at the files."""

_LIBRARIES = ("supervise", "runners", "__main__")


class Program:
    """The target of `supervise run`, with the modules that it imports from its own folder: these are its own modules.

    Called, it gives the tree of the target, loaded anew together with each own module whose file has changed since it was loaded,
    and each that imports one of those. All others stay loaded, so that their classes stay the same. If anything is wrong, the
    modules stay those that they were.

    Args:
        target: what `supervise run` got; it has been loaded.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._name = name_of_module(target)
        self._folder = _folder(sys.modules[self._name.partition(".")[0]])
        self._sources: dict[str, bytes] = {}
        self._note()

    def __call__(self) -> Supervisor | Pool:
        """The tree as the files declare it now.

        Raises:
            NoTree: a file cannot be loaded, has no such tree, or `supervise check` finds an error in it.
        """
        before = self._modules()
        for name in self._stale():
            self._forget(name, before)
        importlib.invalidate_caches()
        try:
            tree = self._loaded()
        except BaseException:
            for name in self._modules():
                del sys.modules[name]
            sys.modules.update(before)
            for name, module in before.items():
                above, _, last = name.rpartition(".")
                if above in before:
                    setattr(before[above], last, module)
            raise
        self._note()
        return tree

    def _forget(self, name: str, before: dict[str, ModuleType]) -> None:
        """Have a module loaded by its next import."""
        del sys.modules[name]
        above, _, last = name.rpartition(".")
        if above in before:
            # Otherwise `from above import last` would find the earlier one.
            vars(before[above]).pop(last, None)
        # Bytecode is taken for that of the file by its time in whole seconds and its size alone.
        with suppress(OSError, NotImplementedError):
            Path(cache_from_source(str(before[name].__file__))).unlink(missing_ok=True)

    def _loaded(self) -> Supervisor | Pool:
        tree = load(self._target)
        assert tree is not None
        wrong = [problem for _, problem in findings.errors(tree)]
        if wrong:
            raise NoTree(f"{self._target}: {'; '.join(wrong)}")
        return tree

    async def watch(self, tree: Tree) -> None:
        """Have the tree reload whenever a file has changed, once it has stayed as it is from one look to the next."""
        seen = known = self._stamps()
        while True:
            await trio.sleep(_LOOKS)
            earlier, seen = seen, self._stamps()
            if seen != known and seen == earlier:
                known = seen
                await reload_or_log(tree, reason="a file has changed")

    def _stamps(self) -> dict[str, tuple[int, int]]:
        stamps: dict[str, tuple[int, int]] = {}
        for name, module in self._modules().items():
            with suppress(OSError):  # it is just being replaced
                stat = Path(str(module.__file__)).stat()
                stamps[name] = stat.st_mtime_ns, stat.st_size
        return stamps

    # --- its modules

    def _modules(self) -> dict[str, ModuleType]:
        """Its own modules that are loaded."""
        return {name: module for name, module in list(sys.modules.items()) if self._owns(name, module)}

    def _owns(self, name: str, module: ModuleType) -> bool:
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py") or name.partition(".")[0] in _LIBRARIES:
            return False
        path = Path(file).absolute()
        return path.is_relative_to(self._folder) and "site-packages" not in path.parts

    def _note(self) -> None:
        """Note what is loaded, to see later what has changed."""
        self._sources = {name: _source(module) for name, module in self._modules().items()}

    def _stale(self) -> list[str]:
        """The own modules that have to be loaded anew: the target, what has changed, what is below or imports one of these."""
        modules = self._modules()
        sources = {name: _source(module) for name, module in modules.items()}
        imported = {name: set(_imports(name, modules[name], source)) for name, source in sources.items()}
        stale = {name for name, source in sources.items() if source != self._sources.get(name)} | {self._name}
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


def _source(module: ModuleType) -> bytes:
    """What its file has now; nothing if it cannot be read, which counts as a change."""
    try:
        return Path(str(module.__file__)).read_bytes()
    except OSError:
        return b""


def _imports(name: str, module: ModuleType, source: bytes) -> Iterator[str]:
    """The names that a module imports, and those that may be modules."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
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
