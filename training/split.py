"""Splitting rows before anything is fitted, and the labels, which only the training part decides."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from training.data import DataError, Problem, Row


@dataclass(frozen=True)
class Split:
    """Three disjoint parts, each with about the same share of every label."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]


def split(rows: Sequence[Row], *, validation: float, test: float, seed: int) -> Split:
    """Stratified by label. A label with too few rows for every part goes to training first.

    Raises:
        DataError: the fractions leave nothing to train on.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise DataError(f"validation {validation} and test {test} must be at least 0 and sum to less than 1")
    shuffler = random.Random(seed)
    parts: tuple[list[Row], list[Row], list[Row]] = ([], [], [])
    for group in _by_label(rows):
        shuffler.shuffle(group)
        held_out = round(len(group) * test)
        watched = min(round(len(group) * validation), max(0, len(group) - held_out - 1))
        held_out = min(held_out, len(group) - watched - 1)
        parts[2].extend(group[:held_out])
        parts[1].extend(group[held_out : held_out + watched])
        parts[0].extend(group[held_out + watched :])
    for part in parts:
        part.sort(key=lambda row: row.line)
    return Split(*map(tuple, parts))


def sample(rows: Sequence[Row], fraction: float, *, least: int, seed: int) -> list[Row]:
    """A share of every label's rows, but at least `least` of each where there are as many."""
    shuffler = random.Random(seed)
    chosen: list[Row] = []
    for group in _by_label(rows):
        chosen += shuffler.sample(group, min(len(group), max(least, round(len(group) * fraction))))
    return sorted(chosen, key=lambda row: row.line)


def labels_of(train: Sequence[Row]) -> tuple[str, ...]:
    """The labels in alphabetical order; a label's place is its class.

    Raises:
        DataError: fewer than two labels, which leaves nothing to learn.
    """
    labels = tuple(sorted({row.label for row in train}))
    if not labels:
        raise DataError("no row is left to train on")
    if len(labels) == 1:
        raise DataError(f"every row to train on has the label {labels[0]!r}; at least two are needed")
    return labels


def known(rows: Sequence[Row], labels: Sequence[str]) -> tuple[tuple[Row, ...], list[Problem]]:
    """The rows whose label was seen in training, and the others as problems."""
    seen = set(labels)
    kept = tuple(row for row in rows if row.label in seen)
    unseen = [Problem(row.line, f"label {row.label!r} unseen in training") for row in rows]
    return kept, [problem for row, problem in zip(rows, unseen, strict=True) if row.label not in seen]


def _by_label(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.label].append(row)
    return [groups[label] for label in sorted(groups)]
