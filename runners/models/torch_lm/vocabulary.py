"""The vocabulary of a character model: one token is one character."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import Factory, field, frozen

UNKNOWN = "\ufffd"
"""The replacement for a character outside the vocabulary; always token 0."""

START = "\n"
"""The character before every prompt, also before an empty one; always token 1."""

ASCII = "".join(map(chr, range(32, 127)))
TYPOGRAPHIC = "‘’“”–—…"


def _complete(_: Vocabulary, __: object, value: str) -> None:
    if value[:2] != UNKNOWN + START or len(set(value)) != len(value):
        raise ValueError(f"a vocabulary is U+FFFD, newline, then other characters once each, got {value!r}")


def _numbered(vocabulary: Vocabulary) -> dict[str, int]:
    return {character: token for token, character in enumerate(vocabulary.characters)}


@frozen
class Vocabulary:
    """The characters of a model, in the order of their token ids.

    Each character outside the vocabulary becomes U+FFFD. So no prompt fails because of its characters, and a prompt has as
    many tokens as characters.
    """

    characters: str = field(default=UNKNOWN + START + ASCII + TYPOGRAPHIC, validator=_complete)
    _ids: dict[str, int] = field(
        init=False, repr=False, eq=False, default=Factory(_numbered, takes_self=True)
    )

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """The token of each character; 0 for one that is not in the vocabulary."""
        return [self._ids.get(character, 0) for character in text]

    def decode(self, tokens: Iterable[int]) -> str:
        """The character of each token."""
        return "".join(map(self.characters.__getitem__, tokens))
