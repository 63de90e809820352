"""What a stream has said so far, how much of it may be shown, and whether it has ended. Pure."""

from __future__ import annotations

from attrs import define, field

from runners.types import FinishReason


@define
class Transcript:
    """The generated text of one stream, folded one character at a time from position 0.

    The fold is all the state there is: a stream that moved folds its accepted tokens anew and stands where it stood.

    Args:
        limit: after so many characters the stream ends with LENGTH.
        stops: the text ends before the first of these that is completed; none of them empty.
    """

    limit: int
    stops: tuple[str, ...] = ()
    text: str = field(default="", init=False)
    shown: int = field(default=0, init=False)
    finish: FinishReason | None = field(default=None, init=False)

    def add(self, character: str) -> str:
        """Take the next character; give the text that may be shown now and was not before."""
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
        """How long the longest stop string is that the text now ends with."""
        return max((len(stop) for stop in self.stops if self.text.endswith(stop)), default=0)

    def _begun(self) -> int:
        """How long the longest end of the text is that may yet become a stop string."""
        return max((_overlap(self.text, stop) for stop in self.stops), default=0)


def _overlap(text: str, stop: str) -> int:
    """How long the longest end of `text` is that `stop`, and more, begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
