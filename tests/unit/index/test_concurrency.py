"""Searches beside writes: every item once, in one state, never one that was deleted."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs.settings import IndexSettings
from index.catalog import Catalog
from index.collection import Collection
from index.errors import CollectionNotFound
from index.items import Include, Item
from index.spec import CollectionSpec
from tests.unit.index.threads import running
from tests.waiting import wait_until

IDS = [f"item{n}" for n in range(40)]
ALL: Include = frozenset({"metadata", "vector"})
FILTER: dict[str, object] = {"must": [{"key": "kept", "match": {"value": True}}]}


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    with Catalog(tmp_path, IndexSettings(threads=1, compact_ratio=0.3)) as catalog:
        yield catalog.create(CollectionSpec(name="a", dimensions=2, metric="l2"))


def batch(number: int) -> list[Item]:
    """All items with `number` in vector and metadata alike."""
    return [Item(id, [number, 0], {"number": number, "kept": True}) for id in IDS]


def test_a_search_sees_one_state_whole(collection: Collection) -> None:
    collection.upsert(batch(0))

    def search(filter: dict[str, object] | None) -> None:
        (hits,) = collection.search([[0, 0]], 1000, filter=filter, include=ALL)
        assert sorted(hit.id for hit in hits) == sorted(IDS)
        numbers = {(hit.metadata or {})["number"] for hit in hits}
        assert len(numbers) == 1
        assert all(hit.vector is not None and hit.vector[0] in numbers for hit in hits)
        assert {-hit.score for hit in hits} == {number**2 for number in numbers}

    with running(lambda: search(None), lambda: search(None), lambda: search(FILTER)) as errors:
        for number in range(150):
            collection.upsert(batch(number))
            assert not errors
    assert collection.info().count == len(IDS)


def test_what_was_deleted_stays_away_and_what_was_written_is_there(collection: Collection) -> None:
    collection.upsert(batch(0))

    def churn() -> None:
        collection.upsert([Item("churn", [5, 5], {"kept": True})])
        collection.delete(["churn"])

    with running(churn, churn, lambda: collection.page(1000), lambda: collection.info()) as errors:
        for number in range(30):
            id = IDS[number % len(IDS)]
            collection.delete([id])
            for filter in (None, FILTER):
                assert id not in {hit.id for hit in collection.search([[0, 0]], 100, filter=filter)[0]}
            collection.upsert([Item(id, [0, 0], {"kept": True})])
            for filter in (None, FILTER):
                assert id in {hit.id for hit in collection.search([[0, 0]], 100, filter=filter)[0]}
            assert not errors


def test_a_delete_by_filter_leaves_what_is_written_meanwhile(collection: Collection) -> None:
    collection.upsert(batch(0))
    with running(lambda: collection.delete_where(FILTER)) as errors:
        for number in range(150):
            collection.upsert([Item("x", [number, 0], {"kept": True})])
            collection.upsert([Item("x", [number, 1], {"kept": False})])
            assert collection.get("x").metadata == {"kept": False}
            assert [hit.id for hit in collection.search([[number, 1]], 1)[0]] == ["x"]
            assert not errors
    assert collection.info().count == 1


def test_writers_do_not_lose_each_other_s_writes(collection: Collection) -> None:
    def write(worker: int) -> None:
        for number in range(40):
            collection.upsert(
                [Item(f"{worker}-{number}", [worker, number]), Item("shared", [worker, number])]
            )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))  # which raises what they raise
    assert collection.info().count == len(collection.search([[0, 0]], 1000)[0]) == 4 * 40 + 1


def test_deleting_a_collection_under_load_ends_in_not_found(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        for _ in range(5):
            collection = catalog.create(CollectionSpec(name="a", dimensions=2))
            collection.upsert([Item("x", [1, 0])])
            with pytest.raises(CollectionNotFound):
                delete_under_load(catalog, collection)
            with pytest.raises(CollectionNotFound):
                collection.info()


def delete_under_load(catalog: Catalog, collection: Collection) -> None:
    """Delete, and raise what the searches and writes at that moment met."""

    def write() -> None:
        collection.upsert([Item("y", [0, 1])])

    with running(lambda: collection.search([[1, 0]]), write) as errors:
        catalog.delete("a")
        wait_until(lambda: len(errors) == 2, what="both to meet it", every_s=0.001)
