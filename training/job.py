"""What one fine-tuning run is given, and the data made ready for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from training.data import DataError, Problem, Row, Table, describe, read_csv
from training.loop import Options
from training.split import known, labels_of, sample, split

_SMOKE_SHARE: Final = 0.05
_SMOKE_LEAST: Final = 20  # rows of each label, so that a small file still fills every part


@dataclass(frozen=True)
class Job:
    """What to train, on what, and where to put it. Paths must mean the same on every worker."""

    csv: Path
    base: str  # "starter", or a DistilBERT directory in Hugging Face layout
    output: Path  # models/<name>; its next version is written
    text_column: str = "text"
    label_column: str = "label"
    delimiter: str = ","
    validation: float | Path = 0.1  # share of the CSV, or a CSV of its own
    test: float | Path = 0.1
    max_tokens: int = 128  # longer texts are cut in training; serving reads up to the model's limit
    smoke: bool = False
    resume: bool = False
    options: Options = field(default_factory=Options)
    cache_dir: Path = Path(".cache")
    command: str = ""  # how this run is started again, for the model card


@dataclass(frozen=True)
class Data:
    """The rows of a run, split, with labels that the training part decided."""

    labels: tuple[str, ...]
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    files: Mapping[str, str]  # sha256 by file name
    left_out: tuple[str, ...]  # a line per kind of row that could not be used

    def sizes(self) -> str:
        """In words."""
        sizes = (len(part) for part in (self.train, self.validation, self.test))
        return "{} rows to train on, {} to validate, {} to test".format(*sizes)


def prepare(job: Job) -> Data:
    """Read, check and split. Raises DataError if nothing can be trained on what is left."""
    tables: dict[str, Table] = {}
    names: dict[Path, str] = {}  # in `tables`

    def read(path: Path) -> tuple[Row, ...]:
        table = read_csv(path, job.text_column, job.label_column, job.delimiter)
        names[path] = str(path) if path.name in tables else path.name
        tables[names[path]] = table
        return table.rows

    rows: Sequence[Row] = read(job.csv)
    fractions = [part if isinstance(part, float) else 0.0 for part in (job.validation, job.test)]
    own = [read(part) if isinstance(part, Path) else () for part in (job.validation, job.test)]
    problems = {name: list(table.problems) for name, table in tables.items()}
    elsewhere = {row.text for part in own for row in part}
    problems[job.csv.name] += [  # the first that was read, so known by its name
        Problem(row.line, "text of the validation or test file") for row in rows if row.text in elsewhere
    ]
    rows = [row for row in rows if row.text not in elsewhere]
    tested = {row.text for row in own[1]}
    if isinstance(job.validation, Path):
        problems[names[job.validation]] += [
            Problem(row.line, "text of the test file") for row in own[0] if row.text in tested
        ]
    own = [tuple(row for row in own[0] if row.text not in tested), own[1]]
    if job.smoke:
        rows = sample(rows, _SMOKE_SHARE, least=_SMOKE_LEAST, seed=job.options.seed)
        own = [tuple(sample(part, _SMOKE_SHARE, least=_SMOKE_LEAST, seed=job.options.seed)) for part in own]
    left_out = [f"{name}: {line}" for name, found in problems.items() for line in describe(found)]
    try:
        parts = split(rows, validation=fractions[0], test=fractions[1], seed=job.options.seed)
        labels = labels_of(parts.train)
    except DataError as error:
        raise DataError("; ".join([str(error), *left_out])) from None
    validation, unseen = known(parts.validation + own[0], labels)
    test, unseen_in_test = known(parts.test + own[1], labels)
    left_out += describe([*unseen, *unseen_in_test])
    files = {name: table.sha256 for name, table in tables.items()}
    return Data(labels, parts.train, validation, test, files, tuple(left_out))
