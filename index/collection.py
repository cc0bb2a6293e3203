"""One collection: items in SQLite and their vectors in memory, kept as one consistent whole."""

import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from configs.settings import IndexSettings
from index.ann import EFFORTS, KINDS, Stop, Stopped, kind_for
from index.chosen import Chosen
from index.commits import Change, GroupCommit
from index.errors import AnswerTooLarge, BadFilter, BadItem, IndexUnavailable, ItemNotFound, VectorIndexError
from index.evaluate import LEAST_RECALL, evaluate
from index.filters import compile_filter
from index.flat import FlatRows
from index.info import EVALUATION_S, CollectionInfo, Evaluation
from index.items import (
    Hit,
    Include,
    Item,
    Page,
    Record,
    Vectors,
    check_id,
    check_items,
    query_vectors,
)
from index.maintenance import Work, compaction_due, due
from index.snapshots import DIRECTORY as SEGMENTS
from index.snapshots import Snapshots
from index.spec import CollectionSpec
from index.store import FILE_NAME, Reader, Row, Store, Writer, vector_of
from index.view import MAX_ROWID, View, restored

METADATA: Include = frozenset({"metadata"})

# Of a hit written as JSON: what is around its parts, and each byte of a float32 vector.
HIT_BYTES = 100
JSON_GROWTH = 3


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
        settings: IndexSettings,
        *,
        threads: int,
        max_metadata_bytes: int,
    ) -> None:
        """Open an existing collection; `threads` is for one search call."""
        self._store = Store(directory)
        self._settings = settings
        self._threads = threads
        self._max_metadata_bytes = max_metadata_bytes
        self._efforts = {name: effort for name in EFFORTS if (effort := getattr(settings, name)) is not None}
        self._commits = GroupCommit(self._store, self._prepare, self._tidy)
        self._maintaining = threading.Lock()
        self._building = False
        self._problem: str | None = None
        self._closed = False
        self._last_write = time.monotonic()
        self._views: Mapping[int, View]
        self.spec: CollectionSpec
        self._committing: CollectionSpec  # what `spec` becomes
        try:
            with self._store.snapshot() as reader:
                self.spec = reader.spec()
                self._created = reader.created()
                self._snapshots = Snapshots(directory, self.spec, reader.identity(), threads)
                self._version = reader.version  # the newest that is committed
                self._views = {self._version: self._restored(reader)}
        except BaseException:
            self._store.close(IndexUnavailable("the collection did not open"))
            raise

    def _restored(self, reader: Reader) -> View:
        """The view of a database's state: segments from their files, what is in none from the database."""
        segments, missing = restored(self._snapshots.load(reader.last_rowid()), reader.rowids())
        vectors = reader.vectors(missing, self.spec.dimensions)
        return View(segments, FlatRows(missing, vectors, self.spec.metric, self._threads))

    def upsert(self, items: Sequence[Item], fingerprint: str | None = None) -> list[str]:
        """Store items, replacing those of the same id; of an id given twice the last counts.

        `fingerprint` names the model that made the vectors; None for raw ones. Under cosine vectors
        are stored normalised. Returns the distinct ids.

        Raises:
            ModelMismatch: another model filled the collection.
            BadItem, BadVector: with the `index` of the item; nothing was stored.
        """
        self.spec.check_fingerprint(fingerprint)
        texts, vectors = check_items(items, self.spec, self._max_metadata_bytes)
        last = list({id: index for index, (id, _) in enumerate(texts)}.values())
        vectors = vectors[last]
        blobs = vectors.astype("<f4", copy=False)

        def write(writer: Writer) -> Change[list[str]]:
            spec = writer.spec()
            spec.check_fingerprint(fingerprint)  # again: another first write may have come in between
            if last and fingerprint is not None and spec.fingerprint is None:
                writer.set_spec(spec.model_copy(update={"fingerprint": fingerprint}))
            removed, added = writer.put(
                Row(*texts[index], blob.tobytes(), items[index].thumbnail)
                for index, blob in zip(last, blobs, strict=True)
            )
            return Change([texts[index][0] for index in last], removed, added, vectors)

        return self._commits.run(write)

    def delete(self, ids: Iterable[str]) -> int:
        """Remove the items of these ids; returns how many there were. Raises BadItem."""
        checked = [check_id(id, index) for index, id in enumerate(ids)]

        def write(writer: Writer) -> Change[int]:
            removed = writer.remove(checked)
            return Change(len(removed), removed)

        return self._commits.run(write)

    def delete_where(self, filter: Mapping[str, Any]) -> int:
        """Remove every item that passes; returns how many.

        The filter is asked of the items as they are at the call. What is written while it runs stays,
        as if it were written after: an item replaced meanwhile, and a new one, whether it passes or not.

        Raises:
            BadFilter: not in the language, too slow, or empty; nothing was removed.
        """
        condition = compile_filter(filter, self.spec.indexed_keys)
        if condition.count == 0:
            raise BadFilter("an empty filter would delete every item; to do that, delete the collection")
        with self._store.snapshot() as reader:  # before the write: others do not wait for a filter
            matching = reader.matching(condition, self._settings.filter_timeout_s)

        def write(writer: Writer) -> Change[int]:
            removed = writer.remove_rows(matching)
            return Change(len(removed), removed)

        return self._commits.run(write)

    def get(self, id: str, include: Include = METADATA) -> Record:
        """The item of this id. Raises ItemNotFound, or BadItem for what cannot be an id."""
        with self._store.snapshot() as reader:
            return self._record(reader, id, include)

    def _record(self, reader: Reader, id: str, include: Include, index: int | None = None) -> Record:
        """Raises ItemNotFound and BadItem, with the `index` of the query that asks for it."""
        check_id(id, index)
        if record := reader.find(id, include):
            return record
        raise ItemNotFound(f"collection {self.spec.name!r} has no item {id!r}", index)

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Those of the ids that no item has, in their order. Raises BadItem for what cannot be an id."""
        checked = [check_id(id, index) for index, id in enumerate(ids)]
        with self._store.snapshot() as reader:
            present = reader.present(checked)
        return [id for id in checked if id not in present]

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
        queries: ArrayLike | Sequence[Vectors | str],
        limit: int = 10,
        *,
        filter: Mapping[str, Any] | None = None,
        include: Include = METADATA,
        exact: bool = False,
        fingerprint: str | None = None,
        exclude: Sequence[str | None] | None = None,
        effort: int | None = None,
        max_bytes: int | None = None,
    ) -> list[list[Hit]]:
        """The nearest items for each of the vectors [q, d], best first; fewer than `limit` if fewer pass.

        A query may also be the id of an item, whose vector is searched with; name it in `exclude` as well
        to find its like.
        Scores are the cosine, the inner product, or under l2 the squared distance negated. `exact`
        asks for the true nearest, which the kind flat gives anyway. `exclude` has one entry for each
        query: the id that its hits leave out, or None. `effort` takes the place of the ef_search or nprobe,
        whichever most rows are searched with, that was chosen for the recall asked for.

        Raises:
            AnswerTooLarge: written as JSON the hits would have about `max_bytes` or more.
            ModelMismatch: another model than `fingerprint` filled the collection.
            BadVector, BadItem, ItemNotFound: with the `index` of the query.
            BadFilter: the filter is not in the language, or too slow.
        """
        self.spec.check_fingerprint(fingerprint)
        with self._snapshot() as (reader, view):
            vectors = query_vectors(self._vectors(reader, queries), self.spec)
            excluded = [None] * len(vectors) if exclude is None else exclude
            among = None if filter is None else self._passing(filter, reader, view)
            # One more where a query leaves an item out, so that `limit` are left.
            wanted = limit + any(id is not None for id in excluded)
            efforts, kind = self._efforts, KINDS.get(view.kind)
            if effort and kind and kind.effort:
                efforts = {**efforts, kind.effort: effort}
            scores, rowids = view.search(vectors, wanted, among, exact, efforts)
            rows = _rows_of(reader, rowids.ravel().tolist(), include & {"metadata", "vector"}, max_bytes)
        found = []
        for left_out, best, best_scores in zip(excluded, rowids.tolist(), scores.tolist(), strict=True):
            hits = []
            for rowid, score in zip(best, best_scores, strict=True):
                if row := rows.get(rowid):  # FAISS says -1 for no row
                    id, metadata, vector = row
                    if id != left_out:
                        hits.append(Hit(id, score, metadata, None if vector is None else vector_of(vector)))
            found.append(hits[: max(0, limit)])
        return found

    def _vectors(self, reader: Reader, queries: ArrayLike | Sequence[Vectors | str]) -> Any:
        """The queries, with the stored vectors in the places of ids. Raises ItemNotFound, BadItem."""
        if not isinstance(queries, Sequence) or not any(isinstance(query, str) for query in queries):
            return queries
        vector: Include = frozenset({"vector"})
        return [
            self._record(reader, query, vector, place).vector if isinstance(query, str) else query
            for place, query in enumerate(queries)
        ]

    def _passing(self, filter: Mapping[str, Any], reader: Reader, view: View) -> Chosen:
        """The rows of this state that pass. Raises BadFilter."""
        text = None
        with suppress(TypeError, ValueError, RecursionError):  # what is wrong with it, the compiler says
            text = json.dumps(filter)
            if chosen := view.filters.get(text):
                return chosen
        condition = compile_filter(filter, self.spec.indexed_keys)
        chosen = view.choose(reader.matching(condition, self._settings.filter_timeout_s))
        if text is not None:
            view.filters.keep(text, chosen)
        return chosen

    def info(self) -> CollectionInfo:
        with self._snapshot() as (_, view):
            tuning = view.largest.tuning if view.largest else None
            return CollectionInfo(
                name=self.spec.name,
                count=view.living,
                dimensions=self.spec.dimensions,
                metric=self.spec.metric,
                kind=self.spec.kind,
                actual_kind=view.kind,
                state="building" if self._building or self._due(view) else "ready",
                problem=self._problem or _shortfall(view, self._settings.target_recall),
                recall=tuning.recall if tuning else None,
                effort=tuning.effort if tuning else None,
                segments=len(view.segments),
                indexed_keys=self.spec.indexed_keys,
                model=self.spec.model,
                fingerprint=self.spec.fingerprint,
                created=self._created,
                tombstones=view.tombstones,
                bytes_on_disk=self._store.bytes_on_disk(),
                bytes_in_memory=view.nbytes,
                thumbnails=self.spec.thumbnails,
            )

    def evaluate(self, queries: int, k: int, seed: int = 0, budget_s: float = EVALUATION_S) -> Evaluation:
        """Recall@k and latency of this collection's searches against exact ones; see `Evaluation`.

        `queries` are made from as many stored vectors, chosen at random; fewer where all take longer than
        about `budget_s`.

        Raises:
            BadItem: the collection holds nothing.
        """
        with self._snapshot() as (_, view):
            sample = view.sample(queries, seed)
        if len(sample) == 0:
            raise BadItem(f"collection {self.spec.name!r} is empty; there is nothing to search for")
        return evaluate(view, self.spec.metric, sample, k, self._efforts, budget_s)

    def maintain(self, stop: Stop = lambda: False) -> bool:
        """One piece of work that is due in the background, if any; whether there was.

        Searches and writes go on meanwhile, and find every row all the time.

        Raises:
            IndexUnavailable: the disk is full or read-only. Everything stays as it was.
        """
        with self._maintaining:
            view = self._views.get(self._version)  # none once closed
            work = self._due(view) if view else None
            if view is None or work is None:
                self._problem = None  # what failed is no longer wanted
                return False
            self._building = True
            try:
                self._rewrite(view, work, lambda: stop() or self._closed)
            except Stopped:
                return False
            except (OSError, RuntimeError, MemoryError) as error:
                if self._closed:  # and its files deleted
                    return False
                self._problem = f"the index could not be built: {error}"
                raise IndexUnavailable(f"collection {self.spec.name!r}: {self._problem}") from error
            finally:
                self._building = False
            self._problem = None
            return True

    def _due(self, view: View) -> Work | None:
        settings = self._settings
        idle = time.monotonic() - self._last_write > settings.merge_idle_s
        return due(
            view,
            self.spec.kind,
            segment_rows=settings.segment_rows,
            compact_ratio=settings.compact_ratio,
            idle=idle,
        )

    def _rewrite(self, view: View, work: Work, stop: Stop) -> None:
        old = view.segments[work.first : work.last]
        rows = sum(part.living for part in old)
        up_to = 0
        if work.tail:
            rows += view.tail.living
            up_to = int(view.tail.rowids[-1])
        segment = None
        if rows:
            segment = self._snapshots.write(
                view.rows(work.first, work.last, work.tail),
                rows,
                kind_for(self.spec.kind, rows, view.living),
                threads=self._settings.build_threads or self._threads,
                target_recall=self._settings.target_recall,
                stop=stop,
            )
        with self._commits.lock:
            if self._closed:
                return
            now = self._views[self._version]
            self._views = {self._version: now.absorbed(work.first, work.last, up_to, segment)}
        for part in old:
            self._snapshots.remove(part.segment)

    def copy_to(self, directory: Path) -> None:
        """Copy the files, as they are at one moment, to an empty directory on the same disk.

        Segments come first: an older one suits a newer database, but not the reverse. They never change,
        may go at any time, and are not needed, so they are linked where they can be.
        """
        for segment in self._store.directory.glob(f"{SEGMENTS}/[0-9]*"):
            target = directory / SEGMENTS / segment.name
            try:
                shutil.copytree(segment, target, copy_function=os.link)
            except OSError:
                shutil.rmtree(target, ignore_errors=True)
        with self._store.snapshot() as reader:
            reader.copy_to(directory / FILE_NAME)

    def close(self, error: VectorIndexError | None = None) -> None:
        """Wait for the running write, then close the files; later calls raise `error`."""
        with self._commits.lock:
            self._closed = True
            self._store.close(error or IndexUnavailable(f"collection {self.spec.name!r} is closed"))
            self._views = {}

    @contextmanager
    def _snapshot(self) -> Iterator[tuple[Reader, View]]:
        """One committed state: the database at some version, and the vectors of that version."""
        while True:
            with self._store.snapshot() as reader:
                # Missing only if another write was committed since, so each turn sees a newer state.
                if view := self._views.get(reader.version):
                    yield reader, view
                    return

    def _prepare(self, writer: Writer, changes: Sequence[Change[object]]) -> None:
        """Make the vectors of the state that `writer` will commit available, beside the present ones.

        If the commit fails nobody reads that version, and the next write puts its own in the place.
        """
        self._committing = writer.spec()
        present = view = self._views[writer.version]
        none = np.empty((0, self.spec.dimensions), np.float32)
        for change in changes:
            vectors = none if change.vectors is None else change.vectors
            view = view.replace(change.removed, change.added, vectors)
        self._views = {writer.version: present, writer.version + 1: view}

    def _tidy(self, writer: Writer) -> None:
        """After a commit: let go of the state before it, of dead rows if many, of a long log."""
        view = self._views[writer.version + 1]
        self._version = writer.version + 1
        self._views = {self._version: view}  # first of all: whatever fails below, this is what is committed
        self._last_write = time.monotonic()
        self.spec = self._committing
        if compaction_due(view.tail.tombstones, view.tail.size, self._settings.compact_ratio):
            with suppress(MemoryError):  # the dead rows stay until there is room for a copy
                self._views = {self._version: view.with_compact_tail()}
        self._store.limit_wal()


def _shortfall(view: View, target: float) -> str | None:
    """Of indexes that are not used, or have no effort and find less than is asked for; the worst of each."""
    tuned = [part.segment for part in view.segments]
    useless = [(s.tuning.recall, s.kind) for s in tuned if s.tuning and s.kind and s.useless]
    if useless:
        recall, kind = min(useless, key=itemgetter(0))
        finds = f"finds {recall:.0%} of the nearest of these vectors, however long it looks"
        if recall >= LEAST_RECALL:
            finds = f"keeps no numbers beyond {kind.greatest:g}"
        rows = sum(len(segment.rowids) for segment in tuned if segment.useless)
        return f"{kind.name} {finds}: {rows} items are compared one by one instead"
    short = [(s.tuning.recall, s.kind.name) for s in tuned if s.tuning and s.kind and not s.kind.effort]
    recall, name = min(short, default=(1.0, ""))
    return f"{name} finds {recall:.1%} of the nearest of these vectors" if recall < target else None


def _rows_of(
    reader: Reader, hits: Sequence[int], include: Include, max_bytes: int | None
) -> dict[int, tuple[str, str | None, bytes | None]]:
    """What the hits show, by rowid; a row may be that of several. Raises AnswerTooLarge."""
    times = Counter(hits)
    rows = {}
    size = 0
    for rowid, id, metadata, vector in reader.rows(list(times), include):
        rows[rowid] = (id, metadata, vector)
        if max_bytes is not None:
            size += times[rowid] * (HIT_BYTES + len(metadata or "") + JSON_GROWTH * len(vector or b""))
            if size > max_bytes:
                raise AnswerTooLarge(
                    f"the results would have more than {max_bytes} bytes; ask for fewer at once, or for less "
                    'of each: "include": [] leaves out metadata and vectors'
                )
    return rows
