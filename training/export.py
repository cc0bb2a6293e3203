"""Export a classifier: `python -m training.export --format torchscript|onnx models/NAME/1 OUT`.

Both files take ids and mask, int64[n, length] with n and length free, and give logits float32[n, labels].
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import DistilBertForSequenceClassification

from configs.settings import SettingsError
from deployments.errors import SightlineError
from deployments.models import adapters
from deployments.models.directories import check_directory, require_type
from deployments.models.networks.pretrained import load_network
from deployments.models.versions import LATEST, choose
from training.network import Logits

# Other kernels add up in another order; fp32 logits of a DistilBERT then differ by about 1e-6.
TOLERANCE: Final = 1e-4
_TRACED: Final = (2, 7)
_CHECKED: Final = ((1, 3), (3, 19), (2, 64))  # shapes that were not traced


class ExportError(RuntimeError):
    """The exported file does not do what the model does, or a package for it is missing."""


def to_torchscript(model_dir: Path, out: Path, cache_dir: Path = Path(".cache")) -> float:
    """Write a TorchScript file for `torch.jit.load`; the largest difference between logits found.

    Raises:
        ExportError: the difference is above TOLERANCE.
        SettingsError: the directory holds no whole DistilBERT classifier.
    """
    network = _load(model_dir, cache_dir)
    with _quiet(), torch.inference_mode():
        jit: Any = torch.jit
        jit.save(jit.trace(network, _inputs(_TRACED), check_trace=False), str(out))
        return _parity(network, jit.load(str(out)), out)


def to_onnx(model_dir: Path, out: Path, cache_dir: Path = Path(".cache")) -> float:
    """Write an ONNX file of one piece; the largest difference between logits found, run by OpenVINO.

    Raises:
        ExportError: the difference is above TOLERANCE, or onnx and onnxscript are not installed.
        SettingsError: the directory holds no whole DistilBERT classifier.
    """
    network = _load(model_dir, cache_dir)
    ids, mask = _inputs(_TRACED)
    free = {
        0: torch.export.Dim("n"),
        1: torch.export.Dim("length", max=network.classifier.config.max_position_embeddings),
    }
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"{error}: install the export extra, `pip install -e '.[export]'`") from error
    with _quiet():
        torch.onnx.export(
            network,
            (ids, mask),
            out,
            input_names=["ids", "mask"],
            output_names=["logits"],
            dynamic_shapes=(free, free),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    # Its import by our engine keeps it from reporting to an analytics host.
    import openvino as ov

    import deployments.engines.openvino  # noqa: F401

    compiled = ov.Core().compile_model(out, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return _parity(
        network, lambda *given: torch.from_numpy(compiled([*map(np.asarray, given)])[0].copy()), out
    )


FORMATS: Final = {"torchscript": to_torchscript, "onnx": to_onnx}


def _load(model_dir: Path, cache_dir: Path) -> Logits:
    directory, _ = choose(model_dir, LATEST)
    if adapters.is_adapter(directory):
        directory = adapters.materialize(directory, cache_dir)
    require_type(check_directory(directory), "distilbert")
    # Both exporters follow the plain arithmetic; the fused attention has forms they do not know.
    network = load_network(DistilBertForSequenceClassification, directory, attn_implementation="eager")
    return Logits(network).train(False)


def _inputs(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids from a fixed seed, and a mask whose second row is half as long."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(shape, dtype=torch.int64)
    if shape[0] > 1:
        mask[1, (shape[1] + 1) // 2 :] = 0
    return torch.randint(1000, 2000, shape, generator=generator), mask


def _parity(
    network: Logits, exported: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], out: Path
) -> float:
    with torch.inference_mode():
        differences: list[float] = [
            (exported(*_inputs(shape)) - network(*_inputs(shape))).abs().max().item() for shape in _CHECKED
        ]
    if not max(differences) <= TOLERANCE:  # so that NaN fails as well
        raise ExportError(f"{out} gives logits that differ by {max(differences):.2g} from the model's")
    return max(differences)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of every Python branch and of their own age; parity is checked instead."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    log.setLevel(level)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export one model directory and compare the file with the model."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache"))
    parser.add_argument("model", type=Path, help="models/NAME/VERSION, or models/NAME for the newest")
    parser.add_argument("out", type=Path)
    given = parser.parse_args(arguments)
    try:
        difference = FORMATS[given.format](given.model, given.out, given.cache_dir)
    except (ExportError, SettingsError, SightlineError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{given.out}: logits within {difference:.1g} of the model's\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
