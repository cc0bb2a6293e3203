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
GATHERED_QUERIES = 3
"""From so many on, rows that pass a filter are copied together and multiplied, however they lie."""
GATHERED_ROWS = 512
"""Copied at a time: of 512 float32 they are 1 MiB, which the core's own cache holds."""
RANKED_ROWS = 8192
"""Scored before all but the best are forgotten; with the next it bounds the memory of a search."""
RANKED_QUERIES = 64


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


def nearest_among(
    queries: Vectors, vectors: Vectors, positions: Rowids, limit: int, metric: Metric, threads: int
) -> tuple[Scores, Rowids]:
    """As `nearest`, among the rows at `positions` (ascending), of which there are `limit` or more."""
    if metric == "l2" or len(queries) < GATHERED_QUERIES:
        selector = faiss.IDSelectorArray(positions)
        return nearest(queries, vectors, limit, metric, threads, selector)
    # FAISS would read every row from memory again for each query.
    parts = [
        _nearest_gathered(queries[first : first + RANKED_QUERIES], vectors, positions, limit)
        for first in range(0, len(queries), RANKED_QUERIES)
    ]
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([found for _, found in parts])


def _nearest_gathered(
    queries: Vectors, vectors: Vectors, positions: Rowids, limit: int
) -> tuple[Scores, Rowids]:
    """By inner product."""
    scores = np.empty((len(queries), 0), np.float32)
    found = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(positions), RANKED_ROWS):
        rows = positions[start : start + RANKED_ROWS]
        products = np.empty((len(queries), len(rows)), np.float32)
        for first in range(0, len(rows), GATHERED_ROWS):
            part = slice(first, first + GATHERED_ROWS)
            np.matmul(queries, vectors[rows[part]].T, out=products[:, part])
        scores = np.concatenate([scores, products], axis=1)
        found = np.concatenate([found, np.broadcast_to(rows, products.shape)], axis=1)
        if scores.shape[1] > limit:
            top = np.argpartition(scores, -limit, axis=1)[:, -limit:]
            scores, found = _picked(scores, top), _picked(found, top)
    return best(scores, found, limit)


def best(scores: Scores, found: Rowids, limit: int) -> tuple[Scores, Rowids]:
    """The `limit` highest of the scores [q, n] and what was found with them, best first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :limit]
    return _picked(scores, order), _picked(found, order)


def _picked(values: NDArray[T], places: Rowids) -> NDArray[T]:
    """`values` [q, n] at `places` [q, k]: a tenth of the time of np.take_along_axis."""
    picked: NDArray[T] = values[np.arange(len(values))[:, None], places]
    return picked


def positions_of(rowids: Rowids, stored: Rowids) -> Rowids:
    """Where in `stored` (ascending) these of its rowids are."""
    if len(stored) and stored[-1] - stored[0] == len(stored) - 1:  # none is missing between
        return np.asarray(rowids - stored[0], np.int64)
    return np.searchsorted(stored, rowids)


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
    def living(self) -> int:
        return self.size - self.tombstones

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

    def search(self, queries: Vectors, limit: int, positions: Rowids | None = None) -> tuple[Scores, Rowids]:
        """The best rows for each query [q, d], best first: scores and rowids, both [q, k].

        k is `limit` or, if fewer, the rows there are. `positions` (ascending, of rows that are alive) limit
        the search to those rows.
        """
        found = self.living if positions is None else len(positions)
        limit = max(0, min(limit, found))
        if limit == 0 or len(queries) == 0:
            return np.empty((len(queries), limit), np.float32), np.empty((len(queries), limit), np.int64)
        metric, threads = self._metric, self._threads
        if positions is not None:
            scores, rows = nearest_among(queries, self.vectors, positions, limit, metric, threads)
        else:
            selector: faiss.IDSelector | None = None
            if self.tombstones:
                selector = faiss.IDSelectorBitmap(self._alive_bits)  # type: ignore[call-arg, arg-type]
            scores, rows = nearest(queries, self.vectors, limit, metric, threads, selector)
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
