"""Looks for damage in a data directory that nobody has open, and repairs nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from index.catalog import LOCK_NAME, locked
from index.errors import IndexUnavailable
from index.items import Rowids
from index.snapshots import Snapshots
from index.store import FILE_NAME, Reader, Store

ROWS_AT_ONCE: Final = 4096
CLOSED: Final = IndexUnavailable("the check is over")


def problems(root: Path) -> Iterator[str]:
    """What is wrong with the collections under `root`, a sentence each; nothing if all is well.

    Reads everything: the database's own integrity check, every vector, every snapshot.

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
    except IndexUnavailable as error:
        yield error.message
        return
    try:
        with store.snapshot() as reader:
            yield from reader.damage()
            yield from _rows(reader)
            yield from Snapshots(directory, reader.spec(), threads=1).problems()
    except IndexUnavailable as error:
        yield error.message
    finally:
        store.close(CLOSED)


def _rows(reader: Reader) -> Iterator[str]:
    spec, rowids = reader.spec(), reader.rowids()
    bad: list[Rowids] = []
    for start in range(0, len(rowids), ROWS_AT_ONCE):
        chunk = rowids[start : start + ROWS_AT_ONCE]
        vectors = reader.vectors(chunk, spec.dimensions)
        wrong = ~np.isfinite(vectors).all(axis=1)
        if spec.metric == "cosine":
            wrong |= np.abs(np.linalg.norm(vectors, axis=1) - 1) > 1e-3
        bad.append(chunk[wrong])
    if bad and (count := sum(map(len, bad))):
        yield f"{count} vectors are not what this collection stores (finite; of length 1 under cosine)"
