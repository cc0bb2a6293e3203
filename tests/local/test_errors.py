"""Every row of the error table, each with a message that says what was wrong."""

import base64
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image

from tests.local.client import Answer, LocalClient, error_of
from tests.photos import data_uri, encoded, jpeg
from tests.waiting import wait_until

JSON = {"content-type": "application/json"}
TRUNCATED = jpeg("chelsea")[:5000]
NESTED: dict[str, Any] = {}
for _ in range(100):
    NESTED = {"a": [NESTED]}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b'{"input": ["a"', None, "invalid_json"),
        (b"", None, "invalid_json"),
        (b"\xff\xfe", None, "invalid_json"),
        (b'{"input": ["ok", {"image": "@@@"}]}', "input[1]", "invalid_base64"),
        (b'{"input": "data:image/png;base64,@"}', "input[0]", "invalid_base64"),
        (b'{"input": "data:image/png,abc"}', "input[0]", "invalid_data_uri"),
    ],
)
def test_400_the_body_is_not_what_it_says(
    client: LocalClient, body: bytes, param: str | None, code: str
) -> None:
    error = error_of(client.post("/v1/embeddings", content=body, headers=JSON), 400, code)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nowhere", "unknown_route"),
        ("GET", "/v1/models/nope", "model_not_found"),
        ("GET", "/v1/collections/nope", "collection_not_found"),
        ("DELETE", "/v1/collections/nope", "collection_not_found"),
        ("GET", "/v1/collections/nope/items", "collection_not_found"),
        ("GET", "/v1/collections/nope/items/x", "collection_not_found"),
    ],
)
def test_404_what_is_not_there(client: LocalClient, method: str, path: str, code: str) -> None:
    assert error_of(client.request(method, path), 404, code)["type"] == "not_found_error"


def test_404_an_unknown_model_lists_those_there_are(client: LocalClient) -> None:
    answer = client.post("/v1/embeddings", json_body={"model": "nope", "input": "a"})
    error = error_of(answer, 404, "model_not_found")
    assert error["param"] == "model"
    assert "clip" in error["message"]
    assert "news" in error["message"]


def test_405_says_which_method(client: LocalClient) -> None:
    error = error_of(client.get("/v1/embeddings"), 405, "method_not_allowed")
    assert "POST" in error["message"]


def test_409_other_settings_and_other_models(client: LocalClient) -> None:
    assert client.put("/v1/collections/mine", json_body={"dimensions": 3}).status == 200
    assert client.put("/v1/collections/mine", json_body={"dimensions": 3}).status == 200
    error_of(client.put("/v1/collections/mine", json_body={"dimensions": 4}), 409, "collection_exists")
    text = {"items": [{"id": "a", "text": "a cat"}]}
    error = error_of(client.post("/v1/collections/mine/items", json_body=text), 409, "model_mismatch")
    assert error["type"] == "conflict_error"
    error_of(client.post("/v1/collections/mine/search", json_body={"text": "a"}), 409, "model_mismatch")


def test_413_too_much(client: LocalClient) -> None:
    big = client.post(
        "/v1/embeddings", content=b"x" * (1024 * 1024 + 1), headers={"content-type": "image/png"}
    )
    assert "1048576 bytes" in error_of(big, 413, "body_too_large")["message"]
    undeclared = client.post(
        "/v1/embeddings",
        content=b"x" * (1024 * 1024 + 1),
        headers={"content-type": "image/png", "content-length": ""},
    )
    error_of(undeclared, 413, "body_too_large")
    texts = client.post("/v1/embeddings", json_body={"input": ["a"] * 33})
    assert "at most 32" in error_of(texts, 413, "too_many_items")["message"]
    images = client.post("/v1/embeddings", json_body={"input": [{"image": "AAAA"}] * 5})
    assert "at most 4" in error_of(images, 413, "too_many_items")["message"]
    text = client.post("/v1/embeddings", json_body={"input": ["a", "b" * 1001]})
    assert error_of(text, 413, "text_too_long")["param"] == "input[1]"
    pixels = data_uri(encoded(Image.new("1", (1001, 1000)), "PNG"), "image/png")
    error = error_of(client.post("/v1/embeddings", json_body={"input": ["a", pixels]}), 413, "too_large")
    assert error["param"] == "input[1]"
    assert "1000000" in error["message"]
    queries = {"queries": [{"vector": [1.0] * 16}] * 33}
    answer = client.post("/v1/collections/x/search", json_body=queries)
    assert error_of(answer, 413, "too_many_items")["param"] == "queries"
    results = {"queries": [{"vector": [1.0] * 16}] * 20, "limit": 9000}
    error_of(client.post("/v1/collections/x/search", json_body=results), 413, "too_many_results")
    long_label = {"model": "clip", "input": "a", "labels": ["b", "c" * 1001]}
    assert (
        error_of(client.post("/v1/classify", json_body=long_label), 413, "text_too_long")["param"]
        == "labels[1]"
    )
    labels = {"model": "clip", "input": "a", "labels": list("abcdefghi")}
    error_of(client.post("/v1/classify", json_body=labels), 413, "too_many_labels")


def test_413_labels_that_come_back_with_every_input(client: LocalClient) -> None:
    labels = [letter + "x" * 900 for letter in "abcdefgh"]
    asked: dict[str, Any] = {"model": "clip", "input": ["a"] * 32, "labels": labels}
    answer = client.post("/v1/classify", json_body=asked)
    assert answer.status == 200
    assert 200_000 < len(answer.content) < 256 * 1024
    grouped = [{"text": "a", "group": str(i)} for i in range(32)]
    error = error_of(
        client.post("/v1/classify", json_body=asked | {"input": grouped, "aggregate": "group"}),
        413,
        "too_many_results",
    )
    assert "it may have 262144; give top_k" in error["message"]
    two = asked | {"input": grouped[:2], "aggregate": "group"}
    assert client.post("/v1/classify", json_body=two).status == 200


def test_413_an_answer_of_too_many_bytes(client: LocalClient) -> None:
    client.put("/v1/collections/wordy", json_body={"dimensions": 2})
    items = [{"id": str(i), "vector": [1, i], "metadata": {"text": "x" * 30_000}} for i in range(4)]
    assert client.post("/v1/collections/wordy/items", json_body={"items": items}).status == 200
    search: dict[str, Any] = {"queries": [{"vector": [1, 0]}] * 30, "limit": 50}
    error = error_of(client.post("/v1/collections/wordy/search", json_body=search), 413, "too_many_results")
    assert "more than 262144 bytes" in error["message"]
    bare = client.post("/v1/collections/wordy/search", json_body=search | {"include": []}).json()["results"]
    assert [len(hits) for hits in bare] == [4] * 30


@contextmanager
def nothing_left_to_hold(client: LocalClient) -> Iterator[None]:
    """While slow uploads hold all that requests may."""
    headers = {"content-type": "image/png"}
    uploads = [
        client.submit("POST", "/v1/embeddings", content=b"x" * 1_048_576, headers=headers, stalls=True)
        for _ in range(8)
    ]

    def load() -> float:
        return float(client.get("/v1/models").json()["data"][0]["stats"]["queue_fraction"])

    try:
        wait_until(lambda: load() >= 1, what="uploads that hold everything", shown=load)
        yield
    finally:
        for upload in uploads:
            upload.cancel()
        wait_until(lambda: load() < 1, what="the uploads' end", shown=load)


def test_429_bodies_that_are_held_are_bounded_together(client: LocalClient) -> None:
    def send() -> Answer:
        return client.post("/v1/embeddings", content=b"x" * 900_000, headers={"content-type": "image/png"})

    with nothing_left_to_hold(client):
        error_of(send(), 429, "overloaded")
    error_of(send(), 422, "invalid_input")  # no image, but read


def test_small_requests_are_let_in_whatever_others_hold(client: LocalClient) -> None:
    with nothing_left_to_hold(client):
        assert client.post("/v1/embeddings", json_body={"input": "a cat"}).status == 200
        photo = client.post("/v1/embeddings", content=jpeg("coffee"), headers={"content-type": "image/jpeg"})
        assert photo.status == 200


def test_400_a_form_in_a_charset_that_takes_long_to_decode(client: LocalClient) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n%s\r\n--x--\r\n' % (b"a" * 500_000)
    headers = {"content-type": "multipart/form-data; boundary=x; charset=punycode"}
    began = time.process_time()
    error = error_of(client.post("/v1/embeddings", content=part, headers=headers), 400, "invalid_multipart")
    assert "'punycode' is not read; accepted are utf-8" in error["message"]
    assert time.process_time() - began < 10  # it would take half a minute


def test_unknown_keys_by_the_ten_thousand_make_one_message(client: LocalClient) -> None:
    for path, body in (
        ("/v1/embeddings", {"input": [{f"k{i}": 0 for i in range(50_000)}]}),
        ("/v1/collections/x/search", {"text": "a"} | {f"k{i}": 0 for i in range(50_000)}),
    ):
        error = error_of(client.post(path, json_body=body), 422, "invalid_request")
        assert len(error["message"]) < 500
        assert error["param"] in ("input[0].text", "k0")


def test_422_token_ids_are_not_taken(client: LocalClient) -> None:
    for tokens, param in (([1, 2, 3], "input[0]"), ([[1, 2], [3]], "input[0]")):
        error = error_of(client.post("/v1/embeddings", json_body={"input": tokens}), 422, "invalid_request")
        assert error["param"] == param
        assert '{"text": …} or {"image": …}; token ids are not taken' in error["message"]


def test_null_means_left_out_where_other_servers_have_clients(client: LocalClient) -> None:
    asked: dict[str, Any] = {
        "input": "a",
        "encoding_format": None,
        "dimensions": None,
        "user": None,
        "model": None,
    }
    assert client.post("/v1/embeddings", json_body=asked).status == 200
    asked = {"model": "clip", "input": "a", "labels": ["b"], "raw_scores": None, "top_k": None}
    assert client.post("/v1/classify", json_body=asked).status == 200


def test_a_single_query_is_named_by_its_kind(client: LocalClient) -> None:
    client.put("/v1/collections/single", json_body={})
    bad = base64.b64encode(TRUNCATED).decode()
    for query, param in (
        ({"image": "!!!"}, "image"),
        ({"image": bad}, "image"),
        ({"text": "a\0b"}, "text"),
        ({"text": "a" * 1001}, "text"),
    ):
        answer = client.post("/v1/collections/single/search", json_body=query)
        assert answer.json()["error"]["param"] == param
    raw = client.put(
        "/v1/collections/single/items/a", content=TRUNCATED, headers={"content-type": "image/jpeg"}
    )
    assert error_of(raw, 422, "invalid_input")["param"] is None


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/classify", "/v1/rerank", "/v1/collections/x/search"])
def test_415_a_content_type_that_is_not_supported(client: LocalClient, path: str) -> None:
    answer = client.post(path, content=b"<a/>", headers={"content-type": "application/xml"})
    error = error_of(answer, 415, "unsupported_media_type")
    assert "application/xml" in error["message"]
    assert "application/json" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", [], None),
        ("/v1/embeddings", {"input": 3}, "input"),
        ("/v1/embeddings", {"input": ["a", 3]}, "input[1]"),
        ("/v1/embeddings", {"input": [{"text": "a", "image": "b"}]}, "input[0].image"),
        ("/v1/embeddings", {"input": "a", "modality": "sound"}, "modality"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "dimensions": 7}, "dimensions"),
        ("/v1/embeddings", {"input": [{"image": "AA"}], "modality": "text"}, "input[0]"),
        ("/v1/embeddings", {"input": [{"image": "https://example.com/a.jpg"}]}, "input[0]"),
        ("/v1/embeddings", {"input": "a", "model": "news"}, "model"),
        ("/v1/classify", {"model": "clip", "input": "a"}, "labels"),
        ("/v1/classify", {"model": "clip", "input": "a", "labels": []}, "labels"),
        ("/v1/classify", {"model": "clip", "input": "a", "labels": [""]}, "labels[0]"),
        ("/v1/classify", {"model": "news", "input": "a", "labels": ["b"]}, "labels"),
        ("/v1/classify", {"model": "news", "input": [{"image": "AAAA"}]}, "input[0]"),
        ("/v1/classify", {"model": "news", "input": "a", "top_k": 0}, "top_k"),
        (
            "/v1/classify",
            {"model": "clip", "input": "a", "labels": ["b"], "template": "{label}{label}"},
            None,
        ),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": True}, "top_n"),
        ("/v1/collections/x/items", {"items": []}, "items"),
        ("/v1/collections/x/items", {"items": [{"id": "a"}]}, "items[0]"),
        ("/v1/collections/x/items", {"items": [{"text": "a", "vector": [1]}]}, "items[0]"),
        ("/v1/collections/x/items", {"items": [{"text": "a", "colour": "red"}]}, "items[0].colour"),
        ("/v1/collections/x/search", {}, None),
        ("/v1/collections/x/search", {"text": "a", "vector": [1]}, None),
        ("/v1/collections/x/search", {"text": "a", "limit": 0}, "limit"),
        ("/v1/collections/x/search", {"text": "a", "limit": 10_001}, "limit"),
        ("/v1/collections/x/search", {"text": "a", "limit": True}, "limit"),
        ("/v1/collections/x/search", {"vector": [True, "1.5"]}, "vector"),
        ("/v1/collections/x/search", {"vector": [1], "filter": NESTED}, "filter"),
        ("/v1/collections/x/delete", {"filter": NESTED}, "filter"),
        ("/v1/collections/x/items", {"items": [{"text": "a", "metadata": NESTED}]}, "items[0].metadata"),
        ("/v1/collections/x/delete", {}, None),
    ],
)
def test_422_json_that_does_not_validate(
    client: LocalClient, path: str, body: Any, param: str | None
) -> None:
    answer = client.post(path, json_body=body)
    assert answer.status == 422, answer.content
    assert answer.json()["error"]["param"] == param, answer.content


@pytest.mark.parametrize(
    "image", [TRUNCATED, b"not an image", b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 50]
)
def test_422_an_image_that_cannot_be_decoded(client: LocalClient, image: bytes) -> None:
    raw = client.post("/v1/embeddings", content=image, headers={"content-type": "image/jpeg"})
    error_of(raw, 422, "invalid_input")
    listed = client.post(
        "/v1/embeddings", json_body={"input": ["a", data_uri(jpeg("coffee")), data_uri(image)]}
    )
    assert error_of(listed, 422, "invalid_input")["param"] == "input[2]"


def test_422_text_no_tokenizer_takes(client: LocalClient) -> None:
    nul = {"input": ["fine", "bad \0 character"]}
    assert error_of(client.post("/v1/embeddings", json_body=nul), 422, "invalid_input")["param"] == "input[1]"
    label = {"model": "clip", "input": "a", "labels": ["cat", "d\0g"]}
    assert (
        error_of(client.post("/v1/classify", json_body=label), 422, "invalid_input")["param"] == "labels[1]"
    )


def test_400_a_lone_surrogate_is_not_json(client: LocalClient) -> None:
    body = b'{"input": ["fine", "bad \\ud800 surrogate"]}'
    error_of(client.post("/v1/embeddings", content=body, headers=JSON), 400, "invalid_json")


@pytest.mark.parametrize(
    ("vector", "metadata"),
    [([1.0], {}), ([1.0, 2.0, 3.0, 4.0], {}), ([0.0, 0.0, 0.0], {}), ([1e39, 0.0, 0.0], {})],
)
def test_422_a_vector_the_collection_cannot_hold(
    client: LocalClient, vector: list[float], metadata: dict[str, Any]
) -> None:
    client.put("/v1/collections/threes", json_body={"dimensions": 3})
    items = {"items": [{"id": "ok", "vector": [1, 2, 3]}, {"id": "bad", "vector": vector}]}
    error = error_of(client.post("/v1/collections/threes/items", json_body=items), 422, "invalid_vector")
    assert error["param"] == "items[1].vector"
    assert client.get("/v1/collections/threes/items/ok").status == 404  # all or nothing


def test_422_nan_is_not_json(client: LocalClient) -> None:
    client.put("/v1/collections/threes", json_body={"dimensions": 3})
    body = b'{"items": [{"id": "a", "vector": [NaN, 1, 2]}]}'
    answer = client.post("/v1/collections/threes/items", content=body, headers=JSON)
    error_of(answer, 400, "invalid_json")


@pytest.mark.parametrize("name", ["Upper", "a b", "x" * 65, "ü"])
def test_422_a_collection_name_out_of_its_alphabet(client: LocalClient, name: str) -> None:
    assert client.put(f"/v1/collections/{name}", json_body={"dimensions": 3}).status == 422


def test_a_million_mistakes_make_one_message(client: LocalClient) -> None:
    body = b'{"input": [' + b",".join([b"1"] * 400_000) + b"]}"
    error = error_of(client.post("/v1/embeddings", content=body, headers=JSON), 422, "invalid_request")
    assert error["param"] == "input[0]"
    assert len(error["message"]) < 1000


def test_a_sentence_that_begins_like_a_data_uri_is_a_sentence(client: LocalClient) -> None:
    assert client.post("/v1/embeddings", json_body={"input": "Data: the new oil"}).status == 200


def test_503_a_model_without_weights_says_why(client: LocalClient) -> None:
    answer = client.post("/v1/classify", json_body={"model": "absent", "input": "a"})
    error = error_of(answer, 503, "model_unavailable")
    assert "absent" in error["message"]
    assert error["type"] == "unavailable_error"


def test_a_bad_item_of_a_batch_is_named_by_its_place_in_the_request(client: LocalClient) -> None:
    bad = base64.b64encode(TRUNCATED).decode()
    client.put("/v1/collections/places", json_body={})
    items = [{"vector": [1.0] * 16}, {"text": "a"}, {"vector": [1.0] * 16}, {"image": bad}]
    answer = client.post("/v1/collections/places/items", json_body={"items": items})
    assert error_of(answer, 422, "invalid_input")["param"] == "items[3]"
    queries = [{"vector": [1.0] * 16}, {"image": bad}]
    answer = client.post("/v1/collections/places/search", json_body={"queries": queries})
    assert error_of(answer, 422, "invalid_input")["param"] == "queries[1]"
    documents = ["a", {"image": bad}]
    answer = client.post("/v1/rerank", json_body={"query": "b", "documents": documents})
    assert error_of(answer, 422, "invalid_input")["param"] == "documents[1]"
    answer = client.post("/v1/rerank", json_body={"query": {"image": bad}, "documents": ["a", "b"]})
    assert error_of(answer, 422, "invalid_input")["param"] == "query"
    labels = {"model": "clip", "input": [{"text": "a"}, {"image": bad}], "labels": ["b"]}
    answer = client.post("/v1/classify", json_body=labels)
    assert error_of(answer, 422, "invalid_input")["param"] == "input[1]"
