"""`/v1/embeddings` through the whole application, with a tiny CLIP."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.load.summary import stages
from tests.local.client import LocalClient
from tests.photos import data_uri, encoded, jpeg, photos

DIMENSIONS = 16


def embed(client: LocalClient, **body: Any) -> np.ndarray[Any, Any]:
    answer = client.post("/v1/embeddings", json_body=body)
    assert answer.status == 200, answer.content
    return np.array([row["embedding"] for row in answer.json()["data"]], np.float32)


def test_the_answer_has_openai_s_shape(client: LocalClient) -> None:
    answer = client.post(
        "/v1/embeddings",
        json_body={"model": "clip", "input": ["a red car", "b"]},
        headers={"x-request-id": "mine"},
    )
    body = answer.json()
    assert (body["object"], body["model"], body["id"]) == ("list", "clip", "mine")
    assert [row["index"] for row in body["data"]] == [0, 1]
    assert {row["object"] for row in body["data"]} == {"embedding"}
    # CLIP's tokens: start, "a", "red", "car", end; start, "b", end.
    assert body["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    times = stages(answer.headers["server-timing"].encode())
    assert set(times) == {"queue", "preprocess", "model", "index", "parse", "calls", "answer"}
    assert times["model"] > 0
    assert times["parse"] > 0
    assert times["calls"] >= times["queue"] + times["preprocess"] + times["model"] - 0.05  # rounding


def test_vectors_are_unit_vectors_of_the_model_s_length(client: LocalClient) -> None:
    vectors = embed(client, input=["one", "two", data_uri(jpeg("chelsea"))])
    assert vectors.shape == (3, DIMENSIONS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_string_a_list_and_an_object_give_the_same(client: LocalClient) -> None:
    alone = embed(client, input="a cat")
    assert np.allclose(alone, embed(client, input=["a cat"]), atol=1e-6)
    assert np.allclose(alone, embed(client, input={"text": "a cat"}), atol=1e-6)


def test_inputs_keep_their_order_whatever_their_kind(client: LocalClient) -> None:
    photos = ["chelsea", "coffee", "rocket"]
    mixed: list[Any] = ["a", data_uri(jpeg("chelsea")), {"text": "longer text here"}]
    mixed += [{"image": base64.b64encode(jpeg("coffee")).decode()}, data_uri(jpeg("rocket")), "b"]
    together = embed(client, input=mixed)
    texts = embed(client, input=["a", "longer text here", "b"])
    images = embed(client, input=[data_uri(jpeg(name)) for name in photos])
    assert np.allclose(together[[0, 2, 5]], texts, atol=1e-5)
    assert np.allclose(together[[1, 3, 4]], images, atol=1e-5)


def test_modality_decides_what_bare_base64_is(client: LocalClient) -> None:
    bare = base64.b64encode(jpeg("chelsea")).decode()
    as_image = embed(client, input=[bare], modality="image")
    assert np.allclose(as_image, embed(client, input=[data_uri(jpeg("chelsea"))]), atol=1e-6)
    assert client.post("/v1/embeddings", json_body={"input": bare[:900]}).status == 200  # a text


@pytest.mark.parametrize(
    "content_type", ["image/jpeg", "application/x-image", "application/octet-stream", "image/png"]
)
def test_a_raw_image_body_is_one_embedding(client: LocalClient, content_type: str) -> None:
    answer = client.post("/v1/embeddings", content=jpeg("coffee"), headers={"content-type": content_type})
    assert answer.status == 200
    row = answer.json()["data"][0]["embedding"]
    assert np.allclose(row, embed(client, input=[data_uri(jpeg("coffee"))])[0], atol=1e-6)


def test_image_files_of_a_form(client: LocalClient) -> None:
    boundary = "frontier"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n".encode()
        + jpeg(name)
        + b"\r\n"
        for name in ("chelsea", "rocket")
    ]
    model = f'--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\nclip\r\n'.encode()
    answer = client.post(
        "/v1/embeddings",
        content=b"".join([*parts, model, f"--{boundary}--\r\n".encode()]),
        headers={"content-type": f"multipart/form-data; boundary={boundary}"},
    )
    assert answer.status == 200, answer.content
    rows = np.array([row["embedding"] for row in answer.json()["data"]])
    expected = embed(client, input=[data_uri(jpeg("chelsea")), data_uri(jpeg("rocket"))])
    assert np.allclose(rows, expected, atol=1e-6)


def test_base64_is_little_endian_float32(client: LocalClient) -> None:
    answer = client.post("/v1/embeddings", json_body={"input": "a cat", "encoding_format": "base64"})
    row = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), "<f4")
    assert np.array_equal(row, embed(client, input="a cat")[0])


def test_accept_gives_the_bare_array(client: LocalClient) -> None:
    body = {"input": ["a", "b"]}
    expected = embed(client, **body)
    npy = client.post("/v1/embeddings", json_body=body, headers={"accept": "application/x-npy"})
    assert np.array_equal(np.load(io.BytesIO(npy.content)), expected)
    octets = client.post("/v1/embeddings", json_body=body, headers={"accept": "application/octet-stream"})
    assert np.array_equal(np.frombuffer(octets.content, "<f4").reshape(2, -1), expected)
    assert octets.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "application/json"),
        ("application/x-npy, */*", "application/x-npy"),
        ("application/json;q=1, application/octet-stream;q=0.1", "application/json"),
        ("application/octet-stream;q=0, application/json", "application/json"),
        ("application/json;q=0.5, application/octet-stream", "application/octet-stream"),
        ("application/x-npy;q=lots", "application/json"),
    ],
)
def test_accept_is_weighed(client: LocalClient, accept: str, expected: str) -> None:
    answer = client.post("/v1/embeddings", json_body={"input": "a"}, headers={"accept": accept})
    assert answer.headers["content-type"] == expected


def test_too_many_form_files(client: LocalClient) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nabc\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    for count in (5, 6, 50):
        answer = client.post("/v1/embeddings", content=part * count + b"--x--\r\n", headers=headers)
        assert (answer.status, answer.json()["error"]["code"]) == (413, "too_many_items")
        assert "at most 4" in answer.json()["error"]["message"]


@pytest.mark.parametrize("charset", ["undefined", "punycode", "nosuch"])
def test_a_form_in_an_impossible_charset_is_the_callers_mistake(client: LocalClient, charset: str) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a\xff"\r\n\r\n\xff\r\n--x--\r\n'
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    answer = client.post("/v1/embeddings", content=part, headers=headers)
    assert answer.json()["error"]["code"] in ("invalid_multipart", "no_files")


def test_422_far_too_many_inputs_are_not_looked_at_one_by_one(client: LocalClient) -> None:
    answer = client.post("/v1/embeddings", json_body={"input": ["a"] * 100_001})
    assert answer.status == 422
    assert "100000" in answer.json()["error"]["message"]


def test_no_input_no_embeddings(client: LocalClient) -> None:
    answer = client.post("/v1/embeddings", json_body={"input": []})
    assert (answer.status, answer.json()["data"]) == (200, [])


@pytest.mark.parametrize("name", ["clip", None])
def test_the_model_answers_to_its_names(client: LocalClient, name: str | None) -> None:
    assert client.post("/v1/embeddings", json_body={"input": "a", "model": name}).status == 200


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_taken_and_means_the_same(client: LocalClient, format: str) -> None:
    small = Image.fromarray(photos()["chelsea"]).resize((128, 96))
    lossless = embed(client, input=[data_uri(encoded(small, "PNG"), "image/png")])[0]
    other = embed(client, input=[data_uri(encoded(small, format), f"image/{format.lower()}")])[0]
    assert float(lossless @ other) > 0.98
