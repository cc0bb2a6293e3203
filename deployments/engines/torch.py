"""The torch engine on CPU: the reference that the others are compared with."""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from configs.settings import Precision

_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchEngine:
    """The module itself in inference mode. `threads` is set for the whole process."""

    name = "torch-cpu"
    concurrency = 1
    buckets = False

    def __init__(self, module: torch.nn.Module, *, precision: Precision, threads: int) -> None:
        self.precision: str = _native_precision() if precision == "auto" else precision
        torch.set_num_threads(threads)
        self._module = module.eval().to(_DTYPES[self.precision])

    @torch.inference_mode()
    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        tensors = [torch.from_numpy(np.require(x, requirements="W")) for x in inputs]
        output: NDArray[np.float32] = self._module(*tensors).float().numpy()
        return output

    def warmed_up(self) -> None:
        """It holds nothing that only the first calls need."""


def _native_precision() -> str:
    # Without native instructions torch emulates bf16, several times slower than fp32.
    return "bf16" if torch.backends.cpu.get_cpu_capability() == "AVX512" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported())
