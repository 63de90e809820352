"""A running tree is brought in line with another declaration, one supervisor after the other (R38).

The machine of a supervisor takes the new declaration in one step, which stops and starts nothing. What has to be stopped and started
for it are the requests that a caller could make too, in the order of the tree. So a failure at any moment meets supervisors that have
either declaration whole, and each start takes the newest one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from .. import events
from .._core import effect
from .._core.changes import Change, changed
from .._core.machine import Machine
from .._core.node import Node
from .._core.spec import SHARED, Child, Pool, Spec, Supervisor, walk
from ..errors import Refused, StartFailed
from .address import Answer
from .driver import Driver
from .leaf import Leaf
from .ref import Declared


class Adoption:
    """One declaration that a tree takes, on behalf of a caller of `Tree.adopt`."""

    def __init__(
        self,
        driver: Driver,
        declared: Declared,
        spec: Supervisor | Pool,
        changes: Sequence[Change],
        reason: str,
    ) -> None:
        self._failed: list[StartFailed] = []
        self._driver = driver
        self._declared = declared
        self._spec = spec
        self._changes = changes
        self._restarts = {change.path for change in changes if change.restarts}
        # With which specs the leaves ran when the declarations were compared.
        self._compared = {path: leaf.spec for path, leaf in driver.leaves.items()}
        self._reason = reason

    async def carry_out(self) -> list[StartFailed]:
        """Carry it out. Returns the errors of the starts that failed.

        If the tree begins to stop meanwhile, no `Adopted` is reported, since it could come after the last event of the root.

        Raises:
            Refused: the tree is stopping, or stops before its root has taken the declaration.
        """
        if self._is_over:
            raise self._driver.cannot_answer()
        self._report(events.Adopting, changes=tuple(map(str, self._changes)), reason=self._reason)
        await self._adopt_all()
        if not self._is_over:
            self._report(events.Adopted, failed=tuple(each.path for each in self._failed))
        return self._failed

    @property
    def _is_over(self) -> bool:
        """Whether the tree has begun to end, and starts no more."""
        return self._driver.is_ending or self._driver.finished.is_set()

    async def _adopt_all(self) -> None:
        for path, spec in walk(self._spec):
            if not self._is_taken(path.rpartition("/")[0]):
                continue
            machine = self._driver.forest.machines.get(path)
            node = self._driver.forest.find(path)
            if node is not None and self._is_due(node):
                await self._start(path)
            elif machine is not None and not isinstance(spec, Child):
                await self._adopt(machine, spec)
        for leaf in list(self._driver.leaves.values()):
            if self._has_another_queue(leaf):
                await self._start(leaf.path)  # it was added at run time, or is a member of a pool
        for path, spec in walk(self._spec):
            self._adopt_mailbox(path, spec)
        self._declared.look_for_fronts_anew()

    def _adopt_mailbox(self, path: str, spec: Spec) -> None:
        address = self._driver.addresses.get(path)
        if address is not None:
            address.adopt(spec)
            if address.mailbox is not None and address.mailbox.shared:
                # The children that share it may be others than before the adoption.
                self._driver.close_or_open(address)

    def _is_taken(self, above: str) -> bool:
        """Whether the supervisor at this path has taken its declaration. One that is ending takes it with its next start.

        Those below it wait for that start too, since their declarations may fit only together with its own.
        """
        machine = self._driver.forest.machines.get(above)
        return not above or (machine is not None and machine.spec is self._declared.specs[above])

    async def _adopt(self, machine: Machine, spec: Supervisor | Pool) -> None:
        """Have one supervisor take its declaration, once the children that are not in it have left.

        If it restarts meanwhile they are there again. If it ends, its next incarnation takes the declaration by itself; that of the
        root does if it is asked before the restart is over.

        Raises:
            Refused: it is the root, and the tree is stopping.
        """
        forest = self._driver.forest
        while True:
            await self._take_out(machine, spec)
            try:
                await self._driver.ask(machine, effect.Request("adopt", Answer(), spec=spec))
            except Refused as refused:
                if refused.reason == "running":
                    continue
                if machine.parent is None:
                    # A restart whose start has failed has no next incarnation.
                    if forest.machines[machine.path] is machine and not forest.root_waits_for_its_end:
                        raise
                    machine = forest.machines[machine.path]
                    continue
            else:
                # A caller who has kept this address would wait, while the new children start, at a mailbox that is declared no more.
                self._adopt_mailbox(machine.path, spec)
            return

    async def _take_out(self, machine: Machine, spec: Supervisor | Pool) -> None:
        """Stop the children that this declaration leaves out, the last one first, and remove them from the tree."""
        for node in reversed(machine.left_out_by(spec)):
            stop = effect.Request("stop", Answer(), name=node.name, reason=self._reason)
            # It follows at once: a sibling that fails during the stop would have the group start the child again before it left,
            # and again whenever this is tried anew.
            remove = effect.Request("remove", Answer(), name=node.name, reason=self._reason)
            # Refused: it has left by itself, or its supervisor is ending, or its group has started it again.
            with suppress(Refused):
                self._driver.post(machine, stop)  # the answer to `remove` comes after its own
                await self._driver.ask(machine, remove)

    def _is_due(self, node: Node) -> bool:
        """Whether the node is to be started now: it is new, or its code is, and it was not stopped on purpose."""
        if node.is_new:
            return True
        leaf = self._driver.leaves.get(node.path)
        if leaf is None:
            return node.path in self._restarts and (node.why is not None or node.state == "restarting")
        if leaf.spec is node.spec:
            return False  # its group, or a failure, has already restarted it
        if leaf.spec is self._compared.get(node.path):
            return node.path in self._restarts
        # It was added after the declarations were compared, or was just being restarted then.
        return any(change.restarts for change in changed(node.path, leaf.spec, leaf.spec, node.spec))

    async def _start(self, path: str) -> None:
        above, _, name = path.rpartition("/")
        machine = self._driver.forest.machines.get(above)
        if machine is None:
            return  # its supervisor has ended: the next incarnation starts it, if there is one
        try:
            request = effect.Request("renew", Answer(), name=name, reason=self._reason)
            await self._driver.ask(machine, request)
        except StartFailed as failed:
            self._failed.append(failed)
        except Refused:
            pass  # its supervisor is ending, or the node has left the tree

    def _has_another_queue(self, leaf: Leaf) -> bool:
        """Whether the leaf takes messages from the mailbox of another supervisor than its declaration has it share (R37)."""
        if not (leaf.spec.mailbox is leaf._node.spec.mailbox is SHARED):
            return False
        inbox = leaf.open_inbox
        return inbox is not None and inbox.mailbox is not self._driver.mailbox_of(leaf)

    def _report(self, cls: Callable[..., events.Event], **details: Any) -> None:
        root = self._driver.forest.root
        self._driver.deliver(cls(self._driver.now(), root.path, root.incarnation, **details))
