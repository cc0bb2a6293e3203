"""The two kinds of model every family is made of, an image tower and a text tower, over an engine."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from configs.settings import BatchSettings
from deployments.engines.buckets import row_buckets, token_buckets
from deployments.engines.networks import file_sha256
from deployments.engines.protocol import Engine
from deployments.errors import BadInput
from deployments.models.base import Model, ModelInfo, Pixels, Vectors
from deployments.models.text import TextTokenizer, Tokens, pad

# (rows, tokens) of the warm-up: single texts, some at once, and a full batch of short ones. A shape that is
# new costs 8 to 10 ms on a CPU, which is twice the time of a single text.
_WARM_TEXT: Final = (*((1, length) for length in range(3, 33)), (4, 16), (16, 16), (32, 32))
_WARM_IMAGES: Final = (1, 2, 8, 32)


Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


class Tower(Model[Item, Prepared, Vectors]):
    """A network over an engine, whose rows are its outputs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def concurrency(self) -> int:
        return self.engine.concurrency

    def post(self, rows: Vectors) -> Sequence[Vectors]:
        return list(rows)

    def warm_up(self, batch: BatchSettings) -> None:
        """Run every bucket that batches fall into, or a few usual shapes where the engine has no buckets, so
        that the first request finds kernels and memory ready.

        Raises ValueError where numbers come out that are not finite.
        """
        for items in self._usual_batches(batch):
            for _ in range(self.concurrency):
                if not np.isfinite(self.forward(items)).all():
                    raise ValueError(
                        f"its numbers are not finite in {self.engine.precision}: choose precision fp32; if "
                        "that is what runs, the weights are damaged"
                    )
        self.engine.warmed_up()

    @abstractmethod
    def _usual_batches(self, batch: BatchSettings) -> Iterator[Sequence[Prepared]]:
        """What to warm up with."""


class ImageTower(Tower[Pixels, Pixels]):
    """Pixels uint8[size, size, 3] to unit vectors float32[dimensions]."""

    def __init__(self, engine: Engine, size: int) -> None:
        super().__init__(engine)
        self.size = size

    def pre(self, item: Pixels) -> Pixels:
        """Raises BadInput unless the item is what `images.decode` gives."""
        expected = (self.size, self.size, 3)
        if item.dtype != np.uint8 or item.shape != expected:
            raise BadInput(f"pixels must be uint8{list(expected)}")
        return item

    def forward(self, batch: Sequence[Pixels]) -> NDArray[np.float32]:
        """float32[n, dimensions]; normalisation of the pixels is part of the network."""
        return self.engine(np.stack(batch))

    def _usual_batches(self, batch: BatchSettings) -> Iterator[Sequence[Pixels]]:
        for n in row_buckets(batch.max_items) if self.engine.buckets else _WARM_IMAGES:
            yield [np.zeros((self.size, self.size, 3), np.uint8)] * n


class TextTower(Tower[str, Tokens]):
    """Texts to rows of float32: unit vectors of an encoder, or logits of a classifier.

    A network under a causal mask is not `masked`: padding stands after the end token, which sees
    nothing behind itself, so ids alone give the same vectors.
    """

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, *, pad_id: int, masked: bool) -> None:
        super().__init__(engine)
        self.tokenizer = tokenizer
        self._pad_id = pad_id
        self._masked = masked

    def pre(self, item: str) -> Tokens:
        """Token ids, truncated to the model's limit. Raises BadInput."""
        return self.tokenizer.encode(item)

    def length(self, prepared: Tokens) -> int:
        return len(prepared)

    def forward(self, batch: Sequence[Tokens]) -> NDArray[np.float32]:
        """float32[n, outputs]; rows are padded to the longest of this batch."""
        ids, mask = pad(batch, self._pad_id)
        return self.engine(ids, mask) if self._masked else self.engine(ids)

    def _usual_batches(self, batch: BatchSettings) -> Iterator[Sequence[Tokens]]:
        token, longest = self.tokenizer.encode("a")[:1], self.tokenizer.max_tokens
        buckets = self.engine.buckets and token_buckets(batch.max_items, batch.max_cost, longest)
        for n, length in buckets or _WARM_TEXT:
            yield [np.repeat(token, min(length, longest))] * n


@dataclass(frozen=True)
class Encoder:
    """A loaded and warmed-up pair of towers that embed into one space."""

    info: ModelInfo
    image: ImageTower
    text: TextTower


@dataclass(frozen=True)
class Classifier:
    """A loaded and warmed-up text classifier; its rows are logits in the order of `info.labels`."""

    info: ModelInfo
    text: TextTower


def fingerprint(weights: Iterable[Path], *definitions: str) -> str:
    """sha256 over the weight files' bytes and whatever else decides the output, 64 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(weights):
        digest.update(file_sha256(path))
    for definition in definitions:
        digest.update(hashlib.sha256(definition.encode()).digest())
    return digest.hexdigest()
