"""Every kind of index on a few thousand clustered vectors: recall, filters, deletions, restarts."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import faiss
import numpy as np
import pytest

from configs.settings import IndexSettings
from index import ann, segment
from index.ann import AUTO, KINDS, AnnKind, kind_for
from index.catalog import Catalog
from index.collection import Collection
from index.evaluate import recall
from index.items import Item, Vectors
from index.spec import CollectionSpec, Kind, Metric

COUNT, DIMENSIONS = 3000, 32
SETTINGS = IndexSettings(threads=1, segment_rows=1500, merge_idle_s=0.001, target_recall=0.95)
APPROXIMATE = [kind for kind in get_args(Kind) if kind not in ("auto", "flat")]


def clustered(count: int, seed: int) -> Vectors:
    """Rows around a hundred centres, which are the same under every seed."""
    centres = np.random.default_rng(0).standard_normal((100, DIMENSIONS))
    random = np.random.default_rng(seed)
    rows = centres[random.integers(0, 100, count)] + 0.3 * random.standard_normal((count, DIMENSIONS))
    return rows.astype(np.float32)


def filled(catalog: Catalog, kind: Kind, metric: Metric = "cosine", count: int = COUNT) -> Collection:
    return filled_with(clustered(count, seed=1), catalog, kind, metric)


def filled_with(vectors: Vectors, catalog: Catalog, kind: Kind, metric: Metric) -> Collection:
    collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind=kind, metric=metric))
    collection.upsert([Item(str(row), vector, {"row": row}) for row, vector in enumerate(vectors)])
    while collection.maintain():
        pass
    return collection


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        yield catalog


def scores(collection: Collection, queries: Vectors, exact: bool, below: int | None = None) -> Vectors:
    """Of the ten nearest, under a filter on the row number if so."""
    filter = {"must": [{"key": "row", "range": {"lt": below}}]} if below else None
    found = collection.search(queries, 10, exact=exact, filter=filter)
    assert all(below is None or (hit.metadata or {})["row"] < below for hits in found for hit in hits)
    assert all(len({hit.id for hit in hits}) == 10 for hits in found)
    return np.array([[hit.score for hit in hits] for hits in found], np.float32)


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        *((kind, "cosine") for kind in APPROXIMATE),
        *((kind, "l2") for kind in APPROXIMATE if kind != "ivf-pq"),  # whose training takes seconds
    ],
)
def test_recall_is_what_was_asked_for(catalog: Catalog, kind: Kind, metric: Metric) -> None:
    count = max(COUNT, KINDS[kind].least_rows)
    collection, queries = filled(catalog, kind, metric, count), clustered(100, seed=2)
    info = collection.info()
    assert (info.actual_kind, info.state, info.segments, info.count) == (kind, "ready", 1, count)
    assert info.recall is not None
    assert info.recall >= 0.95
    for below in (None, 2000, 1000, 100):
        found, true = (scores(collection, queries, exact, below) for exact in (False, True))
        assert recall(found, true) >= 0.92  # 1000 neighbours: three standard errors below the target


@pytest.mark.parametrize("kind", ["sq8", "hnsw", "ivf"])
def test_one_long_vector_does_not_spoil_the_others(catalog: Catalog, kind: Kind) -> None:
    vectors = clustered(COUNT, seed=1)
    vectors[7] = 10_000
    collection, queries = filled_with(vectors, catalog, kind, "l2"), clustered(100, seed=2)
    info = collection.info()
    assert (info.actual_kind, info.problem) == (kind, None)
    assert info.recall is not None
    assert info.recall >= 0.92, "the index's own, not that of comparing every row"
    assert recall(scores(collection, queries, False), scores(collection, queries, True)) >= 0.92


@pytest.mark.parametrize("kind", ["sq8", "hnsw"])
def test_long_vectors_that_are_what_is_looked_for_are_found(catalog: Catalog, kind: Kind) -> None:
    vectors = clustered(COUNT, seed=1)
    vectors[:20] *= 20
    collection, queries = filled_with(vectors, catalog, kind, "dot"), clustered(100, seed=2)
    assert collection.info().problem is None
    assert recall(scores(collection, queries, False), scores(collection, queries, True)) >= 0.92


def test_an_index_that_finds_next_to_nothing_is_not_used_and_says_so(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def useless(self: AnnKind, vectors: Vectors, *rest: Any) -> faiss.Index:
        return build(self, np.ascontiguousarray(vectors[::-1]), *rest)

    build = AnnKind.build
    monkeypatch.setattr(AnnKind, "build", useless)
    collection, queries = filled(catalog, "sq8"), clustered(100, seed=2)
    info = collection.info()
    assert info.recall is not None
    assert info.recall < 0.1
    assert info.problem is not None
    assert (
        "of the nearest of these vectors, however long it looks: 3000 items are compared one by"
        in info.problem
    )
    np.testing.assert_array_equal(scores(collection, queries, False), scores(collection, queries, True))


@pytest.mark.parametrize("beyond", [20, COUNT])
def test_an_index_that_cannot_keep_the_numbers_is_not_used_and_says_so(catalog: Catalog, beyond: int) -> None:
    collection = catalog.create(
        CollectionSpec(name="c", dimensions=DIMENSIONS, kind="flat-fp16", metric="l2")
    )
    vectors = clustered(COUNT, seed=1)
    vectors[:beyond] += 70_000
    collection.upsert([Item(str(row), vectors[row]) for row in range(COUNT)])
    while collection.maintain():
        pass
    info = collection.info()
    assert info.problem == (
        "flat-fp16 keeps no numbers beyond 65504: 3000 items are compared one by one instead"
    )
    assert info.actual_kind == "flat"
    assert [hits[0].id for hits in collection.search(vectors[:20], 1)] == list(map(str, range(20)))


def test_an_index_that_cannot_look_longer_says_what_it_misses(catalog: Catalog) -> None:
    collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind="sq8", metric="l2"))
    vectors = np.random.default_rng(0).standard_normal((COUNT, DIMENSIONS), np.float32)
    vectors[:300] *= 100
    collection.upsert([Item(str(row), vector) for row, vector in enumerate(vectors)])
    while collection.maintain():
        pass
    info = collection.info()
    assert info.actual_kind == "sq8"
    assert info.recall is not None
    assert 0.5 < info.recall < 0.95
    assert info.problem == f"sq8 finds {info.recall:.1%} of the nearest of these vectors"


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_what_was_deleted_is_never_found_and_what_was_written_always(catalog: Catalog, kind: Kind) -> None:
    collection, vectors = filled(catalog, kind), clustered(COUNT, seed=1)
    collection.delete(str(row) for row in range(400))
    collection.upsert([Item(str(row), -vectors[row]) for row in range(400, 500)])
    for row in (0, 399):
        assert str(row) not in {hit.id for hit in collection.search([vectors[row]], 20)[0]}
    for row in (400, 499):
        (hits,) = collection.search([-vectors[row]], 20)
        assert hits[0].id == str(row)
        assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert collection.info().tombstones == 500


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_neighbours_are_found_where_none_of_the_nearest_pass(catalog: Catalog, kind: Kind) -> None:
    collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind=kind, metric="l2"))
    vectors, queries = clustered(12_000, seed=1), clustered(1, seed=2) + 0.1 * clustered(50, seed=3)
    vectors = vectors[np.argsort(np.linalg.norm(vectors - queries.mean(axis=0), axis=1))]
    collection.upsert([Item(str(row), vector, {"row": row}) for row, vector in enumerate(vectors)])
    while collection.maintain():
        pass
    far = {"must": [{"key": "row", "range": {"gte": 1200}}]}

    def found(exact: bool, filter: dict[str, Any] | None) -> Vectors:
        hits = collection.search(queries, 10, exact=exact, filter=filter)
        return np.array([[hit.score for hit in of_query] for of_query in hits], np.float32)

    assert recall(found(False, far), found(True, far)) >= 0.9
    collection.delete(str(row) for row in range(1200))
    assert recall(found(False, None), found(True, None)) >= 0.9
    assert not collection.maintain()


def test_a_limit_above_the_living_gives_every_one(catalog: Catalog) -> None:
    collection = filled(catalog, "hnsw")
    collection.delete(str(row) for row in range(10, COUNT))
    (hits,) = collection.search(clustered(1, seed=2), 100)
    assert {hit.id for hit in hits} == set(map(str, range(10)))


def test_tombstones_go_in_the_background(catalog: Catalog) -> None:
    collection = filled(catalog, "hnsw")
    before = collection.info()
    collection.delete(str(row) for row in range(2000))
    assert collection.info().state == "building"
    while collection.maintain():
        pass
    after = collection.info()
    assert (after.count, after.tombstones, after.state) == (1000, 0, "ready")
    assert after.bytes_in_memory < before.bytes_in_memory * 0.4
    collection.delete(str(row) for row in range(2000, COUNT))
    while collection.maintain():
        pass
    assert (collection.info().segments, collection.info().count) == (0, 0)
    assert collection.search(clustered(1, seed=2)) == [[]]


def test_rows_written_while_building_are_found_all_the_time(catalog: Catalog) -> None:
    collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind="hnsw"))
    vectors, extra = clustered(COUNT, seed=1), clustered(5, seed=3)
    collection.upsert([Item(str(row), vectors[row]) for row in range(COUNT)])
    written = iter(range(5))

    def write_meanwhile() -> bool:
        """The builder asks whether to stop; a write of another thread comes at that moment."""
        if (row := next(written, None)) is not None:
            collection.upsert([Item(f"extra{row}", extra[row])])
            collection.delete([str(row)])
        return False

    assert collection.maintain(write_meanwhile)
    done = 5 - len(list(written))
    assert done
    for row in range(done):
        assert collection.search([extra[row]], 1)[0][0].id == f"extra{row}"
        assert str(row) not in {hit.id for hit in collection.search([vectors[row]], 20)[0]}
    assert collection.info().count == COUNT


def test_building_stops_when_asked_and_starts_again(catalog: Catalog) -> None:
    collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind="hnsw"))
    collection.upsert([Item(str(row), row_) for row, row_ in enumerate(clustered(COUNT, seed=1))])
    assert not collection.maintain(lambda: True)
    assert collection.info().actual_kind == "flat"
    assert collection.maintain()
    assert collection.info().actual_kind == "hnsw"


def test_settings_override_what_was_measured(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((COUNT, DIMENSIONS), np.float32)
    reached = []
    for nprobe in (None, 1):
        settings = SETTINGS.model_copy(update={"nprobe": nprobe})
        with Catalog(tmp_path / str(nprobe), settings, maintenance=False) as catalog:
            collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind="ivf"))
            collection.upsert([Item(str(row), noise[row]) for row in range(COUNT)])
            assert collection.maintain()
            found, true = (scores(collection, noise[:100] + 1, exact) for exact in (False, True))
            reached.append(recall(found, true))
    assert reached[0] > 0.85
    assert reached[1] < 0.5


@pytest.mark.parametrize("quiet", [True, False])
def test_in_quiet_times_rows_that_an_index_would_search_faster_are_moved_to_one(
    tmp_path: Path, quiet: bool
) -> None:
    settings = SETTINGS if quiet else SETTINGS.model_copy(update={"merge_idle_s": 3600})
    with Catalog(tmp_path, settings, maintenance=False) as catalog:
        collection = filled(catalog, "hnsw", count=12_000)
        assert collection.info().segments == 1
        vectors = clustered(1100, seed=2)

        def write(first: int, last: int) -> None:
            collection.upsert([Item(f"later/{row}", vectors[row]) for row in range(first, last)])
            time.sleep(SETTINGS.merge_idle_s)

        write(0, 500)
        assert not collection.maintain()  # so few are compared as fast
        write(500, 1100)
        assert collection.maintain() == quiet
        assert collection.info().segments == 1 + quiet  # not worth writing all others again
        assert not collection.maintain()
        write(0, 1100)  # the same ones once more, in quiet times in the place of their segment
        assert collection.maintain() == quiet
        assert collection.info().segments == 1 + quiet
        assert [hits[0].id for hits in collection.search(vectors, 1)] == [
            f"later/{row}" for row in range(1100)
        ]
        assert collection.info().count == 13_100


def test_in_a_large_collection_auto_keeps_few_rows_in_a_graph_too(catalog: Catalog) -> None:
    collection = filled(catalog, "auto", count=AUTO[0][0] + 1000)
    later = clustered(1500, seed=2)
    collection.upsert([Item(f"later/{row}", vector) for row, vector in enumerate(later)])
    time.sleep(SETTINGS.merge_idle_s)
    assert collection.maintain()
    assert not collection.maintain()
    with collection._snapshot() as (_, view):
        assert [part.segment.kind for part in view.segments] == [KINDS["hnsw"]] * 2
    found = collection.search(later, 1)
    assert np.mean([hits[0].id == f"later/{row}" for row, hits in enumerate(found)]) > 0.95


def test_an_effort_is_meant_for_the_kind_that_most_rows_are_in(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "AUTO", ((200, "flat"), (5000, "hnsw")))
    collection = filled(catalog, "auto", count=12_000)
    collection.upsert([Item(f"later/{row}", v) for row, v in enumerate(clustered(1100, seed=2))])
    time.sleep(SETTINGS.merge_idle_s)
    assert collection.maintain()
    with collection._snapshot() as (_, view):
        tuned = {part.segment.kind.name: part.segment.tuning for part in view.segments if part.segment.kind}
    searched = {}

    def candidates(index: Any, kind: AnnKind, queries: Vectors, count: int, effort: int, *rest: Any) -> Any:
        searched[kind.name] = effort
        return ann.candidates(index, kind, queries, count, effort, *rest)

    monkeypatch.setattr(segment, "candidates", candidates)
    collection.search(clustered(1, seed=3), 10, effort=1)
    assert tuned["hnsw"]
    assert searched == {"ivf": 1, "hnsw": tuned["hnsw"].effort}


def test_auto_chooses_by_size() -> None:
    assert kind_for("auto", AUTO[0][0] - 1) is None
    assert [kind.name for most, _ in AUTO if (kind := kind_for("auto", most))] == ["hnsw", "ivf"]
    assert kind_for("ivf-pq", 10) is None
    for total in (AUTO[0][0], 5_000_000):  # few rows beside many
        assert kind_for("auto", 5000, total) is KINDS["hnsw"]
        assert kind_for("auto", 10, total) is None
    assert kind_for("auto", 5000, AUTO[0][0] - 1) is None


def test_an_index_that_takes_longer_than_comparing_every_row_is_not_searched(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, queries = filled(catalog, "hnsw"), clustered(1, seed=2)
    efforts = []

    def candidates(index: Any, kind: AnnKind, queries: Vectors, count: int, effort: int, *rest: Any) -> Any:
        efforts.append(effort)
        return ann.candidates(index, kind, queries, count, effort, *rest)

    monkeypatch.setattr(segment, "candidates", candidates)
    for effort in (32, 64, 128, 256):
        collection.search(queries, 10, effort=effort)
    assert efforts == [32, 64]  # 32 rows for each of the effort, of 3000


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_effort_beyond_the_rows_there_are_is_no_more_than_those(catalog: Catalog, kind: Kind) -> None:
    collection, queries = filled(catalog, kind), clustered(10, seed=6)
    exact = collection.search(queries, 10, exact=True)
    for effort in (COUNT, 10**9, 2**31, 10**24):  # of 10^9 FAISS would make 8 GB
        found = collection.search(queries, 10, effort=effort)
        assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in exact]
