"""Networks converted to OpenVINO's own format, once for each model, and kept on disk."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from deployments import isolated
from deployments.engines import quantization
from deployments.engines.networks import Networks
from deployments.engines.quantization import Calibration, Quantizer
from deployments.process_lock import process_lock

if TYPE_CHECKING:
    import openvino as ov
    import torch

logger = logging.getLogger("ray.serve")

Stored = Literal["fp32", "fp16", "int8"]
"""How weights lie on disk: as they are, halved for engines that compute in half precision anyway, or
quantised, with what is not quantised halved."""

STORED: Final[dict[str, Stored]] = {"fp32": "fp32", "bf16": "fp16", "int8": "int8"}  # by what runs

FACTS: Final = "facts.json"
AGREEMENT: Final = "agreement.json"  # of quantised networks
SIZES: Final = "sizes.json"  # of all other files, in bytes

_UNFINISHED: Final = "unfinished-"
_UNUSED_S: Final = 30 * 24 * 3600


@contextmanager
def converted(
    networks: Networks, stored: Stored, cache_dir: Path, calibration: Calibration | None = None
) -> Iterator[Path]:
    """The directory with facts.json and the .xml and .bin of each network, converted first if need be.

    int8 networks take `calibration`, and have agreement.json beside them.

    Any number of processes may want it at once: one converts, the others wait for it. What another version
    of the code or its packages made of the same model goes when it was not used for a month. Where the
    cache cannot be written to, every start converts for itself.

    Raises:
        SettingsError: the directory is no whole model; NNCF, which makes int8 networks, is not installed; the
            calibration set cannot be used.
    """
    name, makers = f"{networks.sources()[:32]}-{stored}", networks.makers()
    if stored == "int8":
        assert calibration is not None
        quantization.require_nncf()
        name += f"-{calibration.digest()[:16]}"
        makers = hashlib.sha256((makers + quantization.makers()).encode()).hexdigest()
    else:
        calibration = None
    shelf = cache_dir / "engines" / name
    target = shelf / makers[:16]
    if not _is_whole(target):
        begun = time.monotonic()
        try:
            _convert_into(target, networks, stored, calibration)
        except OSError as error:
            logger.warning("converted networks cannot be kept in %s: %s", shelf, error)
            with tempfile.TemporaryDirectory(prefix="sightline-") as scratch:
                isolated.call(_convert_all, networks, stored, calibration, Path(scratch))
                yield Path(scratch)  # an engine that has opened its files keeps them
            return
        logger.info("%s: converted for OpenVINO in %.1f s", networks.directory, time.monotonic() - begun)
    with suppress(OSError):  # read-only, or another user's
        os.utime(target)
    yield target


def _convert_into(target: Path, networks: Networks, stored: Stored, calibration: Calibration | None) -> None:
    shelf = target.parent
    shelf.mkdir(parents=True, exist_ok=True)
    with process_lock(shelf / ".lock"):
        if _is_whole(target):
            return  # another process was first
        for other in shelf.glob("*/"):
            unused = time.time() - other.stat().st_mtime > _UNUSED_S
            if other.name.startswith(_UNFINISHED) or unused or other == target:
                shutil.rmtree(other, ignore_errors=True)
        if target.exists():  # another user's
            raise PermissionError(f"{target} is not whole and cannot be removed")
        scratch = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=shelf))
        try:
            isolated.call(_convert_all, networks, stored, calibration, scratch)
            scratch.chmod(0o755)  # mkdtemp keeps it to its owner; the server may be another user
            scratch.rename(target)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)  # hundreds of megabytes, when the disk is full
            raise


def _is_whole(directory: Path) -> bool:
    """Whether everything is there that was written, to the byte."""
    try:
        sizes = json.loads((directory / SIZES).read_text(encoding="utf-8"))
        return all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):  # or JSON of another kind
        return False


def _convert_all(
    networks: Networks, stored: Stored, calibration: Calibration | None, directory: Path
) -> None:
    """Imports torch, and whatever else makes the networks."""
    from deployments.engines.openvino import ov

    built = networks.build()
    quantizer = None if calibration is None else Quantizer(calibration, built.facts)
    for name, (module, examples) in built.modules.items():
        model = _convert(module, examples)
        if quantizer is not None:
            model = quantizer(name, model)
        ov.save_model(model, directory / f"{name}.xml", compress_to_fp16=stored != "fp32")
    if quantizer is not None:
        (directory / AGREEMENT).write_text(json.dumps(asdict(quantizer.agreement())), encoding="utf-8")
    (directory / FACTS).write_text(json.dumps(built.facts), encoding="utf-8")
    sizes = {file.name: file.stat().st_size for file in directory.iterdir()}
    (directory / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
    for file in directory.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())


def _convert(module: "torch.nn.Module", examples: "tuple[torch.Tensor, ...]") -> "ov.Model":
    """Trace and convert; the batch, and the length of token inputs, become dynamic."""
    import torch

    from deployments.engines.openvino import ov

    module = module.eval().float()
    with warnings.catch_warnings(), torch.inference_mode():
        # The tracer warns of every Python branch it passes; the parity tests check what came out.
        warnings.simplefilter("ignore")
        model = ov.convert_model(module, example_input=examples)
    shapes = {}
    for port, example in zip(model.inputs, examples, strict=True):
        tokens = example.ndim == 2 and not example.is_floating_point()
        shapes[port] = [-1, -1] if tokens else [-1, *example.shape[1:]]
    model.reshape(shapes)
    return model
