"""All vectors of a collection as they stand after one write: segments, and the rows written since."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import numpy as np

from index.chosen import Chosen, RecentFilters
from index.flat import FlatRows, Mask, Scores, best, positions_of
from index.items import Rowids, Vectors
from index.segment import Segment, SegmentView

MAX_ROWID = 2**63 - 1
ROWS_AT_ONCE = 8192


class View:
    """Immutable, so searches on it need no lock. `segments` ascend by rowid, and none overlap.

    A write derives the next view from the newest one; only one thread may do that at a time.
    """

    def __init__(self, segments: Sequence[SegmentView], tail: FlatRows) -> None:
        self.segments = tuple(segments)
        self.tail = tail
        self.filters = RecentFilters()

    @property
    def kind(self) -> str:
        """What most rows are searched by."""
        largest = self.largest
        return largest.kind.name if largest and largest.kind and not largest.useless else "flat"

    @property
    def largest(self) -> Segment | None:
        return max((part.segment for part in self.segments), key=lambda one: len(one.rowids), default=None)

    @property
    def size(self) -> int:
        """Rows held, tombstones included."""
        return self.tail.size + sum(part.size for part in self.segments)

    @property
    def tombstones(self) -> int:
        return self.tail.tombstones + sum(part.size - part.living for part in self.segments)

    @property
    def living(self) -> int:
        return self.size - self.tombstones

    @property
    def nbytes(self) -> int:
        return self.tail.nbytes + sum(part.nbytes for part in self.segments)

    def search(
        self,
        queries: Vectors,
        limit: int,
        among: Chosen | None = None,
        exact: bool = False,
        efforts: Mapping[str, int] | None = None,
    ) -> tuple[Scores, Rowids]:
        """The best rows for each query [q, d], best first: scores and rowids, both [q, k].

        k is `limit` or, if fewer, the rows there are. A higher score is nearer: the inner product
        under cosine and dot, the squared distance negated under l2. `among` limits the search to rows of
        this view; `exact` asks for the true nearest; `efforts` override what was tuned, by their names
        (`ef_search`, `nprobe`).
        """
        *inside, of_tail = among.parts if among else [None] * (len(self.segments) + 1)
        found = []
        for part, positions in zip(self.segments, inside, strict=True):
            kind = part.segment.kind
            effort = efforts.get(kind.effort) if efforts and kind and kind.effort else None
            found.append(part.search(queries, limit, positions, exact, effort))
        found.append(self.tail.search(queries, limit, of_tail))
        found = [part for part in found if part[0].shape[1]] or found[-1:]
        if len(found) == 1:
            return found[0]
        scores = np.concatenate([scores for scores, _ in found], axis=1)
        rowids = np.concatenate([rowids for _, rowids in found], axis=1)
        scores[rowids < 0] = -np.inf
        return best(scores, rowids, limit)

    def choose(self, rowids: Rowids) -> Chosen:
        """These rows (ascending, each alive in this view), to search among them."""
        parts = []
        for part in self.segments:
            first, last = np.searchsorted(rowids, (part.segment.first, part.segment.last + 1))
            parts.append(positions_of(rowids[first:last], part.segment.rowids))
            rowids = np.concatenate([rowids[:first], rowids[last:]]) if first else rowids[last:]
        return Chosen((*parts, positions_of(rowids, self.tail.rowids)))

    def sample(self, count: int, seed: int) -> Vectors:
        """Up to `count` of the living rows' vectors, chosen at random: float32 [n, d]."""
        parts = [(part.segment.vectors, part.alive) for part in self.segments]
        parts.append((self.tail.vectors, self.tail.alive))
        living = [np.flatnonzero(alive) for _, alive in parts]
        bounds = np.cumsum([0, *map(len, living)])
        chosen = np.sort(np.random.default_rng(seed).permutation(bounds[-1])[:count])
        return np.concatenate(
            [
                vectors[rows[chosen[(chosen >= first) & (chosen < last)] - first]]
                for (vectors, _), rows, first, last in zip(
                    parts, living, bounds[:-1], bounds[1:], strict=True
                )
            ]
        )

    def vectors_of(self, rowids: Rowids) -> Vectors:
        """The vectors of rows of this view: float32 [n, d]."""
        vectors = np.empty((len(rowids), self.tail.vectors.shape[1]), np.float32)
        rest = np.ones(len(rowids), np.bool_)
        for part in self.segments:
            held = part.holds(rowids)
            vectors[held] = part.segment.vectors[np.searchsorted(part.segment.rowids, rowids[held])]
            rest &= ~held
        vectors[rest] = self.tail.vectors[np.searchsorted(self.tail.rowids, rowids[rest])]
        return vectors

    def replace(self, removed: Rowids, added: Rowids, vectors: Vectors) -> Self:
        """The next view: without `removed`, with `vectors` [n, d] under `added`, ascending and new."""
        segments = []
        for part in self.segments:
            held: Mask = part.holds(removed)
            segments.append(part.without(removed[held]) if held.any() else part)
            removed = removed[~held]
        return type(self)(segments, self.tail.replace(removed, added, vectors))

    def with_compact_tail(self) -> Self:
        """The same, without the tombstones of the rows in memory."""
        return type(self)(self.segments, self.tail.compacted())

    def rows(self, first: int, last: int, tail: bool) -> Iterator[tuple[Rowids, Vectors]]:
        """The living rows of the segments first to last (exclusive), and of the tail, in chunks."""
        parts = [
            (part.segment.rowids, part.segment.vectors, part.alive) for part in self.segments[first:last]
        ]
        if tail:
            parts.append((self.tail.rowids, self.tail.vectors, self.tail.alive))
        for rowids, vectors, alive in parts:
            for start in range(0, len(rowids), ROWS_AT_ONCE):
                chunk = slice(start, start + ROWS_AT_ONCE)
                if alive[chunk].any():
                    yield rowids[chunk][alive[chunk]], vectors[chunk][alive[chunk]]

    def absorbed(self, first: int, last: int, up_to: int, segment: Segment | None) -> Self:
        """The same rows, those of segments first to last (exclusive) now in `segment`.

        So are the tail's up to the rowid `up_to`. Rows removed since the segment was made are its
        tombstones. None in place of a segment: no row was left.
        """
        living = [part.living_rowids for part in self.segments[first:last]]
        living.append(self.tail.rowids[self.tail.alive & (self.tail.rowids <= up_to)])
        segments = [*self.segments[:first], *self.segments[last:]]
        if segment:
            alive = np.isin(segment.rowids, np.concatenate(living), assume_unique=True)
            segments.insert(first, SegmentView(segment, alive))
        return type(self)(segments, self.tail.compacted(after=up_to) if up_to else self.tail)


def restored(segments: Sequence[Segment], stored: Rowids) -> tuple[list[SegmentView], Rowids]:
    """Segments as the database stands, whose rowids are `stored` (ascending), and the rowids in none.

    Where rows are in no segment, because one was damaged, the segments after those rows are left out
    as well: rows stay in the order of their rowids.
    """
    missing = np.ones(len(stored), np.bool_)
    for segment in segments:
        missing &= ~np.isin(stored, segment.rowids, assume_unique=True)
    first_missing = int(stored[missing][0]) if missing.any() else MAX_ROWID
    kept = [segment for segment in segments if segment.last < first_missing]
    views = [SegmentView(segment, np.isin(segment.rowids, stored, assume_unique=True)) for segment in kept]
    return views, stored[stored > kept[-1].last] if kept else stored
