"""Both towers of CLIP, and DistilBERT, against plain transformers in fp32."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    CLIPModel,
    DistilBertForSequenceClassification,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from configs.settings import ClassifierSettings, ClipSettings
from deployments.engines.openvino import native_precision
from deployments.models.base import Vectors
from deployments.models.images import decode
from deployments.models.loading import load_classifier, load_encoder
from deployments.models.sources import resolve
from tests import assets, photos

TEXTS = [
    "a cat",
    "",
    "a photo of a red bicycle leaning on a wall, by the sea",
    "Ünïcode 東京 😀!",
    "word " * 300,  # past every limit, truncated
]
# Settings and the cosine, row by row, that they must reach.
ENGINES = [("openvino", "fp32", 0.99999), ("openvino", "bf16", 0.999), ("torch", "fp32", 0.99999)]


def cosines(a: Vectors, b: Vectors) -> Vectors:
    cosine: Vectors = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosine


@dataclass(frozen=True)
class Reference:
    """A directory, and what plain transformers computes from it."""

    directory: Path
    images: Vectors
    texts: Vectors
    token_counts: list[int]
    logit_scale: float
    size: int


@torch.inference_mode()
def clip_reference(directory: Path) -> Reference:
    model: Any = CLIPModel.from_pretrained(directory)  # in eval mode already
    size = model.config.vision_config.image_size
    processor: Any = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=size)
    pixels = processor(images=list(photos.photos().values()), return_tensors="pt")
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    return Reference(
        directory,
        model.get_image_features(**pixels).pooler_output.numpy(),
        model.get_text_features(**tokens).pooler_output.numpy(),
        tokens.attention_mask.sum(1).tolist(),
        float(model.logit_scale.exp()),
        size,
    )


def check_clip(wanted: Reference, engine: Any, precision: Any, least: float) -> None:
    settings = ClipSettings(source=str(wanted.directory), engine=engine, precision=precision)
    source = resolve(settings, assets.CONVERTED, starter="")
    encoder = load_encoder(source, settings, assets.CONVERTED, threads=2)

    files = [photos.encoded(photo) for photo in photos.photos().values()]
    pixels = [encoder.image.pre(decode(file, wanted.size, 10**7)) for file in files]
    images = np.stack(encoder.image.run(pixels))
    assert cosines(images, wanted.images).min() >= least
    alone = np.stack([encoder.image.run([p])[0] for p in pixels])
    assert cosines(alone, wanted.images).min() >= least

    tokens = [encoder.text.pre(text) for text in TEXTS]
    assert [encoder.text.length(t) for t in tokens] == wanted.token_counts
    texts = np.stack(encoder.text.run(tokens))
    assert cosines(texts, wanted.texts).min() >= least
    alone = np.stack([encoder.text.run([t])[0] for t in tokens])
    assert cosines(alone, wanted.texts).min() >= least

    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    assert images.dtype == texts.dtype == np.float32
    assert encoder.info.logit_scale == pytest.approx(wanted.logit_scale)
    runs = native_precision(precision) if engine == "openvino" else precision
    assert (encoder.info.precision, encoder.info.image_size) == (runs, wanted.size)
    assert encoder.info.dimensions == images.shape[1] == texts.shape[1]


@pytest.fixture(scope="module")
def vit_b32(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    directory = assets.clip_directory(tmp_path_factory.mktemp("vit-b32"), tiny=False)
    yield clip_reference(directory)
    shutil.rmtree(directory)  # 600 MB that pytest would keep for three runs


@pytest.fixture(scope="module")
def distilbert_base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = assets.distilbert_directory(tmp_path_factory.mktemp("distilbert"), tiny=False)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("bf16", 0.999)])
def test_clip_vit_b32(vit_b32: Reference, precision: str, least: float) -> None:
    check_clip(vit_b32, "openvino", precision, least)


@pytest.mark.parametrize("eos_token_id", [49407, 2])  # 2: pooled at the largest id, as old models are
@pytest.mark.parametrize(("engine", "precision", "least"), [*ENGINES, ("torch", "bf16", 0.999)])
def test_tiny_clip(tmp_path: Path, engine: str, precision: str, least: float, eos_token_id: int) -> None:
    check_clip(
        clip_reference(assets.clip_directory(tmp_path, eos_token_id=eos_token_id)), engine, precision, least
    )


@torch.inference_mode()
def check_distilbert(directory: Path, engine: Any, precision: Any, least: float) -> None:
    reference: Any = DistilBertForSequenceClassification.from_pretrained(directory)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    encoded = tokenizer(TEXTS, padding=True, truncation=True, max_length=512, return_tensors="pt")
    wanted = reference(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).logits.numpy()
    del reference

    settings = ClassifierSettings(source=str(directory), engine=engine, precision=precision)
    source = resolve(settings, assets.CONVERTED, starter=None)
    classifier = load_classifier("sentiment", source, settings, assets.CONVERTED, threads=2)
    tokens = [classifier.text.pre(text) for text in TEXTS]
    assert [len(t) for t in tokens] == encoded.attention_mask.sum(1).tolist()
    together = np.stack(classifier.text.run(tokens))
    alone = np.stack([classifier.text.run([t])[0] for t in tokens])
    assert cosines(together, wanted).min() >= least
    assert cosines(alone, wanted).min() >= least
    assert classifier.info.labels == ("negative", "positive")
    assert classifier.info.max_tokens == 512


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("bf16", 0.999)])
def test_distilbert_base(distilbert_base: Path, precision: str, least: float) -> None:
    check_distilbert(distilbert_base, "openvino", precision, least)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("bf16", 0.999)])
def test_tiny_distilbert_on_torch(tmp_path: Path, precision: str, least: float) -> None:
    check_distilbert(assets.distilbert_directory(tmp_path), "torch", precision, least)
