"""The torch engine: CUDA where there is a GPU, and the reference on CPU."""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from deployments.engines.protocol import PrecisionChoice

_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """The module itself in inference mode. On CPU `threads` is set for the whole process."""

    def __init__(self, module: torch.nn.Module, *, precision: PrecisionChoice, threads: int) -> None:
        cuda = torch.cuda.is_available()
        self.name = "torch-cuda" if cuda else "torch-cpu"
        self.precision: str = _native_precision(cuda) if precision == "auto" else precision
        self._device = torch.device("cuda" if cuda else "cpu")
        if not cuda:
            torch.set_num_threads(threads)
        self._module = module.eval().to(self._device, _DTYPES[self.precision])

    @torch.inference_mode()
    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        tensors = [torch.from_numpy(np.require(x, requirements="W")).to(self._device) for x in inputs]
        output: NDArray[np.float32] = self._module(*tensors).float().cpu().numpy()
        return output

    def warmed_up(self) -> None:
        """It holds nothing that only the first calls need."""


def _native_precision(cuda: bool) -> str:
    if cuda:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Without native instructions torch emulates bf16, several times slower than fp32.
    return "bf16" if torch.backends.cpu.get_cpu_capability() == "AVX512" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported())
