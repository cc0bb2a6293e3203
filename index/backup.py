"""Snapshots: whole copies of collections in a directory or object store.

A snapshot of collection `photos` is `photos/manifest.json`, written last, and the files that it lists by size
and SHA-256 under `photos/<id>/shard-<i>-of-<n>/`. What has no manifest was cut off.
"""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from configs.settings import Frozen, Name
from index.errors import IndexUnavailable, SnapshotExists
from index.locations import Location
from index.shards import shard_name

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

MANIFEST = "manifest.json"
OBJECT_STORES = ("s3", "gcs", "abfs")
"""What pyarrow calls those that have no directories to make."""
CHUNK_BYTES = 8 * 1024 * 1024
FilePath = Annotated[str, Field(pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)*$")]  # leads nowhere else


class StoredFile(Frozen):
    size: int  # bytes
    sha256: str


Part = Mapping[FilePath, StoredFile]
"""One shard's files, by their paths in the collection's directory."""


class Manifest(Frozen):
    """What a whole snapshot consists of; `created` is in seconds since 1970."""

    format: Literal[1] = 1
    collection: Name
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    created: int
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]  # one for each shard

    def directory(self, shard: int) -> str:
        return part_directory(self.collection, self.id, shard, len(self.parts))


def part_directory(collection: str, id: str, shard: int, shards: int) -> str:
    return f"{collection}/{id}/{shard_name(shard, shards)}"


def check_free(to: Location, collection: str) -> None:
    """Raise SnapshotExists where there is one of this collection."""
    from pyarrow.fs import FileType

    with file_errors(f"{to} cannot be reached"):
        if to.open().get_file_info(f"{collection}/{MANIFEST}").type != FileType.NotFound:
            raise SnapshotExists(
                f"{to} has a snapshot of {collection!r} already: give another name, or delete that one first"
            )


def write_part(source: Path, to: Location, directory: str, stop: threading.Event) -> Part:
    """Copy every file under `source`, which must not change, to `directory`; leave none when it fails.

    Raises:
        IndexUnavailable: the target is full, refuses or cannot be reached, or `stop` was set.
    """
    target = to.open()
    part: dict[str, StoredFile] = {}
    try:
        with file_errors(f"the snapshot could not be written to {to}"):
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                name = path.relative_to(source).as_posix()
                part[name] = _upload(path, target, f"{directory}/{name}", stop)
    except BaseException:
        with suppress(OSError):
            target.delete_dir(directory)
        raise
    return part


def discard(to: Location, collection: str, id: str) -> None:
    """Delete every part of a snapshot that was not finished; nothing of one that was, or of another.

    Raises:
        IndexUnavailable: nobody can tell, or delete, now.
    """
    target = to.open()
    with file_errors(f"what there is of a snapshot at {to} could not be deleted"):
        with suppress(FileNotFoundError), target.open_input_stream(f"{collection}/{MANIFEST}") as stream:
            if id.encode() in stream.read():  # which may have been told as an error
                return
        for delete, path in (
            (target.delete_dir, f"{collection}/{id}"),
            (target.delete_file, f"{collection}/{_unfinished(id)}"),
        ):
            with suppress(FileNotFoundError):
                delete(path)


def finish(to: Location, manifest: Manifest) -> None:
    """Make the parts a snapshot, if all of them can be seen from here, and no other was made meanwhile."""
    check_free(to, manifest.collection)
    target = to.open()
    path = f"{manifest.collection}/{MANIFEST}"
    with file_errors(f"the snapshot could not be written to {to}"):
        sizes = {
            f"{manifest.directory(shard)}/{name}": file.size
            for shard, part in enumerate(manifest.parts)
            for name, file in part.items()
        }
        for info in target.get_file_info(list(sizes)):
            if info.size != sizes[info.path]:
                raise IndexUnavailable(
                    f"{to}/{info.path} is not to be seen here: all shards must write to the same storage"
                )
        # An object appears whole, but of a file the beginning might be seen.
        unfinished = f"{manifest.collection}/{_unfinished(manifest.id)}" if _is_local(target) else path
        with target.open_output_stream(unfinished) as stream:
            stream.write(manifest.model_dump_json(indent=1).encode())
        if unfinished != path:
            target.move(unfinished, path)


def _unfinished(id: str) -> str:
    return f"{MANIFEST}.{id}"


def _upload(path: Path, target: "FileSystem", to: str, stop: threading.Event) -> StoredFile:
    if target.base_fs.type_name not in OBJECT_STORES:
        target.create_dir(to.rpartition("/")[0])
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file, target.open_output_stream(to) as stream:
        while chunk := file.read(CHUNK_BYTES):
            if stop.is_set():
                raise IndexUnavailable("the snapshot was given up before it was whole")
            stream.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return StoredFile(size=size, sha256=digest.hexdigest())


def _is_local(filesystem: "FileSystem") -> bool:
    from pyarrow.fs import LocalFileSystem

    return isinstance(filesystem.base_fs, LocalFileSystem)


@contextmanager
def file_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IndexUnavailable(f"{what}: {error.strerror or error}") from error
