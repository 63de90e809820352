"""Protection from KeyboardInterrupt for all that a class does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from trio.lowlevel import enable_ki_protection

T = TypeVar("T", bound=type[Any])


def protected(cls: T) -> T:
    """While a method of this class runs, or a property of it, a Ctrl-C waits for the next checkpoint of the main task.

    Trio looks a frame's code up when the signal comes: that costs nothing until then. What these methods call is protected
    too, the user's callbacks included.
    """
    for member in vars(cls).values():
        for function in _functions(member):
            enable_ki_protection(function)
    return cls


def _functions(member: object) -> list[Callable[..., Any]]:
    """Those of a class's own that are behind a member, without what decorators have put around them."""
    if isinstance(member, property):
        return [function for function in (member.fget, member.fset) if function is not None]
    return [inspect.unwrap(member)] if inspect.isfunction(member) else []
