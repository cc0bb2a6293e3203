"""Streams of items and of vectors into a collection, in every way they can end."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deployments.errors import NotReady, Overloaded
from serve_app import upserts
from serve_app.fetch import ImageFetcher
from serve_app.limits import hold
from serve_app.routes import bulk
from tests.local.client import LocalClient, error_of
from tests.photos import data_uri, encoded, jpeg

LINES = {"content-type": "application/x-ndjson"}
ARRAY = {"content-type": "application/x-npy"}


@pytest.fixture
def raw(client: LocalClient) -> Iterator[str]:
    """The path of a fresh collection of three dimensions."""
    with client.collection(dimensions=3) as path:
        yield path


@pytest.fixture
def photos(client: LocalClient) -> Iterator[str]:
    with client.collection() as path:
        yield path


def base64_of(vector: list[float]) -> str:
    return base64.b64encode(np.array(vector, "<f4").tobytes()).decode()


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def ndjson(*items: Any) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def test_a_vector_may_be_base64_wherever_one_is_taken(client: LocalClient, raw: str) -> None:
    items = [{"id": "a", "vector": base64_of([3, 4, 0])}, {"id": "b", "vector": [0, 0, 1]}]
    assert client.post(f"{raw}/items", json_body={"items": items}).status == 200
    shown = client.get(f"{raw}/items/a", params={"include": "vector"}).json()["vector"]
    assert shown == pytest.approx([0.6, 0.8, 0])
    one = client.post(f"{raw}/search", json_body={"vector": base64_of([1, 1, 0]), "limit": 1}).json()
    assert one["results"][0]["id"] == "a"
    several = {"queries": [{"vector": base64_of([0, 0, 2])}], "limit": 1}
    assert client.post(f"{raw}/search", json_body=several).json()["results"][0][0]["id"] == "b"


@pytest.mark.parametrize(
    ("vector", "told"),
    [
        ([1, "2", 3], "element 1 is a string"),
        ([1, 2, True], "element 2 is a boolean"),
        ([1, None, 3], "element 1 is null"),
        ([[1], 2, 3], "element 0 is a list"),
        ({"x": 1}, "got an object"),
        (7, "got a number"),
        ("AAAA", "3 bytes"),
        ("no base64!", "broken base64"),
    ],
)
def test_422_what_is_no_vector_says_where_and_what_is_accepted(
    client: LocalClient, raw: str, vector: Any, told: str
) -> None:
    items = {"items": [{"vector": [1, 2, 3]}, {"vector": vector}]}
    error = error_of(client.post(f"{raw}/items", json_body=items), 422, "invalid_request")
    assert error["param"] == "items[1].vector"
    assert told in error["message"]
    assert "list of finite numbers, or base64" in error["message"]


@pytest.mark.parametrize("number", [1e39, 10**30 * 10**30, float("nan"), float("inf")])
def test_422_a_number_that_float32_cannot_hold(client: LocalClient, raw: str, number: float) -> None:
    # JSON has no NaN; base64 has.
    finite = abs(number) < float("inf")
    items = [{"vector": [1, 2, 3]}, {"vector": [number, 2, 3] if finite else base64_of([number, 2, 3])}]
    error = error_of(client.post(f"{raw}/items", json_body={"items": items}), 422, "invalid_vector")
    assert error["param"] == "items[1].vector"


def test_lines_of_any_length_are_stored_in_batches(
    client: LocalClient, raw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BATCH_ITEMS", 7)
    items = [{"id": f"i{i}", "vector": [1, i, 0], "metadata": {"pad": "x" * 10_000}} for i in range(150)]
    body = ndjson(*items)
    assert len(body) > 1024 * 1024, "longer than one request's body may be here"
    answer = client.post(f"{raw}/items", content=body.replace(b"\n", b"\r\n\n"), headers=LINES)
    assert answer.status == 200, answer.content
    assert answer.json() == {"upserted": 150, "ids": [item["id"] for item in items]}
    assert client.get(raw).json()["count"] == 150
    assert client.get(f"{raw}/items/i149").json()["metadata"]["pad"] == "x" * 10_000


def test_lines_may_hold_texts_and_images_more_than_one_request_may(client: LocalClient, photos: str) -> None:
    uri = data_uri(jpeg("coffee"))
    items = [
        *({"id": f"t{i}", "text": f"number {i}"} for i in range(40)),
        *({"id": f"i{i}", "image": uri} for i in range(6)),
    ]
    answer = client.post(f"{photos}/items", content=ndjson(*items), headers=LINES)
    assert answer.status == 200, answer.content
    assert client.get(photos).json()["count"] == 46
    found = client.post(f"{photos}/search", json_body={"text": "number 31", "limit": 1}).json()["results"]
    assert found[0]["id"] == "t31"


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b'{"id": "x", "vector": [1, 2', "invalid_line", "line 10"),
        (b'["x"]', "invalid_request", "line 10"),
        (b'{"id": "x", "vector": [1, 2, "3"]}', "invalid_request", "line 10.vector"),
        (b'{"id": "x", "vector": [1, 2]}', "invalid_vector", "line 10.vector"),
        (b'{"id": "x", "text": "a", "vector": [1, 2, 3]}', "invalid_request", "line 10"),
        (b'{"id": "", "vector": [1, 2, 3]}', "invalid_request", "line 10.id"),
        (b'{"id": "x", "image": "AAAA"}', "invalid_input", "line 10"),
    ],
)
def test_422_a_bad_line_is_named_and_what_was_stored_before_it_stays(
    client: LocalClient, raw: str, monkeypatch: pytest.MonkeyPatch, bad: bytes, code: str, param: str
) -> None:
    monkeypatch.setattr(bulk, "BATCH_ITEMS", 4)
    good = [{"id": f"i{i}", "vector": [1, i, 0]} for i in range(9)]
    body = ndjson(*good) + bad + b"\n" + ndjson({"id": "after", "vector": [1, 2, 3]})
    error = error_of(client.post(f"{raw}/items", content=body, headers=LINES), 422, code)
    assert error["param"] == param
    assert error["message"].startswith("line 10: ")
    assert "The 8 items up to line 8 are stored" in error["message"]
    assert "send again from line 9" in error["message"]
    assert client.get(raw).json()["count"] == 8


def test_422_a_first_bad_line_stores_nothing(client: LocalClient, raw: str) -> None:
    error = error_of(client.post(f"{raw}/items", content=b"{}\n", headers=LINES), 422, "invalid_request")
    assert error["message"].endswith("Nothing was stored.")


def test_413_a_line_longer_than_a_body_may_be(client: LocalClient, raw: str) -> None:
    body = ndjson({"id": "a", "vector": [1, 2, 3]}) + b'{"id":"' + b"x" * (1024 * 1024)
    error = error_of(client.post(f"{raw}/items", content=body, headers=LINES), 413, "line_too_long")
    assert error["param"] == "line 2"


def test_408_a_stream_that_stalls_keeps_what_it_has_stored(
    client: LocalClient, raw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = bulk._Stream.add

    def added(stream: bulk._Stream, *args: Any, **kwargs: Any) -> None:
        stream._timeout_s = 0.1  # from the first batch on; the rest never comes
        add(stream, *args, **kwargs)

    monkeypatch.setattr(bulk._Stream, "add", added)
    monkeypatch.setattr(bulk, "BATCH_ITEMS", 2)
    body = ndjson(*({"id": f"i{i}", "vector": [1, i, 0]} for i in range(3)))
    pending = client.submit("POST", f"{raw}/items", content=body, headers=LINES, stalls=True)
    error = error_of(pending.result(), 408, "timeout")
    assert "The 2 items up to line 2 are stored" in error["message"]
    assert client.get(raw).json()["count"] == 2


@pytest.mark.parametrize("lost_at", [0, 1])
def test_503_a_stream_says_when_a_batch_may_be_stored(
    client: LocalClient, raw: str, lost_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, batches = upserts.write, count()

    async def told_too_late(*arguments: Any) -> list[str]:
        ids = await write(*arguments)
        if next(batches) == lost_at:
            raise NotReady("the index does not answer")
        return ids

    monkeypatch.setattr(upserts, "write", told_too_late)
    monkeypatch.setattr(bulk, "BATCH_ITEMS", 2)
    body = ndjson(*({"id": f"i{i}", "vector": [1, i, 0]} for i in range(6)))
    error = error_of(client.post(f"{raw}/items", content=body, headers=LINES), 503, "not_ready")
    told = [
        "Perhaps the first batch is stored: send everything again.",
        "The 2 items up to line 2 are stored and perhaps the next batch too: send again from line 3.",
    ]
    assert error["message"].endswith(told[lost_at])
    assert client.get(raw).json()["count"] == 2 * (lost_at + 1)


def test_429_does_not_end_a_stream_it_waits_its_turn(
    client: LocalClient, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = 0
    store = upserts.store

    async def overloaded_at_first(*arguments: Any) -> list[str]:
        nonlocal given_up
        if not given_up:
            given_up += 1
            raise Overloaded("too much to do")
        return await store(*arguments)

    read, reads = upserts.read, count()

    async def counted(*arguments: Any) -> Any:
        next(reads)
        return await read(*arguments)

    monkeypatch.setattr(upserts, "store", overloaded_at_first)
    monkeypatch.setattr(upserts, "read", counted)
    answer = client.post(f"{photos}/items", content=ndjson({"id": "a", "text": "a cat"}), headers=LINES)
    assert (answer.status, answer.json()["ids"], given_up) == (200, ["a"], 1)
    assert next(reads) == 1  # what was fetched is not fetched again


def test_a_stream_whose_images_are_too_much_at_once_takes_fewer(
    client: LocalClient, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetch(_: ImageFetcher, url: str, param: str) -> bytes:
        image = encoded(np.full((900, 900, 3), int(url[-1]), np.uint8), "BMP")  # 2.3 MiB; 8 may be held
        hold(len(image))
        return image

    monkeypatch.setattr(ImageFetcher, "fetch", fetch)
    items = [{"id": f"i{n}", "image": f"https://example.org/{n}"} for n in range(4)]
    other = client.submit(
        "POST", "/v1/embeddings", content=b"x" * 1_000_000, headers={"content-type": "image/png"}, stalls=True
    )
    try:
        answer = client.post(f"{photos}/items", content=ndjson(*items), headers=LINES)
    finally:
        other.cancel()
    assert (answer.status, answer.json()["upserted"]) == (200, 4)
    assert client.get(photos).json()["count"] == 4


def test_an_empty_stream_stores_nothing(client: LocalClient, raw: str) -> None:
    for body in (b"", b"\n\n  \n"):
        answer = client.post(f"{raw}/items", content=body, headers=LINES)
        assert (answer.status, answer.json()) == (200, {"upserted": 0, "ids": []})


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_an_array_is_stored_a_vector_for_each_row(client: LocalClient, raw: str, dtype: str) -> None:
    array = np.array([[3, 4, 0], [0, 0, 2], [1, 1, 1]], dtype)
    sent = client.post(f"{raw}/items", content=npy(array), headers=ARRAY, params={"id_prefix": "row/"})
    assert sent.json() == {"upserted": 3, "ids": ["row/0", "row/1", "row/2"]}
    shown = client.get(f"{raw}/items/row/0", params={"include": "vector"}).json()["vector"]
    assert shown == pytest.approx([0.6, 0.8, 0])


def test_rows_without_a_prefix_are_named_by_their_content(client: LocalClient, raw: str) -> None:
    array = np.eye(3, dtype=np.float32)
    first = client.post(f"{raw}/items", content=npy(array), headers=ARRAY).json()
    assert first["upserted"] == 3
    again = client.post(f"{raw}/items", json_body={"items": [{"vector": [1, 0, 0]}]}).json()
    assert again["ids"] == first["ids"][:1], "the same content has the same id however it is sent"
    assert client.get(raw).json()["count"] == 3


def test_many_rows_are_counted_and_not_listed(client: LocalClient, raw: str) -> None:
    array = np.random.default_rng(0).standard_normal((1200, 3)).astype(np.float32)
    sent = client.post(f"{raw}/items", content=npy(array), headers=ARRAY, params={"id_prefix": "r"})
    assert sent.json() == {"upserted": 1200, "ids": None}
    assert client.get(raw).json()["count"] == 1200


def fortran() -> bytes:
    return npy(np.asfortranarray(np.ones((4, 3), np.float32)))


def long_header() -> bytes:
    return b"\x93NUMPY\x01\x00" + (60_000).to_bytes(2, "little") + b" " * 60_000


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (lambda: npy(np.ones((2, 3), np.int64)), "its numbers are int64"),
        (lambda: npy(np.array([[object()] * 3], dtype=object)), "its numbers are object"),
        (lambda: npy(np.ones((2, 3), np.complex64)), "its numbers are complex64"),
        (lambda: npy(np.ones(3, np.float32)), "its shape is (3,)"),
        (lambda: npy(np.ones((1, 1, 3), np.float32)), "its shape is (1, 1, 3)"),
        (fortran, "Fortran order"),
        (lambda: b"PK\x03\x04 a zip", "no such file"),
        (lambda: b"", "no such file"),
        (long_header, "header is 60000 bytes"),
        (lambda: b"\x93NUMPY\x01\x00\x05\x00junk\n", "header cannot be read"),
        (lambda: npy(np.ones((2, 4), np.float32)), "rows are 4 numbers"),
    ],
)
def test_422_an_array_of_another_kind(
    client: LocalClient, raw: str, body: Callable[[], bytes], told: str
) -> None:
    error = error_of(client.post(f"{raw}/items", content=body(), headers=ARRAY), 422, "invalid_array")
    assert told in error["message"]
    assert client.get(raw).json()["count"] == 0


def test_422_an_array_that_ends_early_or_late_or_holds_nan(
    client: LocalClient, raw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BATCH_ITEMS", 2)
    array = np.arange(1, 16, dtype=np.float32).reshape(5, 3)
    for body, row in ((npy(array)[:-4], 4), (npy(array) + b"x", 5)):
        sent = client.post(f"{raw}/items", content=body, headers=ARRAY, params={"id_prefix": "r"})
        assert error_of(sent, 422, "invalid_array")["param"] == f"row {row}"
    array[3, 1] = np.nan
    error = error_of(client.post(f"{raw}/items", content=npy(array), headers=ARRAY), 422, "invalid_vector")
    assert error["param"] == "row 3.vector"
    assert "The 2 items up to row 1 are stored" in error["message"]


def test_404_and_415_before_anything_is_read(client: LocalClient, raw: str) -> None:
    for headers in (LINES, ARRAY):
        answer = client.post("/v1/collections/nowhere/items", content=b"junk", headers=headers)
        error_of(answer, 404, "collection_not_found")
    csv = client.post(f"{raw}/items", content=b"a,b", headers={"content-type": "text/csv"})
    message = error_of(csv, 415, "unsupported_media_type")["message"]
    assert "application/x-ndjson" in message
    assert "application/x-npy" in message


def test_vectors_may_say_which_model_made_them(client: LocalClient, raw: str, photos: str) -> None:
    ours = client.get("/v1/models/clip").json()["fingerprint"]
    vectors = np.eye(2, 16, dtype=np.float32)
    items = [{"id": "a", "vector": vectors[0].tolist()}]
    for fingerprint, status in ((ours, 200), ("0" * 64, 409)):
        body = {"items": items, "fingerprint": fingerprint}
        answers = [
            client.post(f"{photos}/items", json_body=body),
            client.post(f"{photos}/items?fingerprint={fingerprint}", content=ndjson(*items), headers=LINES),
            client.post(f"{photos}/items?fingerprint={fingerprint}", content=npy(vectors), headers=ARRAY),
        ]
        assert [answer.status for answer in answers] == [status] * 3
        mixed = {"items": [*items, {"text": "a cat"}], "fingerprint": fingerprint}
        assert client.post(f"{photos}/items", json_body=mixed).status == status
    error_of(
        client.post(f"{raw}/items", json_body={"items": [{"vector": [1, 2, 3]}], "fingerprint": ours}),
        409,
        "model_mismatch",
    )
    short = {"items": items, "fingerprint": "abc"}
    assert client.post(f"{photos}/items", json_body=short).json()["error"]["param"] == "fingerprint"


def test_which_ids_are_missing(client: LocalClient, raw: str) -> None:
    ids = [f"i{i}" for i in range(1200)]
    items = [{"id": id, "vector": [1, 2, 3]} for id in ids[::2]]
    assert client.post(f"{raw}/items", content=ndjson(*items), headers=LINES).status == 200
    assert client.post(f"{raw}/missing", json_body={"ids": ids}).json() == {"missing": ids[1::2]}
    assert client.post(f"{raw}/missing", json_body={"ids": []}).json() == {"missing": []}
    many = client.post(f"{raw}/missing", json_body={"ids": ["a"] * 10_001})
    assert (many.status, many.json()["error"]["param"]) == (422, "ids")
    assert client.post("/v1/collections/nowhere/missing", json_body={"ids": ["a"]}).status == 404


@pytest.mark.parametrize(
    "header", ["(", "1L+(", "if\n  x\n y", "{1:2,'a':3}", "{[]:1}", "-" * 4000 + "1", "{'descr':()}"]
)
def test_422_a_header_that_is_no_header(client: LocalClient, raw: str, header: str) -> None:
    text = header.encode()
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    error_of(client.post(f"{raw}/items", content=content, headers=ARRAY), 422, "invalid_array")
