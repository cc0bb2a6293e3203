"""The filter language over metadata, compiled to SQL on SQLite's JSON1.

A filter is `{"must": […], "should": […], "must_not": […]}`: all of the first, at least one of the
second where it has any, none of the third. Each entry is a condition or a filter again:

    {"key": "a.b", "match": {"value": "x"}}     equal; strings, numbers and booleans never mix
    {"key": "a.b", "match": {"any": [1, 2]}}    equal to one of these
    {"key": "a.b", "range": {"gte": 1, "lt": 5}}
    {"key": "a.b", "exists": true}              the key is there, even if its value is null

Dots in a key lead into nested objects. Of an array, one matching element is enough.
After Qdrant's filters, https://qdrant.tech/documentation/concepts/filtering/
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from index.errors import BadFilter
from index.items import is_storable

MAX_DEPTH = 8
MAX_CONDITIONS = 100  # each reads the row's JSON again; SQLite refuses expressions 1000 deep
MAX_VALUES = 10_000
MAX_KEY_CHARS = 512
MAX_KEY_PARTS = 16  # each is a join; SQLite allows 64

CLAUSES = ("must", "should", "must_not")
COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}

Test = Callable[[str], str]
"""Gives SQL that tests one row of json_each, named by the argument."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter as an SQL expression over `items.metadata`, 0 or 1, and its numbered parameters.

    No part of `sql` comes from the caller. `count` is how many conditions it has; a filter without
    any says nothing about the items.
    """

    sql: str
    parameters: tuple[str, ...]
    count: int


def compile_filter(filter: object) -> Condition:
    """Check a filter and turn it into SQL.

    Raises:
        BadFilter: it is not in the language above, or exceeds the limits of this module.
    """
    compiler = _Compiler()
    sql = compiler.filter(filter, MAX_DEPTH)
    return Condition(sql, tuple(compiler.parameters), compiler.conditions)


class _Compiler:
    def __init__(self) -> None:
        self.parameters: list[str] = []
        self.conditions = 0
        self.entries = 0

    def filter(self, filter: object, depth: int) -> str:
        if not isinstance(filter, Mapping) or not filter.keys() <= set(CLAUSES):
            raise BadFilter(
                'a filter is {"must": […], "should": […], "must_not": […]} and a condition has a "key"; '
                f"got {_short(filter)}"
            )
        if depth == 0:
            raise BadFilter(f"a filter may be nested at most {MAX_DEPTH} deep")
        clauses = {name: self.clause(name, filter.get(name, []), depth) for name in CLAUSES}
        parts = ["1", *clauses["must"]]
        if clauses["should"]:
            parts.append(f"({' OR '.join(clauses['should'])})")
        parts += [f"NOT {sql}" for sql in clauses["must_not"]]
        return f"({' AND '.join(parts)})"

    def clause(self, name: str, entries: object, depth: int) -> list[str]:
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

    def condition(self, condition: Mapping[str, object]) -> str:
        self.conditions += 1
        parts = _key_parts(condition["key"])
        match {name: value for name, value in condition.items() if name != "key"}:
            case {"match": value, **rest} if not rest:
                return self.at(parts, self.match(value))
            case {"range": value, **rest} if not rest:
                return self.at(parts, self.range(value))
            case {"exists": bool(value), **rest} if not rest:
                return self.at(parts, None) if value else f"NOT {self.at(parts, None)}"
        raise BadFilter(
            'a condition is {"key": "…"} with one of "match": {…}, "range": {…} or "exists": true|false; '
            f"got {_short(condition)}"
        )

    def at(self, parts: list[str], test: Test | None) -> str:
        """SQL: the metadata has a value at this key and, if there is a test, it or an element passes."""
        # Walks down by json_each and not by a JSON path, since paths cannot name every key. The CASE
        # holds because SQL may evaluate the terms of WHERE in any order.
        source, tables, terms = "items.metadata", [], []
        for level, part in enumerate(parts):
            row = f"key{level}"
            tables.append(f"json_each({source}) AS {row}")
            terms.append(f"{row}.key = {self.bind(part)}")
            source = f"CASE {row}.type WHEN 'object' THEN {row}.value ELSE '{{}}' END"
        if test:
            elements = f"json_each(CASE {row}.type WHEN 'array' THEN {row}.value ELSE '[]' END) AS element"
            terms.append(f"({test(row)} OR EXISTS (SELECT 1 FROM {elements} WHERE {test('element')}))")
        return f"EXISTS (SELECT 1 FROM {', '.join(tables)} WHERE {' AND '.join(terms)})"

    def match(self, match: object) -> Test:
        match match:
            case {"value": value, **rest} if not rest:
                values: object = [value]
            case {"any": values, **rest} if not rest and isinstance(values, list | tuple):
                if len(values) > MAX_VALUES:
                    raise BadFilter(f"match any takes at most {MAX_VALUES} values; got {len(values)}")
            case _:
                raise BadFilter(f'match is {{"value": x}} or {{"any": [x, …]}}; got {_short(match)}')
        assert isinstance(values, list | tuple)
        booleans = sorted({json.dumps(value) for value in values if isinstance(value, bool)})
        numbers = [value for value in values if _is_number(value)]
        texts = [value for value in values if isinstance(value, str) and is_storable(value)]
        if sum(isinstance(value, bool) for value in values) + len(numbers) + len(texts) != len(values):
            raise BadFilter(
                f"match takes strings (UTF-8 without NUL), finite numbers and booleans; got {_short(match)}"
            )
        tests: list[Test] = []
        if booleans:
            types = ", ".join(f"'{name}'" for name in booleans)
            tests.append(lambda row: f"{row}.type IN ({types})")
        for types_, group in (("'integer', 'real'", numbers), ("'text'", texts)):
            if group:
                # Bound as JSON, so that SQLite reads both sides of the comparison the same way.
                bound = self.bind(json.dumps(group))
                tests.append(_in_list(types_, bound))
        return lambda row: f"({' OR '.join(test(row) for test in tests) or '0'})"

    def range(self, range: object) -> Test:
        if (
            not isinstance(range, Mapping)
            or not range
            or not range.keys() <= COMPARISONS.keys()
            or not all(map(_is_number, range.values()))
        ):
            raise BadFilter(f"range takes finite numbers under gt, gte, lt, lte; got {_short(range)}")
        terms = [
            f"value {COMPARISONS[name]} json_extract({self.bind(json.dumps(bound))}, '$')"
            for name, bound in range.items()
        ]
        return lambda row: (
            " AND ".join([f"({row}.type IN ('integer', 'real')", *(f"{row}.{term}" for term in terms)]) + ")"
        )

    def bind(self, value: str) -> str:
        self.parameters.append(value)
        return f"?{len(self.parameters)}"


def _in_list(types: str, bound: str) -> Test:
    return lambda row: f"{row}.type IN ({types}) AND {row}.value IN (SELECT value FROM json_each({bound}))"


def _key_parts(key: object) -> list[str]:
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_CHARS or not is_storable(key):
        raise BadFilter(f"key must be a string of 1 to {MAX_KEY_CHARS} characters; got {_short(key)}")
    parts = key.split(".")
    if len(parts) > MAX_KEY_PARTS:
        raise BadFilter(f"key may lead at most {MAX_KEY_PARTS} objects deep; got {_short(key)}")
    return parts


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


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
