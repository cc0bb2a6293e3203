"""Exact nearest neighbours: FAISS's kernels on arrays of our own, and rows that grow by immutable views."""

from functools import cached_property
from typing import Self, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from index.items import Rowids, Vectors
from index.spec import Metric

T = TypeVar("T", bound=np.generic)

Scores = NDArray[np.float32]  # [q, k]
Mask = NDArray[np.bool_]  # [n]
GROWTH = 1.5
"""Capacity over size when the arrays must move; memory that is not written to is not resident."""
BLAS_NUMBERS = 128_000
"""Numbers in all queries together from which FAISS multiplies matrices."""


def nearest(
    queries: Vectors,
    vectors: Vectors,
    limit: int,
    metric: Metric,
    threads: int,
    selector: faiss.IDSelector | None = None,
) -> tuple[Scores, Rowids]:
    """Exact search of queries [q, d] in vectors [n, d]: scores and positions, both [q, limit], best first.

    A higher score is nearer: the inner product under cosine and dot, the squared distance negated
    under l2. Where fewer than `limit` rows pass the selector, the positions at the end are -1.
    """
    scores = np.empty((len(queries), limit), np.float32)
    positions = np.empty((len(queries), limit), np.int64)
    if selector is None and (metric == "l2" or queries.size < BLAS_NUMBERS):
        # Without a selector FAISS multiplies matrices once the queries are many: 7 times faster, but
        # as x² - 2xy + y² under l2 it loses the differences between near vectors far from the
        # origin. With few queries it only wakes all threads for one, several times slower on a
        # busy machine.
        selector = faiss.IDSelectorAll()
    faiss.omp_set_num_threads(threads)  # OpenMP keeps it per calling thread
    queries = np.ascontiguousarray(queries, np.float32)
    arrays = faiss.swig_ptr(queries), faiss.swig_ptr(vectors)
    counts = queries.shape[1], len(queries), len(vectors), limit
    results = faiss.swig_ptr(scores), faiss.swig_ptr(positions)
    if metric == "l2":
        faiss.knn_L2sqr(*arrays, *counts, *results, None, selector)
        return 0 - scores, positions
    faiss.knn_inner_product(*arrays, *counts, *results, selector)
    return scores, positions


def bits(mask: Mask) -> NDArray[np.uint8]:
    """A mask as FAISS's bitmap selector reads it."""
    return np.packbits(mask, bitorder="little")


class FlatRows:
    """Rows in memory, in the order of their rowids, as they stand after one write; searched exactly.

    Rows never change, so searches on them need no lock. A write derives the next from the newest;
    only one thread may do that at a time. FAISS's own IndexFlat moves its memory on `add`, so every
    write would have to wait for the running searches and hold up new ones. Here a write fills rows
    that older views do not reach.
    """

    def __init__(
        self,
        rowids: Rowids,
        vectors: Vectors,
        metric: Metric,
        threads: int,
        alive: Mask | None = None,
        size: int | None = None,
    ) -> None:
        """Take over `vectors` [capacity, d] and `rowids` [capacity], of which `size` rows are filled."""
        self.size = len(rowids) if size is None else size
        self._row_store = rowids
        self._vector_store = vectors
        self.alive = np.ones(self.size, np.bool_) if alive is None else alive
        self._metric = metric
        self._threads = threads
        self.tombstones = self.size - int(np.count_nonzero(self.alive))

    @property
    def nbytes(self) -> int:
        return int(self.rowids.nbytes + self.vectors.nbytes + self.alive.nbytes)

    @property
    def rowids(self) -> Rowids:
        """Of all rows, tombstones included, ascending: int64 [size]."""
        return self._row_store[: self.size]

    @property
    def vectors(self) -> Vectors:
        """Of all rows, tombstones included: float32 [size, d]."""
        return self._vector_store[: self.size]

    @cached_property
    def _alive_bits(self) -> NDArray[np.uint8]:
        return bits(self.alive)

    def search(self, queries: Vectors, limit: int, among: Rowids | None = None) -> tuple[Scores, Rowids]:
        """The best rows for each query [q, d], best first: scores and rowids, both [q, k].

        k is `limit` or, if fewer, the rows there are. `among` (ascending, each alive here) limits
        the search to those rows.
        """
        found = self.size - self.tombstones if among is None else len(among)
        limit = max(0, min(limit, found))
        if limit == 0 or len(queries) == 0:
            return np.empty((len(queries), limit), np.float32), np.empty((len(queries), limit), np.int64)
        selector: faiss.IDSelector | None = None
        if among is not None:
            selector = faiss.IDSelectorArray(np.searchsorted(self.rowids, among))
        elif self.tombstones:
            selector = faiss.IDSelectorBitmap(self._alive_bits)  # type: ignore[call-arg, arg-type]
        scores, rows = nearest(queries, self.vectors, limit, self._metric, self._threads, selector)
        return scores, np.where(rows < 0, -1, self.rowids[rows])

    def replace(self, removed: Rowids, added: Rowids, vectors: Vectors) -> Self:
        """The next rows: without `removed`, with `vectors` [n, d] under `added`, ascending and new."""
        size = self.size + len(added)
        rowids, stored = self._row_store, self._vector_store
        if size > len(rowids):
            capacity = max(size, int(self.size * GROWTH))
            rowids, stored = _moved(rowids, self.size, capacity), _moved(stored, self.size, capacity)
        rowids[self.size : size] = added
        stored[self.size : size] = vectors
        alive = np.concatenate([self.alive, np.ones(len(added), np.bool_)])
        alive[np.searchsorted(self.rowids, removed)] = False
        return type(self)(rowids, stored, self._metric, self._threads, alive, size)

    def compacted(self, after: int = 0) -> Self:
        """The living rows with rowids above `after`, in memory of their own."""
        kept = np.flatnonzero(self.alive & (self.rowids > after))
        return type(self)(self._row_store[kept], self._vector_store[kept], self._metric, self._threads)


def _moved(array: NDArray[T], size: int, capacity: int) -> NDArray[T]:
    moved = np.empty((capacity, *array.shape[1:]), array.dtype)
    moved[:size] = array[:size]
    return moved
