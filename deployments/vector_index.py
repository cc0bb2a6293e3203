"""The vector index deployment: one shard of every collection of a data directory, with one writer."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from configs.settings import IndexSettings, LimitSettings
from deployments.line import OnLine
from deployments.logs import hide_callers_mistakes
from deployments.timing import StageTimes
from index.backup import Manifest, Part, check_free, discard, finish, part_directory, write_part
from index.catalog import Catalog
from index.collection import Collection
from index.errors import IndexUnavailable
from index.info import CollectionInfo, Evaluation
from index.items import Hit, Item, Page, Record, Vectors, Wanted
from index.locations import Location, requested
from index.restore import restore
from index.shards import check_shard_count, shard_directory
from index.spec import CollectionSpec

Result = TypeVar("Result")

SOCKET_NAME = "line.socket"  # no collection is called so

BRIEF_S = 0.001
"""A search that takes less is made at once: handing it to a thread and back takes 0.2 ms."""


class VectorIndex(OnLine):
    """Owns the files of one of `settings.shards` shards under `root`, by default of the only one.

    No other process may have them open, so its replica count stays one. Errors are those of `index.errors`.
    """

    def __init__(self, settings: IndexSettings, limits: LimitSettings, root: Path, shard: int = 0) -> None:
        hide_callers_mistakes()
        check_shard_count(root, settings.shards)
        directory = shard_directory(root, shard, settings.shards)
        self._settings = settings
        self._shard = shard
        self._directory = directory
        if settings.restore_from:
            self._restore(settings.restore_from, directory)
        self._catalog = Catalog(directory, settings, limits, lock_timeout_s=settings.lock_timeout_s)
        self._answer_on_line(self.search, path=directory / SOCKET_NAME)
        # SQLite and FAISS block, and release the GIL. A pool and no semaphore bounds the filters, for
        # a thread goes on when its request is cancelled.
        self._pool = ThreadPoolExecutor(settings.concurrent_calls, "index")
        self._filter_pool = ThreadPoolExecutor(settings.concurrent_filters, "index-filter")
        self._snapshot_pool = ThreadPoolExecutor(1, "index-snapshot")
        self._evaluation_pool = ThreadPoolExecutor(1, "index-evaluation")
        # What was wanted of a collection the last time, if that was brief.
        self._brief: WeakKeyDictionary[Collection, Wanted | None] = WeakKeyDictionary()

    async def ready(self) -> None:
        """Returns while the data directory can be used, however busy both pools are.

        A collection that cannot be used does not make the others unready; see `unavailable`.
        """
        await asyncio.to_thread(self._catalog.check)

    async def unavailable(self) -> dict[str, str]:
        """The collections that did not open, by name, and why. Waits for no other call."""
        return {name: error.message for name, error in self._catalog.unavailable.items()}

    async def create(self, spec: CollectionSpec) -> CollectionInfo:
        return await self._run(lambda: self._catalog.create(spec).info())

    async def list_all(self) -> tuple[list[CollectionInfo], dict[str, str]]:
        """The collections that can be used, and of the others name and reason; both by name."""
        infos = await self._run(self._catalog.infos)
        return (
            [info for info in infos.values() if isinstance(info, CollectionInfo)],
            {name: error.message for name, error in infos.items() if isinstance(error, IndexUnavailable)},
        )

    async def info(self, name: str) -> CollectionInfo:
        return await self._run(lambda: self._catalog.get(name).info())

    async def spec(self, name: str) -> CollectionSpec:
        return await self._run(lambda: self._catalog.get(name).spec)

    async def keeps_thumbnails(self, name: str) -> bool:
        """Whether images come with thumbnails here. Waits for no other call."""
        return self._catalog.get(name).spec.thumbnails

    async def drop(self, name: str) -> None:
        await self._run(lambda: self._catalog.delete(name))

    async def upsert(
        self, name: str, items: Sequence[Item], fingerprint: str | None
    ) -> tuple[list[str], StageTimes]:
        """Stores all items or none; on disk when this returns. `fingerprint` names the model, if any.

        Returns the distinct ids; of one given twice the last item counts."""
        start = time.perf_counter()
        ids = await self._run(lambda: self._catalog.get(name).upsert(items, fingerprint))
        return ids, _since(start)

    async def delete(self, name: str, ids: Sequence[str]) -> int:
        """How many of the ids were there."""
        return await self._run(lambda: self._catalog.get(name).delete(ids))

    async def delete_where(self, name: str, filter: Mapping[str, Any]) -> int:
        """How many passed and were deleted; what is written meanwhile stays."""
        return await self._run(lambda: self._catalog.get(name).delete_where(filter), self._filter_pool)

    async def get(self, name: str, id: str, include: Sequence[Any]) -> Record:
        return await self._run(lambda: self._catalog.get(name).get(id, frozenset(include)))

    async def missing(self, name: str, ids: Sequence[str]) -> list[str]:
        """Those of the ids that no item has, in their order."""
        return await self._run(lambda: self._catalog.get(name).missing(ids))

    async def page(self, name: str, limit: int, cursor: int | None) -> Page:
        return await self._run(lambda: self._catalog.get(name).page(limit, cursor))

    async def search(
        self,
        name: str,
        queries: Sequence[Vectors | str],
        wanted: Wanted,
        exclude: Sequence[str | None] | None = None,
    ) -> tuple[list[list[Hit]], StageTimes]:
        """Hits per query, best first. A query is a vector float32[d], or the id of a stored item,
        which is then left out of its own hits; ItemNotFound and BadItem point at that query.
        `exclude` names the item to leave out for each query where other shards own some."""

        def run(collection: Collection) -> list[list[Hit]]:
            began = time.perf_counter()
            hits = collection.search(
                queries,
                wanted.limit,
                filter=wanted.filter,
                include=wanted.include,
                exact=wanted.exact,
                effort=wanted.effort,
                fingerprint=wanted.fingerprint,
                max_bytes=wanted.max_bytes,
                exclude=exclude or [query if isinstance(query, str) else None for query in queries],
            )
            self._brief[collection] = wanted if time.perf_counter() - began < BRIEF_S else None
            return hits

        start = time.perf_counter()
        collection = self._catalog.opened(name)
        if collection and len(queries) == 1 and self._will_be_brief(collection, wanted):
            hits = run(collection)
        else:
            pool = self._pool if wanted.filter is None else self._filter_pool
            hits = await self._run(lambda: run(self._catalog.get(name)), pool)
        return hits, _since(start)

    async def evaluate(self, name: str, queries: int, k: int) -> Evaluation:
        """Recall@k and latency against exact search; takes up to half a minute. One at a time."""
        return await self._run(lambda: self._catalog.get(name).evaluate(queries, k), self._evaluation_pool)

    async def snapshot_part(self, name: str, to: str, id: str) -> Part:
        """Copies this shard's files to `to`; they become part of a snapshot by `finish_snapshot`.

        `to` is a place that `snapshot_locations` allows. Copies wait for each other and for nothing else."""
        stop = threading.Event()

        def run() -> Part:
            location = requested(to, self._settings.snapshot_locations)
            collection = self._catalog.get(name)
            check_free(location, name)
            directory = part_directory(name, id, self._shard, self._settings.shards)
            with self._catalog.scratch() as copy:
                collection.copy_to(copy)
                return write_part(copy, location, directory, stop)

        try:
            return await self._run(run, self._snapshot_pool)
        finally:  # the thread goes on when its request is cancelled
            stop.set()

    async def discard_snapshot(self, name: str, to: str, id: str) -> None:
        """Deletes every shard's part of a snapshot, unless it was finished; comes after `finish_snapshot`."""
        location = requested(to, self._settings.snapshot_locations)
        await self._run(lambda: discard(location, name, id), self._snapshot_pool)

    async def finish_snapshot(self, to: str, manifest: Manifest) -> None:
        """Makes a snapshot of the parts that all shards have written."""
        location = requested(to, self._settings.snapshot_locations)
        await self._run(lambda: finish(location, manifest), self._snapshot_pool)

    def _restore(self, place: str, directory: Path) -> None:
        settings, logger = self._settings, logging.getLogger("ray.serve")
        names = restore(Location(place), directory, self._shard, settings.shards, settings.lock_timeout_s)
        if names is None:
            logger.warning("nothing is restored from %s: %s was used before", Location(place), directory)
        else:
            logger.warning("restored from %s: %s", Location(place), ", ".join(names))

    def _will_be_brief(self, collection: Collection, wanted: Wanted) -> bool:
        """Whether the last search was like this and brief. What passes a filter may change with any write.

        It may be wrong once, where the disk is slow: then everybody waits for that one search.
        """
        return wanted.filter is None and self._brief.get(collection) == wanted

    async def _run(self, work: Callable[[], Result], pool: ThreadPoolExecutor | None = None) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool or self._pool, work)


def _since(start: float) -> StageTimes:
    return StageTimes(index=(time.perf_counter() - start) * 1e3)
