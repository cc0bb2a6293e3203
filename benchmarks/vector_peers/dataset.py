"""The data set as files: vectors, queries, categories, and the true neighbours of the queries.

Needs no more than numpy, for the systems' own processes read it too; `mixture` makes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Truth = NDArray[np.int64]  # [q, K], or as many columns as items that may be found

K = 10
TUNING = 500  # queries that choose a system's search setting
QUERIES = 1000  # queries that everything is reported on
CATEGORIES = ("other", "rare", "common")
SHARES = (0.89, 0.01, 0.10)
FILTERS = (None, "rare", "common")


@dataclass(frozen=True)
class Queries:
    """Queries float32 [q, d] and, by filter, the ids of their nearest K items, nearest first."""

    vectors: Floats
    truth: dict[str | None, Truth]


@dataclass(frozen=True)
class Dataset:
    """Item i has id i, row i of the vectors, and its category."""

    directory: Path
    count: int
    dimensions: int

    def vectors(self) -> Floats:
        """float32 [count, dimensions], unit length, not read into memory."""
        vectors: Floats = np.load(self.directory / "vectors.npy", mmap_mode="r")
        return vectors

    def categories(self) -> list[str]:
        return [CATEGORIES[number] for number in np.load(self.directory / "categories.npy")]

    def queries(self) -> tuple[Queries, Queries]:
        """Those to choose settings with, and those to report on."""
        vectors, truth = np.load(self.directory / "queries.npy"), np.load(self.directory / "truth.npz")
        tuning, reported = slice(None, TUNING), slice(TUNING, None)
        return (
            Queries(vectors[tuning], {name: truth[str(name)][tuning] for name in FILTERS}),
            Queries(vectors[reported], {name: truth[str(name)][reported] for name in FILTERS}),
        )

    def batches(self, size: int) -> Iterator[tuple[range, Floats, list[str]]]:
        """Ids, vectors and categories of all items, `size` at a time."""
        vectors, categories = self.vectors(), self.categories()
        for start in range(0, self.count, size):
            ids = range(start, min(start + size, self.count))
            rows = slice(ids.start, ids.stop)
            yield ids, np.asarray(vectors[rows]), categories[rows]
