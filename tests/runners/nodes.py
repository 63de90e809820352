"""Machines in virtual time: contexts that are lost together, each of which is noticed at a moment of its own."""

from contextlib import asynccontextmanager

import trio

from runners.errors import ContextDied
from runners.hosts.inline import InlineHost


class Node:
    """A machine. While it is `down` nothing comes from it, and nothing that is sent there arrives."""

    def __init__(self):
        self.sessions = set()
        self.is_up = trio.Event()
        self.is_up.set()
        self.down_at = None

    @property
    def down(self):
        return self.down_at is not None

    def fail(self):
        """All of its contexts die now."""
        self.down_at = trio.current_time()
        self.is_up = trio.Event()
        for session in self.sessions:
            session.dies()

    def repair(self):
        self.down_at = None
        self.is_up.set()


class Member:
    """A host on a node: its runner is in the task, and its death is noticed `lag` seconds late."""

    def __init__(self, node, lag=0.0):
        self.node = node
        self.lag = lag
        self.begun = []  # the requests that were begun here
        self.most_on_trial = 0  # streams from a dead context at once that had made no step yet

    @asynccontextmanager
    async def open(self, runner, *, incarnation=1, cause=None):
        await self.node.is_up.wait()
        async with InlineHost().open(runner, incarnation=incarnation, cause=cause) as inner:
            session = Session(inner, self)
            self.node.sessions.add(session)
            try:
                yield session
            finally:
                self.node.sessions.discard(session)


class Session:
    """A session there."""

    def __init__(self, inner, member):
        self._inner = inner
        self._member = member
        self._died_at = None
        self._taken = set()
        self._on_trial = set()
        self._scope = trio.CancelScope()

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def dies(self):
        self._died_at = trio.current_time()
        self._scope.cancel("its machine was lost")

    def begin(self, request, accepted=(), *, confirm=False):
        self._member.begun.append(request.request_id)
        if confirm:
            self._on_trial.add(request.request_id)
            self._member.most_on_trial = max(self._member.most_on_trial, len(self._on_trial))
        if self._died_at is None:
            self._inner.begin(request, accepted, confirm=confirm)
            self._taken.add(request.request_id)

    def has_taken(self, name):
        return name in self._taken

    def drop(self, name):
        self._taken.discard(name)
        self._on_trial.discard(name)
        self._inner.drop(name)

    async def receive(self):
        if self._died_at is None:
            with trio.CancelScope() as self._scope:
                made = await self._inner.receive()
                self._on_trial -= {item.request_id for item in made}
                return made
        await trio.sleep_until(self._died_at + self._member.lag)
        raise ContextDied("its machine was lost")
