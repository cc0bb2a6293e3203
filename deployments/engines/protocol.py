"""What an engine is: a compiled network that takes arrays and gives one array."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Agreement:
    """How near int8 networks are to the fp32 ones they are made from, on what they were calibrated with."""

    cosine: float  # mean cosine between their outputs; of two towers, the smaller mean
    top1: float  # share of rows for which the same label comes first


class Engine(Protocol):
    """A compiled network. Calls are thread-safe; the first axis of every array is the batch."""

    @property
    def name(self) -> str:
        """`openvino`, `torch-cpu` or `torch-cuda`."""

    @property
    def precision(self) -> str:
        """What runs: `fp32`, `bf16`, `fp16` or `int8`, never `auto`."""

    @property
    def concurrency(self) -> int:
        """Calls that run best at the same time."""

    @property
    def buckets(self) -> bool:
        """Whether inputs are padded to the shapes of `buckets.py`, each of which costs at its first use."""

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run the network. The result belongs to the caller: no later call overwrites it."""

    def warmed_up(self) -> None:
        """Called once, when the shapes that are usual have run: what only that needed can go."""
