"""Looks for damage in a data directory that nobody has open, and repairs nothing."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from index.catalog import LOCK_NAME, locked
from index.errors import IndexUnavailable
from index.items import Rowids
from index.segment import Segment
from index.snapshots import DIRECTORY as SEGMENTS
from index.snapshots import Snapshots
from index.store import DAMAGED, FILE_NAME, Reader, Store

ROWS_AT_ONCE: Final = 4096
CLOSED: Final = IndexUnavailable("the check is over")


def problems(root: Path) -> Iterator[str]:
    """What is wrong with the collections under `root`, a sentence each; nothing if all is well.

    Reads everything: the database's own integrity check, every vector, every segment.

    Raises:
        IndexUnavailable: it is open in another process.
    """
    with locked(root / LOCK_NAME, 0):
        for path in sorted(root.glob(f"*/{FILE_NAME}")):
            if not path.parent.name.startswith("."):
                for problem in _collection_problems(path.parent):
                    yield f"{path.parent.name}: {problem}"


def _collection_problems(directory: Path) -> Iterator[str]:
    try:
        store = Store(directory)
    except Exception as error:
        yield _told(error)
        return
    try:
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
