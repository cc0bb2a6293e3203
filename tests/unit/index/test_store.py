"""The database of a collection: snapshots, rowids, schema, and what happens when files go bad."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from index import store as store_module
from index.errors import IndexUnavailable
from index.filters import compile_filter
from index.items import Include
from index.spec import CollectionSpec
from index.store import FILE_NAME, Row, Store
from tests.unit.index.threads import running

CLOSED = IndexUnavailable("closed by the test")
ALL: Include = frozenset({"metadata", "vector", "thumbnail"})


def row(id: str, value: float = 1, thumbnail: bytes | None = None) -> Row:
    return Row(id, f'{{"value":{value}}}', np.full(2, value, "<f4").tobytes(), thumbnail)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.create(tmp_path, CollectionSpec(name="a", dimensions=2), created=12)
    yield store
    store.close(CLOSED)


def test_state_and_rows_come_back_after_reopening(store: Store) -> None:
    with store.transaction() as writer:
        writer.put([row("a", thumbnail=b"png"), row("b\0c", 2)])
    store.close(CLOSED)
    again = Store(store.directory)
    with again.snapshot() as reader:
        assert (reader.version, reader.created(), reader.spec().dimensions) == (1, 12, 2)
        assert reader.rowids().tolist() == [1, 2]
        assert reader.vectors(reader.rowids(), 2).tolist() == [[1, 1], [2, 2]]
        assert reader.vectors(np.array([2]), 2).tolist() == [[2, 2]]
        record = reader.find("a", ALL)
        assert record
        assert record.vector is not None
        assert (record.metadata, record.vector.tolist(), record.thumbnail) == ({"value": 1}, [1, 1], b"png")
        assert reader.find("b\0c", frozenset())
        assert not reader.find("b", frozenset())
    again.close(CLOSED)


def test_rowids_are_never_given_twice(store: Store) -> None:
    with store.transaction() as writer:
        removed, added = writer.put([row("a"), row("b")])
        assert (removed.tolist(), added.tolist()) == ([], [1, 2])
    with store.transaction() as writer:
        assert writer.remove(["b", "missing"]).tolist() == [2]
    with store.transaction() as writer:
        removed, added = writer.put([row("b"), row("a")])
        assert (removed.tolist(), added.tolist()) == ([1], [3, 4])


def test_rows_that_matched_are_removed_unless_they_were_written_again(store: Store) -> None:
    with store.transaction() as writer:
        writer.put([row(id) for id in ("kept", "again", "gone", "other")])
    passing = compile_filter({"must": [{"key": "value", "match": {"value": 1}}]})
    with store.snapshot() as reader:
        matching = reader.matching(passing, timeout_s=60)
    assert matching.tolist() == [1, 2, 3, 4]
    with store.transaction() as writer:
        writer.put([row("again"), row("new")])
        writer.remove(["gone"])
    with store.transaction() as writer:
        assert writer.remove_rows(matching).tolist() == [1, 4]
        assert writer.remove_rows(matching).tolist() == []
    with store.snapshot() as reader:
        assert [record.id for _, record in reader.after(0, 9, frozenset())] == ["again", "new"]
        assert reader.rowids().tolist() == [5, 6]


def test_a_snapshot_does_not_see_later_writes_nor_wait_for_them(store: Store) -> None:
    with store.snapshot() as before, store.transaction() as writer:
        writer.put([row("a")])
        with store.snapshot() as during:
            assert not during.find("a", ALL)
        assert before.version == 0
    with store.snapshot() as after:
        assert after.version == 1
        assert after.find("a", ALL)


def test_a_failed_block_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction() as writer:
        writer.put(row(str(1 / number)) for number in (1, 0))
    with store.transaction() as writer:
        assert writer.version == 0
        assert not writer.find("1.0", ALL)
        assert len(writer.rowids()) == 0


class FailingFlush:
    """A connection whose next commit fails as SQLite's does where the disk does not take its flush."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.statements: list[str] = []

    def execute(self, statement: str, *parameters: Any) -> Any:
        self.statements.append(statement)
        if statement == "COMMIT" and self.statements.count("COMMIT") == 1:
            self.connection.execute("ROLLBACK")
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
            raise error
        return self.connection.execute(statement, *parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)


def test_a_commit_that_failed_at_its_flush_is_written_over(store: Store) -> None:
    """Else it would be there after a crash, for all of it may be in the log."""
    with store.transaction() as writer:
        writer.put([row("a")])
    flushed = FailingFlush(store._writer)
    store._writer = cast(sqlite3.Connection, flushed)
    log = store.directory / f"{FILE_NAME}-wal"
    before = log.read_bytes()
    with pytest.raises(IndexUnavailable, match="disk I/O error"), store.transaction() as writer:
        writer.remove(["a"])
    assert flushed.statements.count("COMMIT") == 2
    assert log.read_bytes() != before
    with store.snapshot() as reader:
        assert reader.version == 1
        assert reader.find("a", ALL)


def test_the_log_stays_bounded_while_somebody_always_reads(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_WAL_BYTES", 500_000)
    store.close(CLOSED)
    store = Store(store.directory)
    wal = store.directory / f"{FILE_NAME}-wal"
    sizes = []

    def read() -> None:
        with store.snapshot() as reader:
            reader.vectors(reader.rowids(), 2)

    with running(read, read, read):
        for number in range(80):
            with store.transaction() as writer:
                writer.put([row(str(number))])
            store.limit_wal()
            sizes.append(wal.stat().st_size)
    store.close(CLOSED)
    assert max(sizes) < 2_000_000  # more than 3 MB without the limit; half of this if no wait is in vain


def test_writes_do_not_each_wait_for_a_long_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_WAL_BYTES", 40_000)
    monkeypatch.setattr(store_module, "BUSY_TIMEOUT_S", 0.01)
    store.close(CLOSED)
    store = Store(store.directory)
    statements: list[str] = []
    with store.snapshot():
        store._writer.set_trace_callback(statements.append)
        for number in range(20):
            with store.transaction() as writer:
                writer.put([row(str(number))])
            store.limit_wal()
        store._writer.set_trace_callback(None)
    for number in range(100):  # nobody reads any more
        with store.transaction() as writer:
            writer.put([row(str(number))])
        store.limit_wal()
    size = (store.directory / f"{FILE_NAME}-wal").stat().st_size
    store.close(CLOSED)
    assert 6 <= statements.count("PRAGMA wal_checkpoint(RESTART)") <= 10  # two each time, both of which wait
    assert size < 2_000_000  # more than 4 MB if it were never emptied


@pytest.mark.parametrize("spec", ['{"name":"a","dimensions":2,"colour":"red"}', '{"name":"a","dime'])
def test_settings_that_cannot_be_read_are_told(store: Store, spec: str) -> None:
    store._writer.execute("UPDATE state SET spec = ?", (spec,))
    with pytest.raises(IndexUnavailable, match="settings cannot be read"), store.snapshot() as reader:
        reader.spec()
    store.close(CLOSED)
    with pytest.raises(IndexUnavailable, match="settings cannot be read"):
        Store(store.directory)


def test_a_damaged_schema_is_told(store: Store) -> None:
    store.close(CLOSED)
    path = store.directory / FILE_NAME
    content = path.read_bytes()
    assert b"CREATE TABLE items" in content
    path.write_bytes(content.replace(b"CREATE TABLE items", b"CREATE TABLE it\xffms"))
    with pytest.raises(IndexUnavailable, match="damaged"):
        Store(store.directory)


def test_damaged_metadata_is_told_with_its_item(store: Store) -> None:
    with store.transaction() as writer:
        writer.put([row("a")])
    store._writer.execute("UPDATE items SET metadata = '{\"a\":'")
    with pytest.raises(IndexUnavailable, match="'a' cannot be read"), store.snapshot() as reader:
        reader.find("a", ALL)


def test_a_full_disk_is_told_and_passes(store: Store) -> None:
    with store.transaction() as writer:
        writer.put([row("a")])
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(IndexUnavailable, match="disk is full"), store.transaction() as writer:
        writer.put([row(str(number)) for number in range(1000)])
    store._writer.execute("PRAGMA max_page_count = 1000000")
    with store.transaction() as writer:
        assert writer.version == 1
        writer.put([row("b")])


def test_read_only_files_are_told(store: Store) -> None:
    store._writer.execute("PRAGMA query_only = ON")
    with pytest.raises(IndexUnavailable, match="read-only"), store.transaction() as writer:
        writer.put([row("a")])


@pytest.mark.parametrize("offset", [0, 8192])
def test_a_damaged_file_is_told(store: Store, offset: int) -> None:
    with store.transaction() as writer:
        writer.put([row(str(number)) for number in range(1000)])
    store.close(CLOSED)
    with (store.directory / FILE_NAME).open("r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * 8192 * 8)

    def read() -> None:
        damaged = Store(store.directory)
        try:
            with damaged.snapshot() as reader:
                reader.vectors(reader.rowids(), 2)
        finally:
            damaged.close(CLOSED)

    with pytest.raises(IndexUnavailable, match="damaged"):
        read()


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(IndexUnavailable, match="missing"):
        Store(tmp_path)


def test_vectors_of_another_length_are_damage(store: Store) -> None:
    with store.transaction() as writer:
        writer.put([row("a")])
    with store.snapshot() as reader, pytest.raises(IndexUnavailable, match="damaged"):
        reader.vectors(reader.rowids(), 3)


def test_a_database_of_a_newer_release_is_left_alone(store: Store) -> None:
    store._writer.execute("INSERT INTO schema_version VALUES (999, 'from the future')")
    store.close(CLOSED)
    with pytest.raises(IndexUnavailable, match="newer"):
        Store(store.directory)


def test_migrations_run_once_in_order_and_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.transaction() as writer:
        writer.put([row("a")])
    store.close(CLOSED)
    step = ("colour", ("ALTER TABLE items ADD COLUMN colour TEXT", "UPDATE items SET colour = 'red'"))
    broken = ("broken", ("UPDATE items SET colour = 'blue'", "not SQL"))
    monkeypatch.setattr(store_module, "MIGRATIONS", (*store_module.MIGRATIONS, step, broken))
    with pytest.raises(IndexUnavailable):
        Store(store.directory)
    monkeypatch.setattr(store_module, "MIGRATIONS", store_module.MIGRATIONS[:-1])
    for _ in range(2):
        Store(store.directory).close(CLOSED)
    connection = sqlite3.connect(store.directory / FILE_NAME)
    assert connection.execute("SELECT colour FROM items").fetchall() == [("red",)]
    names = [name for (name,) in connection.execute("SELECT name FROM schema_version ORDER BY version")]
    connection.close()
    assert names == [name for name, _ in store_module.MIGRATIONS]


def test_a_closed_store_says_why(store: Store) -> None:
    with store.snapshot():
        store.close(IndexUnavailable("gone fishing"))
    for use in (store.snapshot, store.transaction):
        with pytest.raises(IndexUnavailable, match="gone fishing"), use():
            store.limit_wal()


def test_commits_reach_the_disk(store: Store) -> None:
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
