"""A runner's open streams, turn by turn: the one loop body of `InlineHost`, `ThreadHost` and a context process. No Trio."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import ClassVar, Protocol, TypeAlias, cast

from attrs import define, evolve, validate

from runners.brief import brief, is_a, members, name_of, quoted, text_of
from runners.diagnosis.classify import by_tag, code_of, renewed, sound
from runners.errors import (
    ContextPoisoned,
    DeviceError,
    InferenceError,
    LoadFailed,
    OutOfMemory,
    RunnerError,
)
from runners.plain import is_encodable, plain_data
from runners.types import (
    Chunks,
    ContinuingRunner,
    ExecuteBatch,
    FinishReason,
    ModelRunner,
    Price,
    RateLimits,
    RunnerInfo,
    TokenChunk,
    TokenUsage,
    positions_without_ids,
)

Failed: TypeAlias = tuple[int, InferenceError]
"""The stream of this number has ended by this error."""

Item: TypeAlias = tuple[int, TokenChunk] | Failed
"""What a turn made for the stream of this number: its next chunk, or the error that ended it."""

Judge: TypeAlias = Callable[[Exception], InferenceError]
"""What a runner's exception is, among ours."""

MAX_TOKENS = 65_536
"""That one chunk may have: to read more of them at once would hold up the parent's loop."""

NOTHING = object()
"""What a sync runner's stream gives that has no chunk yet, at most for a moment: its host asks again at once. An async one waits."""


class Source(Protocol):
    """An open stream. `wakes`: whether `Turns.wake` is called when it has a chunk."""

    wakes: ClassVar[bool]

    def poll(self) -> object:
        """The next chunk, None at the end, `NOTHING` if there is none yet. May raise anything.

        After `NOTHING` one that `wakes` is not polled again before `Turns.wake`; any other one in the next turn.
        """
        ...

    def close(self) -> None:
        """Free its place. May raise anything."""
        ...


class SyncSource:
    """The stream of a sync runner; polling it computes the next chunk."""

    wakes: ClassVar[bool] = False

    def __init__(self, chunks: Iterator[TokenChunk]) -> None:
        self._chunks = chunks

    def poll(self) -> object:
        """See `Source.poll`."""
        return made_by(self._chunks)

    def close(self) -> None:
        """See `Source.close`."""
        close(self._chunks)


@define(eq=False)
class Position:
    """Where a stream of a runner is: so many positions have been accepted, of at most so many; whether they are token ids."""

    request_id: str
    at: int
    most: int
    has_ids: bool | None = None  # not known before the first chunk

    @classmethod
    def of(cls, batch: ExecuteBatch, accepted: Sequence[int]) -> Position:
        """At its beginning, or behind what was accepted elsewhere."""
        return cls(batch.request_id, len(accepted), batch.sampling.max_tokens, bool(accepted) or None)

    def chunk(self, made: object) -> TokenChunk:
        """What the stream yielded, None at its end; it is the next chunk.

        Every chunk of every stream is looked at here, in the process that the runner is in: what is no chunk, or not the
        next, is the runner's mistake in this one stream (D5).

        Raises:
            RunnerError: it is not.
        """
        if type(made) is not TokenChunk:
            raise RunnerError(_why_no_chunk(made))
        _check_fields(made)
        if made.data is not None:
            made = _with_plain_data(made)
        has_ids, finish = bool(made.token_ids), made.finish_reason
        more = len(made.token_ids) or positions_without_ids(made)
        end = self.at + more
        if made.index != self.at or end > self.most or not (more or finish):
            raise RunnerError(
                f"the runner's stream must go on with position {self.at}, of at most {self.most}: "
                f"got {more} from {brief(made.index)}"
            )
        if more and self.has_ids is not has_ids:
            self._note_ids(has_ids=has_ids)
        self.at = end
        return made

    def _note_ids(self, *, has_ids: bool) -> None:
        """Note with the first chunk whether the stream counts token ids or chunks (D6).

        Raises:
            RunnerError: a later chunk differs from the first.
        """
        if self.has_ids is not None:
            which = "no token ids behind some" if self.has_ids else "token ids behind none"
            raise RunnerError(f"a stream's chunks must all have token ids, or none: got {which} at {self.at}")
        self.has_ids = has_ids


def _check_fields(made: TokenChunk) -> None:
    """Refuse a chunk whose fields have other types than `TokenChunk` declares."""
    ids, finish, usage = made.token_ids, made.finish_reason, made.usage
    good = (
        type(made.index) is int
        and type(made.text) is str
        and type(ids) is tuple
        and (finish is None or type(finish) is FinishReason)
        and (usage is None or _is_valid(usage, TokenUsage))
    )
    if good:
        for token in ids:
            if type(token) is not int:
                good = False
                break
    if not good:
        raise RunnerError(f"a chunk's fields must have the types that TokenChunk declares, got {brief(made)}")
    if not is_encodable(made.text):
        raise RunnerError(f"a chunk's text must be one that UTF-8 can encode, got {brief(made.text)}")
    if len(ids) > MAX_TOKENS:
        raise RunnerError(f"a chunk must have at most {MAX_TOKENS} tokens, got {len(ids)}")


def _with_plain_data(made: TokenChunk) -> TokenChunk:
    try:
        return evolve(made, data=plain_data("a chunk's data", made.data))
    except (TypeError, ValueError) as error:
        raise RunnerError(text_of(error)) from error


@define(eq=False)
class _Open:
    """An open stream, and where it is."""

    position: Position
    source: Source


class Turns:
    """A loaded runner and its open streams. A turn takes one chunk from each, so none overtakes another by more.

    Whatever a runner raises is judged here. A request's own error is an item among the others, and `failures` has what
    concerns the context and leaves it standing (out of memory); what ends the context is raised, and of the turn that it
    came in nothing is left (D6).

    Args:
        runner: the runner.
        judge: turns an exception of the runner into one of ours.
    """

    def __init__(self, runner: ModelRunner, judge: Judge) -> None:
        self.runner = runner
        self.failures: list[DeviceError] = []
        self._judge = judge
        self._open: dict[int, _Open] = {}
        self._ready: set[int] = (
            set()
        )  # of the open streams those that may have a chunk; the others have no cost in a turn
        self._early: list[Failed] = []

    @property
    def idle(self) -> bool:
        """Whether a turn would make nothing."""
        return not self._open and not self._early

    def begin(
        self, number: int, batch: ExecuteBatch, accepted: Sequence[int], source: Callable[[Chunks], Source]
    ) -> None:
        """Open a stream; if that fails, the error is an item of the next turn.

        Raises:
            DeviceError: the context is over.
        """
        try:
            # Before the stream is open: if this failed afterwards, nothing would close the stream.
            position = Position.of(batch, accepted)
            self._open[number] = _Open(position, source(execute(self.runner, batch, accepted)))
            self._ready.add(number)
        except Exception as error:  # noqa: BLE001 - whatever a runner raises is judged in one place
            self.fail(number, batch.request_id, error)

    @property
    def asks_again(self) -> bool:
        """Whether streams that had no chunk in the last turn are polled in the next one."""
        return bool(self._ready)

    def wake(self, number: int) -> None:
        """A stream that had no chunk yet may have one now, or its end."""
        if number in self._open:
            self._ready.add(number)

    def has(self, number: int, kind: type[Source]) -> bool:
        """Whether this stream is open, and of this kind."""
        return number in self._open and type(self._open[number].source) is kind

    def drop(self, number: int) -> None:
        """End a stream early, if it is open; if that fails, the error is an item of the next turn.

        Raises:
            DeviceError: the context is over.
        """
        if (stream := self._forget(number)) is not None:
            try:
                stream.source.close()
            except Exception as error:  # noqa: BLE001 - as in begin
                self.fail(number, stream.position.request_id, error)

    def fail(self, number: int, request_id: str, error: Exception) -> None:
        """A stream has failed between two turns: in beginning, or in ending after it was dropped.

        Raises:
            DeviceError: the context is over.
        """
        self._early.append(self._failed(number, request_id, error))

    @property
    def open(self) -> tuple[int, ...]:
        """The numbers of the open streams."""
        return tuple(self._open)

    def drop_all(self) -> None:
        """End every stream."""
        for number in self.open:
            self.drop(number)

    def early(self) -> list[Failed]:
        """The errors of streams that failed in beginning, or in being dropped, since the last turn."""
        items, self._early = self._early, []
        return items

    def forget(self) -> None:
        """The rebuild that comes now is the cure of what lacked memory in ending.

        The errors of streams stay: one may have begun just now, and those of dropped streams have no reader.
        """
        self.failures.clear()

    def turn(self) -> list[Item]:
        """One chunk of each stream that has one, and the errors of those that failed.

        Raises:
            DeviceError: the context is over.
        """
        items: list[Item] = [*self.early()]
        items += filter(None, map(self._next, sorted(self._ready)))  # in the order in which they were begun
        return items

    def _next(self, number: int) -> Item | None:
        stream = self._open[number]
        position, source = stream.position, stream.source
        try:
            if (made := source.poll()) is NOTHING:
                if source.wakes:
                    self._ready.discard(number)
                return None
            chunk = checked(position, made, source.close)
            if chunk.finish_reason is not None:
                self._forget(number)
                source.close()
        except Exception as error:  # noqa: BLE001 - as in begin
            return self._failed(number, position.request_id, error)
        return number, chunk

    def _forget(self, number: int) -> _Open | None:
        self._ready.discard(number)
        return self._open.pop(number, None)

    def _failed(self, number: int, request_id: str, error: Exception) -> Failed:
        """A stream ends by its error, or the context if the error is the context's."""
        self._forget(number)
        found = self._judge(error)
        if is_a(found, OutOfMemory):
            self.failures.append(_of(request_id, _again(found)))
        elif is_a(found, DeviceError):
            raise _of(request_id, cast("DeviceError", found))
        return number, found


def made_by(chunks: Iterator[TokenChunk]) -> TokenChunk | None:
    """The next chunk, or None at the end. What raises is closed at once: it may be an object that keeps a place."""
    try:
        return next(chunks, None)
    except BaseException as error:
        try:
            close(chunks)
        except Exception as worse:  # noqa: BLE001 - the request gets the first error; the other one is its note
            with suppress(Exception):  # the first may be of a class that takes no notes
                BaseException.add_note(error, f"and its stream could not be closed: {brief(worse)}")
        raise


def close(chunks: Iterator[TokenChunk]) -> None:
    """Free the place of a sync runner's stream; an iterator need not be able to."""
    close_it: Callable[[], None] = getattr(chunks, "close", lambda: None)
    close_it()


def execute(runner: ModelRunner, batch: ExecuteBatch, accepted: Sequence[int]) -> Chunks:
    """Have the runner begin a stream, or go on with one behind `accepted`."""
    if not accepted:
        return runner.execute(batch)
    if not isinstance(runner, ContinuingRunner):
        raise TypeError("the runner cannot continue a begun stream")
    return runner.continue_from(batch, accepted)


def checked(position: Position, made: object, close: Callable[[], None]) -> TokenChunk:
    """What a stream yielded, as its next chunk; if it is none, the stream is closed.

    Raises:
        RunnerError: it is none; or whatever closing raises.
    """
    try:
        return position.chunk(made)
    except (RunnerError, AttributeError):  # the latter of one that was made without its fields
        close()
        raise


def _is_valid(value: object, kind: type[RunnerInfo | RateLimits | Price | TokenUsage]) -> bool:
    """Whether it is of this class, and valid: one made by `__new__` or changed by `object.__setattr__` was never validated."""
    if type(value) is not kind:
        return False
    try:
        validate(value)
    except Exception:  # noqa: BLE001 - a missing field raises AttributeError, and comparing a user's object may raise anything
        return False
    return True


def _why_no_chunk(made: object) -> str:
    """Nothing may look like an empty success (D8)."""
    if made is None:
        return "the runner's stream ended without a finish reason"
    if is_a(made, TokenChunk):
        return f"a runner's stream must yield a TokenChunk itself, got the subclass {name_of(type(made))}"
    return f"a runner's stream must yield a TokenChunk, got {name_of(type(made))}"


def info_of(runner: ModelRunner) -> RunnerInfo:
    """What a loaded runner declares.

    Raises:
        TypeError: that is no `RunnerInfo`, or no valid one; or whatever its property raises.
    """
    info: RunnerInfo = runner.info
    if (
        _is_valid(info, RunnerInfo)
        and _is_valid(info.price, Price)
        and (info.limits is None or _is_valid(info.limits, RateLimits))
    ):
        return info
    raise TypeError(
        f"a runner's info must be a RunnerInfo, and its fields as that class has them, got {brief(info)}"
    )


def judged(error: Exception, classify: Callable[[Exception], Exception], *, clears: bool) -> InferenceError:
    """What `classify` finds, among ours.

    `clears`: whether a poison that the runner itself reports is gone with the runner, also where its nursery has put it into
    a group. One that was found in the device's own words never is: its context is this process's.
    """
    found = ours(classify(error))
    if is_a(found, ContextPoisoned) and not (clears and any(found is member for member in members(error))):
        return _uncleared(found)
    return sound(found)


def _uncleared(poison: InferenceError) -> DeviceError:
    """A poison where no process can be replaced: nothing below an operator helps (D10)."""
    error = DeviceError(f"process isolation off: cannot clear a poisoned context: {text_of(poison)}")
    error.code = code_of(poison)
    error.__cause__ = poison
    return error


def load_error(error: Exception, judge: Judge) -> DeviceError:
    """What a failed load or rebuild is called: its own name if it has one among the device's."""
    found = judge(error)
    if is_a(found, DeviceError):
        return cast("DeviceError", found)
    failed = LoadFailed(quoted(error))
    failed.__cause__ = error
    return failed


def close_error(error: Exception) -> InferenceError:
    """What a runner's failure to close is called: itself if it is ours, or a `RunnerError` that quotes it."""
    if is_a(error, InferenceError):
        return sound(cast("InferenceError", error))
    unclosed = RunnerError(quoted(error))
    unclosed.__cause__ = error
    return unclosed


def ours(error: Exception) -> InferenceError:
    """An exception as one of ours: itself, what its tag stands for, or a `RunnerError` that quotes it."""
    kind = by_tag(error)
    if is_a(error, kind or InferenceError):
        return cast("InferenceError", error)
    ours = (kind or RunnerError)(quoted(error))
    ours.__cause__ = error
    return ours


def _of(request_id: str, error: DeviceError) -> DeviceError:
    """The error with the request in whose stream it came. If a user's class refuses the attribute, a plain error takes its place."""
    try:
        error.request_ids = (request_id,)
    except Exception:  # noqa: BLE001 - a property, or a `__setattr__`
        plain: DeviceError = renewed(error)
        plain.request_ids, plain.__cause__ = (request_id,), error
        return plain
    return error


def _again(error: InferenceError) -> OutOfMemory:
    """The same for the context's reader: one exception is raised in one place."""
    again = OutOfMemory(text_of(error))
    again.code, again.__cause__ = code_of(error), error
    return again


def in_turn(chunks: Chunks) -> Source:
    """A source for a host that has no Trio loop for its streams."""
    return SyncSource(sync_only(chunks))


def sync_runner(runner: ModelRunner) -> ModelRunner:
    """Refuse one that would have to be awaited."""
    if inspect.iscoroutinefunction(runner.close) or inspect.iscoroutinefunction(runner.rebuild):
        raise TypeError("an async runner needs an InlineHost")
    return runner


def sync_only(chunks: Chunks) -> Iterator[TokenChunk]:
    """Refuse those that would have to be awaited."""
    if isinstance(chunks, AsyncIterator):
        raise TypeError("a runner with async streams needs an InlineHost")
    return chunks
