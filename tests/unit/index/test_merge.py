"""Merging what shards found gives what one index over everything would have found."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from index.collection import CollectionInfo
from index.items import Hit
from index.merge import merge_hits, merge_infos

SCORES = st.lists(st.floats(-10, 10, width=32), max_size=12)


def best(scores: list[tuple[str, float]], limit: int) -> list[Hit]:
    return [Hit(id, score) for id, score in sorted(scores, key=lambda pair: -pair[1])[:limit]]


@given(shards=st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=4), limit=st.integers(1, 15))
def test_the_best_of_the_parts_are_the_best_of_all(
    shards: list[tuple[list[float], list[float]]], limit: int
) -> None:
    named = [
        [[(f"{shard}/{n}", score) for n, score in enumerate(scores)] for scores in queries]
        for shard, queries in enumerate(shards)
    ]
    merged = merge_hits([[best(query, limit) for query in queries] for queries in named], limit)
    for number, found in enumerate(merged):
        everything = [pair for queries in named for pair in queries[number]]
        assert [hit.score for hit in found] == [hit.score for hit in best(everything, limit)]
        assert len({hit.id for hit in found}) == len(found)
        assert all((hit.id, hit.score) in everything for hit in found)


def test_a_hit_keeps_what_came_with_it() -> None:
    vector = np.ones(2, np.float32)
    parts = [[[Hit("a", 1, {"n": 1})], []], [[Hit("b", 2, None, vector)], [Hit("c", 0)]]]
    merged = merge_hits(parts, 5)
    assert [[hit.id for hit in hits] for hits in merged] == [["b", "a"], ["c"]]
    assert merged[0][0].vector is vector
    assert merged[0][1].metadata == {"n": 1}


def test_the_numbers_of_a_collection_add_up() -> None:
    def info(count: int, created: int) -> CollectionInfo:
        return CollectionInfo(
            "a", count, 2, "dot", "auto", "flat", "clip", "f", created, 1, 10 * count, 5 * count
        )

    merged = merge_infos([info(3, 20), info(4, 10), info(0, 30)])
    assert merged == CollectionInfo("a", 7, 2, "dot", "auto", "flat", "clip", "f", 10, 3, 70, 35)
    assert merge_infos([merged]) is merged
