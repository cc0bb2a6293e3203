"""Search a head's learning rate and batch size with Ray Tune: `python -m training.tune --csv … --table …`.

The encoder stays as it is and runs once over the data, so a trial takes seconds. ASHA (Li et al. 2018,
arXiv:1810.05934) stops the trials that fall behind.
"""

import argparse
import csv
import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import DistilBertForSequenceClassification

from configs.files import whole
from configs.settings import SearchSettings, SettingsError
from configs.threads import threads_for
from deployments.errors import SightlineError
from deployments.models.text import TextTokenizer
from deployments.ray_cluster import connected
from training.batches import Encoded, by_length, encode, tensors
from training.data import DataError
from training.head import Features, fit_head
from training.job import Job, prepare
from training.loop import Options
from training.network import base_directory, build
from training.scale import add_flag, add_scale, scale_of
from training.text import add_data

LEARNING_RATES: Final = (1e-5, 1e-1)  # log-uniform between the two
BATCH_SIZES: Final = (32, 64, 128, 256, 512)
_ENCODED_AT_ONCE: Final = 64  # rows


@dataclass(frozen=True)
class Search:
    """How much to try."""

    trials: int = 16
    epochs: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """One row of the results table, best first."""

    lr: float
    batch_size: int
    epochs: int  # run before it ended or was stopped
    stopped_early: bool
    train_loss: float
    validation_loss: float
    validation_accuracy: float


@torch.no_grad()
def text_features(network: DistilBertForSequenceClassification, part: Encoded) -> Features:
    """The last layer's [CLS] vector of every row, which is what the classifier's head sees."""
    vectors = torch.empty(len(part), network.config.dim)
    encoder = network.distilbert.train(False)
    for places in by_length([len(row) for row in part.tokens], _ENCODED_AT_ONCE):
        ids, mask = tensors(part, places)
        vectors[places] = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0].float()
    return Features(vectors, part.classes)


def search(
    train: Features, validation: Features, classes: int, given: Search, scale: SearchSettings, storage: Path
) -> list[Trial]:
    """Try heads on the cluster `ray` is connected to. `storage` is where Ray Tune keeps its records."""
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import BasicVariantGenerator

    # By default Tune asks for TensorBoard as well.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    logger: Any = JsonLoggerCallback  # its constructor has no annotations
    fixed = {"epochs": given.epochs, "seed": given.seed}

    def trial(config: dict[str, Any], train: Features, validation: Features) -> None:
        for epoch in fit_head(train, validation, classes, **config, **fixed):
            tune.report(asdict(epoch))

    # The features travel once through the object store, not with every trial.
    trainable = tune.with_parameters(trial, train=train, validation=validation)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": scale.cpus_per_trial}),
        param_space={"lr": tune.loguniform(*LEARNING_RATES), "batch_size": tune.choice(BATCH_SIZES)},
        tune_config=tune.TuneConfig(
            metric="validation_loss",
            mode="min",
            num_samples=given.trials,
            # A process takes seconds to import torch, as long as a whole trial.
            reuse_actors=True,
            max_concurrent_trials=scale.trials_at_once,
            scheduler=ASHAScheduler(
                time_attr="number", max_t=given.epochs, grace_period=min(2, given.epochs), reduction_factor=3
            ),
            search_alg=BasicVariantGenerator(random_state=given.seed),
        ),
        run_config=tune.RunConfig(
            name="head", storage_path=str(storage.resolve()), verbose=0, callbacks=[logger()]
        ),
    )
    trials = []
    grid = tuner.fit()
    for result in (grid[i] for i in range(len(grid))):
        if result.error:
            raise result.error
        config, metrics = result.config, result.metrics
        assert config
        assert metrics
        trials.append(
            Trial(
                config["lr"],
                config["batch_size"],
                metrics["number"],
                metrics["number"] < given.epochs,
                metrics["train_loss"],
                metrics["validation_loss"],
                metrics["validation_accuracy"],
            )
        )
    return sorted(trials, key=lambda trial: trial.validation_loss)


def write_table(trials: Sequence[Trial], path: Path) -> None:
    """The trials as a CSV, best first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(trials[0])))
        writer.writeheader()
        writer.writerows(asdict(trial) for trial in trials)


def _show(trials: Sequence[Trial]) -> str:
    lines = [f"{'lr':>10} {'batch':>6} {'epochs':>7} {'train loss':>11} {'val. loss':>10} {'accuracy':>9}"]
    for t in trials:
        epochs = f"{t.epochs}{' stop' if t.stopped_early else ''}"
        lines.append(
            f"{t.lr:10.2e} {t.batch_size:6} {epochs:>7} {t.train_loss:11.3f} "
            f"{t.validation_loss:10.3f} {t.validation_accuracy:9.1%}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Search on `--address`, or on a cluster of this machine that is started for it and stopped after."""
    default = Search()
    out = argparse.ArgumentParser(prog="python -m training.tune", description=__doc__)
    add_data(out)
    out.add_argument("--table", type=Path, required=True, help="the results, as a CSV")
    out.add_argument("--trials", type=whole(1), default=default.trials)
    out.add_argument("--epochs", type=whole(1), default=default.epochs)
    out.add_argument("--seed", type=whole(0, 2**32 - 1), default=default.seed)  # as numpy takes them
    add_scale(out)
    add_flag(out, "--at-once", "search.trials_at_once", type=int)
    add_flag(out, "--cpus", "search.local_cpus", type=int)
    given = out.parse_args(arguments)
    job = Job(
        csv=given.csv,
        text_column=given.text_column,
        label_column=given.label_column,
        delimiter=given.delimiter,
        base=given.base,
        output=given.table.parent,
        validation=0.2,  # the search is about this part alone, so nothing is kept for a test
        test=0.0,
        smoke=given.smoke,
        options=Options(seed=given.seed),
        cache_dir=given.cache_dir,
    )
    wanted = Search(given.trials, given.epochs, given.seed)
    own_storage = given.table.parent / f".{given.table.stem}.ray"
    try:
        scale = scale_of(given)
        train, validation, classes = _features(job)
        with connected(given.address, _local_cpus(scale.search)):
            storage = scale.storage_dir or own_storage
            trials = search(train, validation, classes, wanted, scale.search, storage)
    except (DataError, SettingsError, SightlineError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    write_table(trials, given.table)
    shutil.rmtree(own_storage, ignore_errors=True)
    sys.stdout.write(f"{_show(trials)}\n")
    return 0


def _local_cpus(scale: SearchSettings) -> int:
    """A cluster on which no trial could run would wait for one for ever."""
    return scale.local_cpus or max(threads_for(None, 0), math.ceil(scale.cpus_per_trial))


def _features(job: Job) -> tuple[Features, Features, int]:
    data = prepare(job)
    for line in data.left_out:
        sys.stdout.write(f"{line}\n")
    base = base_directory(job.base, job.cache_dir)
    network = build(base, data.labels, seed=job.options.seed)
    tokenizer = TextTokenizer.from_directory(
        base, min(job.max_tokens, network.config.max_position_embeddings)
    )
    pad_id = network.config.pad_token_id or 0
    train, validation = (
        text_features(network, encode(rows, data.labels, tokenizer, pad_id))
        for rows in (data.train, data.validation)
    )
    return train, validation, len(data.labels)


if __name__ == "__main__":
    sys.exit(main())
