"""Filling a new data directory from snapshots: all that is there, checked, or nothing."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from index.backup import CHUNK_BYTES, MANIFEST, Manifest, file_errors
from index.catalog import LOCK_NAME, locked
from index.errors import BadSnapshot, IndexUnavailable
from index.locations import Location
from index.shards import check_shard_count, shard_directory, shard_name
from index.snapshots import sync_directory

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SIBLINGS_TIMEOUT_S = 60  # they hold it while a directory is renamed
RESTORED = "restored.json"
"""In a shard's directory: the ids of the snapshots it was filled from, by collection."""


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
    with file_errors(f"{source} could not be restored"):
        unfinished.mkdir(parents=True, exist_ok=True)
        with locked(unfinished / LOCK_NAME, lock_timeout_s):
            if _is_used(root):  # by another process that held the lock
                return None
            for leftover in unfinished.iterdir():
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                elif leftover.name != LOCK_NAME:
                    leftover.unlink()
            filesystem = source.open()
            for manifest in found:
                _download(filesystem, manifest, shard, unfinished / manifest.collection)
            ids = {manifest.collection: manifest.id for manifest in found}
            with _siblings_agree(root, shards, ids):
                (unfinished / RESTORED).write_text(json.dumps(ids), encoding="utf-8")
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
    filled: list[Path] = []
    try:
        for shard in range(shards):
            directory = shard_directory(root, shard, shards)
            restored = restore(source, directory, shard, shards)
            if restored is None:
                raise IndexUnavailable(f"{root} was used before; restore into a data directory that is new")
            filled.append(directory)
            names = restored
    except BaseException:
        for directory in filled:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    return shards, names


def manifests(source: Location) -> list[Manifest]:
    """The snapshots at `source`, one of each collection.

    Raises:
        BadSnapshot: there is none, or one is damaged or was cut off.
        IndexUnavailable: it cannot be read.
    """
    from pyarrow.fs import FileSelector, FileType

    filesystem = source.open()
    with file_errors(f"{source} cannot be read"):
        infos = filesystem.get_file_info(FileSelector("", allow_not_found=True))
        names = sorted(info.base_name for info in infos if info.type == FileType.Directory)
        found = [_manifest(source, filesystem, name) for name in names]
        if not (whole := [manifest for manifest in found if manifest]):
            raise BadSnapshot(f"{source} holds no snapshot: give the place that the snapshot was written to")
        return whole


@contextmanager
def _siblings_agree(root: Path, shards: int, ids: Mapping[str, str]) -> Iterator[None]:
    """While the block runs no other shard here becomes filled, and those that are come from these snapshots.

    Raises BadSnapshot where one was filled from others.
    """
    if shards == 1:
        yield
        return
    with locked(root.with_name(f".{RESTORED}"), SIBLINGS_TIMEOUT_S):
        for shard in range(shards):
            record = root.with_name(shard_name(shard, shards)) / RESTORED
            if record.is_file() and json.loads(record.read_text(encoding="utf-8")) != ids:
                raise BadSnapshot(
                    f"{record.parent.name} was filled from other snapshots than {root.name} would be: fill "
                    f"all from the same in a new data directory, or delete {record} to mix them"
                )
        yield


def _is_used(root: Path) -> bool:
    return root.is_dir() and any(root.iterdir())


def _manifest(source: Location, filesystem: "FileSystem", name: str) -> Manifest | None:
    """None of a directory without any file, such as a snapshot leaves that failed."""
    from pyarrow.fs import FileSelector, FileType

    try:
        with filesystem.open_input_stream(f"{name}/{MANIFEST}") as stream:
            manifest = Manifest.model_validate_json(stream.read())
    except FileNotFoundError:
        inside = filesystem.get_file_info(FileSelector(name, recursive=True))
        if not any(info.type == FileType.File for info in inside):
            return None
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
