"""A real tree and its operating app on a loopback port, in a thread of their own, for a test with a browser in the main thread."""

import threading
from contextlib import contextmanager

import trio

from supervise import open_tree
from supervise.operate.history import History
from supervise.operate.observers import Observers
from supervise.operate.server import serve
from supervise.operate.sockets import listening_on


class Served:
    """Runs the tree during its `with` block; the server can leave and come back meanwhile.

    Args:
        spec: of the tree.
        token: that the app asks for.
        port: None is a free one.
        kept: how many events the app keeps.
    """

    def __init__(self, spec, *, token=None, port=0, kept=10_000):
        self._spec, self._token, self.port = spec, token, port
        self._history = History(kept)
        self._is_served = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def do(self, function, *args):
        """Call an async function in the thread of the tree."""
        return trio.from_thread.run(function, *args, trio_token=self._trio)

    def fail(self, path, exc):
        """Have a leaf fail as if its body had raised this."""
        trio.from_thread.run_sync(self.tree[path].inject, exc, trio_token=self._trio)

    @contextmanager
    def away(self):
        """The server is away during this block; the tree runs on."""
        self.do(self._hang_up)
        yield
        self._is_served.clear()
        self.do(self._serve_again)
        assert self._is_served.wait(60)

    def __enter__(self):
        self._thread.start()
        assert self._is_served.wait(60)
        return self

    def __exit__(self, *_):
        trio.from_thread.run_sync(self._end.set, trio_token=self._trio)
        self._thread.join(60)
        assert not self._thread.is_alive()

    async def _run(self):
        self._trio, self._end = trio.lowlevel.current_trio_token(), trio.Event()
        async with (
            trio.open_nursery() as self._nursery,
            open_tree(self._spec, sinks=[self._history]) as self.tree,
        ):
            await self._serve_again()
            await self._end.wait()
            await self._hang_up()

    async def _serve_again(self):
        self._gone = trio.Event()
        self._nursery.start_soon(self._serve)

    async def _serve(self):
        with listening_on(self.port) as listener, trio.CancelScope() as self._scope:
            self.port = listener.getsockname()[1]
            async with trio.open_nursery() as nursery:
                await nursery.start(self._serve_with, listener)
                self._is_served.set()
        self._gone.set()

    async def _serve_with(self, listener, *, task_status):
        self._history.closed = False
        await serve(
            self.tree,
            Observers(self._history, None),
            listener,
            token=self._token,
            trusted=False,
            task_status=task_status,
        )

    async def _hang_up(self):
        self._scope.cancel()
        await self._gone.wait()
