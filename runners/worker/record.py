"""What a request has got so far. It belongs to the request's message and outlives every context (D6)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

from attrs import define, evolve, field, validate

from supervise import Message, StreamMessage

from ..brief import brief, is_a, quoted
from ..errors import BadRequest, ContextLost, PoisonRequest, ProtocolError, RunnerError, Timeout
from ..plain import size_of
from ..protect import protected
from ..types import Completion, ExecuteBatch, Price, RunnerSpec, TokenChunk, TokenUsage, positions_without_ids
from .breaker import Ticket
from .rates import Begun

_Error = TypeVar("_Error", bound=Exception)


MAX_CHARACTERS = 2**26
"""The most characters and bytes that one request may get: a runner without an end must not fill the parent's memory."""


@protected
@define(eq=False)
class Loss:
    """The death of a context, or of several at about the same time (D6).

    `streams`: those that were in the contexts, and have neither made a step nor ended since. `is_shared`: whether there were
    several contexts, so that no request can be the cause of all deaths.
    """

    streams: set[Record] = field(factory=set["Record"])
    is_shared: bool = False

    def add(self, record: Record) -> None:
        """A stream was in the context, and is to continue."""
        record.settle()
        record.loss = self
        self.streams.add(record)


@protected
@define(eq=False)
class Record:
    """It travels with its message, over incarnations (D6).

    `most`: tokens that it may get. `incarnation`: the last one that made something of it. `runner`: the spec of the runner that
    made its first chunk, and `opened_by` that of the one in which it is open. `moved`: whether that has made nothing of it yet.
    `replayed`: accepted tokens that were fed to later sessions. `failures`: errors after which it was tried again, and
    `begins_again`: when it may be. `leave`: what its caller's leaving means to the context in which it is open, if it is in one.
    `loss`: the death of a context in which it was, if it has made no step since; see `suspect`.
    `begun`: what it counts for the rate limits, and `ticket` what for the breaker; None if there are none.
    `sent_at`: when its caller sent it, and `last_at` when it got its last chunks, by Trio's clock; only a worker that is
    measured notes the latter.
    """

    batch: ExecuteBatch
    most: int = field(init=False)
    accepted: list[int] = field(factory=list[int])
    at: int = 0
    data: list[Any] = field(factory=list[Any])
    texts: list[str] = field(factory=list[str])
    characters: int = 0
    leave: Callable[[Record], object] | None = None
    replayed: int = 0
    incarnation: int = 0
    runner: RunnerSpec | None = None
    opened_by: RunnerSpec | None = None
    moved: bool = False
    failures: int = 0
    begins_again: float = 0.0
    loss: Loss | None = None
    sent_at: float | None = None
    last_at: float | None = None
    begun: Begun | None = None
    ticket: Ticket | None = None

    def __attrs_post_init__(self) -> None:
        self.most = self.batch.sampling.max_tokens

    @property
    def name(self) -> str:
        """For errors."""
        return f"request {brief(self.batch.request_id)}"

    @property
    def chunks(self) -> int:
        """How many have been accepted."""
        return len(self.texts)

    def accept(self, chunks: list[TokenChunk], incarnation: int) -> ProtocolError | None:
        """Add chunks, of this incarnation. One that is not the next is taken out, with all behind it, and comes as an error.

        Every chunk of every stream is looked at here.
        """
        accepted, texts, most = self.accepted, self.texts, self.most
        had = at = self.at
        known, characters = len(texts), self.characters
        wrong = None
        for chunk in chunks:
            ids = chunk.token_ids
            more = len(ids) or positions_without_ids(chunk)
            end = at + more
            if (
                chunk.index != at
                or chunk.incarnation != incarnation
                or end > most
                or not (more or chunk.finish_reason)
                or (more and len(accepted) != (at if ids else 0))  # all chunks have ids, or none
            ):
                wrong = self._unexpected(chunk, at, incarnation)
                del chunks[len(texts) - known :]
                break
            accepted += ids
            texts.append(chunk.text)
            characters += len(chunk.text)
            if chunk.data is not None:
                self.data.append(chunk.data)
                characters += size_of(chunk.data)
            at = end
        self.characters, self.at = characters, at
        if chunks and self.moved:
            self.moved = False
            if self.runner is None:  # a spec may be false
                self.runner = self.opened_by
            self.incarnation = incarnation
            self.replayed += had
        return wrong

    def _unexpected(self, chunk: TokenChunk, at: int, incarnation: int) -> ProtocolError:
        counts = "tokens" if self.accepted or not at else "chunks without tokens"
        error = ProtocolError(
            f"{self.name}: position {at} of at most {self.most} {counts} is next, of incarnation {incarnation}; "
            f"got {len(chunk.token_ids)} tokens from {brief(chunk.index)}, of incarnation {chunk.incarnation}"
        )
        error.request_ids = (self.batch.request_id,)
        return error

    def too_long(self) -> RunnerError:
        """It ends, because its text is longer than any may be."""
        return RunnerError(
            f"{self.name}: its text may have {MAX_CHARACTERS} characters, got {self.characters}"
        )

    @property
    def suspect(self) -> bool:
        """Whether it may be the cause of the death of its context (D6)."""
        return self.loss is not None and not self.loss.is_shared

    def settle(self) -> None:
        """It has made a step since its context died, or has ended."""
        if self.loss is not None:
            self.loss.streams.discard(self)
            self.loss = None

    def withdraw(self) -> None:
        """Its stream in a session is over; unless it succeeded or failed there, that counts for nothing to the breaker."""
        if self.ticket is not None:
            self.ticket.withdraw()
            self.ticket = None

    def left(self) -> None:
        """Its caller is gone."""
        self.settle()
        if self.leave is not None:
            self.leave(self)

    def usage(self, reported: TokenUsage | None, price: Price) -> TokenUsage:
        """Of the whole request; the runner knows of its own part only."""
        usage = reported or TokenUsage()
        output = len(self.accepted) if self.accepted else usage.output
        whole = evolve(usage, output=output, replayed=self.replayed)
        return evolve(whole, cost=price.of(whole))

    def continues_in(self, runner: RunnerSpec) -> bool:
        """Whether it may be open in this runner: in any if it has not begun, else in that of its first chunk, or an equal one (D12)."""
        return self.runner is None or are_equal(self.runner, runner)

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
            data=tuple(self.data),
        )

    def lost(self, cause: BaseException | None) -> ContextLost:
        """It ends with its context."""
        text = f"{self.name} was lost with incarnation {self.incarnation} of its context, after {self.chunks} chunks"
        return caused(ContextLost(text, incarnation=self.incarnation, delivered=self.chunks), cause)

    def replaced(self) -> ContextLost:
        """It cannot continue, because the worker has another runner by now."""
        text = f"{self.name} was begun by a runner that has been replaced, after {self.chunks} chunks"
        return ContextLost(text, incarnation=self.incarnation, delivered=self.chunks)

    def poisonous(self, cause: BaseException | None) -> PoisonRequest:
        """It ends, because its context did, twice."""
        text = f"{self.name} was in a context that died, and then the only one on trial in the next, which died too"
        return caused(PoisonRequest(text), cause)


def are_equal(one: RunnerSpec | None, other: RunnerSpec) -> bool:
    """Whether two specs make the same runner. One that cannot be compared, because a field has an odd `==`, equals itself alone."""
    try:
        return one is other or bool(one == other)
    except Exception:  # noqa: BLE001 - A field of a spec may have any `==`, such as that of a tensor, which may raise anything.
        return False


def record_of(message: Message) -> Record:
    """Of a message that has been admitted."""
    record: Record = message.memo
    return record


def id_of(message: Message) -> str:
    """The id of a request that has been admitted."""
    return record_of(message).batch.request_id


def admitted(message: Message) -> Record:
    """The record of a new request; its seed is settled now, once (D6).

    The mailbox keeps its message over incarnations; what becomes of a begun stream is decided here. Its buffer takes
    all that the request may get: a slow reader delays no other stream, and never keeps a place in the runner.

    Raises:
        BadRequest: it is none.
    """
    record = Record(_settled(message.value, may_move=message.on_loss != "fail"), sent_at=message.sent_at)
    message.on_loss = "requeue"
    if isinstance(message, StreamMessage):
        message.size = max(message.size, record.most + 1)
    message.on_left(record.left)  # once: it outlives contexts, and would hold on to each that it names
    return record


def estimated_tokens(value: object) -> int:
    """About how many tokens a request may take; 0 for one that is refused when its turn comes."""
    try:
        return _settled(value, may_move=True).estimated_tokens
    except BadRequest:
        return 0


def _settled(batch: object, *, may_move: bool) -> ExecuteBatch:
    """The request as it is served: a copy, made by the constructors, so that whatever becomes of the caller's is not ours.

    A frozen value can be changed all the same, before it is sent and afterwards. Here every field is converted and validated
    again, and nothing of what the caller still holds is looked at from now on.

    Raises:
        BadRequest: it is none. One of a subclass may have more in it, which no host passes on.
    """
    if type(batch) is not ExecuteBatch:
        itself = " itself" if is_a(batch, ExecuteBatch) else ""
        raise BadRequest(f"a request must be an ExecuteBatch{itself}, got {brief(batch)}")
    try:
        validate(batch)  # before the constructors: one that is not ours must not run
        validate(batch.sampling)
        seed = batch.sampling.seed
        sampling = evolve(batch.sampling, seed=random.getrandbits(63) if seed is None else seed)
        return evolve(batch, sampling=sampling, on_loss=batch.on_loss if may_move else "fail")
    except Exception as error:
        raise BadRequest(f"a request's fields must be as ExecuteBatch has them: {quoted(error)}") from error


def caused(exc: _Error, cause: BaseException | None) -> _Error:
    """With its cause."""
    exc.__cause__ = cause
    return exc
