"""Make the starter classifiers from registry data: `python -m training.starters`, or `make starters`."""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import DistilBertForSequenceClassification

from configs.settings import SettingsError
from deployments.errors import SightlineError
from deployments.models import adapters
from deployments.models.networks import adapted
from deployments.models.networks.pretrained import load_network
from training import datasets, metrics, versions
from training.compress import low_rank, quantise
from training.data import DataError
from training.job import Job
from training.loop import Options, evaluate
from training.network import STARTER
from training.train import Learned, learn, write_card

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """How one starter is trained and kept."""

    options: Options
    compress: Callable[[Weights, Weights], dict[str, torch.Tensor]]
    kept: str  # what `compress` keeps, for the model card
    seeds: tuple[int, ...]  # a run for each; the one with the smallest validation loss is kept
    about: str
    measured_on: str


RECIPES: Final = {
    "sentiment": Recipe(
        Options(epochs=2, lr=1e-4),
        quantise,
        "the change of each matrix in 4 bits a number, vectors and the head in fp16",
        seeds=(0, 1, 2),
        about="Whether an English text is positive or negative.",
        measured_on="single sentences of Rotten Tomatoes and IMDB reviews of up to 75 words",
    ),
    "news": Recipe(
        Options(epochs=2, lr=1e-4, freeze="embeddings"),
        partial(low_rank, rank=32),
        "the change of each matrix to rank 32, all in fp16",
        seeds=(0,),
        about="The topic of an English headline.",
        measured_on="titles of BBC articles, whose bodies were not trained on either",
    ),
}
_BASE: Final = "MiniLM-L6 as DistilBERT, kept as an adapter to the fetched encoder"


def make(
    name: str, models: Path, cache_dir: Path, *, smoke: bool, resume: bool
) -> tuple[Path, metrics.Result]:
    """Train one starter and publish its adapter under `models`/`name`; what is measured is what is kept."""
    recipe = RECIPES[name]
    parts = datasets.fetch(name, cache_dir)
    work = cache_dir / "training" / name
    job = Job(
        csv=parts / "train.csv",
        validation=parts / "validation.csv",
        test=parts / "test.csv",
        base=STARTER,
        output=work,
        options=recipe.options,
        cache_dir=cache_dir,
        smoke=smoke,
        resume=resume,
    )
    runs = []
    for seed in recipe.seeds:
        options = replace(recipe.options, seed=seed)
        runs.append(learn(replace(job, options=options, output=work / str(seed))))
    learned = min(runs, key=_validation_loss)
    results: list[metrics.Result] = []

    def write(directory: Path, version: int) -> None:
        base = adapted.distilbert_weights(learned.base)
        tensors = recipe.compress(base, learned.network.state_dict())
        _write_adapter(directory, learned, tensors)
        whole = adapters.materialize(directory, cache_dir)
        network = load_network(DistilBertForSequenceClassification, whole, attn_implementation="sdpa")
        test = learned.encoded(learned.data.test)
        predicted = evaluate(network, test).argmax(1)
        results.append(metrics.measure(learned.data.labels, test.classes.numpy(), predicted.numpy()))
        command = shlex.join(["python", "-m", "training.starters", name, *(["--smoke"] if smoke else [])])
        facts = {**learned.facts, "kept": recipe.kept}
        if len(recipe.seeds) > 1:
            facts["run"] = f"the smallest validation loss of those with seeds {recipe.seeds}"
        shown = replace(learned, facts=facts)
        about = f"{recipe.about} {_BASE}."
        title = f"{name}, version {version}"
        write_card(directory, shown, results[0], title, about, recipe.measured_on, command)

    published = versions.publish(models / name, write)
    shutil.rmtree(work)
    return published, results[0]


def _validation_loss(run: Learned) -> float:
    losses = [epoch.validation_loss for epoch in run.progress.history]
    return min(loss for loss in losses if loss is not None)


def _write_adapter(directory: Path, learned: Learned, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, directory / adapters.WEIGHTS)
    config = learned.network.config.to_diff_dict()
    config["architectures"] = ["DistilBertForSequenceClassification"]
    config[adapters.CONFIG_KEY] = {"base_sha256": adapters.base_sha256(learned.base)}
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the named starters, or all."""
    parser = argparse.ArgumentParser(prog="python -m training.starters", description=main.__doc__)
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache"))
    parser.add_argument("--smoke", action="store_true", help="5%% of the rows, to see that everything runs")
    parser.add_argument("--resume", action="store_true", help="go on from the last epoch of a stopped run")
    given = parser.parse_args(arguments)
    names = given.names or list(RECIPES)
    if unknown := [name for name in names if name not in RECIPES]:
        parser.error(f"unknown starter {unknown[0]!r}; known: {', '.join(RECIPES)}")
    for name in names:
        try:
            published, result = make(
                name, given.models, given.cache_dir, smoke=given.smoke, resume=given.resume
            )
        except (DataError, SettingsError, SightlineError) as error:
            sys.stderr.write(f"{error}\n")
            return 1
        size = sum(file.stat().st_size for file in published.iterdir()) / 1e6
        tqdm.write(f"{name}: accuracy {result.accuracy:.1%}, {size:.1f} MB, saved in {published}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
