"""Shards that are down, slow or damaged: what is answered then, and that nothing is half written."""

import asyncio
import inspect
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from configs.settings import IndexSettings, LimitSettings
from deployments.vector_index import VectorIndex
from index.errors import (
    BadFilter,
    BadItem,
    BadVector,
    CollectionExists,
    CollectionNotFound,
    IndexUnavailable,
    SnapshotExists,
)
from index.items import Item, Wanted
from index.locations import Location
from index.restore import restore_all
from index.shards import shard_directory, shard_of
from index.spec import CollectionSpec
from index.store import FILE_NAME
from serve_app.remote import ReplicaLost
from serve_app.routes.items import thumbnail
from serve_app.shard import Shard, ShardDown
from serve_app.shards import Found, Shards
from tests.waiting import PATIENCE_S, until

SETTINGS = IndexSettings(shards=3, shard_timeout_s=PATIENCE_S, threads=1)
NAMES = [f"item-{n}" for n in range(30)]
OWNED = {shard: [name for name in NAMES if shard_of(name, 3) == shard] for shard in range(3)}


class Handle:
    """Calls one shard in this process as a Serve handle would; `state` says what becomes of the calls."""

    deployment_name = "VectorIndex"

    def __init__(self, index: VectorIndex) -> None:
        self.index = index
        self.up = asyncio.Event()  # unset: calls wait, as Serve lets them while there is no replica
        self.up.set()
        self.slow_s = 0.0
        self.lost_at: str | None = None  # the method during which the replica dies
        self.calls: list[str] = []

    def __getattr__(self, method: str) -> Any:
        async def remote(*args: Any) -> Any:
            self.calls.append(method)
            await self.up.wait()
            if method == self.lost_at:
                self.up.clear()
                raise ReplicaLost("lost")
            await asyncio.sleep(self.slow_s)
            return await getattr(self.index, method)(*args)

        return SimpleNamespace(remote=remote)


class Cluster:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.indexes = [VectorIndex(SETTINGS, LimitSettings(), root, shard) for shard in range(3)]
        self.handles: list[Handle] = []
        self.shards: list[Shard] = []

    def connect(self) -> Shards:
        """The gateway's side, anew for each event loop."""
        self.handles = [Handle(index) for index in self.indexes]
        handles: Any = self.handles
        shards = Shards(handles, SETTINGS, LimitSettings())
        self.shards = shards._shards
        return shards

    def take_down(self, shard: int) -> None:
        """It alone has little time to answer: it would not anyhow."""
        self.handles[shard].up.clear()
        self.shards[shard]._timeout_s = 0.2

    def lose_at(self, method: str, shard: int) -> None:
        """It has time for what it is called for before."""
        self.handles[shard].lost_at = method
        self.shards[shard]._timeout_s = 1

    def bring_up(self, shard: int) -> None:
        self.handles[shard].lost_at = None
        self.handles[shard].up.set()
        self.shards[shard]._timeout_s = PATIENCE_S

    def keep_snapshots(self, place: Path) -> None:
        for index in self.indexes:
            index._settings = SETTINGS.model_copy(update={"snapshot_locations": (str(place),)})

    def close(self) -> None:
        for index in self.indexes:
            index._catalog.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "index")

    async def fill() -> None:
        shards = cluster.connect()
        await shards.create(CollectionSpec(name="a", dimensions=2, metric="l2"))
        await shards.upsert("a", [Item(name, [n, 0], {"n": n}) for n, name in enumerate(NAMES)], None)

    asyncio.run(fill())
    yield cluster
    cluster.close()


async def search(shards: Shards, query: Any = None, partial: bool = False) -> Found:
    vector = np.zeros(2, np.float32) if query is None else query
    return await shards.search("a", [vector], Wanted(30, include=frozenset()), partial)


async def recovered(shards: Shards) -> Found:
    """What a search finds once no shard is down any more."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await search(shards, partial=True)
            if not found.missing:
                return found
            await asyncio.sleep(0.01)


def ids(found: Found) -> list[str]:
    return [hit.id for hit in found.hits[0]]


def test_a_shard_that_is_down_is_named_left_out_where_asked_and_found_again(cluster: Cluster) -> None:
    async def main() -> None:
        shards = cluster.connect()
        down = cluster.handles[1]
        cluster.take_down(1)
        with pytest.raises(ShardDown, match=r"^index-1 did not answer"):
            await search(shards)
        asked = len(down.calls)
        found = await search(shards, partial=True)
        assert (found.missing, ids(found)) == (("index-1",), [n for n in NAMES if n not in OWNED[1]])
        assert "search" not in down.calls[asked:], "it is known to be down"
        with pytest.raises(ShardDown, match="index-1"):
            await search(shards, OWNED[1][0], partial=True)  # its vector cannot be had
        cluster.bring_up(1)
        found = await recovered(shards)
        assert ids(found) == NAMES

    asyncio.run(main())


def test_thumbnails_of_items_on_other_shards_than_one_that_is_down_are_answered(cluster: Cluster) -> None:
    async def main() -> None:
        shards = cluster.connect()
        await shards.upsert("a", [Item(name, [1, 1], {}, b"jpeg") for name in NAMES], None)
        state = SimpleNamespace(gateway=SimpleNamespace(index=shards))
        request: Any = SimpleNamespace(app=SimpleNamespace(state=state), query_params={}, headers={})
        cluster.take_down(1)
        for name in OWNED[0] + OWNED[2]:
            assert (await thumbnail(request, "a", name)).body == b"jpeg"
        unknown = next(
            f"no-{n}"
            for n in range(99)
            if (shard_of(f"no-{n}", 3), shard_of(f"no-{n}/thumbnail", 3)) == (0, 1)
        )
        for id in (OWNED[1][0], unknown):  # an item called so may be on the shard that is down
            with pytest.raises(ShardDown):
                await thumbnail(request, "a", id)

    asyncio.run(main())


def test_all_shards_down_is_no_partial_answer(cluster: Cluster) -> None:
    async def main() -> None:
        shards = cluster.connect()
        for shard in range(3):
            cluster.take_down(shard)
        with pytest.raises(ShardDown, match="index-0, index-1, index-2 did not answer"):
            await search(shards, partial=True)

    asyncio.run(main())


def test_a_slow_shard_that_is_well_is_waited_for(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        shards = cluster.connect()
        slow = cluster.handles[2]
        cluster.shards[2]._timeout_s = 0.5
        find = slow.index.search

        async def find_late(*args: Any) -> Any:
            await until(lambda: slow.calls.count("ready") >= 2, what="two questions whether it is well")
            return await find(*args)

        async def at_once() -> None:
            """It is well."""

        monkeypatch.setattr(slow.index, "search", find_late)
        monkeypatch.setattr(slow.index, "ready", at_once)
        assert ids(await search(shards)) == NAMES

    asyncio.run(main())


def test_writes_to_a_down_shard_leave_every_shard_as_it_was(cluster: Cluster) -> None:
    async def main() -> None:
        shards = cluster.connect()
        cluster.take_down(0)
        everywhere = [Item(name, [-1, 0]) for name in NAMES]
        with pytest.raises(ShardDown, match="index-0"):
            await shards.upsert("a", everywhere, None)
        for call in (shards.delete("a", NAMES), shards.drop("a"), shards.delete_where("a", {"must": []})):
            with pytest.raises(ShardDown, match="index-0"):
                await call
        stored, _ = await shards.upsert("a", [Item(OWNED[1][0], [5, 5]), Item(OWNED[2][0], [5, 5])], None)
        assert stored == [OWNED[1][0], OWNED[2][0]]
        assert await shards.delete("a", OWNED[1][1:3]) == 2
        cluster.bring_up(0)
        found = await recovered(shards)
        assert set(ids(found)) == set(NAMES) - set(OWNED[1][1:3])
        scores = {hit.id: hit.score for hit in found.hits[0]}
        assert [scores[name] for name in OWNED[0]] == [-float(NAMES.index(name) ** 2) for name in OWNED[0]]

    asyncio.run(main())


def test_a_shard_lost_between_two_commits_is_told_and_asking_again_completes(cluster: Cluster) -> None:
    async def main() -> None:
        shards = cluster.connect()
        cluster.lose_at("upsert", 2)
        moved = [Item(name, [100, 0]) for name in NAMES]
        with pytest.raises(ShardDown, match=r"index-2 did not answer.*may have done their part"):
            await shards.upsert("a", moved, None)
        cluster.bring_up(2)
        await recovered(shards)
        await shards.upsert("a", moved, None)
        found = await search(shards)
        assert {hit.score for hit in found.hits[0]} == {-10_000.0}

    asyncio.run(main())


def test_a_collection_one_shard_lost_is_told_and_can_be_made_again_or_dropped(cluster: Cluster) -> None:
    async def main() -> None:
        shards = cluster.connect()
        cluster.indexes[1]._catalog.delete("a")
        with pytest.raises(IndexUnavailable, match="index-1 lost this collection: make it again"):
            await shards.info("a")
        infos, unavailable = await shards.list_all()
        assert (infos, list(unavailable)) == ([], ["a"])
        lost = OWNED[1][0]
        for call in (
            shards.get("a", lost, ("metadata",)),
            shards.missing("a", [lost]),
            shards.delete("a", [lost]),
            shards.upsert("a", [Item(lost, [1, 2])], None),
            shards.page("a", 100, None),
        ):
            with pytest.raises(IndexUnavailable, match="index-1 lost this collection"):
                await call
        with pytest.raises(CollectionNotFound):
            await shards.get("b", lost, ("metadata",))
        assert (await search(shards, partial=True)).missing == ("index-1",)
        info = await shards.create(CollectionSpec(name="a", dimensions=2, metric="l2"))
        assert info.count == 30 - len(OWNED[1])
        assert set(ids(await search(shards))) == set(NAMES) - set(OWNED[1])
        cluster.indexes[0]._catalog.delete("a")
        await shards.drop("a")
        with pytest.raises(CollectionNotFound):
            await shards.drop("a")
        assert await shards.list_all() == ([], {})

    asyncio.run(main())


def test_a_lost_collection_is_made_again_only_as_the_other_shards_hold_it(cluster: Cluster) -> None:
    async def main() -> None:
        shards = cluster.connect()
        cluster.indexes[0]._catalog.delete("a")  # the shard that decides between two at once
        for other in (
            CollectionSpec(name="a", dimensions=2),
            CollectionSpec(name="a", dimensions=3, metric="l2"),
        ):
            with pytest.raises(CollectionExists, match="not"):
                await shards.create(other)
        with pytest.raises(IndexUnavailable, match="index-0 lost this collection"):
            await shards.info("a")
        info = await shards.create(CollectionSpec(name="a", dimensions=2, metric="l2"))
        assert (info.metric, info.count) == ("l2", 30 - len(OWNED[0]))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"metric": "cosine"},
            "index-1 and index-0 hold different .*metric is 'cosine', not 'l2'.*delete it",
        ),
        ({"metric": "l2", "model": "m", "fingerprint": "f"}, "model is None, not 'm'.*delete it"),
    ],
)
def test_different_collections_of_one_name_are_refused_until_they_are_dropped(
    cluster: Cluster, settings: dict[str, Any], told: str
) -> None:
    async def main() -> None:
        shards = cluster.connect()
        cluster.indexes[1]._catalog.delete("a")  # as if its directory were another's copy
        cluster.indexes[1]._catalog.create(CollectionSpec(name="a", dimensions=2, **settings))
        right = CollectionSpec(name="a", dimensions=2, metric="l2")
        for call in (
            shards.info("a"),
            shards.create(right),
            shards.upsert("a", [Item(name, [1, 1]) for name in NAMES], None),
            shards.delete("a", NAMES),
            shards.delete_where("a", {"must": [{"key": "n", "exists": True}]}),
        ):
            with pytest.raises(IndexUnavailable, match=told):
                await call
        infos, unavailable = await shards.list_all()
        assert (infos, list(unavailable)) == ([], ["a"])
        assert "delete it and make it again" in unavailable["a"]
        await shards.drop("a")
        assert (await shards.create(right)).count == 0

    asyncio.run(main())


def test_shards_of_which_only_some_were_written_to_hold_the_same_collection(cluster: Cluster) -> None:
    async def main() -> None:
        shards = cluster.connect()
        await shards.create(CollectionSpec(name="b", dimensions=2, model="m", fingerprint=None))
        await shards.upsert("b", [Item(OWNED[2][0], [1, 1])], "f")
        assert (await shards.info("b")).count == 1
        await shards.upsert("b", [Item(name, [1, 1]) for name in NAMES], "f")
        assert (await shards.info("b")).fingerprint == "f"
        cluster.indexes[1]._catalog.delete("b")
        cluster.indexes[1]._catalog.create(CollectionSpec(name="b", dimensions=2, model="m", fingerprint="g"))
        with pytest.raises(IndexUnavailable, match="fingerprint is 'g', not 'f'"):
            await shards.info("b")

    asyncio.run(main())


def test_damaged_files_of_one_shard_are_named(cluster: Cluster) -> None:
    cluster.close()
    (shard_directory(cluster.root, 2, 3) / "a" / FILE_NAME).write_bytes(b"not a database" * 1000)
    cluster.indexes = [VectorIndex(SETTINGS, LimitSettings(), cluster.root, shard) for shard in range(3)]

    async def main() -> None:
        shards = cluster.connect()
        with pytest.raises(IndexUnavailable, match=r"^index-2: .*damaged"):
            await search(shards)
        assert (await search(shards, partial=True)).missing == ("index-2",)
        _, unavailable = await shards.list_all()
        assert unavailable["a"].startswith("index-2: ")
        await shards.drop("a")
        assert await shards.list_all() == ([], {})

    asyncio.run(main())


def test_a_snapshot_that_one_shard_cannot_take_part_in_leaves_no_part(
    cluster: Cluster, tmp_path: Path
) -> None:
    place = tmp_path / "snapshots"
    cluster.keep_snapshots(place)

    async def main() -> None:
        shards = cluster.connect()
        cluster.lose_at("snapshot_part", 0)
        with pytest.raises(ShardDown):
            await shards.snapshot("a", "monday")
        await asyncio.gather(*shards._discarding)  # by a shard that is there
        assert files(place) == []
        cluster.bring_up(0)
        await recovered(shards)
        assert len((await shards.snapshot("a", "monday")).parts) == 3
        kept = files(place)
        with pytest.raises(SnapshotExists):
            await shards.snapshot("a", "monday")
        await asyncio.gather(*shards._discarding)
        assert files(place) == kept

    asyncio.run(main())
    assert restore_all(Location(str(place), ("monday",)), tmp_path / "new") == (3, ["a"])


def test_a_snapshot_whose_request_ends_before_it_is_finished_leaves_no_part(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "snapshots"
    cluster.keep_snapshots(place)

    async def main() -> None:
        shards = cluster.connect()
        first, busy, waiting = cluster.indexes[0], threading.Event(), asyncio.Event()
        finish = first.finish_snapshot

        async def finish_late(*args: Any) -> None:
            first._snapshot_pool.submit(busy.wait)  # such as by another collection's copy
            waiting.set()
            await finish(*args)

        monkeypatch.setattr(first, "finish_snapshot", finish_late)
        asked = asyncio.create_task(shards.snapshot("a", "monday"))
        await waiting.wait()
        assert len(files(place)) == 3
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        busy.set()
        await asyncio.gather(*shards._discarding)
        assert files(place) == []

    asyncio.run(main())


def files(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())


def test_shards_without_items_are_no_part_of_an_evaluation(cluster: Cluster) -> None:
    async def main() -> None:
        shards = cluster.connect()
        assert (await shards.evaluate("a", 5, 3)).count == 30
        await shards.delete("a", OWNED[0])
        evaluated = await shards.evaluate("a", 5, 3)
        assert (evaluated.count, evaluated.now.recall) == (30 - len(OWNED[0]), 1)
        await shards.delete("a", NAMES)
        with pytest.raises(BadItem, match="is empty"):
            await shards.evaluate("a", 5, 3)

    asyncio.run(main())


def test_a_mistake_is_told_by_its_place_even_where_a_shard_is_down(cluster: Cluster) -> None:
    async def main() -> None:
        shards = cluster.connect()
        cluster.take_down(0)
        items = [Item(OWNED[1][0], [1, 1]), Item(OWNED[2][0], [1, 1, 1]), Item(OWNED[2][1], [1, 1])]
        with pytest.raises(BadVector) as caught:
            await shards.upsert("a", items, None)
        assert caught.value.index == 1

    asyncio.run(main())


def test_a_single_shard_gets_every_call_as_one_call(tmp_path: Path) -> None:
    async def main() -> None:
        handle = Handle(VectorIndex(IndexSettings(threads=1), LimitSettings(), tmp_path))
        shards = Shards([handle], IndexSettings(), LimitSettings())  # type: ignore[list-item]
        await shards.create(CollectionSpec(name="a", dimensions=2))
        await shards.upsert("a", [Item("x", [1, 0])], None)
        await shards.search("a", ["x"], Wanted(1, include=frozenset()))
        await shards.page("a", 1, None)
        await shards.get("a", "x", ())
        await shards.info("a")
        await shards.evaluate("a", 1, 1)
        await shards.list_all()
        await shards.delete_where("a", {"must": [{"key": "n", "exists": True}]})
        await shards.delete("a", ["x"])
        await shards.drop("a")
        called = "create upsert search page get info evaluate list_all delete_where delete drop"
        assert " ".join(handle.calls) == called
        handle.index._catalog.close()

    asyncio.run(main())


def test_searches_by_the_same_filter_travel_together_and_others_alone(tmp_path: Path) -> None:
    def where(n: int) -> Wanted:
        return Wanted(9, filter={"must": [{"key": "n", "match": {"value": n}}]}, include=frozenset())

    async def main() -> None:
        handle = Handle(VectorIndex(IndexSettings(threads=1), LimitSettings(), tmp_path))
        shards = Shards([handle], IndexSettings(), LimitSettings())  # type: ignore[list-item]
        await shards.create(CollectionSpec(name="a", dimensions=1, metric="l2"))
        await shards.upsert("a", [Item(str(n), [n], {"n": n % 2}) for n in range(6)], None)
        handle.slow_s = 0.02
        vectors: list[Any] = [np.array([n], np.float32) for n in range(6)]
        searches = [shards.search("a", [vector], where(n % 2)) for n, vector in enumerate(vectors * 4)]
        bad = shards.search("a", [np.zeros(2, np.float32)], where(0))
        refused = shards.search("a", [vectors[0]], Wanted(filter={"must": 1}))
        *found, wrong, no_filter = await asyncio.gather(*searches, bad, refused, return_exceptions=True)
        for n, answer in enumerate(found):
            assert isinstance(answer, Found)
            assert ids(answer)[0] == str(n % 6)
            assert {int(id) % 2 for id in ids(answer)} == {n % 2}
        assert isinstance(wrong, BadVector)
        assert wrong.index == 0
        assert isinstance(no_filter, BadFilter)
        # Of each filter two at once, then the rest; once more without the vector that has no place in it.
        assert handle.calls.count("search") <= 3 + 4 + 1
        handle.index._catalog.close()

    asyncio.run(main())


def test_every_method_of_the_index_that_routes_call_is_there() -> None:
    snapshots = {"snapshot_part", "finish_snapshot", "discard_snapshot"}
    own = {"ready", "unavailable", "line", "spec"} | snapshots  # for Shards itself
    methods = {name for name, _ in inspect.getmembers(VectorIndex, inspect.iscoroutinefunction)}
    assert {name for name in methods if not name.startswith("_")} - own <= set(dir(Shards))
