"""The starter's two networks: MiniLM with its mean pooling, and ConSE over MobileNetV2's classes."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import normalize
from transformers import BertModel

from deployments.engines.networks import Built
from deployments.models.networks.clip import Normalise
from deployments.models.networks.mobilenet import MobileNetV2
from deployments.models.networks.pretrained import load_network
from deployments.models.starter import (
    MAX_TOKENS,
    MEAN,
    PAD_ID,
    SIZE,
    STD,
    TEMPERATURE,
    TOP_CLASSES,
    class_lines,
    mobilenet_weights,
)
from deployments.models.text import TextTokenizer, pad


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


def build(directory: Path) -> Built:
    """`image` and `text`, from `directory` with mobilenet_v2/ and minilm/."""
    semantics = class_embeddings(directory)
    text_network = TextNetwork(load_minilm(directory / "minilm"))
    text_network.centre.copy_(semantics["centre"])
    classifier = MobileNetV2()
    classifier.load_state_dict(load_file(mobilenet_weights(directory)))
    tokenizer = TextTokenizer.from_directory(directory / "minilm", MAX_TOKENS)
    example = torch.ones((2, 7), dtype=torch.int64)
    return Built(
        {
            "image": (
                ImageNetwork(classifier, semantics["classes"]),
                (torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8),),
            ),
            "text": (text_network, (example, example)),
        },
        {
            "image_size": SIZE,
            "dimensions": len(semantics["centre"]),
            "tokenizer": tokenizer.definition(),
            "max_tokens": tokenizer.max_tokens,
        },
    )


@torch.inference_mode()
def class_embeddings(directory: Path) -> dict[str, torch.Tensor]:
    """`classes`, the 1000 class embeddings less their mean [1000, 384], and `centre`, that mean [384].

    A class is the mean of its name's and its definition's embedding: 63.3% on CIFAR-10 against 59.6%
    for names alone. Subtracting the mean takes out what every name has in common; without it all
    images lie close together. Computed once (2000 texts, seconds) and kept beside the weights.
    """
    lines = class_lines()
    stored = directory / f"classes-{hashlib.sha256(lines.encode()).hexdigest()[:16]}.safetensors"
    with suppress(Exception):  # absent, another user's, or damaged, by a library with errors of its own
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
        scratch.chmod(0o644)  # safetensors keeps it to its owner
        scratch.rename(stored)
    return tensors


def load_minilm(directory: Path) -> BertModel:
    return load_network(BertModel, directory, attn_implementation="sdpa", add_pooling_layer=False)


def _embed(network: TextNetwork, tokenizer: TextTokenizer, texts: tuple[str, ...]) -> torch.Tensor:
    """Embeddings [n, 384], uncentred; sorted by length into batches, so that little of them is padding."""
    tokens = [tokenizer.encode(text) for text in texts]
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    out = torch.empty(len(tokens), network.centre.shape[0])
    for start in range(0, len(order), 50):
        rows = order[start : start + 50]
        ids, mask = pad([tokens[i] for i in rows], PAD_ID)
        out[rows] = network(torch.from_numpy(ids), torch.from_numpy(mask))
    return out
