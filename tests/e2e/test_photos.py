"""What a person does first: post a photo, ask what it is, put photos away and find them by words."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.photos import WORDS, data_uri, jpeg
from tests.server import Server


@pytest.fixture(scope="module")
def album(server: Server) -> Iterator[str]:
    path = "/v1/collections/album"
    assert server.put(path, json={}).status_code == 200
    items = [{"id": name, "image": data_uri(jpeg(name)), "metadata": {"name": name}} for name in WORDS]
    assert server.post(f"{path}/items", json={"items": items}).json()["upserted"] == len(WORDS)
    yield path
    server.delete(path)


def test_a_photo_becomes_its_embedding(server: Server) -> None:
    answer = server.post("/v1/embeddings", data=jpeg("chelsea"), headers={"content-type": "image/jpeg"})
    assert answer.status_code == 200
    vector = np.array(answer.json()["data"][0]["embedding"])
    assert vector.shape == (384,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-3)


def test_every_answer_carries_its_id_once_and_its_timing(server: Server) -> None:
    for path, status in (("/v1/models", 200), ("/v1/models/none", 404), ("/nowhere", 404)):
        answer = server.get(path, headers={"x-request-id": "abc-1"})
        assert answer.status_code == status
        assert answer.headers["x-request-id"] == "abc-1"
        assert "queue;dur=" in answer.headers["server-timing"]
    assert len(server.get("/health/live").headers["x-request-id"]) > 8


def test_is_this_a_cat_or_a_dog(server: Server) -> None:
    answer = server.post(
        "/v1/classify",
        params={"model": "clip", "labels": "cat,dog"},
        data=jpeg("chelsea"),
        headers={"content-type": "image/jpeg"},
    )
    first = answer.json()["data"][0][0]
    assert first["label"] == "cat"
    assert first["score"] > 0.9


def test_photos_are_found_by_words(server: Server, album: str) -> None:
    found = {
        name: server.post(f"{album}/search", json={"text": words, "limit": 1}).json()["results"][0]["id"]
        for name, words in WORDS.items()
    }
    assert sum(name == hit for name, hit in found.items()) >= 5, found


def test_a_photo_finds_itself(server: Server, album: str) -> None:
    results = server.post(f"{album}/search", json={"image": data_uri(jpeg("rocket"))}).json()["results"]
    assert results[0]["id"] == "rocket"
    assert results[0]["score"] == pytest.approx(1, abs=1e-2)


def test_the_starter_is_named_as_what_it_is(server: Server) -> None:
    model = server.get("/v1/models/clip").json()
    assert model["source"].startswith("starter")
    assert model["state"] == "ready"


def test_a_form_of_files(server: Server) -> None:
    files = [("files", (f"{name}.jpg", jpeg(name), "image/jpeg")) for name in ("chelsea", "coffee")]
    answer = server.post("/v1/embeddings", files=files, data={"model": "clip"})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2


def test_a_body_beyond_the_limit_is_refused(server: Server) -> None:
    answer = server.post(
        "/v1/embeddings", data=b"x" * (33 * 1024 * 1024), headers={"content-type": "image/png"}
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_a_large_body_within_the_limit_is_taken(server: Server) -> None:
    photo = data_uri(jpeg("motorcycle", quality=100))
    body = {"input": [photo] * 60}
    answer = server.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 60
