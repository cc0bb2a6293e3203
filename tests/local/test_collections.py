"""Collections and items through the whole application, with a tiny CLIP."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.load.summary import stages
from tests.local.client import LocalClient
from tests.photos import data_uri, jpeg


@pytest.fixture
def raw(client: LocalClient) -> Iterator[str]:
    """The path of a fresh collection of three dimensions with four items."""
    items = [
        {"id": "x", "vector": [1, 0, 0], "metadata": {"colour": "red", "size": {"w": 1}}},
        {"id": "y", "vector": [0, 1, 0], "metadata": {"colour": "blue", "size": {"w": 2}}},
        {"id": "z", "vector": [0, 0, 1], "metadata": {"colour": "red", "size": {"w": 3}}},
        {"id": "xy/1", "vector": [1, 1, 0]},
    ]
    with client.collection(dimensions=3) as path:
        assert client.post(f"{path}/items", json_body={"items": items}).json()["upserted"] == 4
        yield path


@pytest.fixture
def photos(client: LocalClient) -> Iterator[str]:
    """The path of a fresh collection of the encoder's with three photos."""
    names = ("chelsea", "coffee", "rocket")
    items = [{"id": n, "image": data_uri(jpeg(n)), "metadata": {"name": n}} for n in names]
    with client.collection(model="clip") as path:
        assert client.post(f"{path}/items", json_body={"items": items}).status == 200
        yield path


def ids(answer: Any) -> list[str]:
    assert answer.status == 200, answer.content
    return [hit["id"] for hit in answer.json()["results"]]


def test_a_collection_is_made_listed_and_dropped(client: LocalClient) -> None:
    assert client.put("/v1/collections/short-lived", json_body={}).status == 200
    shown = client.get("/v1/collections/short-lived").json()
    assert (shown["count"], shown["dimensions"], shown["model"], shown["metric"]) == (0, 16, "clip", "cosine")
    assert len(shown["fingerprint"]) == 64
    listed = client.get("/v1/collections").json()
    assert "short-lived" in [c["name"] for c in listed["data"]]
    assert client.delete("/v1/collections/short-lived").status == 200
    assert client.get("/v1/collections/short-lived").status == 404


def test_search_by_vector_with_scores(client: LocalClient, raw: str) -> None:
    answer = client.post(f"{raw}/search", json_body={"vector": [1, 0.1, 0], "limit": 2})
    assert ids(answer) == ["x", "xy/1"]
    first = answer.json()["results"][0]
    assert first["score"] == pytest.approx(1 / (1.01**0.5), abs=1e-5)
    assert first["metadata"] == {"colour": "red", "size": {"w": 1}}
    assert "vector" not in first
    assert stages(answer.headers["server-timing"].encode())["index"] > 0


def test_search_can_include_vectors_or_nothing(client: LocalClient, raw: str) -> None:
    asked = {"vector": [1, 0, 0], "limit": 1}
    with_vector = client.post(f"{raw}/search", json_body={**asked, "include": ["vector"]}).json()["results"][
        0
    ]
    assert (with_vector["vector"], "metadata" in with_vector) == ([1, 0, 0], False)
    bare = client.post(f"{raw}/search", json_body={**asked, "include": []}).json()["results"][0]
    assert set(bare) == {"id", "score"}


def test_search_with_a_filter_is_exact_about_it(client: LocalClient, raw: str) -> None:
    red = {"must": [{"key": "colour", "match": {"value": "red"}}]}
    assert ids(client.post(f"{raw}/search", json_body={"vector": [0, 1, 0], "filter": red})) in (
        ["x", "z"],
        ["z", "x"],
    )
    wide = {"must": [{"key": "size.w", "range": {"gte": 3}}]}
    assert ids(client.post(f"{raw}/search", json_body={"vector": [0, 1, 0], "filter": wide})) == ["z"]
    bad = client.post(f"{raw}/search", json_body={"vector": [0, 1, 0], "filter": {"most": []}})
    assert (bad.status, bad.json()["error"]["code"]) == (422, "invalid_filter")


def test_indexed_keys_are_shown_kept_and_answer_filters(client: LocalClient) -> None:
    path = "/v1/collections/keyed"
    made = client.put(path, json_body={"dimensions": 1, "indexed_keys": ["size.w", "colour", "colour"]})
    assert made.json()["indexed_keys"] == ["colour", "size.w"]
    items = [{"id": str(n), "vector": [1], "metadata": {"size": {"w": n}, "n": n}} for n in range(6)]
    client.post(f"{path}/items", json_body={"items": items})
    same = client.put(path, json_body={"dimensions": 1, "indexed_keys": ["colour", "size.w"]})
    assert (same.status, same.json()["count"]) == (200, 6)
    wide = {"must": [{"key": "size.w", "range": {"gte": 3}}, {"key": "n", "match": {"any": [1, 3, 5]}}]}
    found = ids(client.post(f"{path}/search", json_body={"vector": [1], "filter": wide}))
    assert sorted(found) == ["3", "5"]
    assert client.post(f"{path}/delete", json_body={"filter": wide}).json() == {"deleted": 2}
    other = client.put(path, json_body={"dimensions": 1, "indexed_keys": ["colour"]})
    assert (other.status, "indexed_keys" in other.json()["error"]["message"]) == (409, True)
    client.delete(path)


@pytest.mark.parametrize("keys", ["colour", [""], ["a\0b"], ["k" * 513], [1], [f"k{n}" for n in range(17)]])
def test_keys_that_cannot_be_indexed(client: LocalClient, keys: object) -> None:
    answer = client.put("/v1/collections/wrong", json_body={"dimensions": 1, "indexed_keys": keys})
    assert (answer.status, answer.json()["error"]["param"].split("[")[0]) == (422, "indexed_keys")


def test_search_by_id_leaves_the_item_itself_out(client: LocalClient, raw: str) -> None:
    assert ids(client.post(f"{raw}/search", json_body={"id": "x", "limit": 1})) == ["xy/1"]
    listed = client.post(f"{raw}/search", json_body={"queries": [{"id": "x"}, {"id": "nope"}]})
    assert (listed.status, listed.json()["error"]["param"]) == (404, "queries[1]")
    missing = client.post(f"{raw}/search", json_body={"id": "nope"})
    assert (missing.status, missing.json()["error"]["code"]) == (404, "item_not_found")


def test_several_queries_give_several_lists(client: LocalClient, raw: str) -> None:
    queries = [{"vector": [0, 0, 1]}, {"id": "x"}, {"vector": [0, 1, 0]}]
    results = client.post(f"{raw}/search", json_body={"queries": queries, "limit": 1}).json()["results"]
    assert [[hit["id"] for hit in hits] for hits in results] == [["z"], ["xy/1"], ["y"]]


def test_a_photo_is_found_by_itself_and_by_text(client: LocalClient, photos: str) -> None:
    by_image = client.post(f"{photos}/search", json_body={"image": data_uri(jpeg("coffee")), "limit": 1})
    assert ids(by_image) == ["coffee"]
    assert by_image.json()["results"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert len(ids(client.post(f"{photos}/search", json_body={"text": "a cat"}))) == 3


def test_an_upsert_replaces(client: LocalClient, raw: str) -> None:
    item = {"id": "x", "vector": [0, 0, -1], "metadata": {"colour": "green"}}
    client.post(f"{raw}/items", json_body={"items": [item]})
    assert client.get(raw).json()["count"] == 4
    assert ids(client.post(f"{raw}/search", json_body={"vector": [0, 0, -1], "limit": 1})) == ["x"]
    assert client.get(f"{raw}/items/x").json()["metadata"] == {"colour": "green"}


def test_an_id_given_twice_is_stored_once(client: LocalClient, raw: str) -> None:
    items = [{"id": "twin", "vector": [1, 2, 3]}, {"id": "twin", "vector": [3, 2, 1]}]
    answer = client.post(f"{raw}/items", json_body={"items": items}).json()
    assert answer == {"upserted": 1, "ids": ["twin"]}
    assert client.get(f"{raw}/items/twin", params={"include": "vector"}).json()["vector"][0] > 0.7


def test_an_id_left_out_is_made_from_the_content(client: LocalClient, photos: str) -> None:
    items = {"items": [{"text": "a poem"}, {"image": data_uri(jpeg("coffee"))}]}
    first = client.post(f"{photos}/items", json_body=items).json()
    assert first["upserted"] == 2
    assert client.post(f"{photos}/items", json_body=items).json()["ids"] == first["ids"]
    assert client.get(photos).json()["count"] == 5


def test_a_raw_image_body_is_stored_under_its_id(client: LocalClient, photos: str) -> None:
    headers = {"content-type": "image/jpeg", "x-metadata": json.dumps({"from": "header"})}
    assert client.put(f"{photos}/items/a/b", content=jpeg("flower"), headers=headers).status == 200
    shown = client.get(f"{photos}/items/a/b", params={"include": "vector"}).json()
    assert (shown["id"], shown["metadata"], len(shown["vector"])) == ("a/b", {"from": "header"}, 16)
    query = client.put(
        f"{photos}/items/c",
        content=jpeg("flower"),
        headers={"content-type": "image/jpeg"},
        params={"metadata": '{"from": "query"}'},
    )
    assert query.status == 200
    assert client.get(f"{photos}/items/c").json()["metadata"] == {"from": "query"}
    accents = json.dumps({"t": "été"}, ensure_ascii=False).encode().decode("latin-1")
    client.put(f"{photos}/items/e", content=jpeg("flower"), headers={**headers, "x-metadata": accents})
    assert client.get(f"{photos}/items/e").json()["metadata"] == {"t": "été"}
    broken = client.put(f"{photos}/items/d", content=b"x", headers={**headers, "x-metadata": "{"})
    assert broken.status == 400


def test_pages_reach_everything_once(client: LocalClient, raw: str) -> None:
    seen: list[str] = []
    cursor: int | None = None
    while True:
        params = {"limit": "3"} | ({"cursor": str(cursor)} if cursor is not None else {})
        page = client.get(f"{raw}/items", params=params).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert sorted(seen) == ["x", "xy/1", "y", "z"]


def test_deleting_by_id_by_ids_and_by_filter(client: LocalClient, raw: str) -> None:
    assert client.delete(f"{raw}/items/xy/1").status == 200
    assert client.delete(f"{raw}/items/xy/1").status == 404
    assert client.post(f"{raw}/delete", json_body={"ids": ["y", "nope"]}).json() == {"deleted": 1}
    red = {"must": [{"key": "colour", "match": {"value": "red"}}]}
    assert client.post(f"{raw}/delete", json_body={"filter": red}).json() == {"deleted": 2}
    assert ids(client.post(f"{raw}/search", json_body={"vector": [1, 0, 0]})) == []


@pytest.mark.parametrize("id", ["x" * 512, "ünï çødé/日本", "a b?c#d"])
def test_unusual_ids(client: LocalClient, raw: str, id: str) -> None:
    assert client.post(f"{raw}/items", json_body={"items": [{"id": id, "vector": [1, 2, 3]}]}).status == 200
    assert ids(client.post(f"{raw}/search", json_body={"vector": [1, 2, 3], "limit": 1})) == [id]


@pytest.mark.parametrize("id", ["", "x" * 513])
def test_ids_out_of_bounds(client: LocalClient, raw: str, id: str) -> None:
    answer = client.post(f"{raw}/items", json_body={"items": [{"id": id, "vector": [1, 2, 3]}]})
    assert (answer.status, answer.json()["error"]["param"]) == (422, "items[0].id")


def test_metadata_too_large(client: LocalClient, raw: str) -> None:
    item = {"id": "big", "vector": [1, 2, 3], "metadata": {"text": "x" * 65_537}}
    answer = client.post(f"{raw}/items", json_body={"items": [item]})
    assert (answer.status, answer.json()["error"]["code"]) == (422, "invalid_item")
    assert answer.json()["error"]["param"] == "items[0]"


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivf-pq", "sq8", "flat-fp16"])
def test_every_kind_can_be_asked_for_and_says_what_answers_now(client: LocalClient, kind: str) -> None:
    path = f"/v1/collections/kind-{kind}"
    assert client.put(path, json_body={"dimensions": 3, "kind": kind}).status == 200
    shown = client.get(path).json()
    assert (shown["kind"], shown["actual_kind"], shown["state"], shown["recall"]) == (
        kind,
        "flat",
        "ready",
        None,
    )
    assert client.put(path, json_body={"dimensions": 3, "kind": "auto"}).status == 409
    client.delete(path)
    refused = client.put(path, json_body={"dimensions": 3, "kind": "lsh"})
    assert refused.status == 422
    assert "hnsw" in refused.json()["error"]["message"]


def test_a_collection_is_evaluated(client: LocalClient, raw: str) -> None:
    found = client.post(f"{raw}/evaluate", json_body={"queries": 3, "k": 2}).json()
    assert (found["count"], found["queries"], found["k"], found["knob"]) == (4, 3, 2, None)
    assert found["now"]["recall"] == 1
    assert found["exact"]["p50_ms"] > 0
    empty = "/v1/collections/nothing-in-it"
    client.put(empty, json_body={"dimensions": 3})
    assert client.post(f"{empty}/evaluate", json_body={}).status == 422
    assert client.post(f"{raw}/evaluate", json_body={"k": 1000}).status == 422
    assert client.post(f"{raw}/search", json_body={"vector": [1, 0, 0], "effort": 64}).status == 200
    assert client.post(f"{raw}/search", json_body={"vector": [1, 0, 0], "effort": 0}).status == 422
