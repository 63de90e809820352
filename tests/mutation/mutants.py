"""The mutants: mutmut makes them, and one takes the place of the real code for as long as its process lives."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import inspect
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from types import CodeType

import libcst as cst
from attrs import frozen
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import (
    NEVER_MUTATE_FUNCTION_CALLS,
    Mutation,
    MutationVisitor,
    deep_replace,
)
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

NEVER_MUTATE_FUNCTION_CALLS.add("cast")  # it does nothing at run time
CORE = Path(__file__).parents[2] / "supervise" / "_core"


@frozen(eq=False)
class Mutant:
    """One small change of one function."""

    name: str
    path: Path
    function: str
    place: CodeRange
    whole: CodeRange
    module: cst.Module
    mutation: Mutation

    @property
    def lines(self) -> list[range]:
        """Where in its file it is; and where its function is, for a default is not where it is used."""
        return [range(it.start.line, it.end.line + 1) for it in (self.place, self.whole)]

    @property
    def of(self) -> str:
        """Which version of its function it changes, in eight digits: what is known of another is not known of this one."""
        lines = self.path.read_text().splitlines()[self.whole.start.line - 1 : self.whole.end.line]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]

    def source(self) -> str:
        """Its file as it would read: the piece put in its place, or, where there is more to it, all of it made anew."""
        source, old, new = self.path.read_text(), self.mutation.original_node, self.mutation.mutated_node
        lines = [0, *accumulate(map(len, source.splitlines(keepends=True)))]
        start = lines[self.place.start.line - 1] + self.place.start.column
        end = lines[self.place.end.line - 1] + self.place.end.column
        if source[start:end] == self.module.code_for_node(old).strip():
            return source[:start] + self.module.code_for_node(new).strip() + source[end:]
        return deep_replace(self.module, old, new).code

    def diff(self) -> str:
        """As a patch of one or two lines, without its head."""
        old, new = self.path.read_text().splitlines(), self.source().splitlines()
        return "\n".join(list(difflib.unified_diff(old, new, n=0, lineterm=""))[2:])

    def put_in(self) -> None:
        """From now on the function is the mutant, for every caller that holds it: its code is replaced."""
        source = self.source()
        function = _found(importlib.import_module(f"supervise._core.{self.path.stem}"), self.function)
        function.__code__ = _compiled(source, self.path, self.function)
        _put_defaults(function, source, self.function)


def all_mutants(patterns: Iterable[str] = ("*.py",)) -> list[Mutant]:
    """Of every function and method in the core's files that fit a pattern, in the order of the files."""
    files = {path for pattern in patterns for path in CORE.glob(pattern)}
    return [mutant for path in sorted(files) for mutant in _of_file(path)]


def _of_file(path: Path) -> list[Mutant]:
    wrapper = MetadataWrapper(cst.parse_module(path.read_text()))
    places = wrapper.resolve(PositionProvider)
    visitor = MutationVisitor(mutation_operators, IgnoredCode(set(), set(), set()))
    module = wrapper.visit(visitor)
    names, seen, mutants = _names(module), Counter(), []
    for mutation in visitor.mutations:
        function = names.get(mutation.contained_by_top_level_function)
        if function is not None:
            seen[function] += 1
            name = f"{path.stem}.{function}.{seen[function]}"
            place, whole = places[mutation.original_node], places[mutation.contained_by_top_level_function]
            mutants.append(Mutant(name, path, function, place, whole, module, mutation))
    return mutants


def _names(module: cst.Module) -> dict[cst.CSTNode, str]:
    """The qualified names of all functions and methods."""
    names = {}
    for one in module.body:
        if isinstance(one, cst.FunctionDef):
            names[one] = one.name.value
        elif isinstance(one, cst.ClassDef):
            methods = (part for part in one.body.body if isinstance(part, cst.FunctionDef))
            names |= {method: f"{one.name.value}.{method.name.value}" for method in methods}
    return names


def _found(module, function):
    here = module
    for name in function.split("."):
        here = inspect.getattr_static(here, name)
    here = getattr(here, "fget", here) or here
    return inspect.unwrap(getattr(here, "__func__", here))


def _compiled(source: str, path: Path, function: str) -> CodeType:
    """The code of one function, out of its whole module, so that it has the same globals."""
    waiting = [compile(source, str(path), "exec", dont_inherit=True)]
    for code in waiting:
        waiting += [const for const in code.co_consts if isinstance(const, CodeType)]
    return next(code for code in waiting if code.co_qualname == function)


def _put_defaults(function, source: str, name: str) -> None:
    """Where a default is plainly written, as it is written now."""
    tree: ast.AST = ast.parse(source)
    for part in name.split("."):
        tree = next(it for it in tree.body if getattr(it, "name", "") == part)
    given = tree.args
    if function.__defaults__:
        pairs = zip(given.defaults, function.__defaults__, strict=True)
        function.__defaults__ = tuple(_value(node, now) for node, now in pairs)
    for arg, node in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        if node is not None:
            function.__kwdefaults__[arg.arg] = _value(node, function.__kwdefaults__[arg.arg])


def _value(node: ast.expr, now):
    return node.value if isinstance(node, ast.Constant) else now
