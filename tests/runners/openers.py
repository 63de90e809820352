"""Runners whose requests and chunks carry plain data (D11)."""

from attrs import field, frozen

from runners.types import FinishReason, RunnerInfo, TokenChunk


@frozen
class Echo:
    """A runner that sends its payload back, in one chunk or one chunk for each item, with the options in the last.

    Args:
        each: send each item of the payload in a chunk of its own.
        kills: the context dies once, behind the chunk with this number.
        data: send this instead.
    """

    each: bool = False
    kills: int | None = None
    data: object = field(default=None)

    def build(self, start):
        return _Echo(self, start.incarnation)


class _Echo:
    def __init__(self, spec, incarnation):
        self.spec, self.incarnation = spec, incarnation
        self.info = RunnerInfo(streams=4, runtime="echo", can_continue=True)

    def execute(self, batch):
        items = batch.payload if self.spec.each else [batch.payload]
        for index, item in enumerate(items):
            data = item if self.spec.data is None else ODD[self.spec.data]()
            yield TokenChunk(request_id=batch.request_id, index=index, data=data)
            if self.spec.kills == index and self.incarnation == 1:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGKILL)
        options = None if batch.options is None else {"options": batch.options}
        yield TokenChunk(
            request_id=batch.request_id, index=len(items), data=options, finish_reason=FinishReason.STOP
        )

    def continue_from(self, batch, accepted):
        raise AssertionError("nothing says how to continue a stream without ids")

    def rebuild(self, cause):
        pass

    def close(self):
        pass


@frozen
class Unary:
    """A function over its payload, in one chunk; the first incarnation dies in it."""

    kills: bool = False

    def build(self, start):
        return _Unary(self.kills and start.incarnation == 1)


class _Unary(_Echo):
    def __init__(self, kills):
        self.kills = kills
        self.info = RunnerInfo(streams=4, runtime="sum")

    def execute(self, batch):
        if self.kills:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)
        total = sum(batch.payload["numbers"])
        yield TokenChunk(
            request_id=batch.request_id, index=0, data={"sum": total}, finish_reason=FinishReason.STOP
        )


@frozen
class Texts:
    """A chunk without ids for each character of a text; `mixed`: the second one has an id."""

    text: str = "abc"
    mixed: bool = False

    def build(self, start):
        return _Texts(self)


class _Texts(_Unary):
    def __init__(self, spec):
        self.spec = spec
        self.info = RunnerInfo(streams=4, runtime="texts")

    def execute(self, batch):
        for index, text in enumerate(self.spec.text):
            ids = (1,) if self.spec.mixed and index == 1 else ()
            yield TokenChunk(request_id=batch.request_id, index=index, text=text, token_ids=ids)
        yield TokenChunk(
            request_id=batch.request_id, index=len(self.spec.text), finish_reason=FinishReason.STOP
        )


class Liar(dict):
    """A dict whose methods lie."""

    def items(self):
        raise RuntimeError("no items")

    def __iter__(self):
        raise RuntimeError("no keys")

    def __bool__(self):
        raise RuntimeError("neither")


ODD = {
    "object": object,
    "set": lambda: {1},
    "int": lambda: 2**64,
    "key": lambda: {1: 2},
    "deep": lambda: nested(100),
    "surrogate": lambda: "\ud800",
    "long": lambda: [0] * 100_000,
    "lies": lambda: Liar(a=1),
}


def nested(depth):
    data = []
    for _ in range(depth):
        data = [data]
    return data
