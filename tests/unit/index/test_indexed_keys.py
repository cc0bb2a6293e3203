"""Indexed metadata keys: the same answers as without, kept through every write, found without a scan."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import IndexUnavailable
from index.filters import compile_filter
from index.items import metadata_text
from index.key_table import KeyTable
from index.spec import CollectionSpec
from index.store import FILE_NAME, Row, Store
from tests.unit.index.test_filters import FILTERS, KEYS, METADATA, evaluated

CLOSED = IndexUnavailable("closed by the test")
RED = {"key": "color", "match": {"value": "red"}}
CHEAP = {"key": "price", "range": {"gte": 1, "lt": 5}}
LARGE = {"key": "size", "match": {"value": "large"}}


@contextmanager
def opened(directory: Path, *keys: str) -> Iterator[Store]:
    """A new store with these indexed keys, or the one that is there."""
    if (directory / FILE_NAME).exists():
        store = Store(directory)
    else:
        spec = CollectionSpec(name="a", dimensions=2, indexed_keys=keys)
        store = Store.create(directory, spec, created=0)
    try:
        yield store
    finally:
        store.close(CLOSED)


def put(store: Store, items: dict[str, Any]) -> None:
    vector = np.zeros(2, "<f4").tobytes()
    with store.transaction() as writer:
        writer.put([Row(id, metadata_text(item, 2**16), vector, None) for id, item in items.items()])


def matching(store: Store, filter: Any) -> list[str]:
    """The ids of the items that pass."""
    with store.snapshot() as reader:
        rowids = reader.matching(compile_filter(filter, reader.spec().indexed_keys), timeout_s=60)
        assert rowids.dtype == np.int64
        assert (np.diff(rowids) > 0).all()
        found = sorted(id for _, id, _, _ in reader.rows(rowids.tolist(), frozenset()))
        assert len(found) == len(rowids)
        return found


def entries(store: Store) -> list[tuple[Any, ...]]:
    return store._writer.execute("SELECT * FROM keys ORDER BY key, kind, value, item").fetchall()


def rebuild(store: Store) -> None:
    with store.transaction() as writer:
        KeyTable(store._writer, writer.spec().indexed_keys).rebuild()


def plans(store: Store, filter: Any) -> str:
    """How SQLite goes about everything that a filter asks of it."""
    statements: list[str] = []
    with store.snapshot() as reader:
        condition = compile_filter(filter, reader.spec().indexed_keys)
        reader._connection.set_trace_callback(statements.append)
        reader.matching(condition, timeout_s=60)
        reader._connection.set_trace_callback(None)
        steps = [
            step
            for statement in statements
            if not statement.startswith("--")  # of a virtual table, inside another statement
            for (*_, step) in reader._connection.execute(f"EXPLAIN QUERY PLAN {statement}")
        ]
    return "\n".join(steps)


ITEMS = st.dictionaries(st.sampled_from("abcdef"), METADATA, max_size=6)


@settings(max_examples=50)
@given(
    st.sets(st.sampled_from(list(KEYS)), min_size=1),
    ITEMS,
    ITEMS,
    st.sets(st.sampled_from("abcdef\0")),
    st.lists(FILTERS, min_size=1, max_size=4),
)
def test_an_index_changes_no_answer_whatever_is_written(
    keys: set[str], first: Any, then: Any, removed: set[str], filters: Sequence[Any]
) -> None:
    doomed, *others = filters
    left = {
        id: item for id, item in (first | then).items() if id not in removed and not evaluated(doomed, item)
    }
    with ExitStack() as stack:
        plain, indexed = (
            stack.enter_context(opened(Path(stack.enter_context(tempfile.TemporaryDirectory())), *some_keys))
            for some_keys in ((), keys)
        )
        for store in (plain, indexed):
            put(store, first)
            put(store, then)
            with store.transaction() as writer:
                writer.remove(sorted(removed))
            with store.snapshot() as reader:
                rowids = reader.matching(compile_filter(doomed, reader.spec().indexed_keys), 60)
            with store.transaction() as writer:
                writer.remove_rows(rowids)
        for filter in (*others, {}):
            wanted = sorted(id for id, item in left.items() if evaluated(filter, item))
            assert matching(plain, filter) == matching(indexed, filter) == wanted
        kept = entries(indexed)
        rebuild(indexed)
        assert kept == entries(indexed)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with opened(tmp_path, "color", "price", "author.name") as store:
        items = {
            str(n): {
                "color": ["red", "green", ["red", "blue"]][n % 3],
                "price": n,
                "author": {"name": f"n{n % 5}"},
                "size": "large" if n % 2 else "small",
            }
            for n in range(60)
        }
        put(store, items)
        yield store


@pytest.mark.parametrize(
    "filter",
    [
        {"must": [RED]},
        {"must": [CHEAP]},
        {"must": [{"key": "price", "exists": True}]},
        {"must": [{"key": "color", "match": {"any": ["red", "blue", 3, True]}}]},
        {"must": [{"key": "author.name", "match": {"value": "n3"}}, RED, CHEAP]},
        {"should": [RED, CHEAP]},
        {"must": [RED], "must_not": [CHEAP, LARGE]},
        {"must": [RED, LARGE]},
        {"must": [{"must": [{"must": [RED, LARGE]}]}, LARGE]},
        {"must": [CHEAP, {"should": [RED, LARGE]}], "should": [LARGE, {"must_not": [LARGE]}]},
        {"should": [{"must": [RED, LARGE]}, {"must": [CHEAP, LARGE]}]},
        {"must": [{"key": "color", "match": {"any": []}}, LARGE]},
    ],
)
def test_an_indexed_condition_spares_the_scan(store: Store, filter: Any) -> None:
    plan = plans(store, filter)
    assert "SCAN items" not in plan
    assert "SCAN keys" not in plan
    with store.snapshot() as reader:
        records = [record for _, record in reader.after(0, 100, frozenset({"metadata"}))]
    assert matching(store, filter) == sorted(r.id for r in records if evaluated(filter, r.metadata))


def test_a_lookup_goes_straight_to_the_value(store: Store) -> None:
    assert "keys USING PRIMARY KEY (key=? AND kind=? AND value=?)" in plans(store, {"must": [RED]})
    assert "keys USING PRIMARY KEY (key=? AND kind=? AND value>? AND value<?)" in plans(
        store, {"must": [CHEAP]}
    )
    assert "SCAN items" in plans(store, {"must": [LARGE]})  # or the test above proves nothing


def test_metadata_is_read_of_the_items_found_alone(store: Store) -> None:
    sized = {"key": "size", "exists": True}
    store._writer.execute("UPDATE items SET metadata = 'not JSON' WHERE rowid > 5")
    assert matching(store, {"must": [CHEAP, sized]}) == ["1", "2", "3", "4"]
    with pytest.raises(IndexUnavailable, match="malformed JSON"):
        matching(store, {"must": [sized]})


def test_another_version_of_sqlite_makes_the_table_anew(tmp_path: Path) -> None:
    with opened(tmp_path, "price") as store:
        put(store, {"a": {"price": 0.1}, "b": {"price": 7}})
        made = entries(store)
    with opened(tmp_path) as store:
        store._writer.execute("UPDATE keys SET value = 0.10000000000000002 WHERE value = 0.1")
    with opened(tmp_path) as store:
        assert entries(store) != made  # left alone by the version that made it
        store._writer.execute("PRAGMA user_version = 3039004")
    with opened(tmp_path) as store:
        assert entries(store) == made


def test_a_collection_of_the_first_schema_opens_and_works(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, {"a": {"color": "red"}})
        store._writer.executescript(
            "UPDATE state SET spec = json_remove(spec, '$.indexed_keys');"
            "ALTER TABLE state DROP COLUMN identity;"
            "DROP TABLE keys;"
            "DELETE FROM schema_version WHERE version > 1"
        )
    with opened(tmp_path) as store:
        put(store, {"b": {"color": "blue"}})
        assert matching(store, {"must": [RED]}) == ["a"]


def test_a_failed_write_leaves_the_index_as_it_was(store: Store) -> None:
    before = entries(store)
    good, bad = Row("1", '{"color":"pink"}', b"12345678", None), Row("2", "not JSON", b"12345678", None)
    with pytest.raises(IndexUnavailable, match="malformed JSON"), store.transaction() as writer:
        writer.put([good, bad])
    assert entries(store) == before
    assert matching(store, {"must": [{"key": "color", "match": {"value": "pink"}}]}) == []
