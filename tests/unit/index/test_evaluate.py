"""Recall and latency as a collection measures them of itself."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from index.catalog import Catalog
from index.errors import BadItem
from index.evaluate import recall
from index.items import Item
from index.spec import CollectionSpec, Kind
from tests.unit.index.test_kinds import COUNT, DIMENSIONS, SETTINGS, clustered, filled


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        yield catalog


def test_recall_counts_what_is_as_near_as_the_kth() -> None:
    true = np.array([[3, 2, 1], [9, 9, 9]], np.float32)
    assert recall(true, true) == 1
    assert recall(np.array([[3, 1, 0], [9, 9, 8]], np.float32), true) == pytest.approx(4 / 6)
    assert recall(np.empty((0, 3), np.float32), np.empty((0, 3), np.float32)) == 1


def test_recall_of_tiny_scores_is_no_better() -> None:
    true = np.array([[-1, -2, -3]], np.float32)
    found = np.array([[-1, -5, -9]], np.float32)
    for scale in (1, 1e-3, 1e-9, 1e6):
        assert recall(np.float32(scale) * found, np.float32(scale) * true) == pytest.approx(1 / 3)
        assert recall(np.float32(scale * (1 + 2e-7)) * true, np.float32(scale) * true) == 1  # rounding


def test_recall_in_a_narrow_cone_is_no_better() -> None:
    true = np.array([[0.99995, 0.99993, 0.99991]], np.float32)
    found = np.array([[0.99995, 0.999905, 0.99990]], np.float32)
    assert recall(found, true) == pytest.approx(1 / 3)
    assert recall(found, true, np.array([[True, True, False]])) == pytest.approx(2 / 3)


def test_a_collection_measures_itself(catalog: Catalog) -> None:
    collection = filled(catalog, "hnsw")
    collection.upsert([Item(f"new{row}", vector) for row, vector in enumerate(clustered(50, seed=4))])
    found = collection.evaluate(100, 10)
    assert (found.count, found.queries, found.k, found.kind) == (COUNT + 50, 100, 10, "hnsw")
    assert found.knob == "ef_search"
    assert found.now.effort == collection.info().effort
    assert found.now.recall >= 0.92
    assert 0 < found.now.latency.p50_ms <= found.now.latency.p99_ms
    assert found.exact.p50_ms > 0
    efforts = [setting.effort for setting in found.settings]
    assert efforts == sorted(set(efforts), key=efforts.index)
    assert len(efforts) > 1 or found.settings[0].recall == 1
    assert found.settings[-1].recall >= found.settings[0].recall


def test_a_flat_collection_finds_everything(catalog: Catalog) -> None:
    found = filled(catalog, "flat").evaluate(50, 5)
    assert (found.kind, found.knob, found.now.recall, found.settings) == ("flat", None, 1.0, [])


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_where_the_time_is_short_fewer_queries_are_used(catalog: Catalog, kind: Kind) -> None:
    collection = filled(catalog, kind)
    collection.delete(["0"])
    found = collection.evaluate(1000, 10, budget_s=0)
    assert found.queries == 1
    assert found.now.recall > 0.5
    assert found.settings == []
    assert collection.evaluate(30, 10, budget_s=3600).queries == 30


def test_small_and_empty_collections(catalog: Catalog) -> None:
    collection = catalog.create(CollectionSpec(name="few", dimensions=DIMENSIONS))
    with pytest.raises(BadItem, match="empty"):
        collection.evaluate(10, 10)
    collection.upsert([Item(str(row), vector) for row, vector in enumerate(clustered(3, seed=1))])
    assert collection.evaluate(10, 10).now.recall == 1
