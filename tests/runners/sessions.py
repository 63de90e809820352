"""Sessions of every host, and what tests ask of them."""

import threading
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from runners.errors import (
    DeviceError,
)
from runners.hosts.inline import InlineHost
from runners.hosts.process import wire
from runners.hosts.process.host import ProcessHost
from runners.hosts.thread import ThreadHost
from runners.types import ExecuteBatch, Sampling, TokenChunk

INLINE = InlineHost()
THREAD = ThreadHost(load_timeout=20, chunk_timeout=20)
PROCESS = ProcessHost(load_timeout=20, first_chunk_timeout=20, next_chunk_timeout=20)
HOSTS = {"inline": INLINE, "thread": THREAD, "process": PROCESS}
every_host = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
PATIENCE = 60.0
BATCH = ExecuteBatch("r", "hello", sampling=Sampling(seed=1))
FOREVER = 10_000


@asynccontextmanager
async def opened(runner, host, **start):
    """A session; afterwards no thread of ours is left."""
    with trio.fail_after(PATIENCE):
        async with host.open(runner, **start) as session:
            yield session
        assert not runners_threads()


def runners_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("runner ")]


def request(name, **options):
    return ExecuteBatch(name, f"go on, {name}", sampling=Sampling(seed=7, max_tokens=1000), **options)


async def whole(session, batch=BATCH, accepted=()):
    """All of one stream."""
    session.begin(batch, accepted)
    return await rest(session, batch.request_id)


async def rest(session, request_id="r"):
    items = []
    while not items or (isinstance(items[-1], TokenChunk) and items[-1].finish_reason is None):
        items += [item for item in await session.receive() if item.request_id == request_id]
    return items


def ids(items):
    return tuple(token for item in items for token in item.token_ids)


async def until_failure(session, kind=DeviceError):
    """Receive until it raises; what came before."""
    items = []
    try:
        while True:
            items += await session.receive()
    except kind as error:
        return items, error


def raw(*frames):
    """Frames as a runner may print them itself."""
    return b"".join(map(wire.encode, frames)).decode("latin-1")
