"""The checks an id, metadata or vector must pass, and ids made from content."""

from typing import Any

import numpy as np
import pytest

from index.errors import BadItem, BadVector
from index.items import Item, check_id, content_id, item_vectors, metadata_text, query_vectors
from index.spec import CollectionSpec, Metric


@pytest.mark.parametrize("id", ["a", "é" * 512, "../../etc", "a\0b", "'; DROP TABLE items; --"])
def test_any_text_of_the_right_length_is_an_id(id: str) -> None:
    assert check_id(id) == id


@pytest.mark.parametrize("id", ["", "a" * 513, "\ud800", 7, None, b"a"])
def test_bad_ids_point_at_their_item(id: object) -> None:
    with pytest.raises(BadItem, match="1 to 512 characters") as caught:
        check_id(id, 5)
    assert caught.value.index == 5


def test_metadata_is_kept_as_compact_json() -> None:
    assert metadata_text(None, 10) == "{}"
    assert metadata_text({"ä": [1, None, True]}, 100) == '{"ä":[1,null,true]}'


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def nested_list(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_metadata_may_be_nested_but_not_for_ever() -> None:
    metadata_text(nested(64), 10_000)
    with pytest.raises(BadItem, match="64 deep"):
        metadata_text(nested(65), 10_000)
    loop: dict[str, Any] = {}
    loop["self"] = loop
    for metadata in (loop, nested(10_000), {"a": [nested_list(10_000)]}):
        with pytest.raises(BadItem, match="64 deep"):
            metadata_text(metadata, 10**6)


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        "text",
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": "\ud800"},
        {"a": "nul\0"},
        {"nul\0": 1},
        {1: 2},
        {"a": {1, 2}},
        {"a": b"bytes"},
        {"a": 10**5000},
        {"a": "x" * 100},
    ],
)
def test_bad_metadata_points_at_its_item(metadata: Any) -> None:
    with pytest.raises(BadItem) as caught:
        metadata_text(metadata, 100, 2)
    assert caught.value.index == 2


def test_the_size_of_metadata_counts_in_bytes() -> None:
    metadata_text({"a": "é" * 46}, 100)
    with pytest.raises(BadItem, match="at most 100"):
        metadata_text({"a": "é" * 47}, 100)


def spec(metric: Metric) -> CollectionSpec:
    return CollectionSpec(name="a", dimensions=3, metric=metric)


BAD_VECTORS = [
    [1, 2],
    [1, 2, 3, 4],
    [],
    [[1, 2, 3]],
    ["1", "2", "3"],
    [True, False, True],
    [1, [2], 3],
    [1, 2, None],
    [1, 2, 10**400],
    [1, 2, 1j],
    "123",
    None,
    {"a": 1},
    [1, 2, nested_list(10_000)],
    nested_list(10_000),
    [1, 2, float("nan")],
    [1, 2, float("-inf")],
    [1, 2, 1e39],
]


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("vector", BAD_VECTORS)
def test_bad_vectors_point_at_their_item(vector: Any, metric: Metric) -> None:
    with pytest.raises(BadVector) as caught:
        item_vectors([Item("a", [1, 2, 3]), Item("b", vector)], spec(metric))
    assert caught.value.index == 1
    with pytest.raises(BadVector) as caught:
        query_vectors([[1, 2, 3], vector], spec(metric))
    assert caught.value.index == 1


@pytest.mark.parametrize(
    "queries", ["abc", 5, None, np.zeros((2, 4), np.float32), [1.0, 2.0, 3.0], nested_list(10_000)]
)
def test_searches_take_a_list_of_vectors(queries: Any) -> None:
    with pytest.raises(BadVector):
        query_vectors(queries, spec("dot"))


def test_a_zero_vector_is_bad_only_under_cosine() -> None:
    assert item_vectors([Item("a", [0, 0, 0])], spec("l2")).tolist() == [[0, 0, 0]]
    with pytest.raises(BadVector, match="no direction") as caught:
        item_vectors([Item("a", [1, 0, 0]), Item("b", [0, 0, 0])], spec("cosine"))
    assert caught.value.index == 1


def test_cosine_normalises_even_the_tiniest_and_the_hugest() -> None:
    vectors = item_vectors([Item("a", [1e-44, 0, 0]), Item("b", [3e38, 3e38, 0])], spec("cosine"))
    assert np.allclose(vectors, [[1, 0, 0], [0.5**0.5, 0.5**0.5, 0]])
    assert vectors.dtype == np.float32


def test_scores_cannot_overflow() -> None:
    item_vectors([Item("a", [9e17, 0, 0])], spec("dot"))
    for metric in ("dot", "l2"):
        with pytest.raises(BadVector, match="1e\\+18"):
            item_vectors([Item("a", [9e17, 9e17, 0])], spec(metric))


def test_query_arrays_are_not_changed() -> None:
    queries = np.full((1, 3), 2, np.float32)
    query_vectors(queries, spec("cosine"))
    assert (queries == 2).all()


def test_content_ids_follow_the_content_and_its_kind() -> None:
    assert content_id("a") == content_id("a") != content_id("b")
    assert len({content_id("a"), content_id(b"a"), content_id(np.ones(1, np.float32))}) == 3
    assert check_id(content_id("\ud800"))
    assert len(content_id(b"")) == 32
