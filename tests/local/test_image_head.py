"""A head on the image tower, served as a classifier of images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.settings import SettingsError
from deployments.models import image_head
from serve_app.app import build_app
from tests.local.client import LocalClient
from tests.photos import data_uri, jpeg

LABELS = ["cat", "cup", "rocket"]
NAMES = ["chelsea", "coffee", "rocket"]


def write_head(directory: Path, weight: Any, encoder_fingerprint: str) -> Path:
    directory.mkdir(parents=True)
    config = {
        "model_type": "sightline_image_head",
        "labels": LABELS,
        "encoder_fingerprint": encoder_fingerprint,
    }
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {"layers.0.weight": np.asarray(weight, np.float32), "layers.0.bias": np.zeros(3, np.float32)}
    save_file(tensors, directory / "model.safetensors")
    return directory


def embeddings(client: LocalClient) -> Any:
    body = {"input": [data_uri(jpeg(name)) for name in NAMES]}
    rows = client.post("/v1/embeddings", json_body=body).json()["data"]
    return np.array([row["embedding"] for row in rows], np.float32)


@pytest.fixture(scope="module")
def dogs(
    client: LocalClient, app_args: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> LocalClient:
    """The application with a head whose rows are the photos' own embeddings, and one of another encoder."""
    root = tmp_path_factory.mktemp("heads")
    fingerprint = client.get("/v1/models/clip").json()["fingerprint"]
    weight = 50 * embeddings(client)
    write_head(root / "dogs" / "1", weight, fingerprint)
    write_head(root / "dogs" / "2", weight[::-1].copy(), fingerprint)
    write_head(root / "foreign", weight, "0" * 64)
    classifiers = {
        "dogs": {"source": str(root / "dogs"), "versions": {"version": "1"}},
        "foreign": {"source": str(root / "foreign")},
    }
    app = build_app({**app_args, "data_dir": str(root / "data"), "classifiers": classifiers})
    return LocalClient.serving(app, "heads")


def test_raw_image_bodies_get_the_head_s_labels(dogs: LocalClient) -> None:
    for name, label in zip(NAMES, LABELS, strict=True):
        answer = dogs.post(
            "/v1/classify",
            content=jpeg(name),
            headers={"content-type": "image/jpeg"},
            params={"model": "dogs"},
        )
        body = answer.json()
        assert answer.status == 200, body
        assert (body["data"][0][0]["label"], body["version"]) == (label, "1")
        assert sum(row["score"] for row in body["data"][0]) == pytest.approx(1, abs=1e-5)


def test_lists_keep_their_order(dogs: LocalClient) -> None:
    body = {"model": "dogs", "input": [data_uri(jpeg(name)) for name in NAMES], "top_k": 1}
    data = dogs.post("/v1/classify", json_body=body).json()["data"]
    assert [row[0]["label"] for row in data] == LABELS


def test_the_head_is_listed(dogs: LocalClient) -> None:
    model = dogs.get("/v1/models/dogs").json()
    assert (model["task"], model["version"], model["labels"]) == ("image-classification", "1", LABELS)
    assert dogs.get("/health/ready").json()["dependencies"]["dogs"] == "ready"


def test_text_is_refused(dogs: LocalClient) -> None:
    answer = dogs.post("/v1/classify", json_body={"model": "dogs", "input": ["a dog"]})
    assert (answer.status, answer.json()["error"]["code"]) == (422, "wrong_modality")


def test_a_head_of_another_encoder_never_answers(dogs: LocalClient) -> None:
    body = {"model": "foreign", "input": [data_uri(jpeg("coffee"))]}
    answer = dogs.post("/v1/classify", json_body=body)
    assert (answer.status, answer.json()["error"]["code"]) == (409, "encoder_mismatch")


def test_a_hidden_layer_has_a_relu() -> None:
    info: Any = None
    first = (np.array([[1.0, 0], [-1, 0]], np.float32), np.zeros(2, np.float32))
    second = (np.array([[1.0, 1]], np.float32), np.array([0.5], np.float32))
    head = image_head.ImageHead(info, (first, second))
    logits = head.logits(np.array([[2.0, 9], [-3, 9]], np.float32))
    assert logits.tolist() == [[2.5], [3.5]]


def test_widths_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    directory = write_head(tmp_path / "bad", np.zeros((2, 4)), "0" * 64)
    with pytest.raises(SettingsError, match="no whole image head"):
        image_head.load("bad", directory, "here", None)
