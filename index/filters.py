r"""The filter language over metadata, compiled to SQL on SQLite's JSON1.

A filter is `{"must": […], "should": […], "must_not": […]}`: all of the first, at least one of the
second where it has any, none of the third. Each entry is a condition or a filter again:

    {"key": "a.b", "match": {"value": "x"}}     equal; strings, numbers and booleans never mix
    {"key": "a.b", "match": {"any": [1, 2]}}    equal to one of these
    {"key": "a.b", "range": {"gte": 1, "lt": 5}}
    {"key": "a.b", "exists": true}              the key is there, even if its value is null

Dots in a key lead into nested objects; `\.` is a dot that does not, and `\\` a backslash. Of an array, one
matching element is enough. Conditions on a collection's `indexed_keys` are looked up and not computed.
After Qdrant's filters, https://qdrant.tech/documentation/concepts/filtering/
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from index.errors import BadFilter
from index.key_table import BOOLEAN, NUMBER, TEXT, TYPES
from index.keys import elements, is_storable, key_parts, walk
from index.lookups import Lookup, Part, all_of, any_of, none_of

MAX_DEPTH = 8
MAX_CONDITIONS = 100  # each reads the row's JSON again; SQLite refuses expressions 1000 deep
MAX_VALUES = 10_000
LEAST, MOST = -(2**63), 2**63 - 1
"""SQLite reads other integers as floating point, where neighbours are equal."""

CLAUSES = ("must", "should", "must_not")
COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}

Test = Callable[[str], str]
"""Gives SQL that tests one row of json_each, named by the argument."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter as lookups and SQL over the items, and the SQL's named parameters.

    No part of the SQL comes from the caller. `count` is how many conditions it has; a filter without
    any says nothing about the items.
    """

    part: Part
    parameters: Mapping[str, str]
    count: int


def compile_filter(filter: object, indexed_keys: Sequence[str] = ()) -> Condition:
    """Check a filter and turn it into SQL. `indexed_keys` are the collection's.

    Raises:
        BadFilter: it is not in the language above, or exceeds the limits of this module.
    """
    compiler = _Compiler(indexed_keys)
    part = compiler.filter(filter, MAX_DEPTH)
    return Condition(part, compiler.parameters, compiler.conditions)


class _Compiler:
    def __init__(self, indexed_keys: Sequence[str]) -> None:
        self.indexed = {key_parts(key): number for number, key in enumerate(indexed_keys)}
        self.parameters: dict[str, str] = {}
        self.conditions = 0
        self.entries = 0

    def filter(self, filter: object, depth: int) -> Part:
        if not isinstance(filter, Mapping) or not filter.keys() <= set(CLAUSES):
            raise BadFilter(
                'a filter is {"must": […], "should": […], "must_not": […]} and a condition has a "key"; '
                f"got {_short(filter)}"
            )
        if depth == 0:
            raise BadFilter(f"a filter may be nested at most {MAX_DEPTH} deep")
        must, should, must_not = (self.clause(name, filter.get(name, []), depth) for name in CLAUSES)
        return all_of([*must, *([any_of(should)] if should else []), *map(none_of, must_not)])

    def clause(self, name: str, entries: object, depth: int) -> list[Part]:
        if not isinstance(entries, list | tuple):
            raise BadFilter(f"{name} must be a list of conditions; got {_short(entries)}")
        self.entries += len(entries)
        if self.entries > MAX_CONDITIONS:
            raise BadFilter(f"a filter may hold at most {MAX_CONDITIONS} conditions and filters")
        return [
            self.condition(entry)
            if isinstance(entry, Mapping) and "key" in entry
            else self.filter(entry, depth - 1)
            for entry in entries
        ]

    def condition(self, condition: Mapping[str, object]) -> Part:
        self.conditions += 1
        try:
            parts = key_parts(condition["key"])
        except ValueError as error:
            raise BadFilter(f"{error}; got {_short(condition['key'])}") from None
        match {name: value for name, value in condition.items() if name != "key"}:
            case {"match": value, **rest} if not rest:
                return self.match(parts, value)
            case {"range": value, **rest} if not rest:
                return self.range(parts, value)
            case {"exists": bool(value), **rest} if not rest:
                part = self.at(parts, None, ["keys WHERE 1"])
                return part if value else none_of(part)
        raise BadFilter(
            'a condition is {"key": "…"} with one of "match": {…}, "range": {…} or "exists": true|false; '
            f"got {_short(condition)}"
        )

    def at(self, parts: tuple[str, ...], test: Test | None, entries: Sequence[str]) -> Part:
        """The metadata has a value at this key and, if there is a test, it or an element passes.

        `entries` are the ends of SELECTs over the key table, of which one must find the item.
        """
        tables, terms, row = walk(parts, self.bind)
        if test:
            terms += f" AND ({test(row)} OR EXISTS (SELECT 1 FROM {elements(row)} WHERE {test('element')}))"
        sql = f"EXISTS (SELECT 1 FROM {tables} WHERE {terms})"
        number = self.indexed.get(parts)
        if number is None:
            return Part(sql)
        found = any_of([Part(sql, _found(f"{entry} AND keys.key = {number}")) for entry in entries])
        return replace(found, sql=sql)

    def match(self, parts: tuple[str, ...], match: object) -> Part:
        match match:
            case {"value": value, **rest} if not rest:
                values: object = [value]
            case {"any": values, **rest} if not rest and isinstance(values, list | tuple):
                if len(values) > MAX_VALUES:
                    raise BadFilter(f"match any takes at most {MAX_VALUES} values; got {len(values)}")
            case _:
                raise BadFilter(f'match is {{"value": x}} or {{"any": [x, …]}}; got {_short(match)}')
        assert isinstance(values, list | tuple)
        groups = {
            BOOLEAN: [value for value in values if isinstance(value, bool)],
            NUMBER: [value for value in values if _is_number(value)],
            TEXT: [value for value in values if isinstance(value, str) and is_storable(value)],
        }
        if sum(map(len, groups.values())) != len(values):
            raise BadFilter(
                f"match takes strings (UTF-8 without NUL), finite numbers and booleans; got {_short(match)}"
            )
        _check_numbers(groups[NUMBER], floats=True)  # JSON's readers make floats of integers beyond 64 bits
        # Bound as JSON, so that SQLite reads both sides of the comparison the same way.
        bound = {kind: self.bind(json.dumps(group)) for kind, group in groups.items() if group}

        def test(row: str) -> str:
            return _any(
                f"{row}.type IN ({TYPES[kind]}) AND {row}.value IN (SELECT value FROM json_each({wanted}))"
                for kind, wanted in bound.items()
            )

        part = self.at(
            parts,
            test,
            [  # joined in this order: left to itself SQLite may read every entry of the kind
                f"json_each({wanted}) AS wanted CROSS JOIN keys"
                f" WHERE keys.kind = {kind} AND keys.value = wanted.value"
                for kind, wanted in bound.items()
            ],
        )
        if len(values) == len(groups[TEXT]) == 1:
            # Whatever holds this string holds these bytes, as `metadata_text` writes them. Looking for
            # them takes a quarter of the time of reading the JSON.
            needle = self.bind(json.dumps(values[0], ensure_ascii=False))
            return replace(part, sql=f"(instr(items.metadata, {needle}) AND {part.sql})")
        return part

    def range(self, parts: tuple[str, ...], range: object) -> Part:
        if (
            not isinstance(range, Mapping)
            or not range
            or not range.keys() <= COMPARISONS.keys()
            or not all(map(_is_number, range.values()))
        ):
            raise BadFilter(f"range takes finite numbers under gt, gte, lt, lte; got {_short(range)}")
        _check_numbers(range.values(), floats=False)
        bound = {COMPARISONS[name]: self.bind(json.dumps(number)) for name, number in range.items()}

        def within(row: str) -> str:
            return " AND ".join(
                f"{row}.value {sign} json_extract({number}, '$')" for sign, number in bound.items()
            )

        return self.at(
            parts,
            lambda row: f"({row}.type IN ({TYPES[NUMBER]}) AND {within(row)})",
            [f"keys WHERE kind = {NUMBER} AND {within('keys')}"],
        )

    def bind(self, value: str) -> str:
        self.parameters[name := f"v{len(self.parameters)}"] = value
        return f":{name}"


def _found(entry: str) -> Lookup:
    return lambda fetch: fetch(f"SELECT item FROM {entry}")


def _any(tests: Iterable[str]) -> str:
    return f"({' OR '.join(tests) or '0'})"


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def _check_numbers(numbers: Iterable[object], floats: bool) -> None:
    """Raises BadFilter for one beyond 64 bits, if `floats` for floats too."""
    kinds = int | float if floats else int
    if any(isinstance(number, kinds) and not _fits(number) for number in numbers):
        raise BadFilter(
            "an integer in a filter must fit 64 bits with a sign: larger ones are kept as floating point, "
            "which cannot tell them apart; keep such numbers as strings, or use a range of floats, as 1e19"
        )


def _fits(number: Any) -> bool:
    return bool(LEAST <= number <= MOST)


def _short(value: object) -> str:
    """The value for a message; cut, for it is the caller's and may be of any size."""
    if isinstance(value, Mapping):
        keys = (repr(key[:40]) if isinstance(key, str) else type(key).__name__ for key in list(value)[:8])
        return f"an object with the keys {', '.join(keys) or '(none)'}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge integer"  # which Python may refuse to print
    return ascii(value)[:80] if isinstance(value, str | int | float | None) else type(value).__name__
