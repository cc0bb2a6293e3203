"""Small pictures beside the vectors: kept where asked for, served with their type, told apart from ids."""

import io
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.local.client import Answer, LocalClient
from tests.photos import data_uri, encoded, jpeg, photos

JPEG = {"content-type": "image/jpeg"}


@pytest.fixture
def album(client: LocalClient) -> Iterator[str]:
    with client.collection(thumbnails=True) as path:
        assert client.get(path).json()["thumbnails"] is True
        yield path


def opened(answer: Answer) -> Image.Image:
    assert answer.status == 200, answer.content
    assert answer.headers["content-type"] == "image/jpeg"
    image = Image.open(io.BytesIO(answer.content))
    image.load()
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return image


def test_every_way_to_store_an_image_keeps_a_small_one(client: LocalClient, album: str) -> None:
    photo = photos()["coffee"][::2, ::2]
    png = encoded(photo)
    assert client.put(f"{album}/items/raw", content=png, headers={"content-type": "image/png"}).status == 200
    items = [{"id": "words", "text": "a cup"}, {"id": "json", "image": data_uri(png, "image/png")}]
    assert client.post(f"{album}/items", json_body={"items": items}).status == 200
    line = json.dumps({"id": "line", "image": data_uri(png, "image/png")}).encode()
    ndjson = {"content-type": "application/x-ndjson"}
    assert client.post(f"{album}/items", content=line, headers=ndjson).status == 200
    height, width = photo.shape[:2]
    for id in ("raw", "json", "line"):
        answer = client.get(f"{album}/items/{id}/thumbnail")
        small = opened(answer)
        assert small.size == (256, round(256 * height / width))
        wanted = np.asarray(Image.fromarray(photo).resize(small.size), np.float32)
        assert np.abs(np.asarray(small, np.float32) - wanted).mean() < 6, "it shows the same picture"
        shown = client.get(f"{album}/items/{id}", params={"include": "thumbnail"}).json()
        assert b64decode(shown["thumbnail"]) == answer.content
        assert "thumbnail" not in client.get(f"{album}/items/{id}").json()
    missing = client.get(f"{album}/items/words/thumbnail")
    assert (missing.status, missing.json()["error"]["code"]) == (404, "no_thumbnail")
    assert '"thumbnails": true' in missing.json()["error"]["message"]
    gone = client.get(f"{album}/items/nowhere/thumbnail")
    assert (gone.status, gone.json()["error"]["code"]) == (404, "item_not_found")


def test_it_is_upright_and_opaque_and_the_first_frame(client: LocalClient, album: str) -> None:
    halves = np.zeros((100, 200, 3), np.uint8)
    halves[:, :100] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: left becomes top
    turned = encoded(halves, "JPEG", quality=95, exif=exif)
    clear = encoded(Image.new("RGBA", (60, 40), (0, 0, 255, 0)))
    frames = [Image.new("RGB", (50, 30), colour) for colour in ("lime", "black")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    for id, content in (("turned", turned), ("clear", clear), ("moving", moving)):
        assert client.put(f"{album}/items/{id}", content=content, headers=JPEG).status == 200

    def small(id: str) -> np.ndarray:
        return np.asarray(opened(client.get(f"{album}/items/{id}/thumbnail")), np.int16)

    upright = small("turned")
    assert upright.shape[0] == 2 * upright.shape[1]
    assert upright[5, 20, 0] > 200
    assert upright[-5, 20, 0] < 60
    assert small("clear").shape == (40, 60, 3)
    assert (small("clear") > 250).all()
    assert np.abs(small("moving") - (0, 255, 0)).max() < 10


def test_a_cache_asks_and_is_told_that_nothing_changed(client: LocalClient, album: str) -> None:
    path = f"{album}/items/a/thumbnail"
    client.put(f"{album}/items/a", content=jpeg("coffee"), headers=JPEG)
    tag = client.get(path).headers["etag"]
    for given in (tag, f'"other", W/{tag}'):
        same = client.get(path, headers={"if-none-match": given})
        assert (same.status, same.content, same.headers["etag"]) == (304, b"", tag)
    client.put(f"{album}/items/a", content=jpeg("rocket"), headers=JPEG)
    changed = client.get(path, headers={"if-none-match": tag})
    assert changed.status == 200
    assert changed.headers["etag"] != tag
    assert changed.headers["cache-control"] == "private, no-cache"


def test_an_id_may_end_in_thumbnail(client: LocalClient, album: str) -> None:
    client.put(f"{album}/items/a/thumbnail", content=jpeg("rocket"), headers=JPEG)
    item = client.get(f"{album}/items/a/thumbnail", params={"include": "vector"})
    assert (item.json()["id"], len(item.json()["vector"])) == ("a/thumbnail", 16)
    opened(client.get(f"{album}/items/a/thumbnail/thumbnail"))
    client.put(f"{album}/items/a", content=jpeg("coffee"), headers=JPEG)
    assert client.get(f"{album}/items/a/thumbnail").json()["id"] == "a/thumbnail"
    assert client.get(f"{album}/items/a", params={"include": "thumbnail"}).json()["thumbnail"]
    assert client.delete(f"{album}/items/a/thumbnail").status == 200
    opened(client.get(f"{album}/items/a/thumbnail"))
    client.put(f"{album}/items/thumbnail", content=jpeg("coffee"), headers=JPEG)
    assert client.get(f"{album}/items/thumbnail").json()["id"] == "thumbnail"


def test_nothing_is_kept_unless_asked_for(client: LocalClient) -> None:
    path = "/v1/collections/plain"
    assert client.put(path, json_body={}).json()["thumbnails"] is False
    client.put(f"{path}/items/a", content=jpeg("coffee"), headers=JPEG)
    assert client.get(f"{path}/items/a/thumbnail").status == 404
    assert "thumbnail" not in client.get(f"{path}/items/a", params={"include": "thumbnail"}).json()
    other = client.put(path, json_body={"thumbnails": True})
    assert (other.status, other.json()["error"]["code"]) == (409, "collection_exists")
    assert "thumbnails is False, not True" in other.json()["error"]["message"]
    assert client.put(path, json_body={"thumbnails": 1}).status == 422


def test_one_may_stand_beside_a_vector(client: LocalClient, album: str) -> None:
    small = encoded(photos()["coffee"][:150, :256], "JPEG")
    sent = {"id": "a", "vector": [1.0] * 16, "thumbnail": b64encode(small).decode()}
    assert client.post(f"{album}/items", json_body={"items": [sent]}).status == 200
    assert client.get(f"{album}/items/a/thumbnail").content == small
    ndjson = {"content-type": "application/x-ndjson"}
    line = json.dumps({**sent, "id": "b"}).encode()
    assert client.post(f"{album}/items", content=line, headers=ndjson).status == 200
    assert client.get(f"{album}/items/b/thumbnail").content == small


@pytest.mark.parametrize(
    ("thumbnail", "told"),
    [
        ("aGk", "Incorrect padding"),
        (b"hi", "it is no JPEG"),
        (encoded(np.zeros((9, 9, 3), np.uint8)), "it is no JPEG"),
        (encoded(np.zeros((9, 257, 3), np.uint8), "JPEG"), "it has 257 by 9 pixels"),
        (encoded(photos()["coffee"][:99, :99], "JPEG")[:-999], "it is truncated"),
        (encoded(np.zeros((9, 9, 3), np.uint8), "JPEG") + b"\0" * 196_608, "bytes"),
    ],
)
def test_what_is_no_thumbnail_is_refused(
    client: LocalClient, album: str, thumbnail: bytes | str, told: str
) -> None:
    text = thumbnail if isinstance(thumbnail, str) else b64encode(thumbnail).decode()
    items = [{"id": "a", "vector": [1.0] * 16}, {"id": "b", "vector": [1.0] * 16, "thumbnail": text}]
    answer = client.post(f"{album}/items", json_body={"items": items})
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (422, "invalid_item", "items[1]")
    assert (
        "a thumbnail is base64 of a JPEG of at most 256 by 256 pixels and 196608 bytes; " in error["message"]
    )
    assert told in error["message"]
    assert client.get(f"{album}/items/a").status == 404, "all of them or none"


def test_one_goes_with_a_vector_into_a_collection_that_keeps_it(client: LocalClient, album: str) -> None:
    small = b64encode(encoded(np.zeros((9, 9, 3), np.uint8), "JPEG")).decode()
    asked = {"items": [{"text": "a cup", "thumbnail": small}]}
    answer = client.post(f"{album}/items", json_body=asked)
    assert answer.status == 422
    assert "a thumbnail stands beside a vector" in answer.json()["error"]["message"]
    with client.collection(dimensions=2) as path:
        items = [{"vector": [1.0, 0.0]}, {"vector": [0.0, 1.0], "thumbnail": small}]
        error = client.post(f"{path}/items", json_body={"items": items}).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_item", "items[1]")
    assert "keeps no thumbnails" in error["message"]
