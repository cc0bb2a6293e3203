"""Nearest neighbours in memory, on FAISS: immutable views of the vectors, one per committed write."""

from functools import cached_property
from typing import Protocol, Self, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from index.items import Rowids, Vectors
from index.spec import Metric

T = TypeVar("T", bound=np.generic)

Scores = NDArray[np.float32]  # [q, k]
GROWTH = 1.5
"""Capacity over size when the arrays must move; memory that is not written to is not resident."""
BLAS_NUMBERS = 128_000
"""Numbers in all queries together from which FAISS multiplies matrices."""


class VectorView(Protocol):
    """The vectors of a collection as they stand after one write.

    A view never changes, so searches on it need no lock. A write derives the next view from the
    newest one; only one thread may do that at a time.
    """

    kind: str

    @property
    def size(self) -> int:
        """Rows held, tombstones included."""

    @property
    def tombstones(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def search(self, queries: Vectors, limit: int, among: Rowids | None = None) -> tuple[Scores, Rowids]:
        """The best rows for each query [q, d], best first: scores and rowids, both [q, k].

        k is `limit` or, if fewer, the rows there are. A higher score is nearer: the inner product
        under cosine and dot, the squared distance negated under l2. `among` (ascending, each alive
        in this view) limits the search to those rows.
        """

    def replace(self, removed: Rowids, added: Rowids, vectors: Vectors) -> Self:
        """The next view: without `removed`, with `vectors` [n, d] under `added`, ascending and new."""

    def compacted(self) -> Self:
        """The same rows without the tombstones, in memory of its own."""


class FlatView:
    """Exact search. Rows lie in the order of their rowids.

    Calls the functions behind `faiss.IndexFlat` on arrays of our own: an IndexFlat moves its memory
    on `add`, so every write would have to wait for the running searches and hold up new ones. Here
    a write fills rows that older views do not reach.
    """

    kind = "flat"

    def __init__(
        self,
        rowids: Rowids,
        vectors: Vectors,
        metric: Metric,
        threads: int,
        alive: NDArray[np.bool_] | None = None,
        size: int | None = None,
    ) -> None:
        """Take over `vectors` [capacity, d] and `rowids` [capacity], of which `size` rows are filled."""
        self.size = len(rowids) if size is None else size
        self._row_store = rowids
        self._vector_store = vectors
        self._alive = np.ones(self.size, np.bool_) if alive is None else alive
        self._metric = metric
        self._threads = threads
        self.tombstones = self.size - int(np.count_nonzero(self._alive))

    @property
    def nbytes(self) -> int:
        return int(self._rowids.nbytes + self._vector_store[: self.size].nbytes + self._alive.nbytes)

    @property
    def _rowids(self) -> Rowids:
        return self._row_store[: self.size]

    @cached_property
    def _alive_bits(self) -> NDArray[np.uint8]:
        return np.packbits(self._alive, bitorder="little")

    def search(self, queries: Vectors, limit: int, among: Rowids | None = None) -> tuple[Scores, Rowids]:
        found = self.size - self.tombstones if among is None else len(among)
        shape = (len(queries), max(0, min(limit, found)))
        scores, rows = np.empty(shape, np.float32), np.empty(shape, np.int64)
        if 0 in shape:
            return scores, rows
        selector: faiss.IDSelector | None = None
        if among is not None:
            selector = faiss.IDSelectorArray(np.searchsorted(self._rowids, among))
        elif self.tombstones or self._metric == "l2" or queries.size < BLAS_NUMBERS:
            # Without a selector FAISS multiplies matrices once the queries are many: 7 times faster, but
            # as x² - 2xy + y² under l2 it loses the differences between near vectors far from the
            # origin. With few queries it only wakes all threads for one, several times slower on a
            # busy machine.
            selector = faiss.IDSelectorBitmap(self._alive_bits)  # type: ignore[call-arg, arg-type]
        faiss.omp_set_num_threads(self._threads)  # OpenMP keeps it per calling thread
        queries = np.ascontiguousarray(queries, np.float32)
        vectors = faiss.swig_ptr(queries), faiss.swig_ptr(self._vector_store)
        counts = queries.shape[1], len(queries), self.size, shape[1]
        results = faiss.swig_ptr(scores), faiss.swig_ptr(rows)
        if self._metric == "l2":
            faiss.knn_L2sqr(*vectors, *counts, *results, None, selector)
            scores = 0 - scores
        else:
            faiss.knn_inner_product(*vectors, *counts, *results, selector)
        return scores, np.where(rows < 0, -1, self._rowids[rows])

    def replace(self, removed: Rowids, added: Rowids, vectors: Vectors) -> Self:
        size = self.size + len(added)
        rowids, stored = self._row_store, self._vector_store
        if size > len(rowids):
            capacity = max(size, int(self.size * GROWTH))
            rowids, stored = _moved(rowids, self.size, capacity), _moved(stored, self.size, capacity)
        rowids[self.size : size] = added
        stored[self.size : size] = vectors
        alive = np.concatenate([self._alive, np.ones(len(added), np.bool_)])
        alive[np.searchsorted(self._rowids, removed)] = False
        return type(self)(rowids, stored, self._metric, self._threads, alive, size)

    def compacted(self) -> Self:
        alive = np.flatnonzero(self._alive)
        return type(self)(self._row_store[alive], self._vector_store[alive], self._metric, self._threads)


def _moved(array: NDArray[T], size: int, capacity: int) -> NDArray[T]:
    moved = np.empty((capacity, *array.shape[1:]), array.dtype)
    moved[:size] = array[:size]
    return moved
