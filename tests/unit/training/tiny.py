"""Small labelled data and a tiny network, so that a whole run takes a second."""

import csv
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.assets import distilbert_directory
from training.job import Job
from training.loop import Options

WORDS = {"bad": ("awful", "dull", "boring", "sad"), "good": ("great", "lovely", "superb", "happy")}


def write_csv(path: Path, rows: int = 80, *, header: Sequence[str] = ("text", "label")) -> Path:
    """Rows that a network can learn, half of each label, every text different."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for number in range(rows):
            label = "good" if number % 2 else "bad"
            words = [draw.choice(WORDS[label]) for _ in range(1 + number % 9)]
            writer.writerow((f"number {number} was {' and '.join(words)}", label))
    return path


def tiny_job(directory: Path, *, rows: int = 80, epochs: int = 2, **options: object) -> Job:
    """A job over `rows` rows on a random network of 32 dimensions."""
    base = directory / "base"
    if not base.exists():
        distilbert_directory(base, ("other", "labels"))
    return Job(
        csv=write_csv(directory / "data.csv", rows),
        base=str(base),
        output=directory / "models" / "tiny",
        options=replace(Options(epochs=epochs, batch_size=8, lr=1e-3), **options),  # type: ignore[arg-type]
        command="python -m training.text …",
    )
