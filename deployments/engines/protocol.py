"""What an engine is: a compiled network that takes arrays and gives one array."""

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

EngineChoice = Literal["auto", "openvino", "torch"]
PrecisionChoice = Literal["auto", "fp32", "bf16"]


class Engine(Protocol):
    """A compiled network. Calls are thread-safe; the first axis of every array is the batch."""

    @property
    def name(self) -> str:
        """`openvino`, `torch-cpu` or `torch-cuda`."""

    @property
    def precision(self) -> str:
        """What runs: `fp32`, `bf16` or `fp16`, never `auto`."""

    @property
    def concurrency(self) -> int:
        """Calls that run best at the same time."""

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run the network. The result belongs to the caller: no later call overwrites it."""

    def warmed_up(self) -> None:
        """Called once, when the shapes that are usual have run: what only that needed can go."""
