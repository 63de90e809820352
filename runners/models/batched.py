"""A runner from a function over a batch of inputs, such as an embedding or a classifier.

Importing this module imports neither numpy nor torch, so the module of a runner spec may import it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from attrs import define, field

from runners.brief import brief, is_a, quoted
from runners.checks import is_float
from runners.diagnosis.classify import concerns_device
from runners.errors import BadRequest, RunnerError
from runners.hosts.turns import NOTHING
from runners.types import (
    ExecuteBatch,
    FinishReason,
    ModelRunner,
    RunnerInfo,
    SessionRebuildCause,
    TokenChunk,
    TokenUsage,
    token_chunk,
)

__all__ = ["batched_runner"]

Function: TypeAlias = Callable[[list[Any]], Sequence[Any]]

_SLICE = 0.0005
"""Seconds. While a batch waits for more, the host takes in new requests each time."""


def batched_runner(
    function: Function,
    *,
    size: int = 32,
    window_ms: float = 2.0,
    streams: int | None = None,
    count_tokens: Callable[[Any], int] | None = None,
    runtime: str = "function",
) -> ModelRunner:
    """A runner from a plain function over a batch of inputs, for a spec's `build` to return.

    The input of a request is its `payload`, or its `prompt` if that is None; a request that has both, or options, is
    `BadRequest`. Its stream is one chunk: `data` is the result, where arrays and tensors become lists and numbers. A batch is
    computed when `size` inputs have come, when no further stream can come, or `window_ms` after its first one. Inputs that
    come while a batch is computed are the next one, so under load a window of 0 fills batches too.

    An exception in the place of a result is the error of that one request, which its own stream raises (D5): the other requests
    keep their results. If the function raises for several inputs, each is tried alone, so that one bad input does not fail
    its neighbours. A lack of memory or an error of the device that it raises is not tried again: one request has it, and the
    inputs that are left are computed in the next batch (D4, D5).

    Args:
        function: takes a list of inputs, at most `size`, and returns as many results in their order: a list, a tuple, or
            an array or tensor with one row for each.
        size: the most inputs of a batch, 1 or more.
        window_ms: milliseconds for which the first input of a batch may wait for others, 0 or more; it must be shorter than the
            host's deadline for a chunk (D9).
        streams: how many requests it holds at once, of which `size` are computed together; None is `size`.
        count_tokens: the number of tokens of an input, for the usage; None counts none.
        runtime: what computes, for `RunnerInfo.runtime`.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a number is out of range.
    """
    if not callable(function):
        raise TypeError(f"a function over a batch must be callable, got {brief(function)}")
    if count_tokens is not None and not callable(count_tokens):
        raise TypeError(f"count_tokens must be callable or None, got {brief(count_tokens)}")
    if type(size) is not int:
        raise TypeError(f"size must be an integer, got {brief(size)}")
    if size < 1:
        raise ValueError(f"size must be >= 1, got {size}")
    if type(window_ms) not in (int, float):
        raise TypeError(f"window_ms must be a number, got {brief(window_ms)}")
    if not (is_float(window_ms) and 0 <= window_ms < math.inf):
        raise ValueError(f"window_ms must be a finite number >= 0, got {brief(window_ms)}")
    info = RunnerInfo(streams=size if streams is None else streams, runtime=runtime)
    return _BatchedRunner(info, function, size, window_ms / 1000, count_tokens or (lambda _: 0))


@define(eq=False)
class _BatchedRunner:
    """A function and the requests that it has not answered."""

    info: RunnerInfo
    function: Function | None
    size: int
    window: float
    count_tokens: Callable[[Any], int]
    places: dict[_Place, None] = field(factory=dict, init=False)  # in the order in which they came

    def execute(self, batch: ExecuteBatch) -> Iterator[TokenChunk]:
        """Take a request. An error of the request itself is raised by the first `next`.

        Raises:
            RuntimeError: it holds as many as it declares.
        """
        if len(self.places) >= self.info.streams:
            raise RuntimeError(
                f"at most {self.info.streams} streams may be open, {batch.request_id!r} is one more"
            )
        place = _Place(self, batch.request_id, batch.prompt if batch.payload is None else batch.payload)
        if batch.prompt and batch.payload is not None:
            place.answer = BadRequest(
                f"a request must have a prompt or a payload, got both: {brief(batch.prompt)}"
            )
        elif batch.options:
            place.answer = BadRequest(
                f"this runner knows no options, got {', '.join(map(brief, batch.options))}"
            )
        self.places[place] = None
        return cast("Iterator[TokenChunk]", place)  # which gives NOTHING too

    def rebuild(self, cause: SessionRebuildCause) -> None:
        """Do nothing, since a function has no session."""

    def close(self) -> None:
        """Release the function, and with it the model that it holds."""
        self.function = None

    def waiting(self) -> list[_Place]:
        """The requests without an answer, the oldest first."""
        return [place for place in self.places if place.answer is None]

    def is_due(self, waiting: Sequence[_Place]) -> bool:
        """Whether a batch is to be computed now. If not, some time of its window passes, which the first one waits for."""
        if len(waiting) >= min(self.size, self.info.streams):
            return True
        return time.monotonic() >= waiting[0].since + self.window

    def compute(self, places: Sequence[_Place]) -> None:
        """Answer these requests.

        Raises:
            Exception: of the device, or a lack of memory. None of them is answered then.
        """
        if self.function is None:
            raise RuntimeError("the runner is closed")
        for place, result in zip(places, self._results([place.value for place in places]), strict=True):
            place.take(result)

    def _results(self, inputs: list[Any]) -> Sequence[Any]:
        try:
            return self._called(inputs)
        except Exception as error:
            if concerns_device(error):
                raise
            if len(inputs) == 1:
                return [error]
        return [result for each in inputs for result in self._results([each])]

    def _called(self, inputs: list[Any]) -> Sequence[Any]:
        assert self.function is not None, "compute has checked it"
        made: Any = self.function(list(inputs))
        if not _is_sequence(made):
            raise RunnerError(
                f"a function over a batch must return a list, a tuple or an array of results, got {brief(made)}"
            )
        results = list(made)
        if len(results) != len(inputs):
            raise RunnerError(
                f"a function over a batch must return a result for each of {len(inputs)}, got {len(results)}"
            )
        return results


@define(eq=False)
class _Place(Iterator[Any]):
    """A request, which its host iterates and closes. It is due for an answer from the moment `since`."""

    runner: _BatchedRunner = field(repr=False)
    request_id: str
    value: Any
    since: float = field(factory=time.monotonic, init=False)
    answer: TokenChunk | Exception | None = field(default=None, init=False)
    closed: bool = field(default=False, init=False)

    def __next__(self) -> Any:
        if self.closed:
            raise StopIteration
        try:
            answer = self._answer()
        except BaseException:
            self.close()
            raise
        if answer is not NOTHING:
            self.close()
        return answer

    def close(self) -> None:
        """Free its place. A second call does nothing."""
        self.closed = True
        self.runner.places.pop(self, None)

    def take(self, result: Any) -> None:
        """The result of the function, or its error; what is raised here is this request's own."""
        try:
            self.answer = _raisable(result) if isinstance(result, Exception) else self._chunk(result)
        except Exception as error:  # noqa: BLE001 - of a user's object; the other requests of the batch have their results
            self.answer = _raisable(error)

    def _chunk(self, result: Any) -> TokenChunk:
        usage = TokenUsage(input=self.runner.count_tokens(self.value))
        return token_chunk(self.request_id, 0, (), "", FinishReason.STOP, usage, data=_plain(result))

    def _answer(self) -> Any:
        """The chunk, or `NOTHING` while the batch may still wait for others."""
        if self.answer is None:
            waiting = self.runner.waiting()
            if not self.runner.is_due(waiting):
                if waiting[0] is self:  # once in a turn
                    time.sleep(min(_SLICE, self.runner.window))
                return NOTHING
            # The host may not ask the oldest first, and this one is to be answered now.
            self.runner.compute(
                [self, *(place for place in waiting if place is not self)][: self.runner.size]
            )
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def _is_sequence(made: object) -> bool:
    """Whether it has an order and a length: a list, a tuple, or what is indexed as an array or a tensor is. No texts."""
    if is_a(made, str, bytes, bytearray, dict, set, frozenset):
        return False
    kind = type(made)
    if not all(hasattr(kind, name) for name in ("__len__", "__getitem__")) or isinstance(made, Mapping):
        return False
    shape: Any = getattr(
        made, "shape", None
    )  # an array without a dimension has no length, though its class has `__len__`
    return shape is None or len(shape) > 0


def _raisable(error: Exception) -> Exception:
    """The error itself. A `StopIteration` would be the end of the stream that raises it, so a `RunnerError` quotes it."""
    if not isinstance(error, StopIteration):
        return error
    quoting = RunnerError(quoted(error))
    quoting.__cause__ = error
    return quoting


def _plain(value: object) -> Any:
    """Arrays, tensors and their numbers as lists and plain numbers, also within lists and dicts."""
    tolist: Callable[[], Any] | None = getattr(value, "tolist", None)
    if tolist is not None:
        return tolist()
    if is_a(value, dict):
        return {key: _plain(each) for key, each in cast("dict[Any, Any]", value).items()}
    if is_a(value, list, tuple):
        return [_plain(each) for each in cast("Sequence[Any]", value)]
    return value
