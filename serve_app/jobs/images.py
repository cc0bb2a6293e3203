"""The stages of an image job, as Ray Data runs them: read and ask, then decode and embed."""

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from pyarrow import fs

from configs.settings import ClipSettings, LimitSettings
from configs.threads import threads_for
from deployments.errors import SightlineError
from deployments.models.base import THUMBNAIL_PX, Pixels
from deployments.models.images import decode, decode_with_thumbnail
from deployments.models.loading import load_encoder
from deployments.models.sources import Source
from deployments.models.towers import Encoder
from index.items import content_id
from index.keys import is_utf8
from serve_app.jobs.server import Collection

Columns = dict[str, Any]  # by name, each as long as the others
THERE: Final = "there already"
"""The `problem` of an image whose content the collection holds."""


@dataclass(frozen=True)
class Folder:
    """Files under a directory or a bucket's prefix: `root` is a path within `filesystem`."""

    filesystem: fs.FileSystem
    root: str

    @classmethod
    def at(cls, source: str) -> "Folder":
        """Raises ValueError, OSError for what is no path and no URI that pyarrow knows."""
        if "://" not in source:
            source = str(Path(source).expanduser().resolve())
        return cls(*fs.FileSystem.from_uri(source))

    def files(self, problems: dict[str, str]) -> Iterator[tuple[str, int]]:
        """Paths under the root and bytes, in the order of their names; hidden ones are passed over.

        What cannot be one is added to `problems`, by its name. Links are followed, but each folder is listed
        once. Raises OSError if the root cannot be listed.
        """
        # Of a local folder pyarrow gives nothing at all when one name in it is not UTF-8.
        local = isinstance(self.filesystem, fs.LocalFileSystem)
        found = _walked(self.root, problems) if local else self._listed()
        for path, size in sorted(found):
            if not is_utf8(path):
                problems[ascii(path)] = "its name is not UTF-8; rename it"
            elif not any(part[0] == "." for part in path.split("/")):
                yield path, size

    def _listed(self) -> Iterator[tuple[str, int]]:
        for info in self.filesystem.get_file_info(fs.FileSelector(self.root, recursive=True)):
            if info.type == fs.FileType.File:
                yield info.path.removeprefix(self.root).lstrip("/"), info.size

    def read(self, path: str) -> bytes:
        with self.filesystem.open_input_file(f"{self.root}/{path}") as file:
            content: bytes = file.read()
            return content


@dataclass(frozen=True)
class Read:
    """path, size → path, size, id, content, problem; with a problem, or there already, without content."""

    folder: Folder
    collection: Collection

    def __call__(self, files: Columns) -> Columns:
        contents, problems = [], []
        most = LimitSettings().max_body_bytes
        for path, size in zip(files["path"], files["size"], strict=True):
            if size > most:  # a film beside the photos
                contents.append(b"")
                problems.append(f"it has {size} bytes; images of at most {most} are read")
                continue
            try:
                contents.append(self.folder.read(path))
                problems.append("")
            except OSError as error:
                contents.append(b"")
                problems.append(f"cannot be read: {error}")
        ids = [content_id(content) for content in contents]
        wanted = [id for id, problem in zip(ids, problems, strict=True) if not problem]
        missing = self.collection.missing(wanted)
        for place, id in enumerate(ids):
            if not problems[place] and id not in missing:
                contents[place], problems[place] = b"", THERE
        return {**files, "id": ids, "content": _as_objects(contents), "problem": problems}


class Embed:
    """path, size, id, content, problem → path, size, id, problem, vector (float32 bytes), thumbnail (a JPEG,
    or empty), fingerprint.

    Loads the encoder when the first image comes: a job with nothing left to do needs none.
    """

    def __init__(
        self, source: Source, settings: ClipSettings, cache_dir: Path, cpus: float, thumbnails: bool
    ) -> None:
        threads = threads_for(settings.threads, cpus)
        self._load = partial(load_encoder, source, settings, cache_dir, threads)
        self._thumbnails = thumbnails
        self._encoder: Encoder | None = None
        self._pool = ThreadPoolExecutor(threads, "decode")

    def __call__(self, images: Columns) -> Columns:
        problems, fingerprint = list(images["problem"]), ""
        vectors, thumbnails = [b""] * len(problems), [b""] * len(problems)
        asked = [place for place, problem in enumerate(problems) if not problem]
        first = {images["id"][place]: place for place in reversed(asked)}
        waiting = sorted(first.values())  # one picture under several names is embedded once
        if waiting:
            self._encoder = self._encoder or self._load()
            fingerprint = self._encoder.info.fingerprint
            pixels: dict[int, Pixels] = {}
            decoded = self._pool.map(self._decode, (images["content"][place] for place in waiting))
            for place, image in zip(waiting, decoded, strict=True):
                if isinstance(image, str):
                    problems[place] = image
                else:
                    pixels[place], thumbnails[place] = image
            if pixels:
                rows = self._encoder.image.run([self._encoder.image.pre(image) for image in pixels.values()])
                for place, row in zip(pixels, rows, strict=True):
                    vectors[place] = row.astype("<f4").tobytes()
        for place in asked:
            same = first[images["id"][place]]
            problems[place], vectors[place] = problems[same], vectors[same]
            thumbnails[place] = thumbnails[same]
        return {
            **{name: images[name] for name in ("path", "size", "id")},
            "problem": problems,
            "vector": _as_objects(vectors),
            "thumbnail": _as_objects(thumbnails),
            "fingerprint": [fingerprint] * len(problems),
        }

    def _decode(self, content: bytes) -> tuple[Pixels, bytes] | str:
        """The pixels and the thumbnail, or why there are none."""
        assert self._encoder is not None
        size, most = self._encoder.image.size, LimitSettings().max_image_pixels
        try:
            if self._thumbnails:
                return decode_with_thumbnail(content, size, most, THUMBNAIL_PX)
            return decode(content, size, most), b""
        except SightlineError as error:
            return str(error)


def _walked(root: str, problems: dict[str, str]) -> Iterator[tuple[str, int]]:
    def note(error: OSError) -> None:
        if error.filename == root:
            raise error
        problems[os.path.relpath(error.filename, root)] = f"cannot be listed: {error.strerror}"

    seen = set()
    for directory, below, names in os.walk(root, onerror=note, followlinks=True):
        try:
            here = os.stat(directory)
        except OSError as error:
            note(error)
            continue
        if (here.st_dev, here.st_ino) in seen:
            below.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in names:
            if name.startswith("."):
                continue
            path = os.path.join(directory, name)
            try:
                status = os.stat(path)
            except OSError as error:
                problems[os.path.relpath(path, root)] = f"cannot be read: {error.strerror}"
            else:
                if stat.S_ISREG(status.st_mode):
                    yield os.path.relpath(path, root), status.st_size


def _as_objects(values: list[bytes]) -> Any:
    """An array of them as they are; numpy's own type for bytes would drop zeros at their ends."""
    array = np.empty(len(values), object)
    array[:] = values
    return array
