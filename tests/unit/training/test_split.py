from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.training.tiny import tiny_job
from training.data import DataError, Row
from training.job import prepare
from training.split import known, labels_of, sample, split


def rows_of(labels: str) -> list[Row]:
    return [Row(f"text {i}", label, i) for i, label in enumerate(labels)]


@given(st.text("abc", max_size=120), st.floats(0, 0.5), st.floats(0, 0.49), st.integers(0, 5))
def test_parts_are_disjoint_and_whole(labels: str, validation: float, test: float, seed: int) -> None:
    rows = rows_of(labels)
    parts = split(rows, validation=validation, test=test, seed=seed)
    assert sorted(row.line for part in (parts.train, parts.validation, parts.test) for row in part) == [
        row.line for row in rows
    ]
    assert {row.label for row in parts.train} == set(labels)  # nothing is measured that was never seen
    for label in set(labels):
        count = labels.count(label)
        assert abs(sum(row.label == label for row in parts.test) - count * test) <= 1.5
    assert parts == split(rows, validation=validation, test=test, seed=seed)


def test_another_seed_is_another_split() -> None:
    rows = rows_of("ab" * 50)
    parts = [split(rows, validation=0.1, test=0.1, seed=seed) for seed in (0, 1)]
    assert parts[0] != parts[1]


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0.1), (1.0, 0.0)])
def test_fractions_that_leave_nothing(validation: float, test: float) -> None:
    with pytest.raises(DataError, match="sum to less than 1"):
        split(rows_of("ab"), validation=validation, test=test, seed=0)


def test_a_sample_has_rows_of_every_label() -> None:
    rows = sample(rows_of("a" * 1000 + "b" * 30 + "c" * 3), 0.05, least=20, seed=0)
    assert [sum(row.label == label for row in rows) for label in "abc"] == [50, 20, 3]


def test_labels_come_from_training_rows_alone() -> None:
    labels = labels_of(rows_of("ba"))
    assert labels == ("a", "b")
    kept, problems = known(rows_of("abz"), labels)
    assert [row.label for row in kept] == ["a", "b"]
    assert [(problem.line, problem.reason) for problem in problems] == [(2, "label 'z' unseen in training")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\n,a\nx,\n", "no row is left to train on; .*empty text.*missing label"),
        ("text,label\nx,a\ny,a\n", "every row to train on has the label 'a'"),
    ],
)
def test_nothing_to_train_on(tmp_path: Path, content: str, message: str) -> None:
    job = tiny_job(tmp_path)
    job.csv.write_text(content)
    with pytest.raises(DataError, match=message):
        prepare(job)


def test_files_for_validation_and_test_share_nothing_with_training(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    held_out = tmp_path / "other" / "data.csv"
    held_out.parent.mkdir()
    texts = [row.text for row in prepare(job).train[:3]]
    held_out.write_text("text,label\n" + "".join(f"{text},bad\n" for text in texts) + "new,other\n")
    data = prepare(replace(job, test=held_out))
    assert [row.text for row in data.test] == texts
    assert set(data.files) == {"data.csv", str(held_out)}
    assert not {row.text for row in data.train + data.validation} & set(texts)
    assert "data.csv: text of the validation or test file: 3 rows left out" in "\n".join(data.left_out)
    assert "label 'other' unseen in training: 1 row left out (line 5)" in data.left_out


def test_smoke_takes_a_small_share(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, rows=2000)
    data = prepare(replace(job, smoke=True))
    assert len(data.train) + len(data.validation) + len(data.test) == 100
