"""What a caller sees of one collection."""

import threading
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from configs.settings import IndexSettings
from index.catalog import Catalog
from index.collection import METADATA, Collection
from index.errors import (
    AnswerTooLarge,
    BadFilter,
    BadItem,
    BadVector,
    CollectionNotFound,
    IndexUnavailable,
    ItemNotFound,
    ModelMismatch,
)
from index.items import Hit, Include, Item
from index.spec import CollectionSpec
from index.store import Reader
from index.view import View
from tests.waiting import PATIENCE_S

ALL: Include = frozenset({"metadata", "vector", "thumbnail"})


def ids(hits: list[Hit]) -> list[str]:
    return [hit.id for hit in hits]


def line(count: int) -> list[Item]:
    """Items "0", "1", … along the x axis, `even` or not."""
    return [Item(str(x), [x, 0], {"x": x, "even": x % 2 == 0}) for x in range(count)]


EVEN = {"must": [{"key": "even", "match": {"value": True}}]}


def test_search_gives_the_nearest_first(points: Collection) -> None:
    points.upsert(line(5))
    (hits,) = points.search([[1.2, 0]], limit=2)
    assert hits[0].id == "1"
    assert hits[0].score == pytest.approx(-0.04, abs=1e-6)
    assert hits[1].id == "2"
    assert hits[1].score == pytest.approx(-0.64, abs=1e-6)
    assert hits[0].metadata == {"x": 1, "even": False}
    assert hits[0].vector is None


def test_search_gives_what_was_asked_for(points: Collection) -> None:
    points.upsert([Item("a", [1, 2], {"k": 1})])
    (bare,) = points.search([[0, 0]], include=frozenset())[0]
    (full,) = points.search([[0, 0]], include=ALL)[0]
    assert bare == Hit("a", -5.0)
    assert full.metadata == {"k": 1}
    assert full.vector is not None
    assert full.vector.tolist() == [1, 2]


def test_every_query_gets_its_own_list(points: Collection) -> None:
    points.upsert(line(4))
    assert [ids(hits) for hits in points.search([[0, 0], [9, 0], [2, 0]], limit=1)] == [["0"], ["3"], ["2"]]
    assert points.search(np.empty((0, 2), np.float32)) == []


def test_an_answer_is_bounded_in_bytes_as_often_as_it_shows_an_item(points: Collection) -> None:
    points.upsert([Item("long", [0, 0], {"text": "x" * 10_000}), Item("short", [9, 9], {})])
    near, far = [0, 0], [9, 9]
    assert [ids(hits) for hits in points.search([near, far], limit=1, max_bytes=11_000)] == [
        ["long"],
        ["short"],
    ]
    with pytest.raises(AnswerTooLarge, match="more than 11000 bytes; ask for fewer"):
        points.search([near, near], limit=1, max_bytes=11_000)
    with pytest.raises(AnswerTooLarge):
        points.search([far] * 5, limit=1, include=ALL, max_bytes=600)
    assert len(points.search([near] * 50, limit=2, include=frozenset(), max_bytes=11_000)) == 50


def test_a_limit_above_the_count_gives_everything(points: Collection) -> None:
    assert points.search([[0, 0]], limit=10) == [[]]
    points.upsert(line(3))
    assert ids(points.search([[0, 0]], limit=10_000)[0]) == ["0", "1", "2"]
    assert points.search([[0, 0]], limit=0) == points.search([[0, 0]], limit=-1) == [[]]


def test_cosine_scores_are_cosines_and_vectors_unit_length(catalog: Catalog) -> None:
    collection = catalog.create(CollectionSpec(name="c", dimensions=2))
    collection.upsert([Item("a", [5, 0]), Item("b", [0, 0.1]), Item("c", [-2, 0])])
    (hits,) = collection.search([[3, 3]])
    assert [hit.score for hit in hits] == pytest.approx([0.5**0.5, 0.5**0.5, -(0.5**0.5)])
    vector = collection.get("a", frozenset({"vector"})).vector
    assert vector is not None
    assert vector.tolist() == [1, 0]
    with pytest.raises(BadVector, match="zero") as caught:
        collection.search([[1, 0], [0, 0]])
    assert caught.value.index == 1


def test_dot_scores_grow_with_length(catalog: Catalog) -> None:
    collection = catalog.create(CollectionSpec(name="d", dimensions=2, metric="dot"))
    collection.upsert([Item("short", [1, 0]), Item("long", [5, 5]), Item("zero", [0, 0])])
    (hits,) = collection.search([[2, 0]])
    assert [(hit.id, hit.score) for hit in hits] == [("long", 10), ("short", 2), ("zero", 0)]


def test_upsert_replaces_and_the_last_of_one_call_counts(points: Collection) -> None:
    points.upsert([Item("a", [1, 0], {"old": True}, b"old"), Item("b", [2, 0])])
    assert points.upsert([Item("a", [7, 0]), Item("c", [3, 0]), Item("a", [9, 0], {"n": 2})]) == ["a", "c"]
    record = points.get("a", ALL)
    assert record.vector is not None
    assert record.vector.tolist() == [9, 0]
    assert record.metadata == {"n": 2}
    assert record.thumbnail is None
    assert sorted(ids(points.search([[9, 0]])[0])) == ["a", "b", "c"]
    assert points.info().count == 3


def test_an_upsert_of_nothing_changes_nothing(catalog: Catalog) -> None:
    collection = catalog.create(CollectionSpec(name="m", dimensions=2, model="clip"))
    assert collection.upsert([], fingerprint="f1") == []
    assert collection.spec.fingerprint is None


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (Item("", [1, 1]), BadItem),
        (Item("x", [1]), BadVector),
        (Item("x", [1, float("nan")]), BadVector),
        (Item("x", [1, 1], {"big": "x" * 70_000}), BadItem),
        (Item("x", [1, 1], [1]), BadItem),  # type: ignore[arg-type]
    ],
)
def test_one_bad_item_and_nothing_is_stored(points: Collection, bad: Item, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        points.upsert([Item("good", [1, 1]), bad])
    assert getattr(caught.value, "index", None) == 1
    assert points.info().count == 0
    assert points.page(10).records == []


def test_get_and_searches_by_id_know_what_is_missing(points: Collection) -> None:
    with pytest.raises(ItemNotFound, match="'nobody'"):
        points.get("nobody")
    points.upsert(line(1))
    for wrong, error in (("nobody", ItemNotFound), ("\ud800", BadItem)):
        queries: list[Any] = [[0, 0], "0", wrong]
        with pytest.raises(error) as caught:
            points.search(queries)
        assert caught.value.index == 2
    with pytest.raises(BadItem):
        points.get("\ud800")


def test_a_search_by_id_sees_one_state_while_the_item_is_replaced(
    points: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    points.upsert([Item("a", [0, 0]), Item("left", [-1, 0]), Item("right", [9, 0])])
    find = Reader.find

    def find_and_be_overtaken(*args: Any) -> Any:
        found = find(*args)
        points.upsert([Item("a", [10, 0]), Item("nearer", [-0.5, 0])])
        return found

    monkeypatch.setattr(Reader, "find", find_and_be_overtaken)
    (hits,) = points.search(["a"], exclude=["a"])
    assert [(hit.id, hit.score) for hit in hits] == [("left", -1), ("right", -81)]
    monkeypatch.undo()
    assert ids(points.search(["a"], exclude=["a"])[0]) == ["right", "nearer", "left"]


def test_an_item_s_like_does_not_include_itself(points: Collection) -> None:
    points.upsert(line(5))
    for filter in (None, EVEN, {"must": [{"key": "x", "range": {"lte": 2}}]}):
        found = ids(points.search(["2"], limit=2, filter=filter, exclude=["2"])[0])
        assert len(found) == 2
        assert "2" not in found


def test_each_query_leaves_out_its_own(points: Collection) -> None:
    points.upsert(line(3))
    found = points.search([[0, 0]] * 4, limit=2, exclude=["0", None, "2", "missing"])
    assert list(map(ids, found)) == [["1", "2"], ["0", "1"], ["0", "1"], ["0", "1"]]
    assert points.search([[0, 0]], limit=0, exclude=["0"]) == [[]]


def test_pages_meet_everything_once(points: Collection) -> None:
    points.upsert(line(7))
    points.delete(["3"])
    seen, cursor = [], None
    while True:
        page = points.page(2, cursor)
        seen += [record.id for record in page.records]
        if (cursor := page.next_cursor) is None:
            break
    assert seen == ["0", "1", "2", "4", "5", "6"]
    assert points.page(6).next_cursor is None
    assert points.page(10**30, 10**30).records == [] == points.page(1, 2**63 - 1).records
    assert [record.id for record in points.page(-5, -5).records] == ["0"]


def test_items_written_while_paging_move_to_the_end(points: Collection) -> None:
    points.upsert(line(3))
    first = points.page(2)
    points.upsert([Item("0", [8, 8])])
    rest = points.page(10, first.next_cursor, ALL)
    assert [record.id for record in rest.records] == ["2", "0"]
    assert rest.records[1].vector is not None
    assert rest.records[1].vector.tolist() == [8, 8]


def test_delete_counts_what_was_there(points: Collection) -> None:
    points.upsert(line(4))
    assert points.delete(["1", "1", "nobody"]) == 1
    assert points.delete([]) == 0
    assert ids(points.search([[0, 0]])[0]) == ["0", "2", "3"]
    with pytest.raises(BadItem) as caught:
        points.delete(["0", ""])
    assert caught.value.index == 1
    assert points.info().count == 3


def test_delete_where_takes_the_filter_at_its_word(points: Collection) -> None:
    points.upsert(line(5))
    assert points.delete_where(EVEN) == 3
    assert points.delete_where(EVEN) == 0
    assert ids(points.search([[0, 0]])[0]) == ["1", "3"]
    assert [record.id for record in points.page(9).records] == ["1", "3"]
    empties: list[dict[str, Any]] = [{}, {"must": []}, {"should": [{"must": []}]}]
    for empty in empties:
        with pytest.raises(BadFilter, match="every item"):
            points.delete_where(empty)


def test_a_filtered_search_is_exact_about_the_filter(points: Collection) -> None:
    points.upsert(line(50))
    assert sorted(ids(points.search([[7, 0]], limit=2, filter=EVEN)[0])) == ["6", "8"]
    (hits,) = points.search([[7, 0]], limit=100, filter=EVEN)
    assert sorted(int(hit.id) for hit in hits) == list(range(0, 50, 2))
    nothing = {"must": [{"key": "x", "range": {"gt": 99}}]}
    assert points.search([[7, 0], [1, 1]], filter=nothing) == [[], []]
    assert len(points.search([[7, 0]], limit=100, filter={})[0]) == 50


def test_a_filter_may_let_nothing_pass_without_a_condition(points: Collection) -> None:
    points.upsert(line(3))
    assert points.search([[0, 0]], filter={"must_not": [{}]}) == [[]]
    assert len(points.search([[0, 0]], filter={"should": [{}]})[0]) == 3


def test_a_filter_that_takes_too_long_is_ended(catalog: Catalog, points: Collection) -> None:
    points.upsert(line(2000))
    slow = {"must": [{"key": "x", "range": {"gte": 0}}] * 50}
    catalog.close()
    with Catalog(catalog.root, IndexSettings(filter_timeout_s=1e-9)) as hasty:
        points = hasty.get("points")
        with pytest.raises(BadFilter, match=r"more than 1e-09 s \(index.filter_timeout_s\); use fewer"):
            points.search([[0, 0]], filter=slow)
        with pytest.raises(BadFilter, match="fewer conditions"):
            points.delete_where(slow)
        assert len(points.search([[0, 0]], limit=5000)[0]) == points.info().count == 2000
    with Catalog(catalog.root, IndexSettings(filter_timeout_s=PATIENCE_S)) as patient:
        points = patient.get("points")
        assert len(points.search([[0, 0]], limit=5000, filter=slow)[0]) == 2000
        assert points.delete_where(slow) == 2000


def test_bad_filters_are_refused(points: Collection) -> None:
    for use in (lambda: points.search([[0, 0]], filter={"x": 1}), lambda: points.delete_where({"x": 1})):
        with pytest.raises(BadFilter):
            use()


@pytest.mark.parametrize("value", ["' OR 1=1 --", "'); DELETE FROM items; --", '"', "\\"])
def test_filters_cannot_inject(points: Collection, value: str) -> None:
    points.upsert([Item("a", [0, 0], {"k": "v"}), Item("b", [0, 1], {value: value})])
    filter: dict[str, Any] = {"must": [{"key": value, "match": {"value": value}}]}
    assert ids(points.search([[0, 0]], filter=filter)[0]) == ["b"]
    assert points.delete_where(filter) == 1
    assert points.info().count == 1


def test_exact_is_a_flat_index_s_nature(points: Collection) -> None:
    points.upsert(line(9))
    assert points.search([[3, 0]], exact=True) == points.search([[3, 0]], exact=False)


def test_the_first_model_to_write_is_the_one(catalog: Catalog) -> None:
    collection = catalog.create(CollectionSpec(name="m", dimensions=2, model="clip"))
    assert collection.search([[1, 0]], fingerprint="f0") == [[]]
    collection.upsert([Item("raw", [1, 0])])
    assert collection.info().fingerprint is None
    collection.upsert([Item("a", [0, 1])], fingerprint="f1")
    assert collection.info().fingerprint == "f1"
    for use in (
        lambda: collection.upsert([Item("a", [1, 1, 1])], fingerprint="f2"),
        lambda: collection.search([[1, 1, 1]], fingerprint="f2"),
    ):
        with pytest.raises(ModelMismatch, match="create a new collection"):
            use()
    assert len(collection.search([[1, 0]], fingerprint="f1")[0]) == 2


def test_models_have_no_business_with_raw_vectors(points: Collection) -> None:
    with pytest.raises(ModelMismatch, match="holds raw vectors"):
        points.upsert([Item("a", [1, 0])], fingerprint="f1")
    with pytest.raises(ModelMismatch, match="holds raw vectors"):
        points.search([[1, 0]], fingerprint="f1")


def test_everything_is_there_after_reopening(catalog: Catalog) -> None:
    spec = CollectionSpec(name="m", dimensions=2, model="clip")
    collection = catalog.create(spec)
    collection.upsert([Item("a", [3, 4], {"é": ["x"]}, b"\x00\xff"), Item("b", [1, 0])], fingerprint="f1")
    collection.upsert([Item("b", [0, 1])], fingerprint="f1")
    collection.delete(["nobody"])
    before = collection.info(), collection.search([[1, 0]], include=METADATA), collection.page(9)
    root = catalog.root
    catalog.close()
    with Catalog(root) as again:
        collection = again.get("m")
        info = collection.info()
        assert (info.count, info.fingerprint, info.created) == (2, "f1", before[0].created)
        assert info.tombstones == 0
        assert (collection.search([[1, 0]], include=METADATA), collection.page(9)) == before[1:]
        assert collection.get("a", ALL).thumbnail == b"\x00\xff"


def test_info_counts(points: Collection) -> None:
    points.upsert(line(100))
    points.delete(["0", "1"])
    info = points.info()
    assert (info.name, info.count, info.tombstones, info.dimensions) == ("points", 98, 2, 2)
    assert (info.metric, info.kind, info.actual_kind, info.model) == ("l2", "auto", "flat", None)
    assert info.bytes_in_memory == 100 * (2 * 4 + 8 + 1)
    assert info.bytes_on_disk > 100 * 2 * 4
    assert info.created > 1_700_000_000


def test_dead_rows_are_compacted_at_the_ratio(tmp_path: Any) -> None:
    with Catalog(tmp_path, IndexSettings(compact_ratio=0.5)) as catalog:
        collection = catalog.create(CollectionSpec(name="a", dimensions=2, metric="l2"))
        collection.upsert(line(10))
        for x in range(5):
            collection.delete([str(x)])
        assert collection.info().tombstones == 5
        collection.delete(["5"])
        assert collection.info().tombstones == 0
        assert ids(collection.search([[0, 0]])[0]) == ["6", "7", "8", "9"]
        collection.upsert([Item("6", [60, 0]), Item("new", [0, 0])])
        assert ids(collection.search([[0, 0]])[0]) == ["new", "7", "8", "9", "6"]


def test_a_failed_commit_leaves_searches_as_they_were(points: Collection) -> None:
    points.upsert(line(10))
    writer = points._store._writer
    writer.execute(f"PRAGMA max_page_count = {writer.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(IndexUnavailable, match="disk is full"):
        points.upsert([Item(f"new{x}", [x, 1], {"pad": "x" * 500}) for x in range(200)] + line(3))
    assert len(points.search([[0, 0]], limit=500)[0]) == points.info().count == 10
    writer.execute("PRAGMA max_page_count = 1000000")
    points.upsert([Item("0", [100, 0]), Item("ten", [10, 0])])
    assert ids(points.search([[100, 0]], limit=2)[0]) == ["0", "ten"]
    assert len(points.search([[0, 0]], limit=500)[0]) == 11


def test_a_closed_collection_says_so(catalog: Catalog, points: Collection) -> None:
    points.upsert(line(2))
    catalog.delete("points")
    for use in (
        lambda: points.search([[0, 0]]),
        lambda: points.upsert(line(1)),
        lambda: points.delete(["0"]),
        lambda: points.get("0"),
        points.info,
    ):
        with pytest.raises(CollectionNotFound, match="was deleted"):
            use()


def test_a_failure_after_a_commit_leaves_what_was_committed(
    points: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    points.upsert(line(20))
    monkeypatch.setattr(View, "with_compact_tail", Mock(side_effect=MemoryError))
    assert points.delete(map(str, range(10))) == 10
    monkeypatch.setattr(points._store, "limit_wal", Mock(side_effect=OSError("the disk is gone")))
    with pytest.raises(OSError, match="gone"):
        points.delete(["10"])
    monkeypatch.undo()
    while points.maintain():
        pass
    assert ids(points.search([[0, 0]], 20)[0]) == [str(x) for x in range(11, 20)]
    points.upsert([Item("new", [0, 0])])
    assert points.info().count == 10


def test_of_two_first_writes_by_different_models_one_is_refused(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = catalog.create(CollectionSpec(name="c", dimensions=2, model="clip"))
    monkeypatch.setattr(
        CollectionSpec, "check_fingerprint", after_both_asked(CollectionSpec.check_fingerprint)
    )
    outcomes: list[object] = []

    def write(fingerprint: str) -> None:
        try:
            outcomes.append(collection.upsert([Item(fingerprint, [1, 2])], fingerprint))
        except ModelMismatch as error:
            outcomes.append(error)

    writers = [threading.Thread(target=write, args=(fingerprint,)) for fingerprint in ("a" * 64, "b" * 64)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(PATIENCE_S)
    assert sorted(type(outcome) is ModelMismatch for outcome in outcomes) == [False, True]
    assert collection.info().count == 1


def after_both_asked(check: Any) -> Any:
    """Both are at the first look at the fingerprint, before either writes."""
    both = threading.Barrier(2)
    looks = threading.local()

    def checked(spec: CollectionSpec, fingerprint: str | None) -> None:
        check(spec, fingerprint)
        if not hasattr(looks, "before"):
            looks.before = True
            both.wait(PATIENCE_S)

    return checked
