"""The text of a stream so far, how much of it may be shown, and whether it has ended. Pure."""

from __future__ import annotations

from attrs import define, field

from runners.types import FinishReason


@define
class Transcript:
    """The generated text of one stream, built one character at a time from position 0.

    There is no other state: a stream that has moved adds its accepted characters again, and has the same state (D6).

    Args:
        limit: the number of characters after which the stream ends with LENGTH.
        stops: the text ends before the first of these strings that is completed, with STOP. None may be empty.
    """

    limit: int
    stops: tuple[str, ...] = ()
    text: str = field(default="", init=False)
    shown: int = field(default=0, init=False)
    finish: FinishReason | None = field(default=None, init=False)

    def add(self, character: str) -> str:
        """Add the next character; returns the further text that may now be shown."""
        self.text += character
        visible = len(self.text)
        if not self.stops and visible < self.limit:
            self.shown = visible
            return character
        if stopped := self._completed():
            self.finish, visible = FinishReason.STOP, visible - stopped
        elif len(self.text) >= self.limit:
            self.finish = FinishReason.LENGTH
        else:
            visible -= self._begun()
        shown, self.shown = self.shown, visible
        return self.text[shown:visible]

    def _completed(self) -> int:
        """The length of the longest stop string at the end of the text; 0 if there is none."""
        return max((len(stop) for stop in self.stops if self.text.endswith(stop)), default=0)

    def _begun(self) -> int:
        """The length of the longest end of the text that may become a stop string."""
        return max((_overlap(self.text, stop) for stop in self.stops), default=0)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
