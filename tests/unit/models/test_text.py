"""Text to token ids: equal to transformers' tokenizers, limits kept, bad text refused."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from configs.settings import SettingsError
from deployments.errors import BadInput
from deployments.models.text import TextTokenizer, pad
from tests import assets

TEXTS = [
    "",
    " ",
    "a cat",
    "A  CAT\twith\nspaces ",
    "Ünïcode café 東京 😀 e\u0301",
    "x\x1cy \u200b zero width",
    "word " * 400,
    "no" * 3000,
    "   " * 2000 + "words after many spaces",
    "longword" * 50 + " then more",
    "[SEP] <|endoftext|> in the text",
    "中" * 600,
]


@pytest.mark.parametrize("limit", [77, 16])
def test_clip_ids_equal_transformers(limit: int) -> None:
    reference: Any = AutoTokenizer.from_pretrained(assets.clip_tokenizer())
    tokenizer = TextTokenizer.from_directory(assets.clip_tokenizer(), limit)
    for text in TEXTS:
        wanted = reference(text, truncation=True, max_length=limit).input_ids
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int64
        assert ids.tolist() == wanted
        assert ids[-1] == reference.eos_token_id


@pytest.mark.parametrize("limit", [512, 256, 10])
def test_bert_ids_equal_transformers(limit: int) -> None:
    reference: Any = AutoTokenizer.from_pretrained(assets.starter() / "minilm")
    tokenizer = TextTokenizer.from_directory(assets.starter() / "minilm", limit)
    for text in TEXTS:
        assert tokenizer.encode(text).tolist() == reference(text, truncation=True, max_length=limit).input_ids


def test_vocabulary_files_alone_are_enough(tmp_path: Path) -> None:
    old_style = assets.clip_vocabulary(tmp_path / "clip")
    (old_style / "config.json").write_text('{"model_type": "clip"}')
    new_style = TextTokenizer.from_directory(assets.clip_tokenizer(), 77)
    tokenizer = TextTokenizer.from_directory(old_style, 77)
    for text in TEXTS:
        np.testing.assert_array_equal(tokenizer.encode(text), new_style.encode(text))


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"has no tokenizer: tokenizer\.json"):
        TextTokenizer.from_directory(tmp_path, 77)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\0b", "NUL character at position 1"), ("ab\ud800", "surrogate pair at position 2"), (7, "not int")],
)
def test_what_is_no_text_is_bad_input(text: Any, message: str) -> None:
    tokenizer = TextTokenizer.from_directory(assets.clip_tokenizer(), 77)
    with pytest.raises(BadInput, match=message):
        tokenizer.encode(text)


def encoding_s(tokenizer: TextTokenizer, text: str) -> float:
    """Of the processor's time."""
    began = time.process_time()
    assert len(tokenizer.encode(text)) <= 77
    return time.process_time() - began


@pytest.mark.parametrize(
    "text", ["hello world " * 8333, "a" * 100_000, "中" * 100_000, " " * 100_000, "😀" * 100_000]
)
def test_ten_times_the_characters_take_about_ten_times_as_long(text: str) -> None:
    for directory in (assets.clip_tokenizer(), assets.starter() / "minilm"):
        tokenizer = TextTokenizer.from_directory(directory, 77)
        assert any(encoding_s(tokenizer, text) < 30 * encoding_s(tokenizer, text[:10_000]) for _ in range(3))


def test_padding_reaches_the_longest_only() -> None:
    ids, mask = pad([np.array([5, 6]), np.array([7, 8, 9])], pad_id=1)
    assert ids.tolist() == [[5, 6, 1], [7, 8, 9]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_a_token_the_model_has_no_embedding_for_is_named() -> None:
    definition = TextTokenizer.from_directory(assets.clip_tokenizer(), 77).definition()
    added = Tokenizer.from_str(definition)
    known = max(added.get_vocab().values()) + 1
    added.add_tokens(["<photo>"])
    tokenizer = TextTokenizer.from_definition(added.to_str(), 77, known)
    assert (
        tokenizer.encode("a photo").tolist()
        == TextTokenizer.from_definition(definition, 77).encode("a photo").tolist()
    )
    with pytest.raises(
        BadInput, match=f"'<photo>', number {known} of the tokenizer; the model has .* {known}"
    ):
        tokenizer.encode("a <photo> of a cat")
    assert known in TextTokenizer.from_definition(added.to_str(), 77, known + 1).encode("a <photo>")
