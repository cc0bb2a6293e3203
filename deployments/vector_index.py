"""The vector index deployment: every collection of one data directory, with one writer."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from configs.settings import IndexSettings, LimitSettings
from deployments.timing import StageTimes
from index.catalog import Catalog
from index.collection import CollectionInfo
from index.items import Hit, Item, Page, Record, Vectors
from index.spec import CollectionSpec

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

# Searches and SQLite calls block; this many run at once. They release the GIL in FAISS and SQLite.
BLOCKING_CALLS = 8
# A replaced replica holds the directory until it has stopped; its successor waits this long for it.
LOCK_TIMEOUT_S = 60.0


class VectorIndex:
    """Owns the data directory: no other process may have it open, so its replica count stays one.

    Errors are those of `index.errors`.
    """

    def __init__(self, settings: IndexSettings, limits: LimitSettings, root: Path) -> None:
        self._catalog = Catalog(root, settings, limits, lock_timeout_s=LOCK_TIMEOUT_S)
        self._pool = ThreadPoolExecutor(BLOCKING_CALLS, "index")

    async def ready(self) -> None:
        """Returns while the index can answer."""
        await self._run(self._catalog.list)

    async def create(self, spec: CollectionSpec) -> CollectionInfo:
        return await self._run(lambda: self._catalog.create(spec).info())

    async def list_all(self) -> list[CollectionInfo]:
        return await self._run(lambda: [collection.info() for collection in self._catalog.list()])

    async def info(self, name: str) -> CollectionInfo:
        return await self._run(lambda: self._catalog.get(name).info())

    async def drop(self, name: str) -> None:
        await self._run(self._catalog.delete, name)

    async def upsert(self, name: str, items: Sequence[Item], fingerprint: str | None) -> StageTimes:
        """Stores all items or none; on disk when this returns. `fingerprint` names the model, if any."""
        start = time.perf_counter()
        await self._run(lambda: self._catalog.get(name).upsert(items, fingerprint))
        return _since(start)

    async def delete(self, name: str, ids: Sequence[str]) -> int:
        """How many of the ids were there."""
        return await self._run(lambda: self._catalog.get(name).delete(ids))

    async def delete_where(self, name: str, filter: Mapping[str, Any]) -> int:
        return await self._run(lambda: self._catalog.get(name).delete_where(filter))

    async def get(self, name: str, id: str, include: Sequence[Any]) -> Record:
        return await self._run(lambda: self._catalog.get(name).get(id, frozenset(include)))

    async def page(self, name: str, limit: int, cursor: int | None) -> Page:
        return await self._run(lambda: self._catalog.get(name).page(limit, cursor))

    async def search(
        self,
        name: str,
        queries: Sequence[Vectors | str],
        limit: int,
        filter: Mapping[str, Any] | None,
        include: Sequence[Any],
        exact: bool,
        fingerprint: str | None,
    ) -> tuple[list[list[Hit]], StageTimes]:
        """Hits per query, best first. A query is a vector float32[d], or the id of a stored item,
        which is then left out of its own hits."""

        def run() -> list[list[Hit]]:
            collection = self._catalog.get(name)
            ids = [query if isinstance(query, str) else None for query in queries]
            vectors = [collection.vector_of(query) if isinstance(query, str) else query for query in queries]
            # One more than asked, so that leaving an item out of its own hits still gives `limit`.
            found = collection.search(
                vectors,
                limit + any(id is not None for id in ids),
                filter=filter,
                include=frozenset(include),
                exact=exact,
                fingerprint=fingerprint,
            )
            return [
                [hit for hit in hits if hit.id != id][:limit] for id, hits in zip(ids, found, strict=True)
            ]

        start = time.perf_counter()
        hits = await self._run(run)
        return hits, _since(start)

    async def _run(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: work(*args, **kwargs))


def _since(start: float) -> StageTimes:
    return StageTimes(index=(time.perf_counter() - start) * 1e3)
