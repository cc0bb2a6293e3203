"""Fine-tune a text classifier: `python -m training.text --csv data.csv --output models/NAME`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.files import real, whole
from configs.settings import SettingsError
from deployments.errors import SightlineError
from training.data import DataError
from training.job import Job
from training.loop import Options
from training.network import STARTER
from training.train import train


def add_data(parser: argparse.ArgumentParser) -> None:
    """What every command that reads labelled texts is told of them, and of the base it starts from."""
    parser.add_argument("--csv", type=Path, required=True, help="UTF-8 CSV with a header")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--delimiter", type=_delimiter, default=",", help="one character, or `tab`")
    parser.add_argument("--base", default=STARTER, help="`starter` (MiniLM), or a DistilBERT directory")
    parser.add_argument("--smoke", action="store_true", help="5%% of the rows, to see that everything runs")
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache"))


def parser(program: str, about: str | None) -> argparse.ArgumentParser:
    """The arguments of every command that trains a text classifier."""
    default = Options()
    out = argparse.ArgumentParser(prog=program, description=about)
    add_data(out)
    out.add_argument("--output", type=Path, required=True, help="models/NAME; its next version is written")
    out.add_argument("--epochs", type=whole(1), default=default.epochs)
    out.add_argument("--batch-size", type=whole(1), default=default.batch_size)
    out.add_argument(
        "--lr", type=real(0, 1), default=default.lr, help="peak learning rate (default %(default)s)"
    )
    out.add_argument("--seed", type=int, default=default.seed)
    out.add_argument("--patience", type=whole(1), default=default.patience, help="epochs without progress")
    out.add_argument("--freeze", choices=("nothing", "embeddings", "encoder"), default=default.freeze)
    out.add_argument("--label-smoothing", type=real(0, 1), default=default.label_smoothing)
    out.add_argument("--max-tokens", type=whole(1), default=128, help="longer texts are cut in training")
    out.add_argument("--validation", type=_part, default=0.1, help="share of the rows, or a CSV")
    out.add_argument("--test", type=_part, default=0.1, help="share of the rows, or a CSV")
    out.add_argument("--resume", action="store_true", help="go on from the last epoch of a stopped run")
    return out


def job_of(given: argparse.Namespace, command: str) -> Job:
    """The job that parsed arguments ask for."""
    options = Options(
        epochs=given.epochs,
        batch_size=given.batch_size,
        lr=given.lr,
        seed=given.seed,
        patience=given.patience,
        freeze=given.freeze,
        label_smoothing=given.label_smoothing,
    )
    return Job(
        csv=given.csv,
        base=given.base,
        output=given.output,
        text_column=given.text_column,
        label_column=given.label_column,
        delimiter=given.delimiter,
        validation=given.validation,
        test=given.test,
        max_tokens=given.max_tokens,
        smoke=given.smoke,
        resume=given.resume,
        options=options,
        cache_dir=given.cache_dir,
        command=command,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and publish; 1 and a sentence on stderr if the data or the base cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parser("python -m training.text", __doc__).parse_args(arguments)
    job = job_of(given, shlex.join(["python", "-m", "training.text", *arguments]))
    try:
        train(job)
    except (DataError, SettingsError, SightlineError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _delimiter(value: str) -> str:
    value = "\t" if value in ("tab", "\\t") else value
    if len(value) != 1:
        raise ValueError
    return value


def _part(value: str) -> float | Path:
    try:
        float(value)
    except ValueError:
        return Path(value)
    return real(0, 1)(value)


if __name__ == "__main__":
    sys.exit(main())
