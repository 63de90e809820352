"""The text of a stream of tokens: decoded piece by piece, held back for stop strings, and ended. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field

from runners.types import FinishReason

UNKNOWN = "\ufffd"
"""What a decoder writes for bytes that are no UTF-8, also for a character whose last bytes are still to come."""

_MISSING = 3
"""At most so many U+FFFD are a character whose last bytes are still to come: a decoder may write one for each byte."""

_WINDOW = 8
"""With more tokens than this, `Detokenizer` leaves out the oldest: each of its steps decodes all that it has."""

_MOST = 64
"""So many tokens behind the last text, or behind the last moment at which nothing was pending, stay in the window."""


@define
class Detokenizer:
    """Decodes a stream token by token. Text that it has given is never revised.

    The text of a token depends on its neighbours: a character may be spread over several tokens, and a decoder drops the space
    in front of the first word. So a few tokens before the newest are decoded with it, and the text that this adds is given,
    without up to three U+FFFD at its end, which the next tokens may complete. If the decoder revises text that was given, the
    tokens after it are decoded on their own.

    The window is bounded also if tokens without a text, or bytes that are no UTF-8, come without an end.

    Args:
        decode: the decoder, of token ids.
        window: the tokens in front of the stream, such as the end of its prompt; none of their text is given.
    """

    decode: Callable[[list[int]], str]
    window: list[int] = field(factory=list[int])
    given: str = field(init=False)
    since: int = field(init=False)
    """The number of tokens in the window after which nothing was pending."""
    worded: int = field(init=False)
    """The number of tokens in the window up to the last one that had text when nothing was pending."""

    def __attrs_post_init__(self) -> None:
        self.given = self.decode(self.window) if self.window else ""
        self.since = self.worded = len(self.window)

    def add(self, token: int) -> str:
        """Add a token; returns the further text."""
        window = self.window
        window.append(token)
        text = self.decode(window)
        firm = _firm(text) if text.endswith(UNKNOWN) else text
        if not firm.startswith(self.given):
            self.window, self.since, self.worded, self.given = window[self.since :], 0, 0, ""
            text = self.decode(self.window)
            firm = _firm(text)
        new = firm[len(self.given) :]
        self.given = firm
        if firm == text:
            self._settle(new)
        elif len(self.window) - self.since > _MOST:
            new += self._shorten(text[len(firm) :])
        return new

    def rest(self) -> str:
        """The text of the tokens that are pending at the end of the stream."""
        if self.since == len(self.window):
            return ""
        text = self.decode(self.window)
        return (
            text[len(self.given) :] if text.startswith(self.given) else self.decode(self.window[self.since :])
        )

    def _settle(self, new: str) -> None:
        """Nothing is pending. The tokens of `new` are enough of a context, so the window can begin with them."""
        if new and len(self.window) > _WINDOW:
            self.window = self.window[self.since :]
            self.given = self.decode(self.window)
        elif len(self.window) - self.worded > _MOST:
            # These have no text, so those with one stay as their context.
            self.window = [*self.window[: self.worded], *self.window[-_WINDOW:]]
            self.given = self.decode(self.window)
        self.since = len(self.window)
        if new:
            self.worded = self.since

    def _shorten(self, pending: str) -> str:
        """Leave out most of many tokens behind which something was always pending.

        The newest ones that have a text stay. They may begin within a character, and their text with a U+FFFD: that is in the
        part that was given. If something else is pending behind them, `pending` is given as it is: the result is the further
        text.
        """
        left = [token for token in self.window[self.since :] if self.decode([token])][-2 * _WINDOW :]
        text = self.decode(left)
        firm = _firm(text)
        if text[len(firm) :] == pending:
            pending = ""
        else:
            left, firm = [], ""
        self.window, self.since, self.worded, self.given = left, 0, len(left), firm
        return pending


def _firm(text: str) -> str:
    """The text without what the next tokens may still complete."""
    end = len(text)
    while end and len(text) - end < _MISSING and text[end - 1] == UNKNOWN:
        end -= 1
    return text[:end]


@define
class Transcript:
    """The generated text of one stream, built token by token from position 0.

    There is no other state: a stream that has moved adds its accepted tokens again, and has the same state (D6).

    Args:
        text: of the tokens.
        limit: the number of tokens after which the stream ends with LENGTH.
        ends: tokens with which it ends with STOP. They have no text.
        stops: the text ends before the first of these strings that is completed, with STOP. None may be empty.
    """

    text: Detokenizer
    limit: int
    ends: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()
    count: int = field(default=0, init=False)
    held: str = field(default="", init=False)
    finish: FinishReason | None = field(default=None, init=False)

    def add(self, token: int) -> str:
        """Add the next token; returns the further text that may now be shown."""
        self.count += 1
        ended = token in self.ends
        new = "" if ended else self.text.add(token)
        if ended or self.count >= self.limit:
            self.finish = FinishReason.STOP if ended else FinishReason.LENGTH
            new += self.text.rest()
        return self._shown(new) if self.stops else new

    def _shown(self, new: str) -> str:
        """What may be shown of the text that is held back, with the new text behind it."""
        text = self.held + new
        if (end := _completed(text, self.stops)) is not None:
            self.finish, self.held = FinishReason.STOP, ""
            return text[:end]
        held = 0 if self.finish else max(_overlap(text, stop) for stop in self.stops)
        self.held = text[len(text) - held :]
        return text[: len(text) - held]


def _completed(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string begins that is completed first, of several the longest; None if there is none."""
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
