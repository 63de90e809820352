"""Protection from `KeyboardInterrupt` (R4): a Ctrl-C waits until protected code has finished.

Trio looks up the code of the running frames when the signal comes, so protection costs nothing until then. A function that a
protected function calls is protected too, those of contextlib included. A runner in the main thread is called through
`unprotected`, so that a slow one can be interrupted. (`supervise` protects its classes in the same way, but its helper is private.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

from trio.lowlevel import disable_ki_protection, enable_ki_protection

Class = TypeVar("Class", bound=type[Any])
Value = TypeVar("Value")


def protected(cls: Class) -> Class:
    """A decorator of a class. While one of its methods runs, a Ctrl-C waits for the next checkpoint of the main task."""
    for member in vars(cls).values():
        function = member.fget if isinstance(member, property) else member
        if inspect.isfunction(function):
            enable_ki_protection(function)
    return cls


@disable_ki_protection
def unprotected(function: Callable[..., Value], *arguments: Any) -> Value:
    """Call a function of a runner: a `KeyboardInterrupt` may be raised in it."""
    return function(*arguments)


@disable_ki_protection
async def unprotected_result(function: Callable[..., Any], *arguments: Any) -> Any:
    """As `unprotected`; if the result is awaitable, await it and return that result."""
    result = function(*arguments)
    return await result if inspect.isawaitable(result) else result


@protected
class Entered(AbstractAsyncContextManager[Value], Generic[Value]):
    """An async context manager that a Ctrl-C cannot interrupt while it is entered or left.

    For a protected generator `asynccontextmanager` is not enough: an interrupt in a frame of contextlib, between the
    generator and its caller, would leave it open.
    """

    def __init__(self, manager: AbstractAsyncContextManager[Value]) -> None:
        self._manager = manager

    async def __aenter__(self) -> Value:
        return await self._manager.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._manager.__aexit__(kind, exc, trace)
