"""The index deployment's own part: who waits for whom, and what it adds to the collections' answers."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.settings import IndexSettings, LimitSettings
from deployments import vector_index
from deployments.vector_index import VectorIndex
from index.backup import part_directory
from index.collection import Collection
from index.errors import BadItem, IndexUnavailable, ItemNotFound
from index.items import Hit, Item, Vectors, Wanted
from index.spec import CollectionSpec
from index.store import FILE_NAME, Reader
from tests.waiting import PATIENCE_S, until

SETTINGS = IndexSettings(threads=1, concurrent_calls=2, concurrent_filters=2)
ORIGIN = np.zeros(2, np.float32)
SLOW = {"must": [{"key": "tag", "match": {"value": "slow"}}]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def index(root: Path) -> Iterator[VectorIndex]:
    index = VectorIndex(SETTINGS, LimitSettings(), root)
    asyncio.run(index.create(CollectionSpec(name="a", dimensions=2, metric="l2")))
    yield index
    close(index)


def close(index: VectorIndex) -> None:
    index._pool.shutdown()
    index._filter_pool.shutdown()
    index._snapshot_pool.shutdown()
    index._catalog.close()


async def search(
    index: VectorIndex, *queries: Vectors | str, limit: int = 5, filter: Any = None
) -> list[list[Hit]]:
    hits, _ = await index.search("a", queries, Wanted(limit, filter, frozenset()))
    return hits


def test_slow_filters_hold_up_nothing_but_filters(
    index: VectorIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    matching, go = Reader.matching, threading.Event()
    begun: list[None] = []

    def slow_matching(*args: Any) -> Any:
        begun.append(None)
        assert go.wait(PATIENCE_S)
        return matching(*args)

    async def main() -> None:
        await index.upsert("a", [Item("0", [0, 0]), Item("1", [1, 0], {"tag": "slow"})], None)
        slow: list[asyncio.Task[Any]] = [
            asyncio.create_task(index.delete_where("a", SLOW)),
            asyncio.create_task(search(index, ORIGIN, filter=SLOW)),
        ]
        assert len(slow) == SETTINGS.concurrent_filters
        await until(lambda: len(begun) == len(slow), what="both to look for what passes")
        await index.ready()
        await index.upsert("a", [Item("new", [0.1, 0])], None)
        assert ids(await search(index, ORIGIN, limit=2)) == [["0", "new"]]
        assert await index.delete("a", ["new"]) == 1
        assert (await index.info("a")).count == 2
        assert not any(task.done() for task in slow)
        go.set()
        assert await slow[0] == 1
        assert ids(await slow[1]) in ([["1"]], [[]])  # before or after the other
        assert (await index.info("a")).count == 1

    monkeypatch.setattr(Reader, "matching", slow_matching)
    try:
        asyncio.run(main())
    finally:
        go.set()


def test_a_search_like_a_brief_one_takes_no_thread(
    index: VectorIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: list[bool] = []
    searched = Collection.search

    def watched(*args: Any, **kwargs: Any) -> list[list[Hit]]:
        at_once.append(threading.current_thread() is threading.main_thread())
        return searched(*args, **kwargs)

    async def main() -> None:
        await index.upsert("a", [Item("b", [1, 0], {"n": 1})], None)
        monkeypatch.setattr(Collection, "search", watched)
        monkeypatch.setattr(vector_index, "BRIEF_S", 60.0)
        filter = {"must": [{"key": "n", "match": {"value": 1}}]}
        for asked in (1, 1, 2, 2):  # of another kind, then like the last
            assert ids(await search(index, ORIGIN, limit=asked)) == [["b"]]
        assert ids(await search(index, ORIGIN, "b", limit=2)) == [["b"], []]  # several
        for _ in range(2):  # what passes may be looked for again
            assert ids(await search(index, ORIGIN, filter=filter)) == [["b"]]
        assert at_once == [False, True, False, True, False, False, False]

        at_once.clear()
        monkeypatch.setattr(vector_index, "BRIEF_S", 0.0)
        for _ in range(2):
            await search(index, ORIGIN)
        assert at_once == [False, False]
        # A dropped collection leaves nothing to one of the same name.
        monkeypatch.setattr(vector_index, "BRIEF_S", 60.0)
        await search(index, ORIGIN)
        await index.drop("a")
        await index.create(CollectionSpec(name="a", dimensions=2, metric="l2"))
        at_once.clear()
        assert ids(await search(index, ORIGIN)) == [[]]
        assert at_once == [False]

    asyncio.run(main())


def test_readiness_waits_for_no_thread_of_the_pools(index: VectorIndex) -> None:
    release = threading.Event()
    for pool, size in (
        (index._pool, SETTINGS.concurrent_calls),
        (index._filter_pool, SETTINGS.concurrent_filters),
    ):
        for _ in range(size + 1):
            pool.submit(release.wait)
    try:
        asyncio.run(index.ready())
        assert asyncio.run(index.unavailable()) == {}
    finally:
        release.set()


def test_readiness_tells_when_the_directory_is_gone(index: VectorIndex, root: Path) -> None:
    asyncio.run(index.ready())
    moved = root.rename(root.with_name("moved"))
    with pytest.raises(IndexUnavailable, match="cannot be used"):
        asyncio.run(index.ready())
    moved.rename(root)
    asyncio.run(index.ready())
    index._catalog.close()
    with pytest.raises(IndexUnavailable, match="closed"):
        asyncio.run(index.ready())


def test_damaged_collections_are_listed_with_the_reason(index: VectorIndex, root: Path) -> None:
    asyncio.run(index.create(CollectionSpec(name="bad", dimensions=2)))
    close(index)
    (root / "bad" / FILE_NAME).write_bytes(b"not a database" * 1000)
    again = VectorIndex(SETTINGS, LimitSettings(), root)
    try:
        infos, unavailable = asyncio.run(again.list_all())
        assert [info.name for info in infos] == ["a"]
        assert list(unavailable) == ["bad"]
        assert "damaged" in unavailable["bad"]
        assert asyncio.run(again.unavailable()) == unavailable
        asyncio.run(again.ready())
        asyncio.run(again.drop("bad"))
        assert asyncio.run(again.list_all()) == (infos, {})
    finally:
        close(again)


def test_upsert_tells_the_distinct_ids_and_its_time(index: VectorIndex) -> None:
    items = [Item("x", [1, 0]), Item("y", [2, 0]), Item("x", [3, 0])]
    stored, times = asyncio.run(index.upsert("a", items, None))
    assert stored == ["x", "y"]
    assert times.index > 0


def test_an_item_s_like_is_found_beside_vectors(index: VectorIndex) -> None:
    async def main() -> None:
        await index.upsert("a", [Item(str(n), [n, 0], {"n": n}) for n in range(4)], None)
        assert ids(await search(index, "0", ORIGIN, "3", limit=1)) == [["1"], ["0"], ["2"]]
        beyond = {"must": [{"key": "n", "range": {"gte": 2}}]}
        assert ids(await search(index, "2", "0", limit=2, filter=beyond)) == [["3"], ["2", "3"]]
        for wrong, error in (("nobody", ItemNotFound), ("", BadItem)):
            with pytest.raises(error) as caught:
                await search(index, ORIGIN, "0", wrong)
            assert caught.value.index == 2

    asyncio.run(main())


def ids(found: list[list[Hit]]) -> list[list[str]]:
    return [[hit.id for hit in hits] for hits in found]


def test_a_snapshot_that_is_stuck_holds_up_nothing_and_ends_with_its_request(
    index: VectorIndex, root: Path, tmp_path: Path
) -> None:
    id = "0" * 32
    part = tmp_path / "snapshots" / "monday" / part_directory("a", id, 0, 1)
    part.mkdir(parents=True)
    pipe = part / FILE_NAME  # writing to it waits until somebody reads
    os.mkfifo(pipe)

    async def main() -> None:
        index._settings = SETTINGS.model_copy(update={"snapshot_locations": (str(tmp_path / "snapshots"),)})
        await index.upsert("a", [Item("x", [1, 0])], None)
        stuck = asyncio.create_task(index.snapshot_part("a", "monday", id))
        await until(lambda: list(root.glob(".unfinished-*/*")), what="a copy that has begun")
        for n in range(2 * SETTINGS.concurrent_calls):
            await index.upsert("a", [Item(str(n), [n, 0])], None)
            assert ids(await search(index, ORIGIN, limit=1)) == [["0"]]
        assert not stuck.done()
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck
        await asyncio.to_thread(pipe.read_bytes)
        await until(lambda: not part.exists(), what="the end of what was cancelled")
        done = await index.snapshot_part("a", "tuesday", id)
        assert list(done) == [FILE_NAME]

    asyncio.run(main())
    assert not list(root.glob(".unfinished-*"))
