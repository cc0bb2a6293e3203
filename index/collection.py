"""One collection: items in SQLite and their vectors in memory, kept as one consistent whole."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from index.ann import FlatView, VectorView
from index.errors import BadFilter, IndexUnavailable, ItemNotFound, VectorIndexError
from index.filters import compile_filter
from index.items import (
    Hit,
    Include,
    Item,
    Page,
    Record,
    Rowids,
    Vectors,
    check_id,
    item_vectors,
    metadata_text,
    query_vectors,
)
from index.spec import CollectionSpec, Kind, Metric
from index.store import Reader, Row, Store, Writer

METADATA: Include = frozenset({"metadata"})
MAX_ROWID = 2**63 - 1
NO_ROWIDS: Rowids = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection in numbers. `actual_kind` is what `auto` chose; `created` is in seconds since 1970."""

    name: str
    count: int
    dimensions: int
    metric: Metric
    kind: Kind
    actual_kind: str
    model: str | None
    fingerprint: str | None
    created: int
    tombstones: int
    bytes_on_disk: int
    bytes_in_memory: int


class Collection:
    """Items with vectors and metadata, searched by nearness.

    Safe to use from many threads. Reads and searches see one committed state each and never wait;
    writes follow one another, and return once they are on disk. A write happens whole or not at all.

    The database numbers its states (`version`), and a write puts the vectors of the state it is
    about to commit into `_views` under that number first. So a search opens a snapshot of the database,
    reads its number and finds exactly the vectors that belong to it.

    Every method raises IndexUnavailable when the files cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        *,
        threads: int,
        compact_ratio: float,
        filter_timeout_s: float,
        max_metadata_bytes: int,
    ) -> None:
        """Open an existing collection and read its vectors into memory.

        `threads` is for one search call; above `compact_ratio` of dead rows memory is rebuilt.
        """
        self._store = Store(directory)
        self._compact_ratio = compact_ratio
        self._filter_timeout_s = filter_timeout_s
        self._max_metadata_bytes = max_metadata_bytes
        self._write_lock = threading.Lock()
        self._views: Mapping[int, VectorView]
        self.spec: CollectionSpec
        try:
            with self._store.snapshot() as reader:
                self.spec = reader.spec()
                self._created = reader.created()
                rowids, vectors = reader.vectors(self.spec.dimensions)
                self._views = {reader.version: FlatView(rowids, vectors, self.spec.metric, threads)}
        except BaseException:
            self._store.close(IndexUnavailable("the collection did not open"))
            raise

    def upsert(self, items: Sequence[Item], fingerprint: str | None = None) -> list[str]:
        """Store items, replacing those of the same id; of an id given twice the last counts.

        `fingerprint` names the model that made the vectors; None for raw ones. Under cosine vectors
        are stored normalised. Returns the distinct ids.

        Raises:
            ModelMismatch: another model filled the collection.
            BadItem, BadVector: with the `index` of the item; nothing was stored.
        """
        self.spec.check_fingerprint(fingerprint)
        texts = [
            (check_id(item.id, index), metadata_text(item.metadata, self._max_metadata_bytes, index))
            for index, item in enumerate(items)
        ]
        vectors = item_vectors(items, self.spec)
        last = list({id: index for index, (id, _) in enumerate(texts)}.values())
        vectors = vectors[last]
        blobs = vectors.astype("<f4", copy=False)
        rows = (
            Row(*texts[index], blob.tobytes(), items[index].thumbnail)
            for index, blob in zip(last, blobs, strict=True)
        )
        with self._write_lock:
            with self._store.transaction() as writer:
                spec = writer.spec()
                spec.check_fingerprint(fingerprint)  # again: another first write may have come in between
                if last and fingerprint is not None and spec.fingerprint is None:
                    spec = spec.model_copy(update={"fingerprint": fingerprint})
                    writer.set_spec(spec)
                removed, added = writer.put(rows)
                self._prepare(writer, removed, added, vectors)
            self.spec = spec
            self._tidy(writer.version + 1)
        return [texts[index][0] for index in last]

    def delete(self, ids: Iterable[str]) -> int:
        """Remove the items of these ids; returns how many there were. Raises BadItem."""
        checked = [check_id(id, index) for index, id in enumerate(ids)]
        with self._write_lock:
            with self._store.transaction() as writer:
                removed = writer.remove(checked)
                self._prepare(writer, removed)
            self._tidy(writer.version + 1)
        return len(removed)

    def delete_where(self, filter: Mapping[str, Any]) -> int:
        """Remove every item that passes; returns how many.

        The filter is asked of the items as they are at the call. What is written while it runs stays,
        as if it were written after: an item replaced meanwhile, and a new one, whether it passes or not.

        Raises:
            BadFilter: not in the language, too slow, or empty; nothing was removed.
        """
        condition = compile_filter(filter)
        if condition.count == 0:
            raise BadFilter("an empty filter would delete every item; to do that, delete the collection")
        with self._store.snapshot() as reader:  # before the lock: other writes do not wait for a filter
            matching = reader.matching(condition, self._filter_timeout_s)
        with self._write_lock:
            with self._store.transaction() as writer:
                removed = writer.remove_rows(matching)
                self._prepare(writer, removed)
            self._tidy(writer.version + 1)
        return len(removed)

    def get(self, id: str, include: Include = METADATA) -> Record:
        """The item of this id. Raises ItemNotFound, or BadItem for what cannot be an id."""
        check_id(id)
        with self._store.snapshot() as reader:
            record = reader.find(id, include)
        if record is None:
            raise ItemNotFound(f"collection {self.spec.name!r} has no item {id!r}")
        return record

    def vector_of(self, id: str) -> Vectors:
        """The stored vector, float32 [d]: search with it and `exclude=[id]` to find an item's like.

        Raises ItemNotFound, BadItem.
        """
        vector = self.get(id, frozenset({"vector"})).vector
        assert vector is not None
        return vector

    def page(self, limit: int, cursor: int | None = None, include: Include = METADATA) -> Page:
        """Up to `limit` items, oldest write first, after `cursor`.

        Paging meets every item that stays. One that is written again meanwhile moves to the end,
        and may be met twice.
        """
        after, limit = min(max(cursor or 0, 0), MAX_ROWID), min(max(limit, 1), MAX_ROWID - 1)
        with self._store.snapshot() as reader:
            found = reader.after(after, limit + 1, include)
        page = found[:limit]
        return Page([record for _, record in page], page[-1][0] if len(found) > len(page) else None)

    def search(
        self,
        vectors: ArrayLike,
        limit: int = 10,
        *,
        filter: Mapping[str, Any] | None = None,
        include: Include = METADATA,
        exact: bool = False,
        fingerprint: str | None = None,
        exclude: Sequence[str | None] | None = None,
    ) -> list[list[Hit]]:
        """The nearest items for each of the vectors [q, d], best first; fewer than `limit` if fewer pass.

        Scores are the cosine, the inner product, or under l2 the squared distance negated. `exact`
        asks for the true nearest, which a flat index gives anyway. `exclude` has one entry for each
        query: the id that its hits leave out, or None.

        Raises:
            ModelMismatch: another model than `fingerprint` filled the collection.
            BadVector: with the `index` of the query.
            BadFilter: the filter is not in the language, or too slow.
        """
        self.spec.check_fingerprint(fingerprint)
        queries = query_vectors(vectors, self.spec)
        condition = None if filter is None else compile_filter(filter)
        excluded = [None] * len(queries) if exclude is None else exclude
        with self._snapshot() as (reader, view):
            among = reader.matching(condition, self._filter_timeout_s) if condition else None
            # One more where a query leaves an item out, so that `limit` are left.
            scores, rowids = view.search(queries, limit + any(id is not None for id in excluded), among)
            records = reader.records(np.unique(rowids).tolist(), include & {"metadata", "vector"})
        found = [
            [
                Hit(record.id, score, record.metadata, record.vector)
                for rowid, score in zip(row, row_scores, strict=True)
                if (record := records.get(rowid)) and record.id != id  # FAISS says -1 for no row
            ]
            for id, row, row_scores in zip(excluded, rowids.tolist(), scores.tolist(), strict=True)
        ]
        return [hits[: max(0, limit)] for hits in found]

    def info(self) -> CollectionInfo:
        with self._snapshot() as (_, view):
            return CollectionInfo(
                name=self.spec.name,
                count=view.size - view.tombstones,
                dimensions=self.spec.dimensions,
                metric=self.spec.metric,
                kind=self.spec.kind,
                actual_kind=view.kind,
                model=self.spec.model,
                fingerprint=self.spec.fingerprint,
                created=self._created,
                tombstones=view.tombstones,
                bytes_on_disk=self._store.bytes_on_disk(),
                bytes_in_memory=view.nbytes,
            )

    def close(self, error: VectorIndexError | None = None) -> None:
        """Wait for the running write, then close the files; later calls raise `error`."""
        with self._write_lock:
            self._store.close(error or IndexUnavailable(f"collection {self.spec.name!r} is closed"))
            self._views = {}

    @contextmanager
    def _snapshot(self) -> Iterator[tuple[Reader, VectorView]]:
        """One committed state: the database at some version, and the vectors of that version."""
        while True:
            with self._store.snapshot() as reader:
                # Missing only if another write was committed since, so each turn sees a newer state.
                if view := self._views.get(reader.version):
                    yield reader, view
                    return

    def _prepare(
        self, writer: Writer, removed: Rowids, added: Rowids = NO_ROWIDS, vectors: Vectors | None = None
    ) -> None:
        """Make the vectors of the state that `writer` will commit available, beside the present ones.

        If the commit fails nobody reads that version, and the next write puts its own in the place.
        """
        present = self._views[writer.version]
        if vectors is None:
            vectors = np.empty((0, self.spec.dimensions), np.float32)
        self._views = {
            writer.version: present,
            writer.version + 1: present.replace(removed, added, vectors),
        }

    def _tidy(self, version: int) -> None:
        """After a commit: let go of the state before `version`, of dead rows if many, of a long log."""
        view = self._views[version]
        if view.tombstones > self._compact_ratio * view.size:
            view = view.compacted()
        self._views = {version: view}
        self._store.limit_wal()
