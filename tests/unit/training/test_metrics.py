from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from training.metrics import draw, measure


def test_shares_equal_scikit_learns() -> None:
    draws = np.random.default_rng(0)
    true, predicted = draws.integers(0, 4, (2, 500))
    result = measure(["a", "b", "c", "d"], true, predicted)
    assert (result.confusion == confusion_matrix(true, predicted)).all()
    assert result.accuracy == pytest.approx((true == predicted).mean())
    np.testing.assert_allclose(result.precision(), precision_score(true, predicted, average=None))
    np.testing.assert_allclose(result.recall(), recall_score(true, predicted, average=None))


def test_classes_without_rows_have_no_shares() -> None:
    result = measure(["a", "b", "c"], np.array([0, 0]), np.array([0, 1]))
    np.testing.assert_equal(result.precision(), [1, 0, np.nan])
    np.testing.assert_equal(result.recall(), [0.5, np.nan, np.nan])
    assert measure(["a"], np.array([], int), np.array([], int)).accuracy == 0


@pytest.mark.parametrize(
    "labels", [["no", "yes"], ["a very long label that has to be cut"] * 3, ["日本", "é"]]
)
def test_the_picture_is_darkest_where_rows_are(tmp_path: Path, labels: list[str]) -> None:
    true = np.arange(len(labels)).repeat(10)
    draw(measure(labels, true, true), tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    dark = (pixels == (8, 69, 148)).all(1).sum()
    cells = len(labels) * 88**2  # of at least this size, less their numbers
    assert dark > 0.8 * cells


def test_a_picture_of_very_many_labels_stays_small(tmp_path: Path) -> None:
    labels = [f"label {n}" for n in range(400)]  # at the usual size 35 000 pixels wide
    true = np.arange(len(labels))
    draw(measure(labels, true, true), tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert max(picture.size) < 5000
        dark = (np.asarray(picture.convert("RGB")).reshape(-1, 3) == (8, 69, 148)).all(1).sum()
    assert dark > 1000
