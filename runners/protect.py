"""Protection from `KeyboardInterrupt` (R4): what runs here ends as a whole, and a Ctrl-C waits for it.

Trio looks a frame's code up when the signal comes: that costs nothing until then. What a protected function calls is protected
too, contextlib's frames included. A runner that lives in this thread is called through `freely`, so that one that takes its
time can be interrupted. (`supervise` protects its own classes likewise, but that is no part of its public face.)
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
    """While a method of this class runs, a Ctrl-C waits for the next checkpoint of the main task."""
    for member in vars(cls).values():
        function = member.fget if isinstance(member, property) else member
        if inspect.isfunction(function):
            enable_ki_protection(function)
    return cls


@disable_ki_protection
def freely(function: Callable[..., Value], *arguments: Any) -> Value:
    """Call somebody else's function: a `KeyboardInterrupt` may be raised in it."""
    return function(*arguments)


@disable_ki_protection
async def freely_settled(function: Callable[..., Any], *arguments: Any) -> Any:
    """Likewise, and await what it gives if that is to be awaited."""
    result = function(*arguments)
    return await result if inspect.isawaitable(result) else result


@protected
class Entered(AbstractAsyncContextManager[Value], Generic[Value]):
    """An async context manager that is entered and left as a whole.

    One that is made of a generator is not by itself, though the generator is protected: an interrupt between that and its
    caller, in contextlib, leaves it open.
    """

    def __init__(self, manager: AbstractAsyncContextManager[Value]) -> None:
        self._manager = manager

    async def __aenter__(self) -> Value:
        return await self._manager.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._manager.__aexit__(kind, exc, trace)
