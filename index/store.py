"""Items of one collection in SQLite: the source of truth, durable once a write returns."""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import ValidationError

from index.errors import BadFilter, IndexUnavailable, VectorIndexError
from index.filters import Condition
from index.items import Include, Record, Rowids, Vectors
from index.key_table import CREATE, KeyTable
from index.lookups import numbers_of, rowids_of
from index.spec import CollectionSpec

FILE_NAME = "items.db"
PAGE_BYTES = 8192  # holds three vectors of 512 numbers; pages of 4096 hold one and leave half empty
MAX_WAL_BYTES = 64 * 1024 * 1024
BUSY_TIMEOUT_S = 0.5  # the longest a write waits for reads, twice, when it has to empty the log
ROWS_PER_READ = 1000
IDS_PER_READ = 500
STEPS_PER_CLOCK_READ = 10_000  # of SQLite's virtual machine: 25 ms where each reads 64 KiB of metadata

# Named steps, applied once each and in order. Never edit one that was released; append.
# Vectors have a table of their own, so that a filter reads metadata and not the vectors between.
# AUTOINCREMENT: a rowid is never given twice, so it names one version of one item for ever.
MIGRATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "items and vectors",
        (
            "CREATE TABLE state (version INTEGER NOT NULL, spec TEXT NOT NULL, created INTEGER NOT NULL)",
            "CREATE TABLE items (rowid INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
            " metadata TEXT NOT NULL)",
            "CREATE TABLE vectors (rowid INTEGER PRIMARY KEY, vector BLOB NOT NULL, thumbnail BLOB)",
        ),
    ),
    ("keys", (CREATE,)),
    (
        "identity",
        (
            "ALTER TABLE state ADD COLUMN identity TEXT NOT NULL DEFAULT ''",
            "UPDATE state SET identity = lower(hex(randomblob(16)))",
        ),
    ),
)
DAMAGED = "its database is damaged; restore it from a copy, or delete the collection"

REASONS = {
    "SQLITE_FULL": "the disk is full; free some space and try again",
    "SQLITE_READONLY": "its files are read-only; make the data directory writable for this user",
    "SQLITE_CORRUPT": DAMAGED,
    "SQLITE_NOTADB": DAMAGED,
    "SQLITE_CONSTRAINT": DAMAGED,  # what is in a row's way is removed before it is written
    "SQLITE_CANTOPEN": "its files cannot be opened; check that the data directory exists and is accessible",
}


class Row(NamedTuple):
    """An item ready to be stored: a checked id, metadata as JSON text, vector as bytes."""

    id: str
    metadata: str
    vector: bytes
    thumbnail: bytes | None


class Reader:
    """Reads of one snapshot of the database."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.version: int = self._one("SELECT version FROM state")

    def spec(self) -> CollectionSpec:
        return _spec(self._one("SELECT spec FROM state"))

    def identity(self) -> str:
        """What this collection alone is called, of all that ever had its name."""
        return str(self._one("SELECT identity FROM state"))

    def created(self) -> int:
        """When the collection was made, in seconds since 1970."""
        return int(self._one("SELECT created FROM state"))

    def last_rowid(self) -> int:
        """The newest that was ever given, to whatever item; 0 before the first."""
        found = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'items'").fetchone()
        return int(found[0]) if found else 0

    def rowids(self) -> Rowids:
        """Every rowid, ascending: int64 [n]."""
        # Read from the index on ids, without metadata, and as one text: half the time of a row for each.
        (text,) = self._connection.execute("SELECT group_concat(rowid) FROM items").fetchone()
        return np.sort(numbers_of(text))

    def vectors(self, rowids: Rowids, dimensions: int) -> Vectors:
        """The vectors of the rows from the first to the last of `rowids` (ascending): float32 [n, d].

        Raises:
            IndexUnavailable: some are missing, or there are others between, or one has another length.
        """
        vectors = np.empty((len(rowids), dimensions), np.float32)
        if len(rowids) == 0:
            return vectors
        cursor = self._connection.execute(
            "SELECT rowid, vector FROM vectors WHERE rowid BETWEEN ? AND ? ORDER BY rowid",
            (int(rowids[0]), int(rowids[-1])),
        )
        start = 0
        while rows := cursor.fetchmany(ROWS_PER_READ):
            end = start + len(rows)
            if rowids[start:end].tolist() != [rowid for rowid, _ in rows]:
                raise IndexUnavailable("items and vectors do not fit each other; the database is damaged")
            if any(not isinstance(v, bytes) or len(v) != 4 * dimensions for _, v in rows):
                raise IndexUnavailable(
                    f"a stored vector is not {dimensions} numbers long; the database is damaged"
                )
            vectors[start:end] = np.frombuffer(b"".join(v for _, v in rows), "<f4").reshape(-1, dimensions)
            start = end
        if start != len(rowids):
            raise IndexUnavailable("items and vectors do not fit each other; the database is damaged")
        return vectors

    def damage(self) -> list[str]:
        """What SQLite's own check finds wrong with the file, and metadata that is none; empty if nothing."""
        found = [text for (text,) in self._connection.execute("PRAGMA integrity_check")]
        if found != ["ok"]:
            return [f"database: {text}" for text in found]
        if bad := self._one("SELECT count(*) FROM items WHERE NOT json_valid(metadata)"):
            return [f"database: the metadata of {bad} items is not JSON"]
        keys = KeyTable(self._connection, self.spec().indexed_keys)
        if keys.is_current() and (wrong := keys.wrong()):  # else it is made anew before it is used
            return [f"database: {wrong} entries of the indexed keys are wrong, and so are filters by these"]
        return []

    def matching(self, condition: Condition, timeout_s: float) -> Rowids:
        """The rowids of the items that pass, ascending. Raises BadFilter after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        self._connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS_PER_CLOCK_READ)
        try:
            return rowids_of(self._connection, condition.part, condition.parameters)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_INTERRUPT":
                raise
            raise BadFilter(
                f"the filter was too slow: it ran for more than {timeout_s:g} s (index.filter_timeout_s); "
                "use fewer conditions, fewer values, keys that hold shorter arrays, or create the collection "
                "with these keys in indexed_keys"
            ) from None
        finally:
            self._connection.set_progress_handler(None, 0)

    def find(self, id: str, include: Include) -> Record | None:
        return next((record for _, record in self._records("i.id = ?", (id,), include)), None)

    def present(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that an item has."""
        found: set[str] = set()
        for start in range(0, len(ids), IDS_PER_READ):
            some = ids[start : start + IDS_PER_READ]
            places = ",".join("?" * len(some))
            rows = self._connection.execute(f"SELECT id FROM items WHERE id IN ({places})", some)
            found.update(id for (id,) in rows)
        return found

    def rows(
        self, rowids: Sequence[int], include: Include
    ) -> Iterator[tuple[int, str, str | None, bytes | None]]:
        """Rowid, id and, as far as they are to be included, metadata as JSON text and the vector's bytes."""
        found = self._rows("i.rowid IN (SELECT value FROM json_each(?))", (json.dumps(rowids),), include)
        return (row[:4] for row in found)

    def after(self, rowid: int, limit: int, include: Include) -> list[tuple[int, Record]]:
        """Up to `limit` records with greater rowids, ascending."""
        return list(self._records("i.rowid > ? ORDER BY i.rowid LIMIT ?", (rowid, limit), include))

    def _records(
        self, where: str, parameters: tuple[str | int, ...], include: Include
    ) -> Iterator[tuple[int, Record]]:
        for rowid, id, metadata, vector, thumbnail in self._rows(where, parameters, include):
            try:
                read = None if metadata is None else json.loads(metadata)
            except ValueError:
                raise IndexUnavailable(f"the metadata of item {id!r} cannot be read: {DAMAGED}") from None
            yield rowid, Record(id, read, None if vector is None else vector_of(vector), thumbnail)

    def _rows(
        self, where: str, parameters: tuple[str | int, ...], include: Include
    ) -> Iterable[tuple[int, str, str | None, bytes | None, bytes | None]]:
        columns = ("i.metadata", "v.vector", "v.thumbnail")
        names = ("metadata", "vector", "thumbnail")
        wanted = [column if name in include else "NULL" for name, column in zip(names, columns, strict=True)]
        join = "JOIN vectors v ON v.rowid = i.rowid" if include & {"vector", "thumbnail"} else ""
        return self._connection.execute(
            f"SELECT i.rowid, i.id, {', '.join(wanted)} FROM items i {join} WHERE {where}", parameters
        )

    def copy_to(self, path: Path) -> None:
        """Write this snapshot of the database to a new file; reads and writes go on meanwhile."""
        with closing(sqlite3.connect(path)) as copy:
            self._connection.backup(copy)

    def _one(self, query: str) -> Any:
        row = self._connection.execute(query).fetchone()
        if row is None:
            raise IndexUnavailable("the database has no state; it is damaged")
        return row[0]


class Writer(Reader):
    """Reads and writes of one transaction; `version` is the one it starts from."""

    def put(self, rows: Iterable[Row]) -> tuple[Rowids, Rowids]:
        """Store rows of distinct ids under new rowids: the rowids removed and those added, ascending."""
        removed, added = [], []
        for row in rows:
            removed += self._take(row.id)
            inserted = self._connection.execute(
                "INSERT INTO items (id, metadata) VALUES (?, ?)", (row.id, row.metadata)
            )
            assert inserted.lastrowid is not None
            added.append(inserted.lastrowid)
            self._connection.execute(
                "INSERT INTO vectors (rowid, vector, thumbnail) VALUES (?, ?, ?)",
                (inserted.lastrowid, row.vector, row.thumbnail),
            )
        if added:
            self._keys.add(added[0], added[-1])
        return _ascending(removed), np.array(added, np.int64)

    def remove(self, ids: Iterable[str]) -> Rowids:
        """Remove the items of these ids, where there are any: the rowids removed."""
        return _ascending([rowid for id in ids for rowid in self._take(id)])

    def remove_rows(self, rowids: Rowids) -> Rowids:
        """Remove these rows, where they are still there: the rowids removed."""
        chosen = "rowid IN (SELECT value FROM json_each(?))"
        parameters = (json.dumps(rowids.tolist()),)
        self._keys.remove("items.rowid IN (SELECT value FROM json_each(:chosen))", *parameters)
        removed = self._connection.execute(
            f"DELETE FROM items WHERE {chosen} RETURNING rowid", parameters
        ).fetchall()
        self._connection.execute(f"DELETE FROM vectors WHERE {chosen}", parameters)
        return _ascending([rowid for (rowid,) in removed])

    def execute(self, statement: str) -> None:
        """A statement of the transaction itself, such as a savepoint."""
        self._connection.execute(statement)

    def set_spec(self, spec: CollectionSpec) -> None:
        self._connection.execute("UPDATE state SET spec = ?", (spec.model_dump_json(),))

    @cached_property
    def _keys(self) -> KeyTable:
        return KeyTable(self._connection, self.spec().indexed_keys)

    def _take(self, id: str) -> list[int]:
        self._keys.remove("items.id = :chosen", id)
        rows = self._connection.execute("DELETE FROM items WHERE id = ? RETURNING rowid", (id,)).fetchall()
        self._connection.executemany("DELETE FROM vectors WHERE rowid = ?", rows)
        return [rowid for (rowid,) in rows]


class Store:
    """The database in a collection's directory.

    Reads run on connections of their own and wait for nobody; writes are one at a time, which the
    caller sees to. Every method raises IndexUnavailable when the files cannot be used.
    """

    def __init__(self, directory: Path, *, update: bool = True) -> None:
        """With `update` a database of an older release, or of another version of SQLite, is made current."""
        self.directory = directory
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed: VectorIndexError | None = None
        self._wal_bound = 0  # bytes; no shorter log is emptied
        with self._translated():
            if not self._path.is_file():
                raise FileNotFoundError(
                    f"its database is gone ({FILE_NAME}); restore it from a copy, or delete the collection"
                )
            self._writer = self._connect()
            try:
                if update:
                    _migrate(self._writer)
                    _refresh_keys(self._writer)
                self.schema_version = _schema_version(self._writer)
            except BaseException:
                self._writer.close()
                raise

    @classmethod
    def create(cls, directory: Path, spec: CollectionSpec, created: int) -> Self:
        """Make the database of a new collection in an existing empty directory."""
        (directory / FILE_NAME).touch()
        store = cls(directory)
        with store._translated():
            store._writer.execute(
                "INSERT INTO state (version, spec, created, identity)"
                " VALUES (0, ?, ?, lower(hex(randomblob(16))))",
                (spec.model_dump_json(), created),
            )
        return store

    @property
    def _path(self) -> Path:
        return self.directory / FILE_NAME

    @contextmanager
    def snapshot(self) -> Iterator[Reader]:
        """Reads that all see the same committed state."""
        with self._translated():
            connection = self._borrow()
            try:
                connection.execute("BEGIN")
                try:
                    yield Reader(connection)
                finally:
                    if connection.in_transaction:  # SQLite has rolled back by itself after some errors
                        connection.execute("ROLLBACK")
            finally:
                self._give_back(connection)

    @contextmanager
    def transaction(self) -> Iterator[Writer]:
        """Writes that are committed, and the version raised by one, when the block ends without error."""
        with self._translated():
            self._check_open()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield Writer(self._writer)
                self._writer.execute("UPDATE state SET version = version + 1")
                self._writer.execute("COMMIT")
            except BaseException as error:
                if self._writer.in_transaction:  # SQLite has rolled back by itself when the disk is full
                    self._writer.execute("ROLLBACK")
                if getattr(error, "sqlite_errorname", "").startswith("SQLITE_IOERR"):
                    self._forget()
                raise

    def _forget(self) -> None:
        """Write over what a commit that failed at its flush left in the log.

        All of it may be there: until another write it would be taken for committed after a crash.
        """
        with suppress(sqlite3.DatabaseError):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                for change in (1, -1):  # a row that stays as it is would not be written
                    self._writer.execute("UPDATE state SET version = version + ?", (change,))
                self._writer.execute("COMMIT")
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    def limit_wal(self) -> None:
        """Have the next write start the write-ahead log anew, if it has grown large.

        SQLite does so by itself only at a moment without readers, which under steady searches never
        comes. This waits for reads that are running, without stopping new ones, and may fail in peace:
        the log is valid at any size. Where it waited in vain, for a read that takes long, it comes back
        when the log has doubled.
        """
        with suppress(OSError, sqlite3.DatabaseError):
            size = self._path.with_name(f"{FILE_NAME}-wal").stat().st_size
            if size > max(MAX_WAL_BYTES, self._wal_bound):
                # Twice: SQLite may wait for a place in its table of reads that new ones have begun to share.
                attempts = (
                    self._writer.execute("PRAGMA wal_checkpoint(RESTART)").fetchone() for _ in range(2)
                )
                self._wal_bound = 2 * size if all(busy for busy, *_ in attempts) else 0

    def bytes_on_disk(self) -> int:
        with self._translated():
            # os.walk passes over directories that go meanwhile, as those of segments do.
            return sum(
                _size(Path(root, name)) for root, _, names in os.walk(self.directory) for name in names
            )

    def close(self, error: VectorIndexError) -> None:
        """Close the files once running reads have ended; later calls raise `error`."""
        with self._lock:
            self._closed, idle = error, self._idle
            self._idle = []
        for connection in (*idle, self._writer):
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _borrow(self) -> sqlite3.Connection:
        with self._lock:
            self._check_open()
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _check_open(self) -> None:
        if self._closed:
            raise type(self._closed)(*self._closed.args)  # a new one, for each has its own traceback

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.DatabaseError, UnicodeDecodeError) as error:
            # The subclasses that mean wrong use of SQLite are bugs, and stay what they are.
            if isinstance(error, sqlite3.DatabaseError) and type(error) not in _ENVIRONMENT:
                raise
            if isinstance(error, UnicodeDecodeError):  # a text of the database, such as its schema
                name = "SQLITE_CORRUPT"
            else:
                name = getattr(error, "sqlite_errorname", "")
            primary = "_".join(name.split("_")[:2])
            reason = REASONS.get(primary, getattr(error, "strerror", None) or str(error))
            raise IndexUnavailable(f"collection {self.directory.name!r} cannot be used: {reason}") from error


_ENVIRONMENT = (sqlite3.DatabaseError, sqlite3.OperationalError, sqlite3.IntegrityError)


def _migrate(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, name TEXT NOT NULL)"
    )
    done = _schema_version(connection)
    for version, (name, statements) in enumerate(MIGRATIONS[done:], start=done + 1):
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(statement)
        connection.execute("INSERT INTO schema_version (version, name) VALUES (?, ?)", (version, name))
        connection.execute("COMMIT")


def _schema_version(connection: sqlite3.Connection) -> int:
    """Raises IndexUnavailable for one that a newer release wrote."""
    version: int = connection.execute("SELECT count(*) FROM schema_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise IndexUnavailable(
            f"the database has schema version {version}, this release knows {len(MIGRATIONS)}: "
            "use the release that wrote it, or a newer one"
        )
    return version


def vector_of(stored: bytes) -> Vectors:
    """A stored vector: float32 [d], of its own memory."""
    return np.frombuffer(stored, "<f4").astype(np.float32)


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):  # a segment's file goes once the segment was rewritten
        return path.stat().st_size
    return 0


def _spec(text: str) -> CollectionSpec:
    try:
        return CollectionSpec.model_validate_json(text)
    except ValidationError:
        raise IndexUnavailable(
            "its settings cannot be read: they are damaged, or a newer release wrote them"
        ) from None


def _refresh_keys(connection: sqlite3.Connection) -> None:
    """Make the key table anew if another version of SQLite made it; see KeyTable.is_current."""
    state = connection.execute("SELECT spec FROM state").fetchone()
    if state is None:  # about to be created
        return
    keys = KeyTable(connection, _spec(*state).indexed_keys)
    if not keys.is_current():
        connection.execute("BEGIN IMMEDIATE")
        keys.rebuild()
        connection.execute("COMMIT")


def _ascending(rowids: list[int]) -> Rowids:
    return np.sort(np.array(rowids, np.int64))
