"""Draws the state on the terminal, and takes its keys: the part that knows urwid."""

from __future__ import annotations

import signal
from collections.abc import Callable
from time import time
from typing import Any, Final, cast

import trio
import urwid
from attrs import evolve

from .cells import Line
from .feed import Client, Feed
from .rows import Status
from .screens import frame
from .state import opened, settled

PALETTE: Final = (
    ("title", "bold", ""),
    ("faint", "faint", ""),
    ("well", "dark green", ""),
    ("busy", "brown", ""),
    ("bad", "dark red", ""),
    ("note", "bold", ""),
    ("selected", "standout", ""),
)
"""Only the basic colours over the terminal's own, which it fits to a light or a dark background itself."""

_PATIENCE: Final = 10.0
"""Seconds for the first answer."""


class Picture(urwid.Widget):
    """The whole screen."""

    _sizing = frozenset([urwid.BOX])
    _selectable = True

    def __init__(self, draw: Callable[[tuple[int, int]], list[Line]], press: Callable[[str], None]) -> None:
        super().__init__()
        self._draw = draw
        self._press = press

    def render(self, size: Any, focus: bool = False) -> urwid.Canvas:  # noqa: ARG002 - Urwid calls it with these arguments.
        """The lines as a canvas; urwid writes only those to the terminal that have changed."""
        lines = self._draw(size)
        encoding = urwid.util.get_encoding()
        coded = [[(style, text.encode(encoding, "replace")) for style, text in line] for line in lines]
        return urwid.TextCanvas(
            [b"".join(text for _, text in line) for line in coded],
            [[(style or None, len(text)) for style, text in line] for line in coded],
            maxcol=size[0],
        )

    def keypress(self, size: Any, key: str) -> str | None:  # noqa: ARG002 - Urwid calls it with these arguments.
        """Take a key; none is left to urwid."""
        self._press(key)
        return None

    def changed(self) -> None:
        """Draw again at the next occasion."""
        self._invalidate()


class _Screen(urwid.display.raw.Screen):
    """The terminal; a serial line, or a container, may have one that does not know its size."""

    def get_cols_rows(self) -> tuple[int, int]:
        """Its size, of which urwid could not draw zeros."""
        columns, lines = super().get_cols_rows()
        return columns or 80, lines or 24


async def watch(
    client: Client, *, elsewhere: Callable[[str], Client | None] = lambda _: None, read_only: str = ""
) -> None:
    """Show a running tree until `q` or a signal ends it. The terminal is then as it was before.

    Args:
        client: asks the program of the tree; it is closed at the end.
        elsewhere: gives a client for the place to which the tree of this name has moved, if it has.
        read_only: why no act is possible; empty if the program decides that.

    Raises:
        OperateError, TooSlowError: there was no first answer. Later ones may fail: the last picture stays until the next comes.
    """
    feed: Feed | None = None
    try:
        with trio.fail_after(_PATIENCE):
            status = cast("Status", await client.status())
        feed = Feed(client, opened(status, time(), read_only=read_only, size=(80, 24)), elsewhere)
        await _show(feed)
    finally:
        with trio.CancelScope(shield=True):
            await (client if feed is None else feed.client).aclose()


async def _show(feed: Feed) -> None:
    def draw(size: tuple[int, int]) -> list[Line]:
        feed.state = settled(evolve(feed.state, size=size))
        return frame(feed.state, time())

    def press(key: str) -> None:
        if not feed.press(key):
            raise urwid.ExitMainLoop

    picture = Picture(draw, press)
    feed.changed = picture.changed
    loop = urwid.TrioEventLoop()
    screen = _Screen(bracketed_paste_mode=True, focus_reporting=False)
    main = urwid.MainLoop(picture, PALETTE, screen, event_loop=loop, handle_mouse=False)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_until_signal, nursery.cancel_scope)
            nursery.start_soon(feed.run)
            with main.start():
                await loop.run_async()
            nursery.cancel_scope.cancel()
    except* urwid.InputClosedError:  # the terminal was closed, so an error could not be read
        pass


async def _until_signal(scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
    """A signal ends the program as `q` does, so that urwid puts the terminal back."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
