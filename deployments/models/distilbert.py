"""Text classifiers: any DistilBertForSequenceClassification directory in Hugging Face layout.

Sanh et al. 2019, "DistilBERT, a distilled version of BERT", arXiv:1910.01108.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DistilBertForSequenceClassification

from configs.settings import ClassifierSettings
from deployments.engines.choose import compile_module
from deployments.models.base import ModelInfo
from deployments.models.directories import architecture, require_type, weight_files
from deployments.models.pretrained import load_network
from deployments.models.text import TextTokenizer
from deployments.models.towers import Classifier, TextTower, fingerprint


class LogitsNetwork(nn.Module):
    """Ids and mask int64[n, length] to logits [n, labels]."""

    def __init__(self, classifier: DistilBertForSequenceClassification) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(input_ids=ids, attention_mask=mask).logits
        return logits.float()


def load(
    name: str,
    directory: Path,
    settings: ClassifierSettings,
    threads: int,
    source: str,
    notes: tuple[str, ...],
) -> Classifier:
    """Load, compile and warm up. Raises SettingsError for a directory that is no whole classifier."""
    require_type(directory, "distilbert")
    weights = weight_files(directory)
    network = load_network(DistilBertForSequenceClassification, directory, attn_implementation="sdpa")
    config: Any = network.config
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    tokenizer = TextTokenizer.from_directory(directory, config.max_position_embeddings)
    pad_id = int(config.pad_token_id or 0)
    example = torch.ones((2, 7), dtype=torch.int64)
    engine = compile_module(
        LogitsNetwork(network),
        [example, example],
        engine=settings.engine,
        precision=settings.precision,
        threads=threads,
    )
    del network
    text = TextTower(engine, tokenizer, pad_id=pad_id, masked=True)
    text.warm_up()
    info = ModelInfo(
        id=name,
        task="text-classification",
        source=source,
        fingerprint=fingerprint(weights, tokenizer.definition(), architecture(directory)),
        engine=engine.name,
        precision=engine.precision,
        labels=labels,
        max_tokens=tokenizer.max_tokens,
        notes=notes,
    )
    return Classifier(info, text)
