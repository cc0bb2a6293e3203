"""The CPU engine: a torch module converted once to OpenVINO, with dynamic batch and length."""

import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from deployments.engines.protocol import PrecisionChoice

# Importing openvino reports the import to an analytics host, and so does every conversion, unless
# its telemetry package cannot be imported: a stub that sends nothing then takes its place.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402

_HINTS: Final = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine:
    """One compiled network with one stream of `threads` threads, and one infer request per thread."""

    name = "openvino"

    def __init__(
        self,
        module: torch.nn.Module,
        example_inputs: Sequence[torch.Tensor],
        *,
        precision: PrecisionChoice,
        threads: int,
    ) -> None:
        core = ov.Core()
        if precision == "auto":
            native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            precision = "bf16" if native else "fp32"
        self.precision: str = precision
        self._compiled = core.compile_model(
            _convert(module, example_inputs),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                # Every process would pin its threads to the same first cores: replicas that share a
                # machine must be left to the scheduler.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._local = threading.local()

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        # Inputs are read in place; the output tensor is reused by the next call, hence the copy.
        output = request.infer(inputs, share_inputs=True, share_outputs=True)[0]
        return np.array(output, dtype=np.float32)


def _convert(module: torch.nn.Module, example_inputs: Sequence[torch.Tensor]) -> ov.Model:
    """Trace and convert; the batch, and the length of token inputs, become dynamic."""
    module = module.eval().float()
    with warnings.catch_warnings(), torch.inference_mode():
        # The tracer warns of every Python branch it passes; the parity tests check what came out.
        warnings.simplefilter("ignore")
        model = ov.convert_model(module, example_input=tuple(example_inputs))
    shapes = {}
    for port, example in zip(model.inputs, example_inputs, strict=True):
        tokens = example.ndim == 2 and not example.is_floating_point()
        shapes[port] = [-1, -1] if tokens else [-1, *example.shape[1:]]
    model.reshape(shapes)
    return model
