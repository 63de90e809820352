"""Facts about a user's function before it is called: its kind, and the arguments that it takes.

Inspecting a user's object may raise, or find nothing. Then these functions know nothing of it, and refuse nothing.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Literal

from ._brief import brief, class_name, class_of

Kind = Literal[
    "async function", "function", "async generator function", "generator function",
    "async context manager", "context manager", "class", "unknown",
]  # fmt: skip

_COROUTINE = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE
_DEEPEST = 1000  # partials are unwrapped no deeper than this, for one may contain itself
_RUNS_LATER = _COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_GENERATOR


def kind_of(function: object) -> Kind:
    """The kind of the function inside all partials and methods."""
    try:
        return _kind(function)
    except Exception:  # noqa: BLE001 - A user's object may raise when it is inspected.
        return "unknown"


def _kind(function: object) -> Kind:
    if issubclass(type(function), type):
        return "class"
    plain = plain_function(function)
    if plain is None:
        return "unknown"
    made_by = _contextlib_of(plain)
    if made_by is not None:
        return made_by
    flags = plain.__code__.co_flags
    if flags & _COROUTINE:
        return "async function"
    if flags & inspect.CO_ASYNC_GENERATOR:
        return "async generator function"
    return "generator function" if flags & inspect.CO_GENERATOR else "function"


def plain_function(function: Any) -> FunctionType | None:
    """The Python function that a call of `function` enters first."""
    for _ in range(_DEEPEST):
        if type(function) is FunctionType:
            return function
        if issubclass(type(function), partial):
            function = function.func
        elif type(function) is MethodType:
            function = function.__func__
        else:
            return _plain_call(function)
    return None


def _plain_call(function: Any) -> FunctionType | None:
    call = getattr(class_of(function), "__call__", None)  # noqa: B004 - this needs the function itself, not only whether there is one
    return call if type(call) is FunctionType else None


def _contextlib_of(function: FunctionType) -> Literal["async context manager", "context manager"] | None:
    """The kind of manager that `contextlib` made this function for; None if it did not. It wraps a function of the same signature."""
    if function.__globals__.get("__name__") != "contextlib":
        return None
    maker = function.__code__.co_qualname.partition(".")[0]
    if maker == "asynccontextmanager":
        return "async context manager"
    return "context manager" if maker == "contextmanager" else None


def name_of(function: object) -> str:
    """The name in the source code, or the name of the class if the object has none."""
    try:
        inner: Any = function
        for _ in range(_DEEPEST):
            if not issubclass(class_of(inner), partial):
                break
            inner = inner.func
        name = getattr(inner, "__qualname__", None)
        return name.rpartition("<locals>.")[2] if type(name) is str else class_name(class_of(inner))
    except Exception:  # noqa: BLE001 - as above
        return class_name(type(function))


def fits_at_a_glance(function: object, count: int, *, task_status: bool) -> bool:
    """Whether it is a plain function that certainly takes `count` arguments; much faster than `inspect.signature`.

    Args:
        function: anything.
        count: how many arguments it gets by position.
        task_status: it also gets `task_status`, by name.
    """
    if type(function) is MethodType:
        function, count = function.__func__, count + 1
    if type(function) is not FunctionType or task_status or vars(function):
        return False
    code = function.__code__
    least = code.co_argcount - len(function.__defaults__ or ())
    return least <= count <= code.co_argcount and not code.co_kwonlyargcount


def misfit(
    function: Any, given: Iterable[str], *, task_status: bool = False, some: bool = False
) -> str | None:
    """Why it cannot be called with these arguments; None if it can, or if that is not known.

    Args:
        function: the function that is to be called.
        given: a word for each argument that it gets by position.
        task_status: it also gets `task_status`, by name.
        some: more positional arguments may follow.
    """
    given = list(given)
    if fits_at_a_glance(function, len(given), task_status=task_status):
        return None
    try:
        signature = inspect.signature(beneath(function), follow_wrapped=False)
    except Exception as problem:  # noqa: BLE001 - built-in ones often have none, and a user's object may raise
        if (
            type(problem) is ValueError
            and issubclass(type(function), partial)
            and "incorrect" in str(problem)
        ):
            return f"is a partial whose arguments do not fit {name_of(function)}"
        return None
    named = {"task_status": None} if task_status else {}
    try:
        why = _unbound(signature, given, named, some=some)
    except Exception:  # noqa: BLE001 - as above
        return None
    if why is None:
        return None
    shown = [*given, *(["task_status=…"] if task_status else [])]
    name = name_of(function)
    called = f"is called as {name}({', '.join(shown)}), but it is {name}({', '.join(_parameters(signature))})"
    return f"{called}: {why}{_hint(function, signature, why)}"


def _unbound(
    signature: inspect.Signature, given: Iterable[str], named: dict[str, None], *, some: bool
) -> str | None:
    """Why these arguments do not fit. `bind_partial` accepts a missing keyword-only parameter, so that is checked here too."""
    try:
        bound = (signature.bind_partial if some else signature.bind)(*given, **named)
    except TypeError as problem:
        return str(problem)
    missing = (
        parameter.name
        for parameter in signature.parameters.values()
        if _only_by_name(parameter) and parameter.name not in bound.arguments
    )
    return next((f"missing a required argument: {name!r}" for name in missing), None)


def beneath(function: Any) -> Any:
    """The function whose signature counts: the wrapper that `contextlib` makes passes all arguments on to its function."""
    if issubclass(type(function), partial):
        inner = beneath(function.func)
        return partial(inner, *function.args, **function.keywords) if inner is not function.func else function
    if type(function) is FunctionType and _contextlib_of(function) is not None:
        return function.__wrapped__  # type: ignore[attr-defined]  # contextlib sets it
    return function


def _only_by_name(parameter: inspect.Parameter) -> bool:
    return parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is inspect.Parameter.empty


def _parameters(signature: inspect.Signature) -> Iterable[str]:
    """The parameters by name; a default is a user's object, so it is not printed."""
    stars: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    bare = False
    for parameter in signature.parameters.values():
        bare = bare or parameter.kind is inspect.Parameter.VAR_POSITIONAL
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not bare:
            bare = True
            yield "*"
        default = "" if parameter.default is inspect.Parameter.empty else "=…"
        yield f"{stars.get(parameter.kind, '')}{parameter.name}{default}"


def _hint(function: object, signature: inspect.Signature, problem: str) -> str:
    first = next(iter(signature.parameters), "")
    if first in ("self", "cls") and type(function) is FunctionType and "missing" in problem:
        return "; it is a method: give that of an instance"
    return ""


def gives_nothing(function: object) -> bool:
    """Whether a plain `def` can only return a constant such as None, or runs for ever: no caller could await its result.

    False for a function that only raises, for a lambda, and for any other callable.
    """
    try:
        plain = plain_function(function)
        if plain is None or plain.__code__.co_flags & _RUNS_LATER or plain.__name__ == "<lambda>":
            return False
        return _ends_in_constants(plain)
    except Exception:  # noqa: BLE001 - as above
        return False


def _ends_in_constants(function: FunctionType) -> bool:
    before, ends, loops = "", False, False
    for step in dis.get_instructions(function):
        loops = loops or "BACKWARD" in step.opname
        if step.opname == "RETURN_VALUE":
            if step.is_jump_target or before not in ("LOAD_CONST", "LOAD_SMALL_INT"):
                return False
            ends = True
        ends = ends or step.opname == "RETURN_CONST"
        if step.opname != "NOP":
            before = step.opname
    return ends or loops


# --- the words of refusals


def wrong_body(body: object) -> str | None:
    """Why `body` is no async function; None if it may be one."""
    if not callable(body):
        return _not_callable(body, "an async function")
    kind = kind_of(body)
    if kind == "async generator function":
        return "must be an async function, and is an async generator function: a body has no yield"
    if kind in ("generator function", "context manager", "async context manager"):
        also = "; give it as resource=…" if kind == "async context manager" else ""
        return f"must be an async function, and is a {kind}{also}".replace("a async", "an async")
    if kind == "class" and _is_ordinary(body) and not _has(body, "__await__"):
        return f"must be an async function, got the class {name_of(body)}"
    if kind == "function" and gives_nothing(body):
        return f"must be an async function, and {name_of(body)} is not an async function: write async def"
    return None


def wrong_resource(resource: object) -> str | None:
    """Why `resource` makes no async context manager; None if it may make one."""
    if not callable(resource):
        return _not_callable(resource, "a function")
    kind = kind_of(resource)
    wanted = "must make an async context manager"
    wrong: str | None = None
    if kind == "async generator function":
        wrong = f"{wanted}: decorate {name_of(resource)} with @asynccontextmanager"
    elif kind == "async function":
        wrong = f"{wanted}, and {name_of(resource)} is an async function: give it a yield, and decorate it with @asynccontextmanager"
    elif kind in ("generator function", "context manager"):
        wrong = f"{wanted}, and {name_of(resource)} is a sync one: write async def, and decorate it with @asynccontextmanager"
    elif kind == "class" and _is_ordinary(resource) and not _has(resource, "__aenter__"):
        wrong = f"{wanted}, and the class {name_of(resource)} has no __aenter__"
    elif kind == "function" and gives_nothing(resource):
        wrong = f"{wanted}, and {name_of(resource)} returns nothing"
    elif kind != "class" and _has(type(resource), "__aenter__") and misfit(resource, ()) is not None:
        wrong = "must be a function that makes an async context manager, and is one already: give the function without calling it"
    if wrong is not None:
        return wrong
    why = misfit(resource, ())
    return None if why is None else f"{why}; bind arguments with functools.partial"


def wrong_function(function: object, what: str, given: Iterable[str] | None) -> str | None:
    """Why `function` cannot be a plain function with these arguments; `given` is None if they are not known."""
    if not callable(function):
        return _not_callable(function, "a function")
    kind = kind_of(function)
    if kind not in ("function", "class", "unknown"):
        article = "an" if kind.startswith("async") else "a"
        return f"must be a plain function, and {name_of(function)} is {article} {kind}: {what}"
    return None if given is None else misfit(function, given)


def _has(cls: Any, name: str) -> bool:
    return any(name in vars(base) for base in type.__dict__["__mro__"].__get__(cls))


def _is_ordinary(cls: Any) -> bool:
    """Whether a call of this class makes an instance of it."""
    return type(cls) is type and not any("__new__" in vars(base) for base in cls.__mro__[:-1])


def _not_callable(value: Any, wanted: str) -> str:
    if inspect.iscoroutine(value):
        value.close()  # otherwise Python warns that it was never awaited
        return f"must be {wanted}, and {value.__qualname__}(…) was called already: give the function itself"
    if _has(type(value), "__await__"):
        return f"must be {wanted}, and was called already: give the function itself, got {brief(value)}"
    if _has(type(value), "__aenter__"):
        return (
            f"must be {wanted}, and is one already: give the function without calling it, got {brief(value)}"
        )
    return f"must be {wanted}, got {brief(value)}"
