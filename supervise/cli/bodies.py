"""Mistakes in the source code of bodies and resources that no constructor can see: a missing await, a blocking call.

A name is looked up where the function will look it up, in its closure, its module and the built-in names, without calling
anything; what cannot be looked up is passed over. Only the function itself is read, not those that it calls.
"""

from __future__ import annotations

import ast
import builtins
import dis
import inspect
import linecache
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

from attrs import define, field, frozen

from .._core._call import gives_nothing, plain_function
from .._core.spec import Child, Pool
from .findings import Finding, Node, below, nodes
from .places import Place

_BLOCKING = {
    "time.sleep": "await trio.sleep(…)",
    "posix.system": "await trio.run_process(…)",
    "nt.system": "await trio.run_process(…)",
    "subprocess.run": "await trio.run_process(…)",
    "subprocess.call": "await trio.run_process(…)",
    "subprocess.check_call": "await trio.run_process(…)",
    "subprocess.check_output": "await trio.run_process(…, capture_stdout=True)",
    "urllib.request.urlopen": "await trio.to_thread.run_sync(…)",
    "requests.api.get": "await trio.to_thread.run_sync(…)",
    "requests.api.post": "await trio.to_thread.run_sync(…)",
    "builtins.input": "await trio.to_thread.run_sync(input)",
}
"""Functions by their own module and name, each with what to write instead."""

_Async = ast.Await | ast.AsyncFor | ast.AsyncWith | ast.Yield | ast.YieldFrom
_Inner = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
_Function = ast.AsyncFunctionDef | ast.Lambda
_UNKNOWN = object()


def mistakes(tree: Any) -> Iterator[Finding]:
    """The findings in the bodies and resources of all leaves, each function once."""
    sources = Sources()
    seen: set[CodeType] = set()
    forgetful: set[CodeType] = set()
    for node in nodes(tree):
        if not isinstance(node.spec, Child):
            yield from _lambdas_in_a_loop(node, sources)
            continue
        for function in (node.spec.body, node.spec.resource):
            written = _written(function)
            if written is not None and written[0].__code__ not in seen:
                code = written[0].__code__
                seen.add(code)
                found = list(_read(node, *written, sources))
                if any(one.code == "SUP301" for one in found):
                    forgetful.add(code)
                yield from found
        yield from _body(node, node.spec, sources, forgetful)


# --- source code


@define
class Sources:
    """The syntax trees of the files in which functions were written, each parsed once."""

    _trees: dict[str, ast.Module | None] = field(factory=dict)
    _definitions: dict[str, dict[tuple[str, int], list[_Function]]] = field(factory=dict)

    def tree(self, file: str) -> ast.Module | None:
        """The syntax tree of one of the user's files; None for an installed one, or one that cannot be read."""
        if file not in self._trees:
            self._trees[file] = None if _is_installed(file) else _parsed(file)
        return self._trees[file]

    def definition(self, code: CodeType) -> ast.AsyncFunctionDef | None:
        """The `async def` of a function; None if it is not found, or not the only one of its name in its line."""
        found = self._only_one(code)
        return found if isinstance(found, ast.AsyncFunctionDef) else None

    def lambda_(self, code: CodeType) -> ast.Lambda | None:
        """Likewise for a lambda."""
        found = self._only_one(code)
        return found if isinstance(found, ast.Lambda) else None

    def _only_one(self, code: CodeType) -> _Function | None:
        file = code.co_filename
        if file not in self._definitions:
            self._definitions[file] = _definitions(self.tree(file))
        found = self._definitions[file].get((code.co_name, code.co_firstlineno), [])
        return found[0] if len(found) == 1 else None


def _definitions(tree: ast.Module | None) -> dict[tuple[str, int], list[_Function]]:
    """All `async def` and lambdas by the name of their code and the first line, which is that of the first decorator."""
    found: dict[tuple[str, int], list[_Function]] = {}
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.AsyncFunctionDef):
            line = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found.setdefault((node.name, line), []).append(node)
        elif isinstance(node, ast.Lambda):
            found.setdefault(("<lambda>", node.lineno), []).append(node)
    return found


_STANDARD = Path(inspect.__file__).parent


def _is_installed(file: str) -> bool:
    path = Path(file)
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts) or path.is_relative_to(_STANDARD)


def _parsed(file: str) -> ast.Module | None:
    linecache.checkcache(file)
    try:
        return ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError, RecursionError):
        return None  # it has changed since it was loaded


def _written(function: object) -> tuple[FunctionType, object] | None:
    """The Python function that a call enters, beneath the wrapper of `contextlib`, and the object whose method it is."""
    try:
        plain = plain_function(function)
    except Exception:  # noqa: BLE001 - A user's object may raise when it is inspected.
        return None
    if plain is None:
        return None
    if (
        plain.__globals__.get("__name__") == "contextlib"
        and type(vars(plain).get("__wrapped__")) is FunctionType
    ):
        plain = vars(plain)["__wrapped__"]
    return plain, function.__self__ if type(function) is MethodType else None


@frozen
class _Reader:
    """Looks names up as the function does."""

    code: CodeType
    scope: dict[str, Any]
    cells: tuple[Any, ...]
    owner: object
    """The object whose method it is, or None."""

    def value(self, node: ast.expr) -> object:
        """What the expression is, if it is a name, or an attribute of a module or of `self`; else `_UNKNOWN`."""
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.Attribute):
            if self.owner is not None and isinstance(node.value, ast.Name) and node.value.id == self._self():
                return self._method(node.attr)
            home = self.value(node.value)
            return vars(home).get(node.attr, _UNKNOWN) if type(home) is ModuleType else _UNKNOWN
        return _UNKNOWN

    def _name(self, name: str) -> object:
        code = self.code
        if name in code.co_varnames or name in code.co_cellvars:
            return _UNKNOWN
        if name in code.co_freevars:
            with suppress(ValueError):  # it is not set yet
                found: object = self.cells[code.co_freevars.index(name)].cell_contents
                return found
            return _UNKNOWN
        return self.scope.get(name, vars(builtins).get(name, _UNKNOWN))

    def _self(self) -> str:
        return next(iter(self.code.co_varnames), "")

    def _method(self, name: str) -> object:
        try:
            own: dict[str, object] = object.__getattribute__(self.owner, "__dict__")
        except AttributeError:  # it has slots
            own = {}
        if name in own:
            return _UNKNOWN
        return next((vars(cls)[name] for cls in type(self.owner).__mro__ if name in vars(cls)), _UNKNOWN)


def _within(statement: ast.AST) -> Iterator[ast.AST]:
    """The parts of a function in order, without those of functions and classes in it, which run at another time."""
    waiting = list(ast.iter_child_nodes(statement))[::-1]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, _Inner):
            yield part
            waiting += list(ast.iter_child_nodes(part))[::-1]


# --- what is looked for


def _read(node: Node, plain: FunctionType, owner: object, sources: Sources) -> Iterator[Finding]:
    code = plain.__code__
    definition = sources.definition(code)
    if definition is None:
        return
    reader = _Reader(code, plain.__globals__, plain.__closure__ or (), owner)
    name = definition.name

    def finding(number: str, at: ast.stmt | ast.expr | ast.ExceptHandler, text: str) -> Finding:
        place = Place(code.co_filename, at.lineno, at.end_lineno or at.lineno)
        return Finding(number, f"{node.path!r}: in {name}() {text}", node.path, node.spec, place)

    try:
        yield from _calls(definition, reader, finding)
        yield from _loops(definition, reader, finding)
        yield from _swallowed(definition, finding)
    except RecursionError:  # an expression of thousands of parts
        return


_Make = Callable[[str, Any, str], Finding]


def _calls(definition: ast.AsyncFunctionDef, reader: _Reader, finding: _Make) -> Iterator[Finding]:
    foreign = "trio_asyncio" in reader.scope
    for part in _within(definition):
        # What a body returns is not used, so that a coroutine in it is as lost as one of a statement.
        if isinstance(part, (ast.Expr, ast.Return)) and isinstance(part.value, ast.Call):
            called = reader.value(part.value.func)
            if _is_async(called) and not _is_of_asyncio(called):
                shown = ast.unparse(part.value.func)
                yield finding(
                    "SUP301",
                    part,
                    f"{shown}(…) is called without await, so that it does not run; write await {shown}(…)",
                )
        if isinstance(part, ast.Call):
            called = reader.value(part.func)
            instead = _BLOCKING.get(_dotted(called))
            if instead is not None:
                shown = ast.unparse(part.func)
                yield finding("SUP303", part, f"{shown}(…) blocks the whole program; write {instead}")
            if _is_of_asyncio(called) and not foreign:
                shown = ast.unparse(part.func)
                yield finding(
                    "SUP302", part, f"{shown}(…) needs asyncio, but a tree runs on Trio; use what Trio has"
                )


def _is_async(value: object) -> bool:
    return type(value) is FunctionType and bool(value.__code__.co_flags & inspect.CO_COROUTINE)


def _is_of_asyncio(value: object) -> bool:
    """Whether it is a function of asyncio, or one of its classes except the exceptions."""
    if type(value) is type:  # one with a metaclass may run code of a user when it is looked at
        return value.__module__.startswith("asyncio.") and not issubclass(value, BaseException)
    return _dotted(value).startswith("asyncio.")


def _dotted(value: object) -> str:
    """The module and the name of a function; empty for anything else."""
    if type(value) not in (FunctionType, BuiltinFunctionType):
        return ""
    function: Any = value
    return f"{function.__module__}.{function.__qualname__}"


def _endless(definition: ast.AsyncFunctionDef) -> Iterator[tuple[ast.While, list[ast.AST]]]:
    """Each `while True`, with the parts of it."""
    for part in _within(definition):
        if isinstance(part, ast.While) and isinstance(part.test, ast.Constant) and part.test.value:
            yield part, list(_within(part))


def _waits(parts: Iterable[ast.AST]) -> bool:
    """Whether one of the parts may let other tasks run."""
    return any(
        isinstance(part, _Async) or (isinstance(part, ast.comprehension) and part.is_async) for part in parts
    )


def _loops(definition: ast.AsyncFunctionDef, reader: _Reader, finding: _Make) -> Iterator[Finding]:
    """Loops without an end and without an await. One that has forgotten it is reported for that."""
    for loop, inner in _endless(definition):
        if _waits(inner) or any(isinstance(part, (ast.Break, ast.Return, ast.Raise)) for part in inner):
            continue
        calls = (part.value for part in inner if isinstance(part, ast.Expr))
        if not any(isinstance(call, ast.Call) and _is_async(reader.value(call.func)) for call in calls):
            yield finding(
                "SUP304",
                loop,
                "a loop never waits, so that no other child runs and no stop is obeyed; await something in it",
            )


def _swallowed(definition: ast.AsyncFunctionDef, finding: _Make) -> Iterator[Finding]:
    """Endless loops that catch Trio's Cancelled and go on."""
    for _, inner in _endless(definition):
        for part in inner:
            if not isinstance(part, ast.Try) or not _waits(_among(part.body)):
                continue
            handler = next(filter(_catches_all, part.handlers), None)
            ends = (ast.Raise, ast.Return, ast.Break)
            if handler and not any(isinstance(each, ends) for each in _within(handler)):
                yield finding(
                    "SUP307",
                    handler,
                    "a loop catches Cancelled and goes on, so that it can never be stopped; catch Exception",
                )


def _among(statements: Iterable[ast.stmt]) -> Iterator[ast.AST]:
    for statement in statements:
        yield statement
        yield from _within(statement)


def _catches_all(handler: ast.ExceptHandler) -> bool:
    """Whether it catches Cancelled, by a bare `except`, its own name, or that of its base."""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        one is None or ast.unparse(one).rpartition(".")[2] in ("BaseException", "Cancelled") for one in caught
    )


def _body(node: Node, leaf: Child, sources: Sources, forgetful: set[CodeType]) -> Iterator[Finding]:
    """What its body as a whole does. One that forgets an await is reported for that."""
    written = _written(leaf.body)
    if written is None:
        return
    code = written[0].__code__
    if code.co_name == "<lambda>" and _gives_nothing(*written, sources.lambda_(code)):
        yield node.says(
            "SUP308",
            f"the body of {node.path!r} is a lambda whose result cannot be awaited; write an async function",
        )
    if not _is_async(written[0]):
        return
    if leaf.takes_task_status and _never_starts(code):
        yield node.says(
            "SUP305",
            f"the body of {node.path!r} takes task_status and never uses it, so that it never becomes ready; "
            "call task_status.started(), or leave the parameter out",
        )
    definition = None if code in forgetful else sources.definition(code)
    if definition is not None and _must_run_for_ever(node) and _ends_at_once(code, definition):
        yield node.says(
            "SUP306",
            f"the body of {node.path!r} waits for nothing and returns at once, which is a failure of a permanent child; "
            "write restart='transient' if that is its end",
        )


def _never_starts(code: CodeType) -> bool:
    """Whether a function does nothing with its own parameter `task_status`."""
    parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return "task_status" in parameters and _names(code).isdisjoint({"task_status", "locals", "IGNORE"})


def _must_run_for_ever(node: Node) -> bool:
    """Whether a return of its body is a failure, for which no decider has an answer of its own."""
    if node.spec.restart != "permanent" or any(isinstance(spec, Pool) for spec in node.above):
        return False
    return not any("returned" in layer.table for layer in node.deciders())


def _ends_at_once(code: CodeType, definition: ast.AsyncFunctionDef) -> bool:
    """Whether it has no await, no endless loop, and neither raises nor declines to start."""
    parts = list(_within(definition))
    if _waits(parts) or "IGNORE" in code.co_names:
        return False
    return not any(isinstance(part, (ast.While, ast.Raise)) for part in parts)


def _names(code: CodeType) -> set[str]:
    """The names that the code of a function loads or stores; since Python 3.13 one instruction may have two."""
    found: set[str] = set()
    for step in dis.get_instructions(code):
        argument: object = step.argval
        several = cast("tuple[object, ...]", argument) if type(argument) is tuple else (argument,)
        found.update(name for name in several if isinstance(name, str))
    return found


def _gives_nothing(plain: FunctionType, owner: object, written: ast.Lambda | None) -> bool:
    """Whether a lambda surely gives something that cannot be awaited."""
    if written is None:
        return False
    result = written.body
    if not isinstance(result, ast.Call):
        return isinstance(result, ast.Constant)
    called = _Reader(plain.__code__, plain.__globals__, plain.__closure__ or (), owner).value(result.func)
    return _dotted(called) in (*_BLOCKING, "builtins.print") or (
        type(called) is FunctionType and gives_nothing(called)
    )


def _lambdas_in_a_loop(node: Node, sources: Sources) -> Iterator[Finding]:
    """Siblings whose bodies are one lambda of a loop, which uses the variable of that loop."""
    met: set[CodeType] = set()
    reported: set[CodeType] = set()
    for child in below(node.spec):
        body: Any = child.body if isinstance(child, Child) else None
        if type(body) is not FunctionType or body.__name__ != "<lambda>":
            continue
        code = body.__code__
        if code in met and code not in reported:
            reported.add(code)
            late = _late(code, sources.tree(code.co_filename))
            if late:
                yield Finding(
                    "SUP217",
                    f"the bodies of {node.path!r} are lambdas of a loop that use its variable {late!r}, which has its last "
                    f"value when they run; write Child(…, function, args=[{late}])",
                    node.path,
                    node.spec,
                    Place(code.co_filename, code.co_firstlineno, code.co_firstlineno),
                )
        met.add(code)


def _late(code: CodeType, tree: ast.Module | None) -> str | None:
    """The variable of a loop around this lambda that the lambda uses."""
    used = {*code.co_freevars, *code.co_names}
    loops = (ast.For, ast.AsyncFor, ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)
    for loop in ast.walk(tree) if tree is not None else ():
        if isinstance(loop, loops) and _holds_lambda(loop, code.co_firstlineno):
            targets = (
                [loop.target]
                if isinstance(loop, (ast.For, ast.AsyncFor))
                else [each.target for each in loop.generators]
            )
            names = (one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name))
            found = next((name for name in names if name in used), None)
            if found is not None:
                return found
    return None


def _holds_lambda(loop: ast.AST, line: int) -> bool:
    """Whether a lambda begins in that line within the loop, but not within a function that the loop defines."""
    parts = (loop, *_within(loop))
    inner = (child for part in parts for child in ast.iter_child_nodes(part))
    return any(isinstance(child, ast.Lambda) and child.lineno == line for child in inner)
