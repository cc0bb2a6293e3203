"""DistilBERT with a classification head.

Sanh et al. 2019, "DistilBERT, a distilled version of BERT", arXiv:1910.01108.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DistilBertForSequenceClassification

from deployments.engines.networks import Built
from deployments.models.networks.pretrained import load_network
from deployments.models.text import TextTokenizer


class LogitsNetwork(nn.Module):
    """Ids and mask int64[n, length] to logits [n, labels]."""

    def __init__(self, classifier: DistilBertForSequenceClassification) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(input_ids=ids, attention_mask=mask).logits
        return logits.float()


def build(directory: Path) -> Built:
    """`text`. Raises SettingsError for a directory that is no whole classifier."""
    network = load_network(DistilBertForSequenceClassification, directory, attn_implementation="sdpa")
    config: Any = network.config
    tokenizer = TextTokenizer.from_directory(directory, config.max_position_embeddings)
    example = torch.ones((2, 7), dtype=torch.int64)
    return Built(
        {"text": (LogitsNetwork(network), (example, example))},
        {
            "labels": [str(config.id2label[i]) for i in range(config.num_labels)],
            "pad_id": int(config.pad_token_id or 0),
            "tokenizer": tokenizer.definition(),
            "max_tokens": tokenizer.max_tokens,
        },
    )
