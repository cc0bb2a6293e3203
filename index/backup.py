"""Snapshots: copies of collections in a directory or object store, and filling a data directory from them.

A snapshot of collection `photos` is `photos/manifest.json`, written last, and the files that it lists by size
and SHA-256 under `photos/<id>/shard-<i>-of-<n>/`. What has no manifest was cut off.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError

from configs.settings import Frozen, Name
from index.catalog import LOCK_NAME, locked
from index.errors import BadSnapshot, IndexUnavailable, SnapshotExists
from index.locations import Location
from index.shards import check_shard_count, shard_directory, shard_name
from index.snapshots import sync_directory

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

MANIFEST = "manifest.json"
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

    with _errors(f"{to} cannot be reached"):
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
        with _errors(f"the snapshot could not be written to {to}"):
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                name = path.relative_to(source).as_posix()
                part[name] = _upload(path, target, f"{directory}/{name}", stop)
    except BaseException:
        with suppress(OSError):
            target.delete_dir(directory)
        raise
    return part


def finish(to: Location, manifest: Manifest) -> None:
    """Make the parts a snapshot, if all of them can be seen from here."""
    target = to.open()
    path = f"{manifest.collection}/{MANIFEST}"
    with _errors(f"the snapshot could not be written to {to}"):
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
        unfinished = f"{path}.{manifest.id}" if _is_local(target) else path
        with target.open_output_stream(unfinished) as stream:
            stream.write(manifest.model_dump_json(indent=1).encode())
        if unfinished != path:
            target.move(unfinished, path)


def manifests(source: Location) -> list[Manifest]:
    """The snapshots at `source`, one of each collection.

    Raises:
        BadSnapshot: there is none, or one is damaged or was cut off.
        IndexUnavailable: it cannot be read.
    """
    from pyarrow.fs import FileSelector, FileType

    filesystem = source.open()
    with _errors(f"{source} cannot be read"):
        infos = filesystem.get_file_info(FileSelector("", allow_not_found=True))
        names = sorted(info.base_name for info in infos if info.type == FileType.Directory)
        if not names:
            raise BadSnapshot(f"{source} holds no snapshot: give the place that the snapshot was written to")
        return [_manifest(source, filesystem, name) for name in names]


def restore(
    source: Location, root: Path, shard: int, shards: int, lock_timeout_s: float = 0
) -> list[str] | None:
    """Fill the directory of one shard with the collections at `source`, all of them or none; their names.

    None if the directory was ever used, which is then left alone.

    Raises:
        BadSnapshot: one is damaged, cut off, or of another number of shards.
        IndexUnavailable: a file cannot be read or written.
    """
    if _is_used(root):
        return None
    found = manifests(source)
    for manifest in found:
        if len(manifest.parts) != shards:
            raise BadSnapshot(
                f"the snapshot of {manifest.collection!r} at {source} is of {len(manifest.parts)} shards "
                f"and this index has {shards}: set index.shards={len(manifest.parts)}"
            )
    unfinished = root.with_name(f".restoring-{root.name}")
    with _errors(f"{source} could not be restored"):
        unfinished.mkdir(parents=True, exist_ok=True)
        with locked(unfinished / LOCK_NAME, lock_timeout_s):
            if _is_used(root):  # by another process that held the lock
                return None
            for leftover in unfinished.iterdir():
                if leftover.name != LOCK_NAME:
                    shutil.rmtree(leftover)
            filesystem = source.open()
            for manifest in found:
                _download(filesystem, manifest, shard, unfinished / manifest.collection)
            sync_directory(unfinished)
            unfinished.rename(root)
            sync_directory(root.parent)
    return [manifest.collection for manifest in found]


def restore_all(source: Location, root: Path) -> tuple[int, list[str]]:
    """Restore every shard of the collections at `source`: how many those are, and the names.

    Raises what `restore` does, and IndexUnavailable if the directory was used.
    """
    shards = len(manifests(source)[0].parts)
    check_shard_count(root, shards)
    names: list[str] = []
    for shard in range(shards):
        restored = restore(source, shard_directory(root, shard, shards), shard, shards)
        if restored is None:
            raise IndexUnavailable(f"{root} was used before; restore into a data directory that is new")
        names = restored
    return shards, names


def _is_used(root: Path) -> bool:
    return root.is_dir() and any(root.iterdir())


def _upload(path: Path, target: "FileSystem", to: str, stop: threading.Event) -> StoredFile:
    if _is_local(target):  # object stores have no directories to make
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


def _manifest(source: Location, filesystem: "FileSystem", name: str) -> Manifest:
    try:
        with filesystem.open_input_stream(f"{name}/{MANIFEST}") as stream:
            manifest = Manifest.model_validate_json(stream.read())
    except FileNotFoundError:
        raise BadSnapshot(
            f"{source}/{name} has no {MANIFEST}: the copy was cut off, or it is no snapshot; take another one"
        ) from None
    except ValidationError:
        raise BadSnapshot(f"{source}/{name}/{MANIFEST} is damaged, or of a newer release") from None
    return manifest


def _download(filesystem: "FileSystem", manifest: Manifest, shard: int, into: Path) -> None:
    for name, file in manifest.parts[shard].items():
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        where = f"{manifest.directory(shard)}/{name}"
        try:
            with filesystem.open_input_stream(where) as stream, path.open("wb") as output:
                while chunk := stream.read(CHUNK_BYTES):
                    output.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                output.flush()
                os.fsync(output.fileno())
        except FileNotFoundError:
            raise BadSnapshot(f"the snapshot of {manifest.collection!r} lacks its file {where}") from None
        if (size, digest.hexdigest()) != (file.size, file.sha256):
            raise BadSnapshot(
                f"the snapshot of {manifest.collection!r} is damaged: {where} has {size} bytes that are not "
                f"the {file.size} written; restore from another one"
            )
        sync_directory(path.parent)


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IndexUnavailable(f"{what}: {error.strerror or error}") from error
