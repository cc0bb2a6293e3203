"""Loading a directory: what is refused, what is told, and what the fingerprint depends on."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel, pipeline

from configs.settings import ClassifierSettings, ClipSettings, SettingsError
from deployments.models.loading import load_classifier, load_encoder
from deployments.models.scores import scores_of
from deployments.models.sources import Source
from deployments.models.towers import Encoder
from tests import assets


def load(directory: Path, **settings: Any) -> Encoder:
    source = Source("directory", str(directory))
    return load_encoder(source, ClipSettings(**settings), assets.CONVERTED, threads=1)


def copy(directory: Path, target: Path) -> Path:
    target.mkdir()
    for file in directory.iterdir():
        os.link(file, target / file.name)
    return target


def write_json(path: Path, value: Any) -> None:
    path.unlink(missing_ok=True)  # it may be a hard link
    path.write_text(json.dumps(value))


def test_info(tiny: Path) -> None:
    info = load(tiny, name="mine", precision="fp32").info
    assert (info.id, info.task, info.precision) == ("mine", "embedding", "fp32")
    assert info.source == f"directory: {tiny}"
    assert (info.dimensions, info.image_size, info.max_tokens) == (16, 64, 77)
    assert info.label_template == "a photo of a {label}"
    assert info.notes == ()


def test_the_fingerprint_is_of_weights_and_preprocessing_alone(tiny: Path, tmp_path: Path) -> None:
    fingerprint = load(tiny, precision="fp32").info.fingerprint
    assert len(fingerprint) == 64
    assert load(copy(tiny, tmp_path / "copy"), precision="bf16", name="other").info.fingerprint == fingerprint

    resaved = copy(tiny, tmp_path / "resaved")
    config = json.loads((tiny / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part |= {"transformers_version": "4.16.0", "dtype": "float16"}
    write_json(resaved / "config.json", config)
    assert load(resaved, precision="fp32").info.fingerprint == fingerprint

    other_weights = assets.clip_directory(tmp_path / "weights", seed=1)
    other_mean = copy(tiny, tmp_path / "mean")
    write_json(other_mean / "preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]})
    other_tokenizer = copy(tiny, tmp_path / "tokenizer")
    tokenizer = json.loads((tiny / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    write_json(other_tokenizer / "tokenizer.json", tokenizer)
    others = {load(d).info.fingerprint for d in (other_weights, other_mean, other_tokenizer)}
    assert len(others | {fingerprint}) == 4


def test_sharded_weights_load(tiny: Path, tmp_path: Path) -> None:
    sharded = copy(tiny, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    CLIPModel.from_pretrained(tiny).save_pretrained(sharded, max_shard_size="1MB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    whole, shards = load(tiny, precision="fp32"), load(sharded, precision="fp32")
    tokens = whole.text.pre("a cat")
    np.testing.assert_allclose(whole.text.run([tokens])[0], shards.text.run([tokens])[0], atol=1e-6)


def test_missing_tensors_are_refused_instead_of_random(tiny: Path, tmp_path: Path) -> None:
    directory = copy(tiny, tmp_path / "partial")
    weights = load_file(directory / "model.safetensors")
    del weights["visual_projection.weight"]
    (directory / "model.safetensors").unlink()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingsError, match=r"lack 1 tensors, first visual_projection\.weight"):
        load(directory)


def test_another_architecture_is_refused(tiny: Path) -> None:
    with pytest.raises(SettingsError, match="type 'bert'; accepted here: 'clip'"):
        load(assets.starter() / "minilm")
    with pytest.raises(SettingsError, match="type 'clip'; accepted here: 'distilbert'"):
        load_classifier(
            "x", Source("directory", str(tiny)), ClassifierSettings(), assets.CONVERTED, threads=1
        )


def test_a_broken_config_is_named(tiny: Path, tmp_path: Path) -> None:
    directory = copy(tiny, tmp_path / "broken")
    (directory / "config.json").unlink()
    (directory / "config.json").write_text("{")
    with pytest.raises(SettingsError, match=r"config\.json cannot be read"):
        load(directory)


def test_damaged_weights_are_named(tiny: Path, tmp_path: Path) -> None:
    directory = copy(tiny, tmp_path / "damaged")
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(SettingsError, match=r"damaged cannot be loaded: SafetensorError"):
        load(directory)


def test_preprocessing_that_differs_is_told(tiny: Path, tmp_path: Path) -> None:
    directory = copy(tiny, tmp_path / "odd")
    write_json(
        directory / "preprocessor_config.json",
        {"size": {"shortest_edge": 72}, "resample": 2, "do_center_crop": False},
    )
    notes = load(directory).info.notes
    assert len(notes) == 3
    assert "resizes to 72; the server resizes to 64" in notes[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
        {"do_rescale": False, "image_mean": [127, 127, 127], "image_std": [60, 60, 60]},
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_pixels_are_normalised_as_transformers_does(
    tiny: Path, tmp_path: Path, settings: dict[str, Any], nested: bool
) -> None:
    """CLIPProcessor saves the settings in processor_config.json since transformers 5."""
    directory = copy(tiny, tmp_path / "other")
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    given = {"image_processor_type": "CLIPImageProcessor", **size, **settings}
    if nested:
        write_json(directory / "processor_config.json", {"image_processor": given})
        write_json(directory / "preprocessor_config.json", {"image_mean": [0, 0, 0]})  # of an older release
    else:
        write_json(directory / "preprocessor_config.json", given)
    encoder = load(directory, precision="fp32")
    assert encoder.info.notes == ()
    assert encoder.info.fingerprint != load(tiny).info.fingerprint
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (ours,) = encoder.image.run([encoder.image.pre(pixels)])
    processor: Any = CLIPImageProcessor.from_pretrained(directory)
    tensors = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        model: Any = CLIPModel.from_pretrained(directory)
        theirs = model.eval().get_image_features(tensors)
    vector = getattr(theirs, "pooler_output", theirs)[0].numpy()
    assert float(ours @ vector / np.linalg.norm(vector)) > 0.99999


@pytest.mark.parametrize(
    ("labels", "problem_type", "scores"),
    [
        (("spam",), None, "sigmoid"),
        (("a", "b"), "multi_label_classification", "sigmoid"),
        (("a", "b"), "single_label_classification", "softmax"),
        (("stars",), "regression", "none"),
    ],
)
def test_scores_are_made_as_the_model_was_trained(
    labels: tuple[str, ...], problem_type: str | None, scores: str, tmp_path: Path
) -> None:
    directory = assets.distilbert_directory(tmp_path / "model", labels)
    config = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", {**config, "problem_type": problem_type})
    source = Source("directory", str(directory))
    classifier = load_classifier(
        "x", source, ClassifierSettings(precision="fp32"), assets.CONVERTED, threads=1
    )
    assert classifier.info.scores == scores
    text = "a fine film"
    (logits,) = classifier.text.run([classifier.text.pre(text)])
    classify: Any = pipeline("text-classification", str(directory), device="cpu", top_k=None)
    (found,) = classify([text])
    theirs = {entry["label"]: entry["score"] for entry in found}
    ours = dict(zip(labels, scores_of(np.array([logits]), classifier.info.scores)[0].tolist(), strict=True))
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_labels_keep_their_order(tmp_path: Path) -> None:
    labels = tuple(f"label {i}" for i in range(12))  # "10" sorts before "2" as text
    directory = assets.distilbert_directory(tmp_path, labels)
    source = Source("directory", str(directory))
    classifier = load_classifier("topics", source, ClassifierSettings(), assets.CONVERTED, threads=1)
    assert classifier.info.labels == labels
    assert (classifier.info.id, classifier.info.task) == ("topics", "text-classification")
    rows = classifier.text.run([classifier.text.pre(text) for text in ("good", "", "bad " * 600)])
    assert [row.shape for row in rows] == [(12,)] * 3
