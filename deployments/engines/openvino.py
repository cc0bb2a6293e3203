"""The CPU engine: a converted network, with dynamic batch and length."""

import ctypes
import sys
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from configs.settings import Precision

# Importing openvino reports the import to an analytics host, and so does every conversion, unless
# its telemetry package cannot be imported: a stub that sends nothing then takes its place.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402

__all__ = ["OpenVinoEngine", "hint", "native_precision", "notes", "ov"]

_INT8_DOT_PRODUCTS: Final = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
_MADV_PAGEOUT: Final = 21  # of <asm-generic/mman-common.h>; Linux 5.4


def native_precision(asked: Precision) -> str:
    """What runs: fp32 in place of `auto` and bf16 where this CPU does not compute bf16 natively.

    OpenVINO takes the hint there, and without a word computes in fp32, or emulates bf16.
    """
    if asked in ("fp32", "int8"):
        return asked
    return "bf16" if _computes_bf16() else "fp32"


def notes(asked: Precision) -> tuple[str, ...]:
    """What an operator should know of this precision on this CPU."""
    if asked == "bf16" and not _computes_bf16():
        return ("precision bf16: this CPU has no instructions for it, fp32 runs in its place",)
    if asked == "int8" and not _INT8_DOT_PRODUCTS & _cpu_features():
        # Zen 3, ViT-B/32: 18.6 images a second, and 18.9 in fp32 (benchmarks/roof.py).
        return ("precision int8: this CPU has no 8-bit dot products (VNNI), expect it no faster than fp32",)
    return ()


def _computes_bf16() -> bool:
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _cpu_features() -> set[str]:
    """As Linux names them."""
    return set(Path("/proc/cpuinfo").read_text().split())


def hint(precision: str) -> str:
    """OpenVINO's name for it; for int8 that of the layers that are not quantised."""
    return {"fp32": "f32", "bf16": "bf16"}[native_precision("auto") if precision == "int8" else precision]


class OpenVinoEngine:
    """One compiled network with one stream of `threads` threads, and one infer request per thread."""

    name = "openvino"
    concurrency = 1
    buckets = False

    def __init__(self, network: Path, *, precision: str, threads: int) -> None:
        """`network` is an .xml file with its .bin beside it; `precision` fp32, bf16 or int8."""
        self.precision = precision
        self._weights = network.resolve().with_suffix(".bin")  # as the kernel names it
        self._compiled = ov.Core().compile_model(
            network,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": hint(precision),
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

    def warmed_up(self) -> None:
        """Give back the memory of the mapped weights, whose rearranged copies the kernels work with.

        Should a kernel want them again, they are read from the file.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/self/maps") as maps:
            for line in maps:
                if line.rstrip().removesuffix(" (deleted)").endswith(f" {self._weights}"):
                    first, last = (int(address, 16) for address in line.split()[0].split("-"))
                    libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_PAGEOUT)
