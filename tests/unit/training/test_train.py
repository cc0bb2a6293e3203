import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from configs.settings import ClassifierSettings, SettingsError
from deployments.models.loading import load_classifier
from deployments.models.sources import Source
from deployments.models.versions import choose, published
from tests.unit.training.tiny import tiny_job
from training import text, train, versions
from training.batches import by_length, shuffled
from training.checkpoint import Epoch, Progress
from training.data import DataError
from training.job import prepare
from training.loop import Options, fit
from training.network import HEAD, build


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are not worth sharing between threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_from_csv_to_answers(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, rows=200, epochs=4)
    epochs: list[Epoch] = []
    directory = train.train(job, epochs.append)
    assert directory == job.output / "1"
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert {file.name for file in directory.iterdir()} == {
        "README.md",
        "config.json",
        "confusion.png",
        "labels.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert json.loads((directory / "labels.json").read_text()) == ["bad", "good"]
    assert not (job.output / ".checkpoint").exists()

    source = Source("directory", str(directory))
    classifier = load_classifier("tiny", source, ClassifierSettings(), tmp_path, threads=1)
    assert classifier.info.labels == ("bad", "good")
    tower = classifier.text
    rows = tower.run([tower.pre(t) for t in ("it was awful and dull", "it was great and lovely")])
    assert np.stack(list(rows)).argmax(1).tolist() == [0, 1]


def test_the_model_card(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, rows=120, epochs=1)
    with job.csv.open("a") as file:
        file.write(",bad\n")
    directory = train.train(job)
    assert directory
    card = (directory / "README.md").read_text()
    for part in (
        "# tiny, version 1",
        "data data.csv: sha256 ",
        "96 rows to train on, 12 to validate, 12 to test",
        "empty text: 1 row left out (line 122)",
        "- seed: 0",
        "| label | precision | recall | rows |",
        "torch 2.",
        job.command,
    ):
        assert part in card
    with Image.open(directory / "confusion.png") as picture:
        assert picture.format == "PNG"


def test_versions_count_up_and_half_written_ones_are_never_seen(tmp_path: Path) -> None:
    def fill(directory: Path, version: int) -> None:
        (directory / "file").write_text(str(version))

    def fail(directory: Path, _: int) -> None:
        (directory / "file").write_text("half")
        raise RuntimeError

    model = tmp_path / "name"
    assert versions.publish(model, fill) == model / "1"
    (model / "notes").mkdir()
    with pytest.raises(RuntimeError):
        versions.publish(model, fail)
    assert versions.publish(model, fill) == model / "2"
    (model / "10").mkdir()
    assert versions.publish(model, fill) == model / "11"
    assert published(model) == [1, 2, 10, 11]
    (model / "012").mkdir()
    (model / "٣").mkdir()
    assert published(model) == [1, 2, 10, 11]
    with pytest.raises(SettingsError, match="it has 1, 2, 10, 11"):
        choose(model, "012")
    assert {entry.name for entry in model.iterdir()} == {"1", "2", "10", "11", "012", "٣", "notes"}


def test_a_version_that_another_run_took_meanwhile(tmp_path: Path) -> None:
    def raced(directory: Path, version: int) -> None:
        (directory / "file").touch()
        (tmp_path / str(version)).mkdir()
        (tmp_path / str(version) / "theirs").touch()

    assert versions.publish(tmp_path, raced) == tmp_path / "2"
    assert (tmp_path / "1" / "theirs").exists()


@pytest.mark.parametrize("freeze", ["nothing", "embeddings", "encoder"])
def test_what_is_frozen_stays(tmp_path: Path, freeze: str) -> None:
    job = tiny_job(tmp_path, rows=40, epochs=1, freeze=freeze)
    learned = train.learn(job)
    base = load_file(Path(job.base) / "model.safetensors")
    same = {n for n, t in learned.network.state_dict().items() if n in base and torch.equal(t, base[n])}
    embeddings = {name for name in base if ".embeddings." in name}
    encoder = set(base) - set(HEAD)
    assert embeddings <= same if freeze != "nothing" else not embeddings <= same
    assert (encoder <= same) == (freeze == "encoder")


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    # Validation labels are the wrong way round: the better it fits, the worse they look.
    job = tiny_job(tmp_path, rows=80, epochs=30)
    learned = train.learn(replace(job, options=Options(epochs=1)))
    part = learned.encoded(learned.data.train)
    turned = replace(part, classes=1 - part.classes)
    network = build(Path(job.base), learned.data.labels, seed=0)
    progress = fit(network, part, turned, Options(epochs=30, batch_size=8, lr=1e-3, patience=2))
    losses = [epoch.validation_loss or 0 for epoch in progress.history]
    assert len(losses) < 30
    assert progress.best_epoch() == len(losses) - 2 == losses.index(min(losses)) + 1
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in progress.best.items())


def test_best_epoch_without_validation_is_the_last() -> None:
    assert Progress([Epoch(n, 1.0, 1.0, None, None, 0.0) for n in (1, 2, 3)]).best_epoch() == 3


def test_a_head_for_the_same_labels_is_kept(tmp_path: Path) -> None:
    base = Path(tiny_job(tmp_path).base)
    weights = load_file(base / "model.safetensors")
    for labels, kept in ((("other", "labels"), True), (("labels", "other"), False)):
        state = build(base, labels, seed=1).state_dict()
        assert all(torch.equal(state[name], weights[name]) for name in HEAD if "weight" in name) == kept


def test_an_encoder_saved_alone_is_a_base(tmp_path: Path) -> None:
    base = Path(tiny_job(tmp_path).base)
    weights = load_file(base / "model.safetensors")
    alone = {n.removeprefix("distilbert."): t for n, t in weights.items() if n not in HEAD}
    save_file(alone, base / "model.safetensors")
    state = build(base, ("a", "b", "c"), seed=0).state_dict()
    assert all(torch.equal(state[f"distilbert.{name}"], tensor) for name, tensor in alone.items())

    alone.pop("transformer.layer.1.ffn.lin2.bias")
    save_file(alone, base / "model.safetensors")
    with pytest.raises(SettingsError, match="lack 1 tensors, first distilbert"):
        build(base, ("a", "b"), seed=0)


def test_batches_group_lengths_and_hold_every_row_once() -> None:
    lengths = [(7 * i) % 97 + 1 for i in range(1000)]
    batches = shuffled(lengths, 16, "0/1")
    assert sorted(place for batch in batches for place in batch) == list(range(1000))
    padded = sum(max(lengths[p] for p in batch) * len(batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)
    assert batches == shuffled(lengths, 16, "0/1") != shuffled(lengths, 16, "0/2")
    assert sorted(p for batch in by_length(lengths, 64) for p in batch) == list(range(1000))


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tiny_job(tmp_path)
    given = ["--csv", str(job.csv), "--base", job.base, "--output", str(job.output), "--epochs", "1"]
    assert text.main([*given, "--text-column", "body"]) == 1
    assert "no column 'body'; it has: 'text', 'label'" in capsys.readouterr().err
    assert text.main([*given[:2], "--base", str(tmp_path), *given[4:]]) == 1
    assert "no config.json" in capsys.readouterr().err
    assert text.main(given) == 0
    card = (job.output / "1" / "README.md").read_text()
    assert f"python -m training.text --csv {job.csv} --base {job.base}" in card


def test_a_loss_that_overflows_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no longer a number in epoch 1; try a smaller learning rate"):
        train.learn(tiny_job(tmp_path, lr=1e30))


def test_nothing_held_out(tmp_path: Path) -> None:
    job = replace(tiny_job(tmp_path, rows=40, epochs=2), validation=0.0, test=0.0)
    directory = train.train(job)
    assert directory
    assert "Nothing was held out" in (directory / "README.md").read_text()


def test_resume_refuses_another_runs_checkpoint(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, rows=40, epochs=1)
    train.learn(job)
    with pytest.raises(DataError, match="other data or options"):
        train.learn(replace(job, resume=True, options=replace(job.options, seed=5)))
    assert len(train.learn(replace(job, resume=True)).progress.history) == 1


def test_resume_refuses_a_run_on_another_column(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, rows=40, epochs=1)
    lines = job.csv.read_text().splitlines()
    job.csv.write_text(
        "\n".join([f"{lines[0]},title", *(f"{line},t {n}" for n, line in enumerate(lines[1:]))])
    )
    train.learn(job)
    with pytest.raises(DataError, match="other data or options"):
        train.learn(replace(job, resume=True, text_column="title"))


def test_what_is_tested_on_does_not_choose_the_epoch(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, rows=40)
    lines = job.csv.read_text().splitlines()
    for name, rows in (("validation.csv", lines[1:9]), ("test.csv", lines[5:13])):
        (tmp_path / name).write_text("\n".join([lines[0], *rows]))
    data = prepare(replace(job, validation=tmp_path / "validation.csv", test=tmp_path / "test.csv"))
    assert not {row.text for row in data.validation} & {row.text for row in data.test}
    assert (len(data.validation), len(data.test)) == (4, 8)
    assert any("validation.csv: " in line and "text of the test file" in line for line in data.left_out)


def test_an_epoch_whose_loss_is_no_number_is_never_the_best() -> None:
    losses = [math.nan, 0.5, 0.7, math.nan]
    assert Progress([Epoch(n, 1, 0, loss, 0, 0) for n, loss in enumerate(losses, 1)]).best_epoch() == 2
