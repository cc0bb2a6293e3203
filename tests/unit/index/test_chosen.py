"""Filters kept with the state they were asked of: the same answers, and none from another state."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.settings import IndexSettings
from index.catalog import Catalog
from index.chosen import Chosen, RecentFilters
from index.collection import Collection
from index.errors import BadFilter
from index.filters import Condition
from index.flat import GATHERED_ROWS, RANKED_QUERIES, RANKED_ROWS, nearest_among, positions_of
from index.items import Item, Rowids
from index.spec import CollectionSpec, Metric
from index.store import Reader


def even(wanted: bool = True) -> dict[str, Any]:
    return {"must": [{"key": "even", "match": {"value": wanted}}]}


def line(*places: int) -> list[Item]:
    return [Item(str(x), [x, 0], {"even": x % 2 == 0}) for x in places]


def passing(collection: Collection, filter: dict[str, Any]) -> set[str]:
    return {hit.id for hit in collection.search([[0, 0]], 100, filter=filter)[0]}


def test_a_filter_asked_again_is_not_evaluated_again(
    points: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    points.upsert(line(*range(6)))
    asked: list[Condition] = []
    matching = Reader.matching

    def counted(reader: Reader, condition: Condition, timeout_s: float) -> Rowids:
        asked.append(condition)
        return matching(reader, condition, timeout_s)

    monkeypatch.setattr(Reader, "matching", counted)
    assert [passing(points, even()) for _ in range(3)] == [{"0", "2", "4"}] * 3
    assert len(asked) == 1
    assert passing(points, even(False)) == {"1", "3", "5"}
    assert len(asked) == 2


def test_every_write_is_seen_by_a_filter_asked_before(points: Collection) -> None:
    points.upsert(line(*range(4)))
    assert passing(points, even()) == {"0", "2"}
    points.upsert(line(8))
    assert passing(points, even()) == {"0", "2", "8"}
    points.upsert([Item("2", [2, 0], {"even": False})])
    assert passing(points, even()) == {"0", "8"}
    points.delete(["0"])
    assert passing(points, even()) == {"8"}
    points.delete_where(even())
    assert passing(points, even()) == set()


def test_a_failed_write_leaves_it_as_it_was(points: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    points.upsert(line(*range(4)))
    assert passing(points, even()) == {"0", "2"}
    with monkeypatch.context() as patched:
        patched.setattr("index.store.Writer.put", _fail)
        with pytest.raises(sqlite3.ProgrammingError):
            points.upsert(line(8))
    assert passing(points, even()) == {"0", "2"}


def _fail(*_: object) -> None:
    raise sqlite3.ProgrammingError("no")


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_filters_hold_over_segments_and_the_rows_since(tmp_path: Path, kind: Any) -> None:
    settings = IndexSettings(threads=1, segment_rows=1500, merge_idle_s=3600)
    with Catalog(tmp_path, settings) as catalog:
        collection = catalog.create(CollectionSpec(name="a", dimensions=2, metric="l2", kind=kind))
        collection.upsert(line(*range(1500)))
        assert passing(collection, even()) == {str(x) for x in range(0, 200, 2)}
        while collection.maintain():
            pass
        assert collection.info().segments == 1
        collection.delete(["4"])
        collection.upsert([*line(6), Item("1", [1, 0], {"even": True})])
        for _ in range(2):
            assert passing(collection, even()) == {"1", *(str(x) for x in range(0, 200, 2))} - {"4"}


def test_what_is_no_filter_is_refused_each_time(points: Collection) -> None:
    points.upsert(line(1))
    endless: dict[str, Any] = {}
    endless["must"] = [endless]
    for bad in ({"must": object()}, {"key": float("nan")}, endless):
        for _ in range(2):
            with pytest.raises(BadFilter):
                passing(points, bad)


def chosen(rows: int) -> Chosen:
    return Chosen((np.arange(rows),))


def test_the_filters_asked_for_longest_ago_make_room() -> None:
    recent = RecentFilters(most_bytes=40_000)
    for name in ("a", "b", "c", "d"):
        recent.keep(name, chosen(1000))
        assert recent.get("a") is not None
    recent.keep("e", chosen(1000))
    assert {name for name in "abcde" if recent.get(name)} == {"a", "c", "d", "e"}
    recent.keep("large", chosen(1500))
    assert recent.get("large") is None


def test_positions_with_and_without_gaps() -> None:
    for stored in (np.arange(10, 20), np.array([3, 5, 9, 100])):
        assert positions_of(stored[[0, 2, 3]], stored).tolist() == [0, 2, 3]
    assert positions_of(np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == []


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("count", [40, GATHERED_ROWS + 7, RANKED_ROWS + GATHERED_ROWS + 7])
@pytest.mark.parametrize("queries", [1, 5, RANKED_QUERIES + 3])
def test_the_nearest_among_some_rows_are_exact(metric: Metric, count: int, queries: int) -> None:
    random = np.random.default_rng(count)
    vectors = random.standard_normal((2 * count, 8)).astype(np.float32)
    wanted = random.standard_normal((queries, 8)).astype(np.float32)
    positions = np.sort(random.choice(2 * count, count, replace=False))
    scores, found = nearest_among(wanted, vectors, positions, 40, metric, 1)
    if metric == "l2":
        true = -((wanted[:, None] - vectors[positions]) ** 2).sum(axis=2)
    else:
        true = wanted @ vectors[positions].T
    order = np.argsort(-true, axis=1)[:, :40]
    assert np.allclose(scores, np.take_along_axis(true, order, axis=1), atol=1e-4)
    assert (found == positions[order]).mean() > 0.99
