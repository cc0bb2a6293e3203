"""Text to token ids: checked, truncated to the model's limit, padded only to the longest of its batch."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from configs.settings import SettingsError
from deployments.errors import BadInput
from deployments.models.characters import check_characters

# One text's token ids, int64, special tokens included, not padded.
Tokens = NDArray[np.int64]

# A word rarely has more than 16 characters, so this many per allowed token nearly always fill the
# model's limit at the first try; what is cut off could not have changed the answer.
_WINDOW_CHARS_PER_TOKEN: Final = 16

# Only what every tokenizer takes for a space: BERT's drops \x1c to \x1f, which `\s` would match.
_SPACE: Final = re.compile("[ \t\r\n]")


class TextTokenizer:
    """The tokenizer of a model directory, held to `max_tokens` with the end token kept.

    A text with an id from `embedded` on is refused: the network has no embedding for it, which on a GPU would
    end every later call too. Of the whole vocabulary there usually is none.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, embedded: int | None = None) -> None:
        self._tokenizer = tokenizer
        beyond = embedded is not None and max(tokenizer.get_vocab().values(), default=0) >= embedded
        self._embedded = embedded if beyond else None
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self.max_tokens = max_tokens

    @classmethod
    def from_directory(cls, directory: Path, max_tokens: int) -> "TextTokenizer":
        """From tokenizer.json, or built from vocab.json and merges.txt, or vocab.txt.

        Raises:
            SettingsError: the directory holds none of these.
        """
        if (directory / "tokenizer.json").is_file():
            return cls(Tokenizer.from_file(str(directory / "tokenizer.json")), max_tokens)
        if not ((directory / "vocab.json").is_file() or (directory / "vocab.txt").is_file()):
            raise SettingsError(
                f"{directory} has no tokenizer: tokenizer.json, vocab.json with merges.txt, or vocab.txt"
            )
        from transformers import AutoTokenizer  # slow to import, and rarely needed

        fast = AutoTokenizer.from_pretrained(directory, use_fast=True, local_files_only=True)
        return cls(fast.backend_tokenizer, max_tokens)

    @classmethod
    def from_definition(
        cls, definition: str, max_tokens: int, embedded: int | None = None
    ) -> "TextTokenizer":
        """The tokenizer whose `definition` this is."""
        return cls(Tokenizer.from_str(definition), max_tokens, embedded)

    def definition(self) -> str:
        """Everything that decides the ids, as tokenizer.json writes it."""
        return self._tokenizer.to_str()

    def encode(self, text: str) -> Tokens:
        """Token ids of one text.

        Raises:
            BadInput: not a string, or characters that are no text: NUL, or half a surrogate pair; or a token
                that the tokenizer knows and the model does not.
        """
        if not isinstance(text, str):
            raise BadInput(f"a text must be a string, not {type(text).__name__}")
        check_characters(text)
        window = self.max_tokens * _WINDOW_CHARS_PER_TOKEN
        while True:
            part, whole = _words(text, window)
            # Half the time of `encode`, and without the GIL: a long word takes a quarter of a second.
            ids = self._tokenizer.encode_batch_fast([part])[0].ids
            if whole or len(ids) >= self.max_tokens:
                if self._embedded is not None and (last := max(ids, default=0)) >= self._embedded:
                    raise BadInput(
                        f"the text holds {self._tokenizer.id_to_token(last)!r}, number {last} of the "
                        f"tokenizer; the model has embeddings for {self._embedded}"
                    )
                return np.array(ids, dtype=np.int64)
            window *= 4


def _words(text: str, window: int) -> tuple[str, bool]:
    """The first `window` characters or more, up to a space, and whether that is all of the text.

    Cut at a space, the tokens of what is kept are the ones they would be in the whole text.
    """
    space = _SPACE.search(text, window)
    return (text, True) if space is None else (text[: space.start()], False)


def pad(batch: Sequence[Tokens], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and attention mask, both int64[n, longest]."""
    longest = max(map(len, batch))
    ids = np.full((len(batch), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(batch), longest), dtype=np.int64)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask
