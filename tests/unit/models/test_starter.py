"""The starter encoder: it finds the right photograph, and its text tower is MiniLM."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer, BertModel

from configs.settings import ClipSettings
from deployments.engines import openvino
from deployments.errors import BadInput
from deployments.models.images import decode
from deployments.models.loading import load_encoder
from deployments.models.networks.starter import class_embeddings
from deployments.models.sources import Source
from deployments.models.starter import class_lines
from deployments.models.towers import Encoder
from tests import assets, photos

SOURCE = Source("starter", "", notes=("a note",))


@cache
def load(precision: Any, engine: Any = "openvino") -> Encoder:
    assets.starter()
    return load_encoder(SOURCE, ClipSettings(precision=precision, engine=engine), assets.CACHE, threads=2)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load("auto")


def embed_photos(encoder: Encoder) -> dict[str, np.ndarray]:
    size = encoder.image.size
    pixels = [decode(photos.encoded(image, "JPEG"), size, 10**7) for image in photos.photos().values()]
    vectors = encoder.image.run([encoder.image.pre(p) for p in pixels])
    return dict(zip(photos.photos(), vectors, strict=True))


def embed_texts(encoder: Encoder, texts: list[str]) -> np.ndarray:
    return np.stack(encoder.text.run([encoder.text.pre(text) for text in texts]))


def test_a_text_finds_its_photograph(encoder: Encoder) -> None:
    vectors = embed_photos(encoder)
    names = list(vectors)
    photographs = np.stack([vectors[name] for name in names])
    found = embed_texts(encoder, list(photos.WORDS.values())) @ photographs.T
    hits = [names[row.argmax()] == wanted for row, wanted in zip(found, photos.WORDS, strict=True)]
    assert sum(hits) >= 5


def test_a_photograph_finds_its_name(encoder: Encoder) -> None:
    labels = ["cat", "coffee", "rocket", "temple", "flower", "motorcycle"]
    vectors = embed_photos(encoder)
    texts = embed_texts(
        encoder, [(encoder.info.label_template or "").format(label=label) for label in labels]
    )
    names = ["chelsea", "coffee", "rocket", "china", "flower", "motorcycle"]
    hits = [labels[(texts @ vectors[n]).argmax()] == label for n, label in zip(names, labels, strict=True)]
    assert sum(hits) >= 5


def test_info_names_what_it_is(encoder: Encoder) -> None:
    info = encoder.info
    assert info.source == "starter: MobileNetV2 and all-MiniLM-L6-v2, joined by ConSE"
    assert (info.dimensions, info.image_size, info.max_tokens) == (384, 224, 256)
    assert info.label_template == "{label}"
    assert info.precision == "fp32"
    assert info.notes == ("a note",)
    assert len(info.fingerprint) == 64


@torch.inference_mode()
def minilm(texts: list[str]) -> torch.Tensor:
    """What sentence-transformers computes: the mean over tokens, at unit length."""
    directory = assets.starter() / "minilm"
    model: Any = BertModel.from_pretrained(directory, add_pooling_layer=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    hidden = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    mask = tokens.attention_mask.unsqueeze(-1)
    return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def test_text_is_minilm_less_the_centre() -> None:
    texts = ["a cat", "", "two dogs run along a beach", "word " * 400]
    wanted = normalize(minilm(texts) - class_embeddings(assets.starter())["centre"], dim=-1).numpy()
    assert (embed_texts(load("auto"), texts) * wanted).sum(1).min() >= 0.99999
    assert (embed_texts(load("bf16"), texts) * wanted).sum(1).min() >= 0.999


def test_a_class_is_its_name_and_its_definition() -> None:
    stored = class_embeddings(assets.starter())
    assert stored["classes"].shape == (1000, 384)
    numbers = [0, 281, 999]
    lines = class_lines().splitlines()
    names, definitions = zip(*(lines[i].split("\t") for i in numbers), strict=True)
    wanted = normalize(minilm([*names]) + minilm([*definitions]), dim=-1)
    torch.testing.assert_close(stored["classes"][numbers] + stored["centre"], wanted, atol=1e-5, rtol=0)


def test_engines_and_precisions_agree() -> None:
    reference = load("fp32", "torch")
    fp32, bf16 = load("auto"), load("bf16")
    wanted = np.stack(list(embed_photos(reference).values()))
    for encoder, least in ((fp32, 0.99999), (bf16, 0.98)):
        cosines = (np.stack(list(embed_photos(encoder).values())) * wanted).sum(1)
        assert cosines.min() >= least
    assert fp32.info.fingerprint == bf16.info.fingerprint == reference.info.fingerprint


def test_it_notes_that_fp32_runs_for_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "_computes_bf16", lambda: False)
    info = load.__wrapped__("bf16").info
    assert info.precision == "fp32"
    assert info.notes[0] == "a note"
    assert "fp32 runs in its place" in info.notes[1]


def test_there_is_a_line_for_each_imagenet_class() -> None:
    lines = [line.split("\t") for line in class_lines().splitlines()]
    assert len(lines) == 1000
    assert all(len(line) == 2 and all(line) for line in lines)
    assert lines[281][0] == "tabby cat"  # the class numbers of ILSVRC 2012
    assert lines[999][0] == "toilet paper"


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((224, 224, 3), np.float32), np.zeros((224, 224), np.uint8), np.zeros((64, 64, 3), np.uint8)],
)
def test_other_pixels_are_bad_input(encoder: Encoder, pixels: np.ndarray) -> None:
    with pytest.raises(BadInput, match=r"uint8\[224, 224, 3\]"):
        encoder.image.pre(pixels)
