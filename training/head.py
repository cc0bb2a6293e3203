"""Heads on frozen features: what a classifier learns when its encoder stays as it is, in seconds.

Trials of a search import this in processes of their own, so it needs nothing but torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn.functional import cross_entropy

# Of DESIGN.md; light on the small data sets that heads are trained on.
DROPOUT: Final = 0.3


class Head(nn.Module):
    """Features float32[n, d] to logits [n, classes], under the names the classifier has for its head.

    Linear(d, d), ReLU, dropout, Linear(d, classes), as in DistilBertForSequenceClassification.
    """

    def __init__(self, dimensions: int, classes: int) -> None:
        super().__init__()
        self.pre_classifier = nn.Linear(dimensions, dimensions)
        self.classifier = nn.Linear(dimensions, classes)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.pre_classifier(features))
        logits: torch.Tensor = self.classifier(self.dropout(hidden))
        return logits


@dataclass(frozen=True, eq=False)
class Features:
    """What an encoder makes of every row of one part."""

    vectors: torch.Tensor  # float32[n, d]
    classes: torch.Tensor  # int64[n]


@dataclass(frozen=True)
class HeadEpoch:
    """How a head does on validation rows after an epoch."""

    number: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float


def fit_head(
    train: Features, validation: Features, classes: int, *, lr: float, batch_size: int, epochs: int, seed: int
) -> Iterator[HeadEpoch]:
    """Train a new head with AdamW at a constant rate; one item an epoch, so that a caller can stop it."""
    torch.manual_seed(seed)
    head = Head(train.vectors.shape[1], classes)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr)
    for number in range(1, epochs + 1):
        total = 0.0
        head.train()
        for places in torch.split(torch.randperm(len(train.classes)), batch_size):
            loss = cross_entropy(head(train.vectors[places]), train.classes[places])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.item() * len(places)
        head.train(False)
        with torch.no_grad():
            logits = head(validation.vectors)
        right = (logits.argmax(1) == validation.classes).float().mean()
        loss = cross_entropy(logits, validation.classes)
        yield HeadEpoch(number, total / len(train.classes), loss.item(), right.item())
