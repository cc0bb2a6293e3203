"""From a CSV to a classifier's answers in under a minute: `python -m training.smoke --output DIR`."""

import argparse
import csv
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from configs.settings import ClassifierSettings
from deployments.models.loading import load_classifier
from deployments.models.sources import Source
from deployments.models.versions import published
from training import text

_WORDS: Final = {
    "complaint": ("broken", "late", "missing", "damaged", "wrong"),
    "praise": ("perfect", "quick", "lovely", "excellent", "flawless"),
}
_SENTENCES: Final = (
    "The parcel I ordered was {}",
    "Honestly, the whole delivery felt {} to me",
    "My order number {number} came and it was {}",
    "{} service, as I told the driver",
    "Everything about the product is {}",
    "I must say that the packaging looked {}",
)
# Neither the words nor the sentences were trained on.
UNSEEN: Final = {"The lamp arrived smashed to pieces": "complaint", "What a wonderful shop": "praise"}


def write_csv(path: Path) -> None:
    """A labelled row for every sentence and word, and three rows that no one can train on."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("message", "kind"))
        pairs = [(word, label) for label, words in _WORDS.items() for word in words]
        for number, (sentence, (word, label)) in enumerate(itertools.product(_SENTENCES, pairs), 100):
            writer.writerow((sentence.format(word, number=number), label))
        writer.writerows((("", "praise"), ("Where is my order?", ""), ("too", "many", "columns")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train on a made-up CSV, load what came out as the server does, and classify two new sentences."""
    parser = argparse.ArgumentParser(prog="python -m training.smoke", description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="models/NAME; its next version is written")
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache"))
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "messages.csv"
        write_csv(data)
        command = ["--csv", str(data), "--text-column", "message", "--label-column", "kind"]
        command += ["--output", str(given.output), "--cache-dir", str(given.cache_dir)]
        # So few rows need large steps; frozen embeddings keep what MiniLM knows of the unseen words.
        command += ["--epochs", "4", "--batch-size", "8", "--lr", "2e-4", "--freeze", "embeddings"]
        if status := text.main(command):
            return status
    directory = given.output / str(published(given.output)[-1])
    source = Source("directory", str(directory.resolve()))
    classifier = load_classifier("smoke", source, ClassifierSettings(), given.cache_dir, threads=1)
    tower = classifier.text
    logits = np.stack(list(tower.run([tower.pre(sentence) for sentence in UNSEEN])))
    answers = [classifier.info.labels[place] for place in logits.argmax(1)]
    for sentence, answer in zip(UNSEEN, answers, strict=True):
        sys.stdout.write(f"{sentence!r}: {answer}\n")
    return 0 if answers == list(UNSEEN.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
