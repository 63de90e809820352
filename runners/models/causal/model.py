"""What the author of a causal model brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Feed(NamedTuple):
    """The next tokens of one stream in a step.

    Args:
        cache: of the stream, from `CausalModel.new_cache`.
        begin: how many tokens of the stream the cache holds. If an earlier step has failed it may hold more: they are to be
            overwritten, or dropped first.
        tokens: the ids at the positions from `begin` on; at least one.
    """

    cache: Any
    begin: int
    tokens: Sequence[int]


class Tokenizer(Protocol):
    """Texts as token ids, and back."""

    def encode(self, text: str) -> Sequence[int]:
        """The tokens of a prompt `text`, with those that the model expects in front of each prompt."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """The text of some `tokens`; special tokens have none. Bytes that are no UTF-8 become U+FFFD."""
        ...


@runtime_checkable
class ChatTokenizer(Tokenizer, Protocol):
    """A tokenizer with a chat template."""

    def chat(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> Sequence[int]:
        """The tokens of a prompt that these `messages` make, with the `tools` that a request has; the model's answer follows.

        May raise anything for bad messages.
        """
        ...


class CausalModel(Protocol):
    """A model that, for each stream, gives the logits of the next token. Its methods are called one at a time.

    Attributes:
        vocabulary_size: the number of logits.
        context_length: the most tokens of a stream, those of the prompt and the generated ones together.
        end_tokens: the ids with which a stream ends; they have no text.
        tokenizer: its tokenizer; a `ChatTokenizer` if it takes chat messages.
    """

    @property
    def vocabulary_size(self) -> int: ...  # noqa: D102 - in the docstring of the class, as the others

    @property
    def context_length(self) -> int: ...  # noqa: D102

    @property
    def end_tokens(self) -> frozenset[int]: ...  # noqa: D102

    @property
    def tokenizer(self) -> Tokenizer: ...  # noqa: D102

    def new_cache(self) -> Any:
        """An empty cache for a stream. At most as many are in use as the runner serves streams."""
        ...

    def free_cache(self, cache: Any) -> None:
        """The stream of this cache is over."""
        ...

    def step(self, feeds: Sequence[Feed]) -> Any:
        """Feed the tokens of several streams, each stream once.

        Returns:
            The logits after the last token of each feed: an array (feeds, vocabulary_size) that `numpy.asarray` takes. It is
            read before the next step, and never written.

        Raises:
            Exception: a lack of memory and an error of the device are passed on, and the next step feeds the same tokens again
                (D5). After any other exception each stream is fed alone, so that it fails for the streams that cause it.
        """
        ...


@runtime_checkable
class ReloadingModel(Protocol):
    """A causal model that takes part in a rebuild of the session (D7)."""

    def reload(self) -> None:
        """Load the model again. No cache is in use; the streams that are open get new ones."""
        ...
