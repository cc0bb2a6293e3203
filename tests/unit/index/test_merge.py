"""Merging what shards found gives what one index over everything would have found."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.info import CollectionInfo, Evaluation, Latency, Setting
from index.items import Hit
from index.merge import merge_evaluations, merge_hits, merge_infos

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
    parts = [[[Hit("a", 1, '{"n":1}')], []], [[Hit("b", 2, None, vector)], [Hit("c", 0)]]]
    merged = merge_hits(parts, 5)
    assert [[hit.id for hit in hits] for hits in merged] == [["b", "a"], ["c"]]
    assert merged[0][0].vector is vector
    assert merged[0][1].metadata == {"n": 1}


def info(**changed: Any) -> CollectionInfo:
    usual: dict[str, Any] = {
        "name": "a",
        "count": 3,
        "dimensions": 2,
        "metric": "dot",
        "kind": "auto",
        "actual_kind": "hnsw",
        "state": "ready",
        "problem": None,
        "segments": 1,
        "effort": 32,
        "recall": 0.98,
        "indexed_keys": ("n",),
        "model": "clip",
        "fingerprint": "f",
        "created": 20,
        "tombstones": 1,
        "thumbnails": False,
        "bytes_on_disk": 30,
        "bytes_in_memory": 15,
    }
    return CollectionInfo(**{**usual, **changed})


def test_the_numbers_of_a_collection_add_up() -> None:
    building = info(state="building", problem="disk full", effort=64, recall=0.9, created=10)
    empty = info(count=0, actual_kind="flat", segments=0, effort=None, recall=None, tombstones=0)
    assert merge_infos([info(), building, empty]) == info(
        count=6,
        actual_kind="flat+hnsw",
        state="building",
        problem="disk full",
        segments=2,
        effort=64,
        recall=0.9,
        created=10,
        tombstones=2,
        bytes_on_disk=90,
        bytes_in_memory=45,
    )
    assert merge_infos([building]) is building
    assert merge_infos([empty, empty]).recall is None


def test_evaluations_weigh_recall_by_items_and_wait_for_the_slowest() -> None:
    def part(count: int, recall: float, ms: float, efforts: tuple[int, ...]) -> Evaluation:
        latency = Latency(ms, 2 * ms)
        settings = [Setting(effort, recall, latency) for effort in efforts]
        return Evaluation(
            count, 100, 10, "hnsw", "ef_search", Setting(16, recall, latency), latency, settings
        )

    merged = merge_evaluations([part(100, 1.0, 1, (8, 32)), part(300, 0.8, 3, (32, 64))])
    assert merged == Evaluation(
        400,
        200,
        10,
        "hnsw",
        "ef_search",
        Setting(16, pytest.approx(0.85), Latency(3, 6)),  # type: ignore[arg-type]
        Latency(3, 6),
        [Setting(32, pytest.approx(0.85), Latency(3, 6))],  # type: ignore[arg-type]
    )


def test_a_shard_without_efforts_counts_as_it_is() -> None:
    fast, slow = Latency(1, 2), Latency(3, 6)
    settings = [Setting(16, 0.9, fast), Setting(32, 1.0, fast)]
    graph = Evaluation(100, 50, 10, "hnsw", "ef_search", settings[0], slow, settings)
    flat = Evaluation(100, 50, 10, "flat", None, Setting(None, 1.0, slow), slow, [])
    for parts in ([graph, flat], [flat, graph]):
        merged = merge_evaluations(parts)
        assert (merged.kind, merged.knob, merged.now) == ("flat+hnsw", "ef_search", Setting(16, 0.95, slow))
        assert merged.settings == [Setting(16, 0.95, slow), Setting(32, 1.0, slow)]
