"""Protection of the library's own lines: from KeyboardInterrupt, the end of Python's stack, and calls from other threads."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from operator import eq
from typing import Any, TypeVar

from trio.lowlevel import Task, current_root_task, enable_ki_protection, in_trio_run

T = TypeVar("T", bound=type[Any])

_SPARE = 200  # nested calls: several times the need of this library, Trio and ordinary sinks
_ROOM = 10  # nested calls: what it takes to wake another task, with a few to spare
_C_COUNTS = sys.version_info < (3, 12)


def _nested(depth: int) -> object:
    value: object = ()
    for _ in range(depth):
        value = (value,)
    return value


_PAIRS = {calls: (_nested(calls), _nested(calls)) for calls in (_ROOM, _SPARE, 2 * _SPARE)}


def protected(cls: T) -> T:
    """Protect a class: while a method or property of it runs, a Ctrl-C waits for the next checkpoint of the main task.

    Trio looks up the code of each frame when the signal comes, so a call costs nothing extra. Functions that these methods
    call are protected too, including the user's callbacks.
    """
    for member in vars(cls).values():
        for function in _functions(member):
            enable_ki_protection(function)
    return cls


def _functions(member: object) -> list[Callable[..., Any]]:
    """The functions behind a member of a class, unwrapped from their decorators."""
    if isinstance(member, property):
        return [function for function in (member.fget, member.fset) if function is not None]
    return [inspect.unwrap(member)] if inspect.isfunction(member) else []


def check_stack() -> None:
    """Refuse a call so near the end of Python's stack that a RecursionError might strike in the library's own code.

    A child that calls itself without end must fail with its own RecursionError. An error between two lines of the library
    would leave the tree half changed, and tasks that wait for the other half would wait for ever (R24).

    Raises:
        RecursionError: fewer than 200 calls are left.
    """
    if not _are_left(_SPARE):
        raise RecursionError(
            "maximum recursion depth is near: the tree cannot be asked for anything from here"
        )


def check_thread(root: Task | None) -> None:
    """Refuse a call from another thread than that of the Trio run with this root task.

    Trio starts and wakes tasks in its own thread only, so what the call changes would be left half done.

    Raises:
        RuntimeError: this is another thread, or another run.
    """
    if not in_trio_run() or current_root_task() is not root:
        raise RuntimeError(
            "this must be called in the thread of the tree: from another one, use trio.from_thread.run, or run_sync for a "
            "function that is not async"
        )


def has_room_for_others() -> bool:
    """Whether so much of the stack is left that code of others may be called here, and ask the tree for something."""
    return _are_left(2 * _SPARE)


def _are_left(calls: int) -> bool:
    """Whether so many calls are left of Python's stack.

    Since Python 3.12 only Python's own frames count towards the limit, and `sys._getframe` finds out whether there are too
    many. Up to 3.11 recursion in C counts too, and a debugger or a coverage tool adds to it: comparing two deep tuples is
    such a recursion, and fails if too little is left.
    """
    limit = sys.getrecursionlimit()
    try:
        if _C_COUNTS:
            one, other = _PAIRS[calls]
            _ = one == other
        sys._getframe(max(limit - calls, limit // 2))
    except ValueError:
        return True  # the stack is not so deep
    except RecursionError:
        pass
    return False


def _descend(calls: int) -> None:
    if calls:
        _descend(calls - 1)


check_room: Callable[[], object] = partial(eq, *_PAIRS[_ROOM]) if _C_COUNTS else partial(_descend, _ROOM)
"""Refuse to wait so near the end of Python's stack that a task which is woken for something could not pass it on.

It raises RecursionError if fewer than ten calls are left, and is cheaper than `check_stack`, since it is called for each wait: a wait
changes nothing that an error could leave half done.
"""
