"""What a request has got so far. It belongs to the request's message and outlives every context (D6)."""

from __future__ import annotations

import random
from typing import TypeVar

from attrs import define, evolve, field

from supervise import Message, StreamMessage

from .errors import BadRequest, ContextLost, PoisonRequest, ProtocolError, Timeout
from .types import Completion, ExecuteBatch, TokenChunk, TokenUsage

_Error = TypeVar("_Error", bound=Exception)


@define
class Record:
    """It travels with its message, over incarnations (D6).

    `most`: tokens that it may get. `incarnation`: the last one that made something of it. `replayed`: accepted tokens that
    were fed to later ones.
    """

    batch: ExecuteBatch
    most: int = field(init=False)
    accepted: list[int] = field(factory=list[int])
    texts: list[str] = field(factory=list[str])
    replayed: int = 0
    incarnation: int = 0
    suspect: bool = False

    def __attrs_post_init__(self) -> None:
        self.most = self.batch.sampling.max_tokens

    @property
    def name(self) -> str:
        """For errors."""
        return f"request {self.batch.request_id!r}"

    @property
    def chunks(self) -> int:
        """How many have been accepted."""
        return len(self.texts)

    def accept(self, chunks: list[TokenChunk], incarnation: int) -> ProtocolError | None:
        """Add chunks, of this incarnation. One that is not the next is taken out, with all behind it, and comes as an error.

        Every chunk of every stream is looked at here.
        """
        accepted, texts, most = self.accepted, self.texts, self.most
        had = at = len(accepted)
        known = len(texts)
        wrong = None
        for chunk in chunks:
            ids = chunk.token_ids
            end = at + len(ids)
            if (
                chunk.index != at
                or chunk.incarnation != incarnation
                or end > most
                or not (ids or chunk.finish_reason)
            ):
                wrong = self._unexpected(chunk, incarnation)
                del chunks[len(texts) - known :]
                break
            accepted += ids
            texts.append(chunk.text)
            at = end
        if chunks and incarnation != self.incarnation:
            self.incarnation = incarnation
            self.replayed += had
        return wrong

    def _unexpected(self, chunk: TokenChunk, incarnation: int) -> ProtocolError:
        error = ProtocolError(
            f"{self.name}: token {len(self.accepted)} of at most {self.most} is next, of incarnation {incarnation}; "
            f"got {len(chunk.token_ids)} tokens from {chunk.index}, of incarnation {chunk.incarnation}"
        )
        error.request_ids = (self.batch.request_id,)
        return error

    def usage(self, told: TokenUsage | None) -> TokenUsage:
        """Of the whole request; the runner knows of its own part only."""
        return evolve(told or TokenUsage(), output=len(self.accepted), replayed=self.replayed)

    def is_late(self, now: float) -> bool:
        """Whether its deadline has passed."""
        return self.batch.deadline is not None and self.batch.deadline <= now

    def late(self, path: str) -> Timeout:
        """It ends with its deadline; in the words of the mailbox, which knows no chunks."""
        return Timeout(
            f"{path!r} did not answer before the deadline: {self.name}, after {self.chunks} chunks"
        )

    def completion(self, last: TokenChunk) -> Completion:
        """All of it."""
        assert last.finish_reason is not None
        assert last.usage is not None
        return Completion(
            request_id=self.batch.request_id,
            text="".join(self.texts),
            token_ids=tuple(self.accepted),
            finish_reason=last.finish_reason,
            usage=last.usage,
        )

    def lost(self, cause: BaseException | None) -> ContextLost:
        """It ends with its context."""
        text = f"{self.name} was lost with incarnation {self.incarnation} of its context, after {self.chunks} chunks"
        return caused(ContextLost(text, incarnation=self.incarnation, delivered=self.chunks), cause)

    def poisonous(self, cause: BaseException | None) -> PoisonRequest:
        """It ends, because its context did, twice."""
        text = f"{self.name} was in a context that died, and then the only one on trial in the next, which died too"
        return caused(PoisonRequest(text), cause)


def record_of(message: Message) -> Record:
    """Of a message that has been admitted."""
    record: Record = message.memo
    return record


def id_of(message: Message) -> str:
    """The id of a request that has been admitted."""
    return record_of(message).batch.request_id


def admitted(message: Message) -> Record:
    """The record of a new request; its seed is settled now, once (D6).

    The mailbox keeps its message over incarnations; what becomes of a begun stream is said here. Its buffer takes all
    that the request may get: whoever reads slowly holds up nobody, and never a place in the runner.

    Raises:
        BadRequest: it is none.
    """
    batch = message.value
    if not isinstance(batch, ExecuteBatch):
        raise BadRequest(f"a request must be an ExecuteBatch, got {batch!r}")
    if batch.sampling.seed is None:
        batch = batch.with_seed(random.getrandbits(63))
    if message.on_loss == "fail":
        batch = evolve(batch, on_loss="fail")
    message.on_loss = "requeue"
    if isinstance(message, StreamMessage):
        message.size = max(message.size, batch.sampling.max_tokens + 1)
    return Record(batch)


def caused(exc: _Error, cause: BaseException | None) -> _Error:
    """With its cause."""
    exc.__cause__ = cause
    return exc
