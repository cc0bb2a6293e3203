"""The filter language: against a plain evaluator, against injection, at its limits."""

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import BadFilter
from index.filters import MAX_CONDITIONS, compile_filter
from index.items import metadata_text
from index.key_table import CREATE, KeyTable
from index.lookups import rowids_of


def passes(filter: Any, metadata: Any, indexed_keys: tuple[str, ...] = ()) -> bool:
    condition = compile_filter(filter, indexed_keys)
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE TABLE items (metadata TEXT)")
        connection.execute(CREATE)
        connection.execute("INSERT INTO items VALUES (?)", (metadata_text(metadata, 10**9),))
        KeyTable(connection, indexed_keys).add(1, 1)
        rowids = rowids_of(connection, condition.part, condition.parameters).tolist()
        ((result,),) = connection.execute(f"SELECT {condition.part.sql} FROM items", condition.parameters)
    finally:
        connection.close()
    assert (result, rowids) in ((0, []), (1, [1]))
    return bool(result)


def match(key: str, value: Any) -> dict[str, Any]:
    return {"must": [{"key": key, "match": {"value": value}}]}


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (1, 1, True),
        (1, 1.0, True),
        (1.5, 1.5, True),
        (1, True, False),
        (True, 1, False),
        (True, True, True),
        (False, True, False),
        (0, False, False),
        ("1", 1, False),
        (1, "1", False),
        ("true", True, False),
        (None, "null", False),
        (None, 0, False),
        (None, "", False),
        ("", "", True),
        ("é😀", "é😀", True),
        ("a", "A", False),
        ("a'\"\\b", "a'\"\\b", True),
        ([1, "x"], "x", True),
        ([1, "x"], 1, True),
        (["1"], 1, False),
        ([], "", False),
        ([[1]], 1, False),
        ('["x"]', "x", False),
        ({"x": 1}, 1, False),
        (2**53 + 1, 2**53, False),
        (0.1 + 0.2, 0.3, False),
        (2**63 - 1, 2**63 - 1, True),
        (2**63 - 2, 2**63 - 1, False),
    ],
)
def test_match_never_mixes_types(value: Any, wanted: Any, expected: bool) -> None:
    assert passes(match("k", wanted), {"k": value}) is expected


@pytest.mark.parametrize(
    "key",
    ['"', "'", "\\", '"]', "$", "[0]", "a b", "é", "\n", "😀", '\\"', "#", "%", "?1", "{row}", "-"],
)
def test_every_key_can_be_named(key: str) -> None:
    assert passes(match(key, 1), {key: 1})
    assert not passes(match(key, 1), {"other": 1, key + "x": 1})
    assert passes(match(f"a.{key}", 1), {"a": {key: 1}})


@pytest.mark.parametrize(
    ("key", "leads_to"),
    [
        (r"a\.b", {"a.b": 1}),
        (r"a\.b.c\.d", {"a.b": {"c.d": 1}}),
        (r"a\\.b", {"a\\": {"b": 1}}),
        (r"a\\\.b", {"a\\.b": 1}),
        (r"\.", {".": 1}),
        (r"\\", {"\\": 1}),
        (r"C:\dir", {r"C:\dir": 1}),
        ("a..b", {"a": {"": {"b": 1}}}),
        (".", {"": {"": 1}}),
        (r"a.b" + "\\", {"a": {"b\\": 1}}),
    ],
)
def test_a_backslash_takes_the_meaning_from_a_dot(key: str, leads_to: Any) -> None:
    assert passes(match(key, 1), leads_to)
    assert passes(match(key, 1), leads_to, (key,))
    assert not passes(match(key, 1), {"a": {"b": 1}})


def test_dots_lead_into_objects_and_only_objects() -> None:
    assert passes(match("a.b.c", 1), {"a": {"b": {"c": 1}}})
    assert not passes(match("a.b", 1), {"a.b": 1})
    assert not passes(match("a.b", 1), {"a": '{"b": 1}'})
    assert not passes(match("a.0", 1), {"a": [1]})
    assert not passes(match("a", 1), {})


@pytest.mark.parametrize(
    ("range", "value", "expected"),
    [
        ({"gt": 1}, 1, False),
        ({"gte": 1}, 1, True),
        ({"gte": 1, "lt": 2}, 1.5, True),
        ({"gte": 1, "lt": 2}, 2, False),
        ({"lte": 2}, [9, 2], True),
        ({"gt": 3, "lt": 5}, [1, 9], False),
        ({"gte": 0}, True, False),
        ({"gte": 0}, "5", False),
        ({"gte": 0}, None, False),
        ({"lt": 0.1}, 0.1, False),
    ],
)
def test_ranges(range: dict[str, float], value: Any, expected: bool) -> None:
    assert passes({"must": [{"key": "k", "range": range}]}, {"k": value}) is expected


def test_exists_means_the_key_is_there() -> None:
    there, absent = ({"must": [{"key": "a.b", "exists": wanted}]} for wanted in (True, False))
    values: list[Any] = [None, 0, "", [], {}]
    for value in values:
        assert passes(there, {"a": {"b": value}})
        assert not passes(absent, {"a": {"b": value}})
    assert passes(absent, {"a": 1})
    assert not passes(there, {"a": 1})


@pytest.mark.parametrize("empty", [{}, {"must": []}, {"should": []}, {"must_not": [{}], "must": [{}]}])
def test_filters_without_conditions_count_none(empty: Any) -> None:
    assert compile_filter(empty).count == 0


def test_a_rowful_of_quotes_stays_data() -> None:
    attack = "x'); DROP TABLE items; --"
    assert passes(match(attack, attack), {attack: attack})
    assert not passes(match("k", "' OR 1=1 --"), {"k": "v"})
    assert not passes(match("k') OR 1=1 --", 1), {"k": "v"})
    assert attack not in compile_filter(match(attack, attack)).part.sql


BAD_FILTERS: list[Any] = [
    None,
    [],
    "must",
    {"musst": []},
    {"must": {"key": "a", "match": {"value": 1}}},
    {"must": ["a"]},
    {"must": [{"key": "a"}]},
    {"must": [{"key": "a", "equals": 1}]},
    {"must": [{"key": "a", "match": {"value": 1}, "exists": True}]},
    {"must": [{"key": "a", "match": 1}]},
    {"must": [{"key": "a", "match": {}}]},
    {"must": [{"key": "a", "match": {"value": None}}]},
    {"must": [{"key": "a", "match": {"value": [1]}}]},
    {"must": [{"key": "a", "match": {"value": float("nan")}}]},
    {"must": [{"key": "a", "match": {"value": 10**400}}]},
    {"must": [{"key": "a", "match": {"value": 2**63}}]},
    {"must": [{"key": "a", "match": {"value": float(2**63)}}]},
    {"must": [{"key": "a", "match": {"value": -1e300}}]},
    {"must": [{"key": "a", "match": {"any": [1, -(2**63) - 1]}}]},
    {"must": [{"key": "a", "range": {"lte": 2**64 - 1}}]},
    {"must": [{"key": "a", "match": {"value": "\ud800"}}]},
    {"must": [{"key": "a", "match": {"value": "nul\0"}}]},
    {"must": [{"key": "a", "match": {"any": "abc"}}]},
    {"must": [{"key": "a", "match": {"any": [{}]}}]},
    {"must": [{"key": "a", "match": {"any": list(range(10_001))}}]},
    {"must": [{"key": "a", "range": {}}]},
    {"must": [{"key": "a", "range": {"above": 1}}]},
    {"must": [{"key": "a", "range": {"gt": "1"}}]},
    {"must": [{"key": "a", "range": {"gt": True}}]},
    {"must": [{"key": "a", "exists": 1}]},
    {"must": [{"key": "", "exists": True}]},
    {"must": [{"key": 1, "exists": True}]},
    {"must": [{"key": "\ud800", "exists": True}]},
    {"must": [{"key": "k" * 513, "exists": True}]},
    {"must": [{"key": "a." * 16 + "a", "exists": True}]},
    {"must": [{"key": ["a"], "exists": True}]},
    {"must": [{"key": "a", "exists": True}] * (MAX_CONDITIONS + 1)},
    {"must": [{"key": 10**5000, "exists": True}]},
    {"must": [{}] * (MAX_CONDITIONS + 1)},
    {1: []},
]


@pytest.mark.parametrize("filter", BAD_FILTERS, ids=range(len(BAD_FILTERS)))
def test_anything_else_is_refused_in_few_words(filter: Any) -> None:
    with pytest.raises(BadFilter) as caught:
        compile_filter(filter)
    assert len(str(caught.value)) < 600
    str(caught.value).encode()


def test_nesting_ends_before_the_stack_does() -> None:
    filter: Any = {}
    for _ in range(100_000):
        filter = {"must": [filter]}
    with pytest.raises(BadFilter, match="8 deep"):
        compile_filter(filter)
    while filter:  # unravelled by hand, for its own destructor would recurse as deep
        filter = filter["must"].pop()


@pytest.mark.parametrize(
    "place",
    [
        lambda deep: deep,
        lambda deep: {"must": deep},
        lambda deep: {"must": [deep]},
        lambda deep: {"must": [{"key": deep, "exists": True}]},
        lambda deep: {"must": [{"key": "a", "exists": deep}]},
        lambda deep: {"must": [{"key": "a", "match": deep}]},
        lambda deep: {"must": [{"key": "a", "match": {"value": deep}}]},
        lambda deep: {"must": [{"key": "a", "match": {"any": [deep]}}]},
        lambda deep: {"must": [{"key": "a", "range": {"gt": deep}}]},
        lambda deep: {"must": [{"key": "a", "match": {"value": 1}, "more": deep}]},
    ],
)
def test_what_is_no_filter_may_be_nested_anywhere(place: Callable[[object], object]) -> None:
    objects, arrays = {"a": 1}, [1]
    for _ in range(10_000):
        objects, arrays = {"a": objects}, [arrays]  # type: ignore[dict-item, list-item]
    for deep in (objects, arrays):
        with pytest.raises(BadFilter):
            compile_filter(place(deep))


def test_sqlite_takes_the_largest_filter_there_can_be() -> None:
    key = ".".join("abcdefghijklmnop")
    metadata: Any = 7
    for part in reversed(key.split(".")):
        metadata = {part: metadata}
    filter: Any = {
        "should": [{"key": key, "match": {"any": [*range(9_998), "x", True]}}] * (MAX_CONDITIONS - 7)
    }
    for clause in ("must", "must_not", "must", "must_not", "must", "must", "should"):
        filter = {clause: [filter]}
    assert passes(filter, metadata)
    assert not passes(filter, {"a": 7})


BIG = [2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63)]
BEYOND = [float(2**63), 1e30, 1e308, -1e308]
FITTING = st.floats(-(2**63), 2**63, allow_nan=False, exclude_max=True)
SCALARS: st.SearchStrategy[Any] = (
    st.booleans()
    | st.integers(-3, 3)
    | FITTING
    | st.sampled_from([*BIG, 0.5, 1.0, -0.0, "", "a", "1", "true", "b'\"", "é\\", "[]", "\x1f\u2028😀"])
)
STORED = SCALARS | st.sampled_from([2**63, 2**64 - 1, -(2**63) - 1, 10**30, *BEYOND])
KEYS = {
    "a": ["a"],
    "b": ["b"],
    "a.b": ["a", "b"],
    r"a\.b": ["a.b"],
    'q"': ['q"'],
    'a.q"': ["a", 'q"'],
    "a.b.a": ["a", "b", "a"],
}
METADATA = st.recursive(
    st.none() | STORED | st.lists(st.none() | STORED | st.just([1]) | st.just({"a": 1}), max_size=3),
    lambda values: st.dictionaries(st.sampled_from(["a", "b", 'q"', "a.b"]), values, max_size=3),
    max_leaves=6,
).filter(lambda value: isinstance(value, dict))
NUMBERS = (
    st.integers(-3, 3) | st.sampled_from([*BIG, *BEYOND]) | st.floats(allow_nan=False, allow_infinity=False)
)
CONDITIONS = st.fixed_dictionaries({"key": st.sampled_from(list(KEYS))}).flatmap(
    lambda key: st.one_of(
        st.builds(lambda value: key | {"match": {"value": value}}, SCALARS),
        st.builds(lambda values: key | {"match": {"any": values}}, st.lists(SCALARS, max_size=3)),
        st.builds(lambda exists: key | {"exists": exists}, st.booleans()),
        st.builds(
            lambda range: key | {"range": range},
            st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), NUMBERS, min_size=1),
        ),
    )
)
FILTERS: st.SearchStrategy[Any] = st.recursive(
    CONDITIONS,
    lambda entries: st.dictionaries(
        st.sampled_from(["must", "should", "must_not"]), st.lists(entries, max_size=3), min_size=1
    ),
    max_leaves=6,
).map(lambda entry: {"must": [entry]})


def evaluated(entry: Mapping[str, Any], metadata: Any) -> bool:
    """The language in plain Python."""
    if "key" not in entry:
        return (
            all(evaluated(part, metadata) for part in entry.get("must", []))
            and (not entry.get("should") or any(evaluated(part, metadata) for part in entry["should"]))
            and not any(evaluated(part, metadata) for part in entry.get("must_not", []))
        )
    value = metadata
    for part in KEYS.get(entry["key"], entry["key"].split(".")):
        if not isinstance(value, dict) or part not in value:
            return entry.get("exists") is False
        value = value[part]
    if "exists" in entry:
        return bool(entry["exists"])
    return any(passes_test(entry, element) for element in (value if isinstance(value, list) else [value]))


def passes_test(entry: Mapping[str, Any], value: Any) -> bool:
    def family(value: object) -> str:
        return "number" if type(value) in (int, float) else type(value).__name__

    value = as_held(value)
    if "match" in entry:
        wanted = entry["match"]["any"] if "any" in entry["match"] else [entry["match"]["value"]]
        return any(family(value) == family(one) and value == one for one in wanted)
    tests = {
        "gt": lambda bound: value > bound,
        "gte": lambda bound: value >= bound,
        "lt": lambda bound: value < bound,
        "lte": lambda bound: value <= bound,
    }
    return family(value) == "number" and all(tests[name](bound) for name, bound in entry["range"].items())


def as_held(value: Any) -> Any:
    """SQLite holds integers of 64 bits, and larger ones as floats."""
    return float(value) if type(value) is int and not -(2**63) <= value < 2**63 else value


@settings(max_examples=300)
@given(FILTERS, METADATA, st.sets(st.sampled_from(list(KEYS))))
def test_lookups_and_sql_agree_with_the_plain_evaluator(
    filter: Any, metadata: Any, indexed_keys: set[str]
) -> None:
    wanted = evaluated(filter, metadata)
    assert passes(filter, metadata) == wanted
    assert passes(filter, metadata, tuple(indexed_keys)) == wanted
