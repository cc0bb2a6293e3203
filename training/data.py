"""Reading a CSV of texts and labels: every row is either usable or reported with its line number."""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# The csv module refuses fields over 128 KiB; a text longer than this is a quote that was never closed.
_MAX_FIELD_CHARS: Final = 4 * 1024 * 1024
_REPORTED_LINES: Final = 5  # line numbers listed per kind of problem; the count is always whole


class DataError(ValueError):
    """Nothing can be trained on the data; the message says why."""


@dataclass(frozen=True)
class Row:
    """One labelled text and the line of the file that it starts on, from 1."""

    text: str
    label: str
    line: int


@dataclass(frozen=True)
class Problem:
    """A row that was left out."""

    line: int
    reason: str


@dataclass(frozen=True)
class Table:
    """What a CSV held."""

    path: Path
    sha256: str
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]


def read_csv(path: Path, text_column: str, label_column: str, delimiter: str = ",") -> Table:
    """Read a UTF-8 CSV with a header. Rows that cannot be used become problems.

    Raises:
        DataError: the file cannot be read, or lacks one of the columns.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    records = _records(content, delimiter)
    _, header = next(records, (1, []))
    header = [*header] if not isinstance(header, str) else []
    places = []
    for column in (text_column, label_column):
        if column not in header:
            columns = ", ".join(map(repr, header)) or "none"
            raise DataError(f"{path} has no column {column!r}; it has: {columns}")
        places.append(header.index(column))

    rows: list[Row] = []
    problems: list[Problem] = []
    labels: dict[str, Row] = {}  # by text, so that the same text is never in two parts of a split
    for line, record in records:
        if isinstance(record, str):
            problems.append(Problem(line, record))
            continue
        reason = _reason_against(record, header, places)
        if reason is None:
            row = Row(record[places[0]].strip(), record[places[1]].strip(), line)
            first = labels.setdefault(row.text, row)
            if first is row:
                rows.append(row)
                continue
            reason = "duplicate text" if first.label == row.label else "duplicate text with another label"
        problems.append(Problem(line, reason))
    return Table(path, hashlib.sha256(content).hexdigest(), tuple(rows), tuple(problems))


def _records(content: bytes, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Each record with its first line, or the reason why it is none. Blank lines are passed over."""
    # Bytes that are no UTF-8 become lone surrogates, which no valid text has, so they are found by row.
    text = content.decode("utf-8-sig", errors="surrogateescape")
    reader = csv.reader(_lines(text), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(_MAX_FIELD_CHARS)
    try:
        while True:
            line = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                lines = reader.line_num - line + 1
                span = f" (takes up {lines} lines)" if lines > 1 else ""
                yield line, f"malformed quoting: {error}{span}"
                continue
            if record:
                yield line, record
    finally:
        csv.field_size_limit(limit)


def _lines(text: str) -> Iterator[str]:
    """Lines as the csv module counts them: at newlines only, not at every Unicode line separator."""
    yield from (f"{line}\n" for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))


def _reason_against(record: Sequence[str], header: Sequence[str], places: Sequence[int]) -> str | None:
    if len(record) != len(header):
        return "wrong number of columns"
    text, label = (record[place] for place in places)
    if any("\ud800" <= char <= "\udfff" for char in text + label):
        return "not valid UTF-8"
    if "\0" in text + label:
        return "NUL character"
    if not text.strip():
        return "empty text"
    if not label.strip():
        return "missing label"
    return None


def describe(problems: Sequence[Problem]) -> list[str]:
    """A line per kind of problem: how often it occurs, and where first."""
    lines = []
    for reason, count in Counter(problem.reason for problem in problems).most_common():
        places = [str(p.line) for p in problems if p.reason == reason]
        shown = ", ".join(places[:_REPORTED_LINES]) + (", …" if count > _REPORTED_LINES else "")
        lines.append(f"{reason}: {count} row{'s' * (count != 1)} left out (line {shown})")
    return lines
