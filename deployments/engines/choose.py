"""Which engine runs a model's networks here."""

import ctypes
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.settings import EngineName, Precision
from deployments.engines.networks import Built, Networks
from deployments.engines.protocol import Agreement, Engine
from deployments.engines.quantization import Calibration

if TYPE_CHECKING:
    import torch

UNUSED_GPU = (
    "a GPU was asked for (scale.gpus) and this model does not use it: that takes engine auto or torch, "
    "another precision than int8, and a torch that sees the GPU"
)
logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Compiled:
    """An engine for each network, by name, and the facts that came with them."""

    engines: Mapping[str, Engine]
    facts: Mapping[str, Any]
    agreement: Agreement | None = None  # of int8 networks
    notes: tuple[str, ...] = ()  # what an operator should know


def compile_networks(
    networks: Networks,
    *,
    engine: EngineName,
    precision: Precision,
    threads: int,
    cache_dir: Path,
    calibration: Calibration | None = None,
    gpus: float = 0,
) -> Compiled:
    """Compile for this machine; `gpus` is what this process was given of them.

    `auto` takes torch where a CUDA device is visible and OpenVINO elsewhere, and for int8 everywhere;
    precision `auto` takes bf16 where the hardware computes it natively, fp16 on GPUs without it, and else
    fp32, which OpenVINO runs for bf16 too on a CPU without it. `cache_dir` keeps what OpenVINO runs, so that
    only a first start needs torch for it. int8 takes `calibration`.

    Raises:
        SettingsError: the networks' directory is no whole model; int8 needs a package that is missing, cannot
            use its calibration set, or agrees too little with fp32.
    """
    if engine == "auto":
        engine = "torch" if precision != "int8" and _cuda_device() else "openvino"
    # Imported late: each engine brings in what the other does without.
    if engine == "torch":
        return _told(_on_torch(networks.build(), precision, threads), networks, gpus)
    from deployments.engines.conversion import AGREEMENT, FACTS, STORED, converted
    from deployments.engines.openvino import OpenVinoEngine, native_precision, notes

    runs = native_precision(precision)
    with converted(networks, STORED[runs], cache_dir, calibration) as directory:
        agreement = None
        if runs == "int8":
            agreement = Agreement(**json.loads((directory / AGREEMENT).read_text(encoding="utf-8")))
            assert calibration is not None
            calibration.judge(agreement)
        compiled = Compiled(
            {
                file.stem: OpenVinoEngine(file, precision=runs, threads=threads)
                for file in sorted(directory.glob("*.xml"))
            },
            json.loads((directory / FACTS).read_text(encoding="utf-8")),
            agreement,
            notes(precision),
        )
    return _told(compiled, networks, gpus)


def _told(compiled: Compiled, networks: Networks, gpus: float) -> Compiled:
    """The same, its notes in the log, and one more where GPUs were given and are not used."""
    if gpus and any(engine.name != "torch-cuda" for engine in compiled.engines.values()):
        compiled = replace(compiled, notes=(*compiled.notes, UNUSED_GPU))
    for note in compiled.notes:
        logger.warning("%s: %s", networks.directory, note)
    return compiled


def _on_torch(built: Built, precision: Precision, threads: int) -> Compiled:
    from deployments.engines.cuda import CudaEngine, notes
    from deployments.engines.torch import TorchEngine

    cuda, max_tokens = _cuda_device(), built.facts.get("max_tokens")

    def engine(module: "torch.nn.Module") -> Engine:
        if cuda:
            return CudaEngine(module, precision=precision, max_tokens=max_tokens)
        return TorchEngine(module, precision=precision, threads=threads)

    engines = {name: engine(module) for name, (module, _) in built.modules.items()}
    return Compiled(engines, built.facts, notes=notes(precision) if cuda else ())


def _cuda_device() -> bool:
    """Whether torch would find one. It is only asked where there may be one, for it is slow to import."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # how Ray tells a replica without a GPU
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()
