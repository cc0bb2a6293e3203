"""The contract every model keeps: `pre` an item, `forward` a batch, `post` a batch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from deployments.engines.protocol import Agreement

Vectors = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Scores = Literal["softmax", "sigmoid", "none"]

THUMBNAIL_PX: Final = 256  # of its longer side, at most
THUMBNAIL_BYTES: Final = 3 * THUMBNAIL_PX**2  # no more than its pixels have


@dataclass(frozen=True)
class ModelInfo:
    """What a loaded model is, as `GET /v1/models` shows it."""

    id: str
    task: Literal["embedding", "text-classification", "image-classification"]
    source: str  # where the weights came from: "starter: …", "directory: PATH" or "hub: ID at REVISION"
    # sha256 over weights and preprocessing, 64 hex digits. Precision does not change it: embeddings of each
    # are near enough to search those of another, int8 by its bounds.
    fingerprint: str
    engine: str  # "openvino", "torch-cpu", "torch-cuda", or "numpy" of a head
    precision: str  # "fp32", "bf16", "fp16" or "int8": what runs, never "auto"
    dimensions: int | None = None  # length of an embedding
    image_size: int | None = None  # side of the square the image tower takes, pixels
    logit_scale: float | None = None  # factor on cosine before softmax, for zero-shot
    label_template: str | None = None  # zero-shot prompt, with {label}
    labels: tuple[str, ...] = ()
    scores: Scores = "softmax"  # what makes them of a classifier's logits
    max_tokens: int | None = None  # longer texts are truncated, special tokens included
    encoder_fingerprint: str | None = None  # of the encoder a head was trained on
    version: str | None = None  # of a model directory that holds several
    agreement: Agreement | None = None  # of int8 with fp32, on the calibration set
    notes: tuple[str, ...] = ()  # what an operator should know: a fallback taken, a limit


Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Output = TypeVar("Output")


class Model(ABC, Generic[Item, Prepared, Output]):
    """One loaded model (or one tower of it).

    `pre` runs per item on the CPU before the batch queue and may raise BadInput;
    `forward` takes prepared items, returns as many raw rows; `post` shapes them.
    """

    @property
    def concurrency(self) -> int:
        """Forwards that run best at the same time."""
        return 1

    @abstractmethod
    def pre(self, item: Item) -> Prepared:
        """Validate and convert one item. Raises BadInput."""

    def length(self, prepared: Prepared) -> int:
        """The row's cost unit in a batch: tokens for text, 1 for an image."""
        return 1

    @abstractmethod
    def forward(self, batch: Sequence[Prepared]) -> NDArray[Any]:
        """Run the network: n prepared items in, an array of n rows out."""

    @abstractmethod
    def post(self, rows: NDArray[Any]) -> Sequence[Output]:
        """Shape the raw rows into n outputs."""

    def run(self, batch: Sequence[Prepared]) -> Sequence[Output]:
        """forward and post; asserts one output per item."""
        outputs = self.post(self.forward(batch))
        assert len(outputs) == len(batch), f"{len(batch)} items in, {len(outputs)} out"
        return outputs
