"""Which engine runs a module here."""

from collections.abc import Sequence

import torch

from deployments.engines.protocol import Engine, EngineChoice, PrecisionChoice


def compile_module(
    module: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor],
    *,
    engine: EngineChoice,
    precision: PrecisionChoice,
    threads: int,
) -> Engine:
    """Compile `module` for this machine; the module is used up and must not be called afterwards.

    `auto` takes torch where a CUDA device is visible and OpenVINO elsewhere; precision `auto` takes
    bf16 where the hardware computes it natively, fp16 on GPUs without it, and else fp32. The first
    axis of every input is the batch, the second of a 2-D integer input its length; both are dynamic.
    """
    if engine == "auto":
        engine = "torch" if torch.cuda.is_available() else "openvino"
    # Imported late: a GPU replica needs no OpenVINO.
    if engine == "openvino":
        from deployments.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(module, example_inputs, precision=precision, threads=threads)
    from deployments.engines.torch import TorchEngine

    return TorchEngine(module, precision=precision, threads=threads)
