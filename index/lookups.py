"""Which rowids pass a filter: sets of them from the key table, and SQL for what the sets leave open.

Sets are ascending arrays and are joined by numpy, which takes a tenth of the time of joining them in SQLite.
"""

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from index.errors import IndexUnavailable
from index.items import Rowids

Fetch = Callable[[str], Rowids]
"""Runs SQL that selects rowids as `item`, in any order and more than once, and gives them as a set."""
Lookup = Callable[[Fetch], Rowids]

NOTHING: Rowids = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Part:
    """A filter or a part of one, over the items."""

    sql: str
    """An expression over `items.metadata`: 1 for the items that pass, else 0."""
    lookup: Lookup | None = None
    """Finds all that pass and maybe more; None where that would be every item."""
    rest: str | None = None
    """What the items found must also pass; None if nothing."""
    without: bool = False
    """The items that pass are all but the ones found; then there is no `rest`."""

    @property
    def exact(self) -> bool:
        return self.lookup is not None and self.rest is None


def all_of(parts: Sequence[Part]) -> Part:
    sql = " AND ".join(["1", *(part.sql for part in parts)])
    found, left_out = _by_sign(parts)
    open_ = [part.sql if part.lookup is None else part.rest for part in parts if not part.exact]
    if found:
        rest = " AND ".join(filter(None, open_))
        return Part(f"({sql})", _but(_every(found), left_out), f"({rest})" if rest else None)
    if not open_:
        return Part(f"({sql})", _some(left_out), without=True)
    return Part(f"({sql})")


def any_of(parts: Sequence[Part]) -> Part:
    sql = f"({' OR '.join(part.sql for part in parts) or '0'})"
    found, left_out = _by_sign(parts)
    if not all(part.lookup for part in parts):
        return Part(sql)
    if all(part.exact for part in parts):
        if left_out:
            return Part(sql, _but(_every(left_out), found), without=True)
        return Part(sql, _some(found))
    return Part(sql) if left_out else Part(sql, _some(found), sql)


def none_of(part: Part) -> Part:
    sql = f"NOT {part.sql}"
    return Part(sql, part.lookup, without=not part.without) if part.exact else Part(sql)


def numbers_of(text: object) -> Rowids:
    """What SQLite's group_concat made one text of; None is nothing. Raises IndexUnavailable for damage."""
    try:
        return np.fromstring(text, np.int64, sep=",") if isinstance(text, str) else NOTHING
    except ValueError:
        raise IndexUnavailable("a list of rows cannot be read; the database is damaged") from None


def rowids_of(connection: sqlite3.Connection, part: Part, parameters: Mapping[str, str]) -> Rowids:
    """The rowids of the items that pass, ascending."""

    def fetch(sql: str) -> Rowids:
        # One text with every number is read in less than half the time of a row for each.
        query = f"SELECT group_concat(item) FROM ({sql})"
        (text,) = connection.execute(query, parameters).fetchone()
        return _ascending(numbers_of(text))

    if part.lookup is None:
        return fetch(f"SELECT rowid AS item FROM items WHERE {part.sql}")
    rowids = part.lookup(fetch)
    if part.without:
        return _minus(fetch("SELECT rowid AS item FROM items"), rowids)
    if part.rest is None or not len(rowids):
        return rowids
    parameters = {**parameters, "found": json.dumps(rowids.tolist())}
    found = "rowid IN (SELECT value FROM json_each(:found))"
    return fetch(f"SELECT rowid AS item FROM items WHERE {found} AND {part.rest}")


def _by_sign(parts: Sequence[Part]) -> tuple[list[Lookup], list[Lookup]]:
    """The lookups of what passes, and those of what does not."""
    signed: tuple[list[Lookup], list[Lookup]] = [], []
    for part in parts:
        if part.lookup:
            signed[part.without].append(part.lookup)
    return signed


def _every(lookups: Sequence[Lookup]) -> Lookup:
    def rows(fetch: Fetch) -> Rowids:
        first, *others = lookups
        rowids = first(fetch)
        for other in others:
            if len(rowids):
                rowids = rowids[np.isin(rowids, other(fetch), assume_unique=True)]
        return rowids

    return rows


def _some(lookups: Sequence[Lookup]) -> Lookup:
    return lambda fetch: _ascending(np.concatenate([NOTHING, *(lookup(fetch) for lookup in lookups)]))


def _but(lookup: Lookup, left_out: Sequence[Lookup]) -> Lookup:
    def rows(fetch: Fetch) -> Rowids:
        rowids = lookup(fetch)
        for other in left_out:
            if len(rowids):
                rowids = _minus(rowids, other(fetch))
        return rowids

    return rows


def _minus(rowids: Rowids, others: Rowids) -> Rowids:
    left: Rowids = rowids[np.isin(rowids, others, assume_unique=True, invert=True)]
    return left


def _ascending(rowids: Rowids) -> Rowids:
    """The same without repetitions, in order."""
    if not (rowids[1:] > rowids[:-1]).all():  # as they are when one value was looked up
        rowids = np.sort(rowids)
        rowids = rowids[np.append(True, rowids[1:] > rowids[:-1])]
    return rowids
