"""`current_child()`, for a child's own code. Nothing in it can change the child."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .leaf import Leaf, current
from .mailbox import Inbox

if TYPE_CHECKING:
    from .tree import Tree


class CurrentChild:
    """The child that the running code belongs to.

    One object may serve several incarnations that follow one another in one task; `incarnation` is the number of the current
    one.
    """

    __slots__ = ("_leaf",)

    def __init__(self, leaf: Leaf) -> None:
        self._leaf = leaf

    def __repr__(self) -> str:
        return f"<child {self.path!r} incarnation={self.incarnation}>"

    @property
    def path(self) -> str:
        """The path of its node, such as `app/store/jobs`."""
        return self._leaf.path

    @property
    def incarnation(self) -> int:
        """The number of its current incarnation, from 1; a Restart makes a new one, a Resume does not (R8, R9)."""
        return self._leaf.incarnation

    @property
    def ready(self) -> bool:
        """Whether it is ready: its body runs or, if it takes `task_status`, has called `started` (R17)."""
        return self._leaf.ready

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop, or cancelled (R20)."""
        return self._leaf.stopping

    @property
    def inbox(self) -> Inbox:
        """Its mailbox.

        Raises:
            RuntimeError: its spec declares no mailbox, or its body has not been called yet: a resource has no inbox.
        """
        return self._leaf.inbox

    @property
    def last_failure(self) -> BaseException | None:
        """The last failure of its node, usually one of an earlier incarnation; None before the first failure."""
        return self._leaf.last_failure

    @property
    def tree(self) -> Tree:
        """The tree that it belongs to, which has the addresses of the other nodes."""
        tree: Tree = self._leaf.tree
        return tree

    async def stop_requested(self) -> None:
        """Wait until this child is asked to stop; its `drain` seconds begin then (R20)."""
        await self._leaf.stop_requested()


def current_child() -> CurrentChild:
    """The child whose code is running: its path, incarnation, inbox, stop request and last failure.

    Raises:
        RuntimeError: outside a child.
    """
    leaf = current.get(None)
    if leaf is None:
        raise RuntimeError(
            "current_child() is for the code of a child, and this code runs outside of every child"
        )
    if leaf.facade is None:
        leaf.facade = CurrentChild(leaf)
    child: CurrentChild = leaf.facade
    return child


async def stop_requested() -> None:
    """Return when the current child is asked to stop (R20); it can be passed on, for instance as a `shutdown_trigger`.

    Raises:
        RuntimeError: outside a child.
    """
    await current_child().stop_requested()
