"""A folder of labelled images, one directory per class, and what the serving encoder makes of each."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from tqdm import tqdm

from configs.settings import LimitSettings
from deployments.errors import BadInput
from deployments.models.base import Vectors
from deployments.models.images import decode
from deployments.models.towers import Encoder
from training.data import DataError, Row

_BATCH: Final = 32  # images a forward; larger batches gain nothing on a CPU (FACTS: 97/s at 32)
_SAVE_EVERY: Final = 1024  # images; a run that was stopped loses at most that many embeddings


@dataclass(frozen=True)
class ImageFolder:
    """The files of `root/<class>/`; a row's text is its path under `root`, its line its place in the list."""

    root: Path
    rows: tuple[Row, ...]


def read_folder(root: Path) -> ImageFolder:
    """List the files, sorted; hidden ones are passed over.

    Raises:
        DataError: there is no such folder, or no class directory with a file in it.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a directory; give one with a directory of images for each class")
    files = [
        file
        for label in sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        for file in sorted(label.rglob("*"))
        if file.is_file() and file.name[0] != "."
    ]
    if not files:
        raise DataError(f"{root} holds no class directories with images, as in {root}/beagle/photo.jpg")
    rows = (
        Row(str(file.relative_to(root)), file.relative_to(root).parts[0], line)
        for line, file in enumerate(files, start=1)
    )
    return ImageFolder(root, tuple(rows))


def embed_folder(
    folder: ImageFolder, encoder: Encoder, store: Path
) -> tuple[tuple[Row, ...], Vectors, dict[str, str]]:
    """The rows that decode, their embeddings float32[n, dimensions], and why each other file was left out.

    Each image is embedded once: `store` keeps vectors by the file's content under the encoder's
    fingerprint. The same picture under two names counts once, so that it cannot be in two parts.
    """
    path = store / f"{encoder.info.fingerprint[:32]}.npz"
    known = _load(path)
    kept: list[Row] = []
    digests: list[str] = []
    left_out: dict[str, str] = {}
    waiting: dict[str, np.ndarray] = {}
    seen: dict[str, str] = {}

    def flush() -> None:
        if waiting:
            pixels = [encoder.image.pre(image) for image in waiting.values()]
            known.update(zip(waiting, encoder.image.run(pixels), strict=True))
            waiting.clear()

    unsaved = 0
    for row in tqdm(folder.rows, "embedding", unit="image"):
        content = (folder.root / row.text).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest in seen:
            left_out[row.text] = f"same picture as {seen[digest]}"
            continue
        if digest not in known:
            try:
                waiting[digest] = decode(content, encoder.image.size, LimitSettings().max_image_pixels)
            except BadInput as error:
                left_out[row.text] = str(error)
                continue
            unsaved += 1
        seen[digest] = row.text
        kept.append(row)
        digests.append(digest)
        if len(waiting) == _BATCH:
            flush()
        if unsaved >= _SAVE_EVERY:
            flush()
            _save(path, known)
            unsaved = 0
    flush()
    if unsaved:
        _save(path, known)
    vectors = np.stack([known[digest] for digest in digests]) if kept else np.empty((0, 0), np.float32)
    return tuple(kept), vectors, left_out


def _load(path: Path) -> dict[str, Vectors]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return dict(zip(stored["digests"].tolist(), stored["vectors"], strict=True))


def _save(path: Path, known: dict[str, Vectors]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new.npz")
    digests: Sequence[str] = list(known)
    np.savez(scratch, digests=np.array(digests), vectors=np.stack([known[d] for d in digests]))
    scratch.replace(path)
