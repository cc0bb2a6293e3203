"""Looks for damage in a data directory that nobody has open, and repairs nothing."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from index.catalog import LOCK_NAME, collection_directories, locked
from index.errors import IndexUnavailable
from index.items import Rowids
from index.segment import Segment
from index.shards import clash, shard_count, shard_directories, shard_name
from index.snapshots import DIRECTORY as SEGMENTS
from index.snapshots import Snapshots
from index.spec import CollectionSpec
from index.store import DAMAGED, MIGRATIONS, Reader, Store

ROWS_AT_ONCE: Final = 4096
CLOSED: Final = IndexUnavailable("the check is over")


def problems(root: Path) -> Iterator[str]:
    """What is wrong with the collections under `root`, a sentence each; nothing if all is well.

    Reads everything: the database's own integrity check, every vector, every segment.

    Raises:
        IndexUnavailable: it is open in another process.
    """
    with locked(root / LOCK_NAME, 0):
        for path in collection_directories(root):
            for problem in _collection_problems(path):
                yield f"{path.name}: {problem}"


def index_problems(root: Path) -> Iterator[str]:
    """What is wrong with the index under `root`: with each of its shards, and between them.

    Raises:
        IndexUnavailable: there is none, or it is open in another process.
    """
    shards = shard_directories(root)
    for shard in shards:
        for problem in problems(shard):
            yield problem if shard == root else f"{shard.name}: {problem}"
    if shards != [root]:
        yield from _differences(root, shards)


def _differences(root: Path, shards: Sequence[Path]) -> Iterator[str]:
    """Shards that are missing, and collections that some lack or hold with other settings."""
    counts = {count for shard in shards if (count := shard_count(shard.name))}
    names = {shard_name(shard, count) for count in counts for shard in range(count)}
    for missing in sorted(names - {shard.name for shard in shards}):
        yield f"{missing} is missing, and with it the items that it held"
    collections = {
        shard.name: {path.name: path for path in collection_directories(shard)} for shard in shards
    }
    for name in sorted({name for held in collections.values() for name in held}):
        specs: dict[str, CollectionSpec] = {}
        for shard, held in collections.items():
            if name not in held:
                yield f"{shard}: {name} is missing; other shards hold it"
            elif spec := _spec(held[name]):
                specs[shard] = spec
        if specs and (different := clash(specs)):
            yield f"{name}: {different}"


def _spec(directory: Path) -> CollectionSpec | None:
    """None for a collection of which no more can be read; that was a problem already."""
    with suppress(Exception):
        store = Store(directory, update=False)
        try:
            with store.snapshot() as reader:
                return reader.spec()
        finally:
            store.close(CLOSED)
    return None


def _collection_problems(directory: Path) -> Iterator[str]:
    try:
        store = Store(directory, update=False)
    except Exception as error:
        yield _told(error)
        return
    try:
        if store.schema_version < len(MIGRATIONS):
            yield (
                f"an older release wrote its database (schema version {store.schema_version}, now "
                f"{len(MIGRATIONS)}): serve it once, which updates it, and check it then"
            )
            return
        with store.snapshot() as reader:
            yield from reader.damage()
            segments = {}
            snapshots = Snapshots(directory, reader.spec(), reader.identity(), threads=1)
            for name, found in snapshots.examined(reader.last_rowid()):
                if isinstance(found, Segment):
                    segments[name] = found
                else:
                    yield f"segment {name}: {found}"
            yield from _rows(reader, segments)
    except Exception as error:
        yield _told(error)
    finally:
        store.close(CLOSED)


def _told(error: Exception) -> str:
    """What is damaged is met with errors of every kind."""
    if isinstance(error, IndexUnavailable):
        return error.message
    return f"{type(error).__name__}: {error}; {DAMAGED}"


def _rows(reader: Reader, segments: Mapping[str, Segment]) -> Iterator[str]:
    """What is wrong with the vectors, and with those of them that the segments hold too."""
    spec, rowids = reader.spec(), reader.rowids()
    bad: list[Rowids] = []
    other: Counter[str] = Counter()
    for start in range(0, len(rowids), ROWS_AT_ONCE):
        chunk = rowids[start : start + ROWS_AT_ONCE]
        vectors = reader.vectors(chunk, spec.dimensions)
        wrong = ~np.isfinite(vectors).all(axis=1)
        if spec.metric == "cosine":
            wrong |= np.abs(np.linalg.norm(vectors, axis=1) - 1) > 1e-3
        bad.append(chunk[wrong])
        for name, segment in segments.items():
            places = np.minimum(np.searchsorted(segment.rowids, chunk), len(segment.rowids) - 1)
            held = segment.rowids[places] == chunk
            other[name] += int(np.any(segment.vectors[places[held]] != vectors[held], axis=1).sum())
    if bad and (count := sum(map(len, bad))):
        yield f"{count} vectors are not what this collection stores (finite; of length 1 under cosine)"
    for name, count in (+other).items():
        yield (
            f"segment {name}: {count} vectors are not the database's; delete its directory "
            f"({SEGMENTS}/{name}), it is made again"
        )
