"""Train an image classifier: `python -m training.images --folder DIR --output models/NAME`.

DIR holds a directory of images for each class. What is trained is a linear probe, or with `--hidden`
a small MLP, on the embeddings of the encoder that serves.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from configs.files import real, whole
from configs.settings import ClipSettings, Settings, SettingsError
from configs.threads import threads_for
from deployments.errors import SightlineError
from deployments.models.directories import IMAGE_HEAD
from deployments.models.loading import load_encoder
from deployments.models.sources import ENCODER, resolve
from training import card, metrics, versions
from training.checkpoint import Epoch
from training.data import DataError, Row
from training.head import Features
from training.image_folder import embed_folder, read_folder
from training.split import known, labels_of, split

_PATIENCE: Final = 20  # epochs; one takes milliseconds
_WEIGHT_DECAY: Final = 1e-2
_LISTED: Final = 20  # files left out that the card names; all are told while it is made


@dataclass(frozen=True)
class HeadOptions:
    """How a head is fitted; the defaults suit a few hundred to some ten thousand images."""

    hidden: int = 0  # width of a hidden layer; 0 is a linear probe
    epochs: int = 300
    batch_size: int = 128
    lr: float = 1e-3
    seed: int = 0


def fit(
    train: Features, validation: Features, classes: int, options: HeadOptions
) -> tuple[nn.Sequential, list[Epoch]]:
    """The head of the epoch with the smallest validation loss, and the epochs.

    Features are standardised by the training part, and that is folded into the first layer, so the
    head takes the encoder's vectors as they are.
    """
    torch.manual_seed(options.seed)
    mean, deviation = train.vectors.mean(0), train.vectors.std(0).clamp_min(1e-6)
    widths = [train.vectors.shape[1], *([options.hidden] if options.hidden else []), classes]
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    head = nn.Sequential(*modules[:-1])
    optimizer = torch.optim.AdamW(head.parameters(), lr=options.lr, weight_decay=_WEIGHT_DECAY)
    inputs_of = {part: (part.vectors - mean) / deviation for part in (train, validation)}
    watched = validation if len(validation.classes) else train
    history: list[Epoch] = []
    best = (float("inf"), 0, {name: p.detach().clone() for name, p in head.state_dict().items()})
    for number in tqdm(range(1, options.epochs + 1), "fitting", unit="epoch"):
        begun = time.monotonic()
        for places in torch.split(torch.randperm(len(train.classes)), options.batch_size):
            loss = cross_entropy(head(inputs_of[train][places]), train.classes[places])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        with torch.no_grad():
            scores = {part: head(vectors) for part, vectors in inputs_of.items()}
        losses = {part: float(cross_entropy(s, part.classes)) for part, s in scores.items() if len(s)}
        right = {p: float((s.argmax(1) == p.classes).float().mean()) for p, s in scores.items() if len(s)}
        seconds = time.monotonic() - begun
        epoch = Epoch(
            number, losses[train], right[train], losses.get(validation), right.get(validation), seconds
        )
        history.append(epoch)
        if losses[watched] < best[0]:
            best = (losses[watched], number, {n: p.detach().clone() for n, p in head.state_dict().items()})
        elif number - best[1] >= _PATIENCE:
            break
    if best[1] == 0:
        raise DataError("the loss was never a number; try a smaller learning rate")
    head.load_state_dict(best[2])
    first = head[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.bias.sub_(first.weight @ (mean / deviation))
        first.weight.div_(deviation)
    return head, history


def train_folder(
    folder: Path, output: Path, encoder_source: str, options: HeadOptions, command: str, cache_dir: Path
) -> Path:
    """Embed, split, fit and publish the next version under `output`; returns its directory.

    Raises:
        DataError: nothing can be trained on what the folder holds.
        SettingsError, NotReady: the encoder cannot be loaded.
    """
    listed = read_folder(folder)
    settings = ClipSettings(source=encoder_source)
    source = resolve(settings, cache_dir, starter=ENCODER)
    encoder = load_encoder(source, settings, cache_dir, threads_for(None, 0))
    rows, vectors, unused = embed_folder(listed, encoder, cache_dir / "embeddings")
    left_out = [f"left out: {file}: {reason}" for file, reason in unused.items()]
    for line in left_out:
        tqdm.write(line)
    if len(left_out) > _LISTED:
        left_out[_LISTED:] = [f"left out: {len(left_out) - _LISTED} more"]
    parts = split(rows, validation=0.1, test=0.1, seed=options.seed)
    labels = labels_of(parts.train)
    place = {row.text: i for i, row in enumerate(rows)}

    def part(of: Sequence[Row]) -> Features:
        kept = known(of, labels)[0]
        places = [place[row.text] for row in kept]
        classes = torch.tensor([labels.index(row.label) for row in kept], dtype=torch.int64)
        return Features(torch.from_numpy(vectors[places]), classes)

    train, validation, test = part(parts.train), part(parts.validation), part(parts.test)
    head, history = fit(train, validation, len(labels), options)
    measured = test if len(test.classes) else validation
    measured_on = "the test part" if measured is test else "the validation part, which also chose the epoch"
    with torch.no_grad():
        predicted: NDArray[np.int64] = head(measured.vectors).argmax(1).numpy()
    result = metrics.measure(labels, measured.classes.numpy(), predicted)

    def write(directory: Path, version: int) -> None:
        layers = [module for module in head if isinstance(module, nn.Linear)]
        tensors: dict[str, torch.Tensor] = {}
        for number, layer in enumerate(layers):
            tensors |= {f"layers.{number}.weight": layer.weight, f"layers.{number}.bias": layer.bias}
        save_file({n: t.detach().contiguous() for n, t in tensors.items()}, directory / "model.safetensors")
        config = {
            "model_type": IMAGE_HEAD,
            "labels": labels,
            "encoder": str(source),
            "encoder_fingerprint": encoder.info.fingerprint,
        }
        (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        (directory / "labels.json").write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
        metrics.draw(result, directory / "confusion.png")
        facts = {
            "images": f"{len(train.classes)} to train on, {len(validation.classes)} to validate, "
            f"{len(test.classes)} to test",
            "encoder": f"{source}, fingerprint {encoder.info.fingerprint}",
            **asdict(options),
        }
        text = card.render(
            f"{output.resolve().name}, version {version}",
            about=f"An image classifier over: {', '.join(labels)}. A head on the encoder's embeddings.",
            facts=facts,
            measured_on=measured_on,
            result=result,
            history=history,
            left_out=left_out,
            command=command,
        )
        (directory / "README.md").write_text(text, encoding="utf-8")

    published = versions.publish(output, write)
    tqdm.write(f"{result.told(measured_on)}; saved in {published}")
    return published


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and publish; 1 and a sentence on stderr if the folder or the encoder cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    default = HeadOptions()
    parser = argparse.ArgumentParser(prog="python -m training.images", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="a directory of images for each class")
    parser.add_argument("--output", type=Path, required=True, help="models/NAME; its next version is written")
    parser.add_argument("--encoder", default=Settings().clip.source, help="as `clip.source` in the settings")
    parser.add_argument("--hidden", type=whole(0), default=default.hidden, help="0 for a linear probe")
    parser.add_argument("--epochs", type=whole(1), default=default.epochs)
    parser.add_argument("--batch-size", type=whole(1), default=default.batch_size)
    parser.add_argument("--lr", type=real(0, 1), default=default.lr)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache"))
    given = parser.parse_args(arguments)
    options = HeadOptions(given.hidden, given.epochs, given.batch_size, given.lr, given.seed)
    command = shlex.join(["python", "-m", "training.images", *arguments])
    try:
        train_folder(given.folder, given.output, given.encoder, options, command, given.cache_dir)
    except (DataError, SettingsError, SightlineError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
