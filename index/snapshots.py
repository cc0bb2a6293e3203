"""Segments on disk: written whole or not at all, checked before use, never the only copy of anything."""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import faiss
import numpy as np

from index.ann import BEYOND_CODES, KINDS, AnnKind, Stop
from index.evaluate import tuned
from index.items import Rowids, Vectors
from index.segment import Segment, Tuning
from index.spec import CollectionSpec

DIRECTORY: Final = "ann"
MANIFEST: Final = "manifest.json"
ROWIDS, VECTORS, INDEX = "rowids.npy", "vectors.npy", "index.faiss"
UNFINISHED: Final = ".unfinished"
FORMAT: Final = 1
BYTES_AT_ONCE: Final = 16 * 1024 * 1024

logger = logging.getLogger(__name__)


class Damaged(Exception):  # noqa: N818 — named for the files, of which it tells
    """Files of a segment that can never be used, and why. The database, from which it is rebuilt, has all."""


class Unreadable(Exception):  # noqa: N818 — likewise
    """Files of a segment that cannot be read now and may be sound: too few descriptors, too little memory."""


def _indexed(segment: Segment, kind: AnnKind, threads: int, target_recall: float, stop: Stop) -> Segment:
    """The segment with an index of this kind; with other codes, if too little was found with the first."""

    def made(beyond: float) -> tuple[Tuning, faiss.Index]:
        index = kind.build(segment.vectors, segment.metric, threads, stop, beyond)
        return tuned(replace(segment, kind=kind, index=index), target_recall), index

    tuning, index = made(0.0)
    if tuning.recall < target_recall and kind.coded:
        tuning, index = max((tuning, index), made(BEYOND_CODES), key=lambda one: one[0].recall)
    return replace(segment, kind=kind, index=index, tuning=tuning)


class _Writer:
    """A new file, its size and CRC-32 so far. Raises OSError as soon as the disk is full.

    Not a mapping: on a full disk that would end the process.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self.size = self.crc = 0

    def write(self, data: Any) -> int:
        self._file.write(data)
        size = memoryview(data).nbytes
        self.size, self.crc = self.size + size, zlib.crc32(data, self.crc)
        return size

    def finish(self) -> dict[str, int]:
        """Have it on disk; its size and checksum for the manifest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self.size, "crc32": self.crc}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # of what is still in its buffer; `finish` has raised it
            self._file.close()


class Snapshots:
    """The segments of one collection, each in a directory of its number under `ann/`.

    Of segments whose ranges of rowids overlap the one with the highest number counts: it was made
    from the others, which a crash kept from being deleted.
    """

    def __init__(self, collection: Path, spec: CollectionSpec, identity: str, threads: int) -> None:
        """`identity` is the collection's own: another of its name may be made while one is written."""
        self._root = collection / DIRECTORY
        self._spec = spec
        self._identity = identity
        self._threads = threads

    def write(
        self,
        rows: Iterable[tuple[Rowids, Vectors]],
        count: int,
        kind: AnnKind | None,
        *,
        threads: int,
        target_recall: float,
        stop: Stop,
    ) -> Segment:
        """A new segment of `rows`, `count` in chunks ascending by rowid; on disk when this returns.

        Raises:
            OSError: the disk is full or read-only. Nothing is left behind.
            Stopped: as `stop` wanted.
        """
        self._root.mkdir(exist_ok=True)
        number = max(map(_number, self._root.iterdir()), default=0) + 1
        unfinished = self._root / UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            segment, manifest = self._write(
                unfinished, number, rows, count, kind, threads, target_recall, stop
            )
            with _Writer(unfinished / MANIFEST) as file:
                file.write(json.dumps(manifest, indent=1).encode())
                file.finish()
            sync_directory(unfinished)
            unfinished.rename(self._directory(number))
            sync_directory(self._root)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return segment

    def _write(
        self,
        directory: Path,
        number: int,
        rows: Iterable[tuple[Rowids, Vectors]],
        count: int,
        kind: AnnKind | None,
        threads: int,
        target_recall: float,
        stop: Stop,
    ) -> tuple[Segment, dict[str, Any]]:
        files: dict[str, dict[str, int]] = {}
        written = []
        with _Writer(directory / VECTORS) as file:
            shape = (count, self._spec.dimensions)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for rowids, vectors in rows:
                written.append(rowids)
                file.write(np.ascontiguousarray(vectors, "<f4").data)
            files[VECTORS] = file.finish()
        rowids = np.concatenate(written)
        with _Writer(directory / ROWIDS) as file:
            np.lib.format.write_array(file, rowids.astype("<i8"))
            files[ROWIDS] = file.finish()
        mapped = np.load(directory / VECTORS, mmap_mode="r")
        segment = Segment(number, rowids, mapped, self._spec.metric, self._threads)
        if kind:
            segment = _indexed(segment, kind, threads, target_recall, stop)
            assert segment.index
            with _Writer(directory / INDEX) as file:
                target = faiss.PyCallbackIOWriter(file.write, BYTES_AT_ONCE)  # type: ignore[attr-defined]
                faiss.write_index(segment.index, target)
                files[INDEX] = file.finish()
            segment = replace(segment, index_bytes=files[INDEX]["bytes"])
        manifest = {
            "format": FORMAT,
            "collection": self._identity,
            "kind": kind.name if kind else "flat",
            "metric": self._spec.metric,
            "dimensions": self._spec.dimensions,
            "rows": len(rowids),
            "first_row": segment.first,
            "last_row": segment.last,
            "tuning": segment.tuning and asdict(segment.tuning),
            "files": files,
        }
        return segment, manifest | {"crc32": checksum(manifest)}

    def load(self, last_rowid: int) -> list[Segment]:
        """The newest valid segments, ascending by rowid. What is damaged, absorbed or unfinished is removed.

        What cannot be read now stays: it is used after another start, unless it was absorbed by then.
        `last_rowid` is the newest that the database ever gave.
        """
        chosen: list[Segment] = []
        if not self._root.is_dir():
            return chosen
        for path in sorted(self._root.iterdir(), key=_number, reverse=True):
            try:
                if _number(path) and self._chose(path, last_rowid, chosen):
                    continue
            except (Damaged, Unreadable) as error:
                logger.warning("segment %s of %r is not used: %s", path.name, self._spec.name, error)
                if isinstance(error, Unreadable):
                    continue
            shutil.rmtree(path, ignore_errors=True)  # a read-only directory keeps it; it is never used
        return sorted(chosen, key=lambda segment: segment.first)

    def _chose(self, directory: Path, last_rowid: int, chosen: list[Segment]) -> bool:
        """Read a segment into `chosen`; False if those absorbed it. Raises Damaged, Unreadable."""
        manifest = self._manifest(directory, last_rowid)
        first, last = manifest["first_row"], manifest["last_row"]
        if any(first <= other.last and last >= other.first for other in chosen):
            return False
        chosen.append(self._read(directory, manifest))
        return True

    def remove(self, segment: Segment) -> None:
        """Delete a segment's files; searches that still run on it keep them until they end."""
        shutil.rmtree(self._directory(segment.number), ignore_errors=True)

    def examined(self, last_rowid: int) -> Iterator[tuple[str, Segment | Damaged | Unreadable]]:
        """Each by its directory's name, or why `load` would not use it; reads every file."""
        with suppress(FileNotFoundError):
            for path in sorted(filter(_number, self._root.iterdir())):
                try:
                    yield path.name, self._read(path, self._manifest(path, last_rowid))
                except (Damaged, Unreadable) as error:
                    yield path.name, error

    def _directory(self, number: int) -> Path:
        return self._root / f"{number:06}"

    def _manifest(self, directory: Path, last_rowid: int) -> dict[str, Any]:
        """Raises Damaged for anything but the manifest of a segment of this collection, and Unreadable."""
        with _reading():
            manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_bytes())
            if manifest["format"] != FORMAT:
                raise Damaged(f"its format is {manifest['format']}, this release reads {FORMAT}")
            if manifest.pop("crc32") != checksum(manifest):
                raise Damaged(f"{MANIFEST} does not have the checksum it was written with")
            shape = manifest["metric"], manifest["dimensions"]
            if shape != (self._spec.metric, self._spec.dimensions):
                raise Damaged("it belongs to a collection with other settings")
            if manifest["collection"] != self._identity:
                raise Damaged("it belongs to a collection that had this name before")
            if manifest["last_row"] > last_rowid:
                raise Damaged("it is newer than the database, in whose place an older one was put")
            return manifest

    def _read(self, directory: Path, manifest: Mapping[str, Any]) -> Segment:
        """Raises Damaged for files that are not as they were written, and Unreadable."""
        with _reading():
            for name, expected in manifest["files"].items():
                _check(directory / name, expected)
            kind = KINDS.get(manifest["kind"])
            index = faiss.read_index(str(directory / INDEX)) if kind else None
            rowids: Rowids = np.load(directory / ROWIDS)
            vectors: Vectors = np.load(directory / VECTORS, mmap_mode="r")
            rows = manifest["rows"]
            if (len(rowids), vectors.shape) != (rows, (rows, self._spec.dimensions)) or rows == 0:
                raise Damaged("its files do not fit each other")
            if (rowids[0], rowids[-1]) != (manifest["first_row"], manifest["last_row"]):
                raise Damaged("its rows are not those of its manifest")
            if index is not None and index.ntotal != rows:
                raise Damaged("its index does not fit its rows")
            return Segment(
                _number(directory),
                rowids,
                vectors,
                self._spec.metric,
                self._threads,
                kind,
                index,
                Tuning(**manifest["tuning"]) if manifest["tuning"] else None,
                manifest["files"][INDEX]["bytes"] if kind else 0,
            )


_MEANS_DAMAGE: Final = (
    FileNotFoundError,
    NotADirectoryError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
)


@contextmanager
def _reading() -> Iterator[None]:
    """Errors of reading as what they say of the files."""
    try:
        yield
    except _MEANS_DAMAGE as error:
        raise Damaged(f"it cannot be read: {error}") from error
    except (OSError, MemoryError, RuntimeError) as error:  # FAISS' own is about a file that has its checksum
        raise Unreadable(f"it cannot be read now: {str(error) or 'not enough memory'}") from error


def checksum(manifest: Mapping[str, Any]) -> int:
    """CRC-32 of what a manifest says, however it is written."""
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def _check(path: Path, expected: dict[str, int]) -> None:
    if (size := path.stat().st_size) != expected["bytes"]:
        raise Damaged(f"{path.name} has {size} bytes and not {expected['bytes']}")
    with path.open("rb") as file:
        if _crc(file) != expected["crc32"]:
            raise Damaged(f"{path.name} does not have the checksum it was written with")


def _crc(file: BinaryIO) -> int:
    crc = 0
    while block := file.read(BYTES_AT_ONCE):
        crc = zlib.crc32(block, crc)
    return crc


def _number(path: Path) -> int:
    """The segment whose directory this is; 0 of anything else, such as one that was not finished."""
    return int(path.name) if path.name.isascii() and path.name.isdigit() else 0


def sync_directory(path: Path) -> None:
    """Make new and renamed entries of a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
