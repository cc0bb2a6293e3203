"""The index over chosen metadata keys: a table of their typed values, for filters to look rowids up in.

Every entry is computed by SQLite from the item's metadata, as an unindexed filter would, so that both read
a number or a string the same way. A key that is there has an entry, or if it holds an array one for each
element that differs; NUMBER, TEXT and BOOLEAN entries carry the value, OTHER stands for anything else.
"""

import sqlite3
from functools import lru_cache

from index.keys import elements, key_parts, walk

OTHER, NUMBER, TEXT, BOOLEAN = range(4)
TYPES = {NUMBER: "'integer', 'real'", TEXT: "'text'", BOOLEAN: "'true', 'false'"}
"""The types of json_each that are of a kind, as SQL."""
_KIND = " ".join(
    ["CASE", *(f"WHEN type IN ({types}) THEN {kind}" for kind, types in TYPES.items()), f"ELSE {OTHER} END"]
)

VERSION = int("{}{:03}{:03}".format(*sqlite3.sqlite_version_info))

# `key` is the position in the collection's indexed_keys. The primary key is all there is: a lookup reads
# a stretch of it in order and touches nothing else.
CREATE = (
    "CREATE TABLE keys (key INTEGER NOT NULL, kind INTEGER NOT NULL, value NOT NULL, item INTEGER NOT NULL,"
    " PRIMARY KEY (key, kind, value, item)) WITHOUT ROWID"
)


class KeyTable:
    """The entries of one database, changed in the transaction that changes its items."""

    def __init__(self, connection: sqlite3.Connection, keys: tuple[str, ...]) -> None:
        self._connection = connection
        self._keys = keys

    def add(self, first: int, last: int) -> None:
        """Enter the items of these rowids, the last included."""
        if self._keys:
            entries, parts = _entries(self._keys, "items.rowid BETWEEN :first AND :last")
            self._connection.execute(  # sorted, so that neighbours in the table are written together
                f"INSERT OR IGNORE INTO keys SELECT * FROM ({entries}) ORDER BY 1, 2, 3, 4",
                {**parts, "first": first, "last": last},
            )

    def remove(self, chosen: str, parameter: str) -> None:
        """Take out the entries of items that are still there. `chosen` is SQL with `:chosen` in it."""
        if self._keys:
            entries, parts = _entries(self._keys, chosen)
            # One by one: over a list SQLite guesses, without statistics, that a scan is as good.
            self._connection.executemany(
                "DELETE FROM keys WHERE key = ? AND kind = ? AND value = ? AND item = ?",
                self._connection.execute(entries, {**parts, "chosen": parameter}),
            )

    def is_current(self) -> bool:
        """Whether this version of SQLite made the table; if not, `rebuild` it before anything else.

        Versions differ in the last bit of some numbers they read, and an entry that would now be computed
        differently cannot be found again, not even to remove it.
        """
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        return not self._keys or version == VERSION

    def wrong(self) -> int:
        """How many entries are not what the items have, or are missing."""
        if not self._keys:
            return 0
        entries, parts = _entries(self._keys, "1")
        (count,) = self._connection.execute(
            f"WITH entries AS ({entries}) SELECT"
            " (SELECT count(*) FROM (SELECT * FROM entries EXCEPT SELECT * FROM keys))"
            " + (SELECT count(*) FROM (SELECT * FROM keys EXCEPT SELECT * FROM entries))",
            parts,
        ).fetchone()
        return int(count)

    def rebuild(self) -> None:
        """Enter every item anew."""
        self._connection.execute("DELETE FROM keys")
        self.add(0, 2**63 - 1)
        self._connection.execute(f"PRAGMA user_version = {VERSION}")


@lru_cache
def _entries(keys: tuple[str, ...], chosen: str) -> tuple[str, dict[str, str]]:
    """SQL for the entries of the chosen items, a row each, and its parameters."""
    parameters: dict[str, str] = {}

    def bind(part: str) -> str:
        parameters[name := f"part{len(parameters)}"] = part
        return f":{name}"

    selects = []
    for number, key in enumerate(keys):
        tables, terms, row = walk(key_parts(key), bind)
        selects.append(
            f"SELECT {number}, {_KIND}, value, item FROM (SELECT items.rowid AS item,"
            f" ifnull(element.type, {row}.type) AS type, coalesce(element.atom, {row}.atom, 0) AS value"
            f" FROM items, {tables} LEFT JOIN {elements(row)} WHERE {terms} AND {chosen})"
        )
    return " UNION ALL ".join(selects), parameters
