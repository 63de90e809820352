"""A runner whose places are freed by the streams themselves."""

import attrs
from rogues import Base

from runners.types import RunnerInfo


@attrs.frozen
class Seats:
    """Has two places; each of its streams is an object that fails at its first chunk, and frees its place when closed alone."""

    def build(self, start):
        return _Seats(self)


class _Seats(Base):
    info = RunnerInfo(streams=2)

    def __init__(self, spec):
        super().__init__(spec)
        self.taken = set()

    def execute(self, batch):
        if len(self.taken) == self.info.streams:
            raise RuntimeError("no place is free")
        self.taken.add(batch.request_id)
        return _Seat(self.taken, batch.request_id)


class _Seat:
    def __init__(self, taken, name):
        self.taken, self.name = taken, name

    def __iter__(self):
        return self

    def __next__(self):
        raise ValueError(f"{self.name} is bad")

    def close(self):
        self.taken.discard(self.name)
