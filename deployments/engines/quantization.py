"""int8 networks: quantised after training by NNCF, and compared with the fp32 ones they are made from."""

import hashlib
import importlib.util
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from configs.settings import SettingsError
from deployments.engines.protocol import Agreement

if TYPE_CHECKING:
    import openvino as ov

logger = logging.getLogger("ray.serve")

# The first convolutions see the pixels: few channels of wide range. Left alone, MobileNetV2's embeddings
# of CIFAR-10 images kept 0.984 of cosine to fp32, where quantised they kept 0.930, and zero-shot agreed for
# 93% against 83%. A vision transformer has but one, 3% of its work.
_EXACT_CONVOLUTIONS: Final = 3

_CONVOLUTION: Final = frozenset({"Convolution", "GroupConvolution"})
_ATTENTION: Final = frozenset({"ScaledDotProductAttention"})

# The inputs of one row, the batch axis included. A network that takes fewer is given the first of them.
Row = tuple[NDArray[Any], ...]
Outputs = NDArray[np.float32]


class Calibration(Protocol):
    """What a model's networks are quantised with and judged by. It reaches another process pickled."""

    def digest(self) -> str:
        """Of everything that decides the rows, 64 hex digits. Raises SettingsError."""

    def rows(self, facts: Mapping[str, Any]) -> Mapping[str, Sequence[Row]]:
        """What each network runs on; `facts` came with the networks. Raises SettingsError."""

    def compare(
        self, facts: Mapping[str, Any], wanted: Mapping[str, Outputs], found: Mapping[str, Outputs]
    ) -> Agreement:
        """What fp32 and int8 networks answer for the same rows, compared; `facts` came with the networks."""

    def judge(self, agreement: Agreement) -> None:
        """Raises SettingsError where it is too little."""


class Quantizer:
    """Quantises a model's networks one by one, and keeps what they answered before and after."""

    def __init__(self, calibration: Calibration, facts: Mapping[str, Any]) -> None:
        self._calibration = calibration
        self._facts = facts
        self._rows = calibration.rows(facts)
        self._wanted: dict[str, Outputs] = {}
        self._found: dict[str, Outputs] = {}

    def __call__(self, name: str, model: "ov.Model") -> "ov.Model":
        """The int8 network; takes tens of seconds, and says so in the log."""
        rows = [row[: len(model.inputs)] for row in self._rows[name]]
        logger.warning("quantising the %s network to int8 on %d rows; once, for the cache", name, len(rows))
        begun = time.monotonic()
        self._wanted[name] = _outputs(model, rows, "fp32")
        quantised = _quantise(model, rows)
        self._found[name] = _outputs(quantised, rows, "int8")
        logger.warning("the %s network is quantised, after %.0f s", name, time.monotonic() - begun)
        return quantised

    def agreement(self) -> Agreement:
        return self._calibration.compare(self._facts, self._wanted, self._found)


def require_nncf() -> None:
    """Raises SettingsError where it is not installed."""
    if importlib.util.find_spec("nncf") is None:
        raise SettingsError("precision int8 needs NNCF: install the int8 extra, `pip install -e '.[int8]'`")


def makers() -> str:
    """A digest of what quantises, this code and NNCF's version, 64 hex digits."""
    return hashlib.sha256(f"nncf=={version('nncf')}".encode() + Path(__file__).read_bytes()).hexdigest()


def _quantise(model: "ov.Model", rows: Sequence[Row]) -> "ov.Model":
    """Weights and activations to int8, activations symmetric: asymmetric ones were slower and no nearer.

    SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) evens out the channels of a transformer's activations
    first, and the biases are corrected for what rounding shifts.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own dependencies' deprecations
        import nncf

        # Its progress bars stay. nncf.set_log_level would set handlers' levels as well, which others share.
        logging.getLogger("nncf").setLevel(logging.ERROR)
        return nncf.quantize(
            model,
            nncf.Dataset(rows, list),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            model_type=nncf.ModelType.TRANSFORMER if _named(model, _ATTENTION) else None,
            subset_size=len(rows),
            ignored_scope=nncf.IgnoredScope(names=_named(model, _CONVOLUTION)[:_EXACT_CONVOLUTIONS]),
        )


def _named(model: "ov.Model", types: frozenset[str]) -> list[str]:
    """The nodes of these types, in the order they run."""
    return [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() in types]


def _outputs(model: "ov.Model", rows: Sequence[Row], precision: str) -> Outputs:
    """What a network answers, float32[rows, outputs], on all cores."""
    from deployments.engines.openvino import hint, ov

    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint(precision)})
    request = compiled.create_infer_request()
    return np.concatenate([np.array(request.infer(row)[0], dtype=np.float32) for row in rows])
