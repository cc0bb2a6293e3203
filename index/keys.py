"""Metadata keys: how a filter writes them, and the SQL that walks to their values."""

import re
from collections.abc import Callable, Sequence

MAX_KEY_CHARS = 512
MAX_KEY_PARTS = 16  # each is a join; SQLite allows 64

_TOKENS = re.compile(r"\\[\\.]|\.|[^\\.]+|\\")


def key_parts(key: object) -> tuple[str, ...]:
    r"""Where a key leads: the names of nested objects, outermost first.

    A dot goes one object down; `\.` is a dot within a name, `\\` a backslash, and a backslash before
    anything else is itself. Raises ValueError for what no key can be.
    """
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_CHARS or not is_storable(key):
        raise ValueError(f"a key must be a string of 1 to {MAX_KEY_CHARS} characters (UTF-8 without NUL)")
    parts = [""]
    for token in _TOKENS.findall(key):
        if token == ".":
            parts.append("")
        else:
            parts[-1] += token[1] if token in (r"\.", r"\\") else token
    if len(parts) > MAX_KEY_PARTS:
        raise ValueError(f"a key may lead at most {MAX_KEY_PARTS} objects deep")
    return tuple(parts)


def walk(parts: Sequence[str], bind: Callable[[str], str]) -> tuple[str, str, str]:
    """SQL from `items.metadata` to the value at a key: tables, terms, and the name of its json_each row.

    `bind` makes a part a parameter. There is one row if the key is there and none if it is not.
    """
    # Walks down by json_each and not by a JSON path, since paths cannot name every key. The CASE
    # holds because SQL may evaluate the terms of WHERE in any order.
    source, row, tables, terms = "items.metadata", "", [], []
    for level, part in enumerate(parts):
        row = f"key{level}"
        tables.append(f"json_each({source}) AS {row}")
        terms.append(f"{row}.key = {bind(part)}")
        source = f"CASE {row}.type WHEN 'object' THEN {row}.value ELSE '{{}}' END"
    return ", ".join(tables), " AND ".join(terms), row


def elements(row: str) -> str:
    """SQL for the table `element`: what an array at this json_each row holds; nothing if it is no array."""
    return f"json_each(CASE {row}.type WHEN 'array' THEN {row}.value ELSE '[]' END) AS element"


def is_storable(text: str) -> bool:
    """Whether SQLite's JSON functions give this string back whole; at a NUL they cut it short."""
    return "\0" not in text and is_utf8(text)


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
