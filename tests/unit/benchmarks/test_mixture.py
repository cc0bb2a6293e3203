"""The data set of the vector search benchmark: what it promises holds, and its truth is the truth."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.vector_peers import mixture
from benchmarks.vector_peers.dataset import CATEGORIES, FILTERS, QUERIES, TUNING, Dataset, K

COUNT, DIMENSIONS = 3000, 80


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return mixture.prepare(tmp_path_factory.mktemp("bench"), COUNT, DIMENSIONS, seed=1)


def test_vectors_are_unit_vectors_in_a_cone_with_near_neighbours(data: Dataset) -> None:
    vectors, (_, queries) = np.asarray(data.vectors()), data.queries()
    assert vectors.shape == (COUNT, DIMENSIONS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    about = mixture.describe(vectors, queries.vectors, queries.truth[None])
    assert 0.3 < about["cosine_of_random_pairs"] < 0.6
    assert about["cosine_of_tenth"] > about["cosine_of_random_pairs"] + 0.2


def test_truth_is_what_plain_sorting_finds_among_what_passes(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, categories = np.asarray(data.vectors()), np.array(data.categories())
    for queries, count in zip(data.queries(), (TUNING, QUERIES), strict=True):
        for filter in FILTERS:
            scores = queries.vectors @ vectors.T
            if filter is not None:
                scores[:, categories != filter] = -np.inf
            best = np.sort(scores, axis=1)[:, : -K - 1 : -1]
            found = np.take_along_axis(scores, queries.truth[filter], 1)
            assert found.shape == (count, K)
            np.testing.assert_allclose(found, best, atol=1e-5)  # ids of equal scores may differ
    whole = mixture.nearest(vectors, queries.vectors)
    monkeypatch.setattr(mixture, "CHUNK", 700)
    assert (mixture.nearest(vectors, queries.vectors) == whole).mean() > 0.999


def test_queries_are_no_members(data: Dataset) -> None:
    for queries in data.queries():
        assert (queries.vectors @ np.asarray(data.vectors()).T).max() < 0.9999


def test_categories_have_their_shares_and_batches_hold_everything_in_order(data: Dataset) -> None:
    categories = data.categories()
    assert 0.005 < categories.count("rare") / COUNT < 0.015
    assert 0.08 < categories.count("common") / COUNT < 0.12
    assert {*categories} == {*CATEGORIES}
    ids, vectors, given = zip(*data.batches(700), strict=True)
    assert [id for batch in ids for id in batch] == list(range(COUNT))
    np.testing.assert_array_equal(np.concatenate(vectors), data.vectors())
    assert [category for batch in given for category in batch] == categories


def test_the_same_seed_gives_the_same_data_and_a_second_call_makes_nothing(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = mixture.prepare(tmp_path, COUNT, DIMENSIONS, seed=1)
    np.testing.assert_array_equal(again.vectors(), data.vectors())
    other = mixture.prepare(tmp_path, COUNT, DIMENSIONS, seed=2)
    assert not np.array_equal(other.vectors(), data.vectors())
    monkeypatch.delattr(mixture, "_make")
    assert mixture.prepare(tmp_path, COUNT, DIMENSIONS, seed=1) == again
