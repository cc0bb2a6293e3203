"""One run, from a job to a published model directory; the command line and Ray Train both call it."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import DistilBertForSequenceClassification

from deployments.models.adapters import base_sha256
from deployments.models.text import TextTokenizer
from training import card, metrics, versions
from training.batches import Encoded, encode
from training.checkpoint import Epoch, Progress
from training.data import Row
from training.job import Data, Job, prepare
from training.loop import OnEpoch, evaluate, fit, is_first_worker
from training.network import STARTER, base_directory, build


@dataclass(frozen=True)
class Learned:
    """A fine-tuned network, with what its model card has to say."""

    network: DistilBertForSequenceClassification
    base: Path
    tokenizer: TextTokenizer
    data: Data
    facts: Mapping[str, object]
    progress: Progress

    def encoded(self, rows: Sequence[Row]) -> Encoded:
        """Rows as the network takes them."""
        pad_id = self.network.config.pad_token_id or 0
        return encode(rows, self.data.labels, self.tokenizer, pad_id)


def checkpoint_of(job: Job) -> Path:
    """Where the progress of a run is kept until its result is published."""
    return job.output / ".checkpoint" / "checkpoint.safetensors"


def learn(job: Job, on_epoch: OnEpoch | None = None) -> Learned:
    """Read, split, encode and fit, telling the first worker's terminal how it goes.

    Raises:
        DataError: the data cannot be used, or `resume` finds a checkpoint of another run.
        SettingsError: the base is no whole DistilBERT.
        NotReady: the starter base cannot be fetched.
    """
    data = prepare(job)
    base = base_directory(job.base, job.cache_dir)
    for line in data.left_out:
        _say(line)
    _say(f"{data.sizes()}; labels: {', '.join(data.labels)}")
    network = build(base, data.labels, seed=job.options.seed)
    limit = min(job.max_tokens, int(network.config.max_position_embeddings))
    facts = _facts(job, data, base)
    learned = Learned(network, base, TextTokenizer.from_directory(base, limit), data, facts, Progress())

    def report(epoch: Epoch) -> None:
        _say(_line(epoch, job.options.epochs))
        if on_epoch:
            on_epoch(epoch)

    progress = fit(
        network,
        learned.encoded(data.train),
        learned.encoded(data.validation),
        job.options,
        checkpoint_file=checkpoint_of(job),
        run=hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(),
        resume=job.resume,
        on_epoch=report,
    )
    return replace(learned, progress=progress)


def train(job: Job, on_epoch: OnEpoch | None = None) -> Path | None:
    """`learn` and publish; the new directory, or None on any worker but the first. Raises as `learn` does."""
    learned = learn(job, on_epoch)
    data, network = learned.data, learned.network
    measured_on = "the test part" if data.test else "the validation part, which also chose the epoch"
    part = learned.encoded(data.test or data.validation)
    predicted = evaluate(network, part).argmax(1)
    if not is_first_worker():
        return None
    result = metrics.measure(data.labels, part.classes.numpy(), predicted.numpy())

    def write(directory: Path, version: int) -> None:
        weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(directory)
        whole = TextTokenizer.from_directory(learned.base, int(network.config.max_position_embeddings))
        (directory / "tokenizer.json").write_text(whole.definition(), encoding="utf-8")
        about = f"A DistilBERT text classifier over: {', '.join(data.labels)}."
        title = f"{job.output.resolve().name}, version {version}"
        write_card(directory, learned, result, title, about, measured_on, job.command)

    published = versions.publish(job.output, write)
    shutil.rmtree(checkpoint_of(job).parent, ignore_errors=True)
    _say(f"{result.told(measured_on)}; saved in {published}")
    return published


def write_card(
    directory: Path,
    learned: Learned,
    result: metrics.Result,
    title: str,
    about: str,
    measured_on: str,
    command: str,
) -> None:
    """README.md, confusion.png and labels.json beside the weights."""
    labels = json.dumps(result.labels, ensure_ascii=False)
    (directory / "labels.json").write_text(f"{labels}\n", encoding="utf-8")
    metrics.draw(result, directory / "confusion.png")
    text = card.render(
        title,
        about=about,
        facts=learned.facts,
        measured_on=measured_on,
        result=result,
        history=learned.progress.history,
        left_out=learned.data.left_out,
        command=command,
    )
    (directory / "README.md").write_text(text, encoding="utf-8")


def _facts(job: Job, data: Data, base: Path) -> dict[str, object]:
    """What decides the result, in words; a checkpoint is taken up only by a run with the same facts."""
    return {
        **{f"data {name}": f"sha256 {sha256}" for name, sha256 in data.files.items()},
        "columns": f"{job.text_column!r} and {job.label_column!r}, separated by {job.delimiter!r}",
        "split": data.sizes() + (", 5% of the data (smoke)" if job.smoke else ""),
        "labels": ", ".join(data.labels),
        "base": f"{job.base if job.base == STARTER else base.name}, weights sha256 {base_sha256(base)}",
        "longest text in training": f"{job.max_tokens} tokens",
        **{name.replace("_", " "): value for name, value in asdict(job.options).items()},
        "threads": torch.get_num_threads(),  # another number adds up in another order
    }


def _line(epoch: Epoch, epochs: int) -> str:
    line = f"epoch {epoch.number}/{epochs}: "
    line += f"train loss {epoch.train_loss:.3f}, accuracy {epoch.train_accuracy:.1%}"
    if epoch.validation_loss is not None:
        line += f"; validation loss {epoch.validation_loss:.3f}, accuracy {epoch.validation_accuracy:.1%}"
    return f"{line}; {epoch.seconds:.0f} s"


def _say(line: str) -> None:
    if is_first_worker():
        tqdm.write(line)  # which leaves a progress bar whole
