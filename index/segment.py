"""Segments: rows that no longer change, on disk with the index that finds them; and which are alive."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import faiss
import numpy as np
from numpy.typing import NDArray

from index.ann import AnnKind, candidates
from index.flat import Mask, Scores, best, bits, nearest, nearest_among
from index.items import Rowids, Vectors
from index.spec import Metric

QUERIES_AT_ONCE = 64
"""Whose candidates are gathered together: 20 for each, of 512 float32, are 2.6 MB, which caches hold."""
SPARE_ROWS = 4
"""Asked for beyond what should do, since of the nearest more than the usual share may not pass."""
WIDER = 4
"""Times as many rows are looked at where too few of the nearest pass."""
CANDIDATES_AT_ONCE = 2_000_000
"""Of all queries of a part: some 50 MB."""
EXACT_SHARE = 20
"""A search that wants more than one row in so many is exact: it is no slower then."""


@dataclass(frozen=True)
class Tuning:
    """The smallest effort that reached the recall asked for, and recall@10 at it on sampled rows.

    Where none did, the one at which every row is compared, with the most that the index itself found.
    An index that finds too little at any effort, or cannot keep the numbers, is `useless`, and not used.
    """

    effort: int
    recall: float
    useless: bool = False


@dataclass(frozen=True, eq=False)
class Segment:
    """Immutable rows, ascending by rowid, of adjacent writes. `vectors` [n, d] may be a mapped file."""

    number: int
    rowids: Rowids
    vectors: Vectors
    metric: Metric
    threads: int
    kind: AnnKind | None = None  # None: exact search
    index: faiss.Index | None = None
    tuning: Tuning | None = None
    index_bytes: int = 0

    @property
    def first(self) -> int:
        return int(self.rowids[0])

    @property
    def last(self) -> int:
        return int(self.rowids[-1])

    @property
    def useless(self) -> bool:
        """Whether its index is not used."""
        return self.tuning is not None and self.tuning.useless


class SegmentView:
    """A segment and which of its rows are alive after one write; immutable."""

    def __init__(self, segment: Segment, alive: Mask) -> None:
        self.segment = segment
        self.alive = alive
        self.living = int(np.count_nonzero(alive))

    @property
    def size(self) -> int:
        return len(self.alive)

    @property
    def nbytes(self) -> int:
        """In memory of our own: without the mapped vectors, which the system may drop and read again."""
        return self.segment.index_bytes + int(self.segment.rowids.nbytes + self.alive.nbytes)

    @property
    def living_rowids(self) -> Rowids:
        return self.segment.rowids[self.alive]

    def holds(self, rowids: Rowids) -> Mask:
        """Which of these rowids lie in the segment's range: those are its, for ranges never overlap."""
        return (rowids >= self.segment.first) & (rowids <= self.segment.last)

    def without(self, rowids: Rowids) -> Self:
        alive = self.alive.copy()
        alive[np.searchsorted(self.segment.rowids, rowids)] = False
        return type(self)(self.segment, alive)

    @cached_property
    def _alive_bits(self) -> NDArray[np.uint8]:
        return bits(self.alive)

    def search(
        self, queries: Vectors, limit: int, positions: Rowids | None, exact: bool, effort: int | None = None
    ) -> tuple[Scores, Rowids]:
        """As `FlatRows.search`; `exact` asks for the true nearest, `effort` overrides what was tuned.

        The best row for each query [q, d] first: scores and rowids, both [q, k], k being `limit` or, if
        fewer, the rows that are alive or at `positions`. Scores are exact under every kind.
        """
        segment = self.segment
        survivors = self.living if positions is None else len(positions)
        limit = max(0, min(limit, survivors))
        if limit == 0 or len(queries) == 0:
            return np.empty((len(queries), limit), np.float32), np.empty((len(queries), limit), np.int64)
        if segment.kind and not exact and not segment.useless:
            effort = min(effort or (segment.tuning.effort if segment.tuning else 0), self.size)
            if self.approximates(segment.kind, survivors, limit, effort):
                return self._approximate(segment.kind, queries, limit, positions, survivors, effort)
        return self._exact(queries, limit, positions)

    def approximates(self, kind: AnnKind, survivors: int, limit: int, effort: int) -> bool:
        """Whether an index of this kind is searched, or every row compared because that is no slower."""
        # An approximate search has to look at size/survivors times as many rows to find as many that
        # pass; from where that costs more than comparing the survivors one by one, it is not used.
        count = limit * kind.oversample
        scarce = survivors**2 < self.size * kind.cost(self.size, kind.reach(effort, count))
        return not scarce and count * EXACT_SHARE < self.size

    def _exact(self, queries: Vectors, limit: int, positions: Rowids | None) -> tuple[Scores, Rowids]:
        segment, metric, threads = self.segment, self.segment.metric, self.segment.threads
        if positions is None:
            scores, rows = nearest(queries, segment.vectors, limit, metric, threads, self._selector())
        else:
            scores, rows = nearest_among(queries, segment.vectors, positions, limit, metric, threads)
        return scores, np.where(rows < 0, -1, segment.rowids[rows])

    def _selector(self) -> faiss.IDSelector | None:
        if self.living == self.size:
            return None
        return faiss.IDSelectorBitmap(self._alive_bits)  # type: ignore[call-arg, arg-type]

    def _approximate(
        self,
        kind: AnnKind,
        queries: Vectors,
        limit: int,
        positions: Rowids | None,
        survivors: int,
        effort: int,
    ) -> tuple[Scores, Rowids]:
        segment = self.segment
        assert segment.index is not None
        passing = self.alive
        if positions is not None:
            passing = np.zeros(self.size, np.bool_)
            passing[positions] = True
        wanted, spare, width, selector = limit * kind.oversample, 0, 1.0, None
        if survivors < self.size and kind.effort:
            # Of the nearest among all rows those that do not pass are dropped. With a selector FAISS would
            # fill up with whatever passes on its way, however far off, where none of the nearest does.
            spare, width = SPARE_ROWS, self.size / survivors
        elif survivors < self.size:
            selector = faiss.IDSelectorBitmap(bits(passing))  # type: ignore[call-arg, arg-type]
        scores = np.empty((len(queries), limit), np.float32)
        rowids = np.empty((len(queries), limit), np.int64)
        left = np.arange(len(queries))  # those that too little was found for
        enough = max(limit, min(wanted // 2, survivors))  # candidates, for the codes' own order says little
        most = float(survivors)
        while len(left):
            count, wide = int(wanted * width), int(effort * width)
            cost = kind.cost(self.size, kind.reach(wide, count))
            if cost > most or count * EXACT_SHARE > self.size:
                scores[left], rowids[left] = self._exact(queries[left], limit, positions)
                break
            count = min(count + spare, self.size)
            short = []
            at_once = max(1, CANDIDATES_AT_ONCE // count)
            for start in range(0, len(left), at_once):
                some = left[start : start + at_once]
                found = candidates(segment.index, kind, queries[some], count, wide, segment.threads, selector)
                if survivors < self.size:
                    found = _first(found, (found >= 0) & passing[found], wanted)
                scores[some], rows = best_of(queries[some], segment.vectors, found, limit, segment.metric)
                rowids[some] = segment.rowids[rows]
                short.append(some[found[:, enough - 1] < 0])
            left = np.concatenate(short)
            width *= WIDER
            most = survivors / 2  # for what was looked for in vain comes on top
        return scores, rowids


def _first(found: Rowids, passing: Mask, most: int) -> Rowids:
    """Of each query's candidates [q, c] the first `most` that pass; -1 where there are fewer."""
    order = np.argsort(~passing, axis=1, kind="stable")[:, :most]
    lines = np.arange(len(found))[:, None]
    return np.where(passing[lines, order], found[lines, order], -1)


def best_of(
    queries: Vectors, vectors: Vectors, found: Rowids, limit: int, metric: Metric
) -> tuple[Scores, Rowids]:
    """The best `limit` of the candidates `found` [q, c] by exact score: scores, positions (-1: none)."""
    scores = np.empty((len(queries), limit), np.float32)
    positions = np.empty((len(queries), limit), np.int64)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        rows = vectors[found[part]]  # [q, c, d]
        if metric == "l2":
            rows = rows - queries[part, None]
            exact = 0 - np.einsum("qcd,qcd->qc", rows, rows)  # no -0.0 for what is the same
        else:
            exact = np.einsum("qcd,qd->qc", rows, queries[part])
        exact[found[part] < 0] = -np.inf
        scores[part], positions[part] = best(exact, found[part], limit)
    return scores, positions
