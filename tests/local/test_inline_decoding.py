"""Images decoded by the encoder's replica itself, as on a small machine: the same answers, one part less."""

from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.settings import Settings
from serve_app.app import _decodes_inline, build_app
from tests.local.client import LocalClient
from tests.photos import data_uri, jpeg


@pytest.fixture(scope="module")
def inline(app_args: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> LocalClient:
    data = str(tmp_path_factory.mktemp("data"))
    args = {**app_args, "data_dir": data, "classifiers": {}, "preprocessor": {"placement": "inline"}}
    return LocalClient.serving(build_app(args), "inline")


def embedded(client: LocalClient) -> Any:
    body = {"input": [data_uri(jpeg(name)) for name in ("chelsea", "coffee", "rocket")]}
    answer = client.post("/v1/embeddings", json_body=body)
    assert answer.status == 200
    assert "preprocess;dur=" in answer.headers["server-timing"]
    return np.array([row["embedding"] for row in answer.json()["data"]])


def test_the_answers_are_those_of_a_pool(client: LocalClient, inline: LocalClient) -> None:
    assert np.allclose(embedded(inline), embedded(client), atol=1e-6)
    assert "preprocessor" not in inline.get("/health/ready").json()["dependencies"]


def test_a_bad_image_is_named(inline: LocalClient) -> None:
    body = {"input": [data_uri(jpeg("chelsea")), data_uri(jpeg("coffee")[:2000])]}
    answer = inline.post("/v1/embeddings", json_body=body)
    assert answer.status == 422
    assert answer.json()["error"]["param"] == "input[1]"


def test_thumbnails_are_made(inline: LocalClient) -> None:
    path = "/v1/collections/small"
    assert inline.put(path, json_body={"thumbnails": True}).status == 200
    image = {"content-type": "image/jpeg"}
    assert inline.put(f"{path}/items/cat", content=jpeg("chelsea"), headers=image).status == 200
    small = inline.get(f"{path}/items/cat/thumbnail").content
    assert small[:2] == b"\xff\xd8"
    own = {"id": "own", "vector": [1.0] * 16, "thumbnail": b64encode(small).decode()}
    cut = {"id": "cut", "vector": [1.0] * 16, "thumbnail": b64encode(small[: len(small) // 2]).decode()}
    several = [{**own, "id": f"own {n}"} for n in range(9)]  # more than are looked at in one call
    answer = inline.post(f"{path}/items", json_body={"items": [*several, cut]})
    assert (answer.status, answer.json()["error"]["param"]) == (422, "items[9]")
    assert inline.post(f"{path}/items", json_body={"items": [own]}).status == 200
    assert inline.get(f"{path}/items/own/thumbnail").content == small


@pytest.mark.parametrize(
    ("cores", "args", "expected"),
    [
        (2, {}, True),
        (8, {}, False),
        (2, {"clip.scale.gpus": 1}, False),
        (2, {"clip.scale.max_replicas": 4}, False),
        (8, {"preprocessor.placement": "inline"}, True),
        (2, {"preprocessor.placement": "pool"}, False),
    ],
)
def test_auto_goes_by_the_machine(
    monkeypatch: pytest.MonkeyPatch, cores: int, args: dict[str, Any], expected: bool
) -> None:
    monkeypatch.setattr("serve_app.app.cores", lambda: cores)
    assert _decodes_inline(Settings.from_args(args)) is expected


def test_the_setting_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'auto', 'pool' or 'inline'"):
        Settings.from_args({"preprocessor.placement": "nowhere"})
