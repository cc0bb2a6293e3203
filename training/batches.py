"""Encoded texts, and their order: batches of rows of similar length, reshuffled every epoch."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from deployments.models.text import TextTokenizer, Tokens, pad
from training.data import Row

# Sorting within this many batches leaves little padding while the order stays close to random.
_GROUPED_BATCHES: Final = 50


@dataclass(frozen=True)
class Encoded:
    """Token ids and class of every row of one part."""

    tokens: tuple[Tokens, ...]
    classes: torch.Tensor  # int64[n]
    pad_id: int

    def __len__(self) -> int:
        return len(self.tokens)


def encode(rows: Sequence[Row], labels: Sequence[str], tokenizer: TextTokenizer, pad_id: int) -> Encoded:
    """With the tokenizer that serves, so that training sees what serving will. Raises BadInput."""
    place = {label: i for i, label in enumerate(labels)}
    return Encoded(
        tuple(tokenizer.encode(row.text) for row in rows),
        torch.tensor([place[row.label] for row in rows], dtype=torch.int64),
        pad_id,
    )


def shuffled(lengths: Sequence[int], batch_size: int, seed: str) -> list[list[int]]:
    """Places of rows in batches, the same for the same seed."""
    shuffler = random.Random(seed)
    order = list(range(len(lengths)))
    shuffler.shuffle(order)
    batches = []
    span = batch_size * _GROUPED_BATCHES
    for start in range(0, len(order), span):
        group = sorted(order[start : start + span], key=lengths.__getitem__)
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    shuffler.shuffle(batches)
    return batches


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Places of all rows in batches, shortest first; for evaluation, where order does not matter."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def tensors(part: Encoded, places: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask int64[n, longest] of these rows."""
    ids, mask = pad([part.tokens[place] for place in places], part.pad_id)
    return torch.from_numpy(ids), torch.from_numpy(mask)
