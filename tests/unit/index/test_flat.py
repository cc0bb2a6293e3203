"""Views of vectors in memory: exact results, and no change under a search that holds one."""

import numpy as np
import pytest

from index.flat import FlatRows
from index.items import Rowids, Vectors
from index.spec import Metric

NONE = np.empty(0, np.int64)


def random(n: int, d: int = 16, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def view_of(vectors: Vectors, metric: Metric = "dot", first: int = 1) -> FlatRows:
    return FlatRows(np.arange(first, first + len(vectors)), vectors, metric, threads=1)


def expected(vectors: Vectors, queries: Vectors, metric: Metric) -> Vectors:
    wide, targets = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return np.asarray(-((wide[:, None] - targets[None]) ** 2).sum(axis=2), np.float32)
    return np.asarray(wide @ targets.T, np.float32)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("queries", [1, 3, 8500], ids=["one", "few", "as matrices"])
def test_search_is_exact(metric: Metric, queries: int) -> None:
    vectors, wanted = random(50), random(queries, seed=1)
    scores, rowids = view_of(vectors, metric).search(wanted, 50)
    true = expected(vectors, wanted, metric)
    assert rowids.dtype == np.int64
    assert scores.dtype == np.float32
    assert np.allclose(scores, -np.sort(-true, axis=1), atol=1e-4)
    assert np.allclose(np.take_along_axis(true, rowids - 1, axis=1), scores, atol=1e-4)


def test_l2_of_many_queries_keeps_small_distances_far_from_the_origin() -> None:
    vectors = random(20, 512) * np.float32(0.001) + np.float32(100)
    scores, rowids = view_of(vectors, "l2").search(np.repeat(vectors, 15, axis=0), 2)
    assert (rowids[:, 0] == np.repeat(np.arange(1, 21), 15)).all()
    assert (scores[:, 0] == 0).all()
    assert (scores[:, 1] < -1e-4).all()


def test_a_limit_above_the_count_gives_what_there_is() -> None:
    assert view_of(random(3)).search(random(2), 10)[1].shape == (2, 3)
    assert view_of(random(0)).search(random(2), 10)[1].shape == (2, 0)
    assert view_of(random(3)).search(random(0), 10)[1].shape == (0, 3)
    assert view_of(random(3)).search(random(1), 0)[1].shape == (1, 0)


@pytest.mark.parametrize("queries", [1, 8500])
def test_only_rows_among_the_given_are_found(queries: int) -> None:
    view = view_of(random(100), first=1000)
    for among in ([1000], [1003, 1050, 1099], list(range(1000, 1100)), []):
        rows: Rowids = np.array(among, np.int64)
        found = view.search(random(queries, seed=2), 10, rows - 1000)[1]
        assert found.shape == (queries, min(10, len(among)))
        assert set(found.flat) <= set(among)
        assert all(len(set(row)) == len(row) for row in found.tolist())


def test_a_view_never_changes() -> None:
    first = view_of(random(4))
    second = first.replace(np.array([2]), np.array([5, 6]), random(2, seed=3))
    third = second.replace(np.array([5]), NONE, random(0))
    views = (first, {1, 2, 3, 4}), (second, {1, 3, 4, 5, 6}), (third, {1, 3, 4, 6})
    for view, rowids in views:
        assert set(view.search(random(1), 100)[1][0]) == rowids
    assert [(view.size, view.tombstones) for view, _ in views] == [(4, 0), (6, 1), (6, 2)]


def test_a_view_that_was_given_up_leaves_room_for_another() -> None:
    base = view_of(random(64)).replace(NONE, np.array([100]), random(1, seed=1))  # has spare capacity now
    base.replace(np.array([1]), np.array([101]), random(1, seed=2))
    vectors = random(2, seed=3)
    kept = base.replace(np.array([2]), np.array([101, 102]), vectors)
    scores, rowids = kept.search(vectors, 100)
    assert set(rowids[0]) == {1, *range(3, 65), 100, 101, 102}
    assert np.allclose(scores[0, list(rowids[0]).index(101)], (vectors[0] ** 2).sum())


def test_compaction_keeps_the_living_and_frees_the_rest() -> None:
    view = view_of(random(100)).replace(np.arange(1, 91), NONE, random(0))
    small = view.compacted()
    assert (small.size, small.tombstones) == (10, 0)
    assert small.nbytes == view.nbytes // 10 == 10 * (16 * 4 + 8 + 1)
    before, after = view.search(random(1), 20), small.search(random(1), 20)
    assert [part.tolist() for part in before] == [part.tolist() for part in after]
