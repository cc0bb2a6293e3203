"""One run, from a job to a published model directory; the command line and Ray Train both call it."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm
from transformers import DistilBertForSequenceClassification

from deployments.models.adapters import base_sha256
from deployments.models.text import TextTokenizer
from training import card, metrics, versions
from training.batches import Encoded, encode
from training.checkpoint import Epoch
from training.data import Row
from training.job import Data, Job, prepare
from training.loop import OnEpoch, evaluate, fit, is_first_worker
from training.network import STARTER, base_directory, build


def train(job: Job, on_epoch: OnEpoch | None = None) -> Path | None:
    """Run the job; the published directory, or None on any worker but the first.

    Raises:
        DataError: the data cannot be used, or `resume` finds a checkpoint of another run.
        SettingsError: the base is no whole DistilBERT.
        NotReady: the starter base cannot be fetched.
    """
    data = prepare(job)
    base = base_directory(job.base, job.cache_dir)
    first = is_first_worker()
    say = tqdm.write if first else (lambda _: None)
    for line in data.left_out:
        say(line)
    say(
        f"{len(data.train)} rows to train on, {len(data.validation)} to validate, {len(data.test)} to test; "
        f"labels: {', '.join(data.labels)}"
    )
    network = build(base, data.labels, seed=job.options.seed)
    limit = min(job.max_tokens, int(network.config.max_position_embeddings))
    tokenizer = TextTokenizer.from_directory(base, limit)

    def encoded(rows: Sequence[Row]) -> Encoded:
        return encode(rows, data.labels, tokenizer, network.config.pad_token_id or 0)

    facts = _facts(job, data, base)
    checkpoint_file = job.output / ".checkpoint" / "checkpoint.safetensors"

    def report(epoch: Epoch) -> None:
        say(_line(epoch, job.options.epochs))
        if on_epoch:
            on_epoch(epoch)

    validation = encoded(data.validation)
    progress = fit(
        network,
        encoded(data.train),
        validation,
        job.options,
        checkpoint_file=checkpoint_file,
        run=hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(),
        resume=job.resume,
        on_epoch=report,
    )
    if data.test:
        measured_on, part = "the test part", encoded(data.test)
    elif data.validation:
        measured_on, part = "the validation part, which also chose the epoch", validation
    else:
        measured_on, part = "nothing held out", encoded(())
    predicted = evaluate(network, part).argmax(1)
    if not first:
        return None
    result = metrics.measure(data.labels, part.classes.numpy(), predicted.numpy())

    def write(directory: Path, version: int) -> None:
        _write_model(directory, network, base, data.labels)
        metrics.draw(result, directory / "confusion.png")
        text = card.render(
            f"{job.output.resolve().name}, version {version}",
            about=f"A DistilBERT text classifier over: {', '.join(data.labels)}.",
            facts=facts,
            measured_on=measured_on,
            result=result,
            history=progress.history,
            left_out=data.left_out,
            command=job.command,
        )
        (directory / "README.md").write_text(text, encoding="utf-8")

    published = versions.publish(job.output, write)
    shutil.rmtree(checkpoint_file.parent, ignore_errors=True)
    say(f"accuracy {result.accuracy:.1%} on {measured_on}; saved in {published}")
    return published


def _write_model(
    directory: Path, network: DistilBertForSequenceClassification, base: Path, labels: tuple[str, ...]
) -> None:
    network.cpu().save_pretrained(directory)
    tokenizer = TextTokenizer.from_directory(base, int(network.config.max_position_embeddings))
    (directory / "tokenizer.json").write_text(tokenizer.definition(), encoding="utf-8")
    (directory / "labels.json").write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")


def _facts(job: Job, data: Data, base: Path) -> dict[str, object]:
    """What decides the result, in words; a checkpoint is taken up only by a run with the same facts."""
    return {
        **{f"data {name}": f"sha256 {sha256}" for name, sha256 in data.files.items()},
        "rows": f"{len(data.train)} to train on, {len(data.validation)} to validate, {len(data.test)} to test"
        + (", 5% of the data (smoke)" if job.smoke else ""),
        "labels": ", ".join(data.labels),
        "base": f"{job.base if job.base == STARTER else base.name}, weights sha256 {base_sha256(base)}",
        "longest text in training": f"{job.max_tokens} tokens",
        **{name.replace("_", " "): value for name, value in asdict(job.options).items()},
    }


def _line(epoch: Epoch, epochs: int) -> str:
    line = f"epoch {epoch.number}/{epochs}: "
    line += f"train loss {epoch.train_loss:.3f}, accuracy {epoch.train_accuracy:.1%}"
    if epoch.validation_loss is not None:
        line += f"; validation loss {epoch.validation_loss:.3f}, accuracy {epoch.validation_accuracy:.1%}"
    return f"{line}; {epoch.seconds:.0f} s"
