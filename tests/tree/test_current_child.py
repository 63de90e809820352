"""What a child's own code may ask about itself."""

from __future__ import annotations

import pytest
import trio

from supervise import Child, CurrentChild, current_child, stop_requested

from .scene import Boom, app, grow, quiet


def test_a_child_knows_itself_and_can_change_nothing():
    """R9, R17, R20, R30: One object serves a row of incarnations; nothing else of the leaf can be reached by its attributes."""
    seen = []

    async def body(inbox, *, task_status):
        child = current_child()
        seen.append((child, child.path, child.incarnation, child.ready, child.stopping, child.inbox is inbox))
        task_status.started()
        assert child.ready
        if child.incarnation == 1:
            raise Boom
        seen.append(type(child.last_failure))
        await child.stop_requested()
        assert child.stopping

    async def scene(tree, _):
        await quiet()
        child = seen[0][0]
        assert child.tree is tree

    grow(app(Child("a", body, mailbox=1, drain=5)), scene)
    (first, *one), (second, *two), failure = seen
    assert first is second
    assert one == ["app/a", 1, False, False, True]
    assert two == ["app/a", 2, False, False, True]
    assert failure is Boom
    public = {name for name in dir(CurrentChild) if not name.startswith("_")}
    assert public == {
        "inbox",
        "incarnation",
        "last_failure",
        "path",
        "ready",
        "stop_requested",
        "stopping",
        "tree",
    }
    assert repr(first) == "<child 'app/a' incarnation=2>"


@pytest.mark.parametrize("ask", [current_child, lambda: trio.run(stop_requested)])
def test_outside_of_every_child_current_child_raises(ask):
    """The error says that the caller is in no child."""
    with pytest.raises(RuntimeError, match="is for the code of a child"):
        ask()
