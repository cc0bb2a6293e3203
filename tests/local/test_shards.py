"""An index of three shards answers as one of a single shard does."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.settings import SettingsError
from index.shards import shard_of
from serve_app.app import build_app
from tests.local.client import Answer, LocalClient
from tests.waiting import PATIENCE_S

DIMENSIONS = 8
ITEMS = 300
SHARDS = 3
_names = count()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def sharded_args(app_args: dict[str, Any], data: Path) -> dict[str, Any]:
    index = {"shards": SHARDS, "shard_timeout_s": PATIENCE_S}
    return {**app_args, "data_dir": str(data), "classifiers": {}, "index": index}


@pytest.fixture(scope="module")
def sharded(sharded_args: dict[str, Any], client: LocalClient) -> LocalClient:
    return LocalClient.serving(build_app(sharded_args), "sharded")


@pytest.fixture
def both(client: LocalClient, sharded: LocalClient) -> Iterator["Both"]:
    """The same new collection on one shard and on three, filled with the same random items."""
    both = Both(client, sharded, f"/v1/collections/both-{next(_names)}")
    both.same("PUT", "", {"dimensions": DIMENSIONS, "metric": "l2"}, but=("created", "bytes_on_disk"))
    vectors = np.random.default_rng(7).normal(size=(ITEMS, DIMENSIONS)).round(4)
    items = [
        {"id": f"item/{n}", "vector": vector.tolist(), "metadata": {"n": n, "tag": f"t{n % 5}"}}
        for n, vector in enumerate(vectors)
    ]
    both.same("POST", "/items", {"items": items})
    yield both
    both.same("DELETE", "")


class Both:
    """Sends every request to both applications and compares their answers."""

    def __init__(self, one: LocalClient, several: LocalClient, path: str) -> None:
        self.one, self.several, self.path = one, several, path

    def same(self, method: str, path: str, body: Any = None, but: tuple[str, ...] = ()) -> Answer:
        one, several = (
            client.request(method, self.path + path, json_body=body) for client in (self.one, self.several)
        )
        assert one.status == several.status, (one.content, several.content)
        if but:
            assert all(one.json()[key] == several.json()[key] for key in one.json() if key not in but)
        else:
            assert one.json() == several.json()
        return several


def test_each_shard_is_a_dependency_with_its_own_files(sharded: LocalClient, both: Both, data: Path) -> None:
    ready = sharded.get("/health/ready")
    assert ready.status == 200
    shown = {name: state for name, state in ready.json()["dependencies"].items() if "index" in name}
    assert shown == {"index-0": "ready", "index-1": "ready", "index-2": "ready"}
    name = both.path.rpartition("/")[2]
    for shard in range(SHARDS):
        assert (data / "index" / f"shard-{shard}-of-{SHARDS}" / name / "items.db").is_file()


@pytest.mark.parametrize("asked", [{}, {"exact": True}, {"include": ["vector"]}, {"include": []}])
def test_searches_find_the_same(both: Both, asked: dict[str, Any]) -> None:
    queries = np.random.default_rng(8).normal(size=(20, DIMENSIONS))
    vectors = [{"vector": query.tolist()} for query in queries]
    stored = [{"id": f"item/{n}"} for n in range(0, ITEMS, 30)]
    for limit in (1, 7, ITEMS + 5):
        both.same("POST", "/search", {"queries": vectors + stored, "limit": limit, **asked})
    one_of_five = {"must": [{"key": "tag", "match": {"value": "t3"}}]}
    found = both.same("POST", "/search", {**stored[1], "limit": 9, "filter": one_of_five, **asked})
    assert len(found.json()["results"]) == 9
    assert set(found.json()) == {"results"}


def test_items_are_read_replaced_and_deleted_where_they_are(both: Both) -> None:
    for n in (0, 1, 2, ITEMS - 1):
        both.same("GET", f"/items/item/{n}?include=vector")
    items = [{"id": f"item/{n}", "vector": [n] * DIMENSIONS} for n in (5, 6, 7, 5)]
    both.same("POST", "/items", {"items": items})
    both.same("POST", "/search", {"vector": [6] * DIMENSIONS, "limit": 3})
    both.same("DELETE", "/items/item/5")
    both.same("DELETE", "/items/item/5")
    both.same("POST", "/delete", {"ids": ["item/6", "item/8", "item/9", "nobody", "item/9"]})
    both.same("POST", "/delete", {"ids": []})
    both.same("POST", "/delete", {"filter": {"must": [{"key": "n", "range": {"gte": 200}}]}})
    both.same("POST", "/search", {"vector": [0] * DIMENSIONS, "limit": ITEMS})
    info = both.same("GET", "", but=("created", "tombstones", "bytes_on_disk", "bytes_in_memory"))
    assert info.json()["count"] == 200 - 4


def test_pages_of_any_size_reach_everything_once(both: Both, sharded: LocalClient) -> None:
    for limit in (1, 7, 100, ITEMS, ITEMS + 1):
        seen: list[str] = []
        parameters = {"limit": str(limit)}
        while True:
            page = sharded.get(f"{both.path}/items", params=parameters).json()
            seen += [item["id"] for item in page["items"]]
            if page["cursor"] is None:
                break
            assert len(page["items"]) == limit
            parameters["cursor"] = str(page["cursor"])
        assert sorted(seen) == sorted(f"item/{n}" for n in range(ITEMS))


BAD_ITEMS = {
    "vector": {"id": "bad", "vector": [1.0]},
    "number": {"id": "bad", "vector": [1e300] * DIMENSIONS},
    "metadata": {"id": "bad", "vector": [1] * DIMENSIONS, "metadata": {"x": "x" * 70_000}},
    "id": {"id": "x" * 513, "vector": [1] * DIMENSIONS},
    "model": {"id": "bad", "text": "a cat"},
}


@pytest.mark.parametrize("bad", BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_a_bad_item_keeps_every_shard_from_writing(both: Both, bad: dict[str, Any]) -> None:
    good = [{"id": f"new/{n}", "vector": [n] * DIMENSIONS} for n in range(20)]
    assert {shard_of(item["id"], SHARDS) for item in good} == set(range(SHARDS))  # type: ignore[arg-type]
    answer = both.same("POST", "/items", {"items": [*good[:15], bad, *good[15:]]})
    assert answer.status in (409, 422)
    both.same("GET", "/items/new/3")
    assert both.same("GET", "", but=("created", "bytes_on_disk", "bytes_in_memory")).json()["count"] == ITEMS


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/search", {"vector": [1, 2]}),
        ("POST", "/search", {"queries": [{"id": "item/1"}, {"id": "nobody"}, {"id": "no"}]}),
        ("POST", "/search", {"vector": [1] * DIMENSIONS, "filter": {"most": []}}),
        ("POST", "/search", {"text": "a cat"}),
        ("POST", "/delete", {"filter": {}}),
        ("POST", "/delete", {"filter": {"must": [{"key": "n"}]}}),
        ("POST", "/delete", {"ids": ["item/1", ""]}),
        ("GET", "/items/nobody", None),
        ("PUT", "", {"dimensions": DIMENSIONS + 1, "metric": "l2"}),
    ],
)
def test_a_mistake_gets_the_same_answer(both: Both, method: str, path: str, body: Any) -> None:
    assert both.same(method, path, body).status in (404, 409, 422)
    both.same("GET", "/items/item/1")


def test_what_is_not_there_is_not_found(client: LocalClient, sharded: LocalClient) -> None:
    nowhere = Both(client, sharded, "/v1/collections/nowhere")
    for method, path, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("GET", "/items", None),
        ("GET", "/items/a", None),
        ("DELETE", "/items/a", None),
        ("POST", "/delete", {"ids": ["a", "b", "c", "d"]}),
        ("POST", "/delete", {"ids": []}),
        ("POST", "/delete", {"filter": {"must": [{"key": "n", "match": {"value": 1}}]}}),
        ("POST", "/search", {"vector": [1], "partial": True}),
        ("POST", "/items", {"items": [{"id": id, "vector": [1]} for id in "abcd"]}),
    ):
        assert nowhere.same(method, path, body).json()["error"]["code"] == "collection_not_found"


def test_another_number_of_shards_is_refused_in_one_sentence(
    sharded_args: dict[str, Any], both: Both
) -> None:
    with pytest.raises(SettingsError, match=r"holds an index of 3 shards.*set index.shards=3"):
        build_app({**sharded_args, "index": {"shards": 2}})


def test_photos_go_in_and_are_found(sharded: LocalClient) -> None:
    path = "/v1/collections/clip-shards"
    assert sharded.put(path, json_body={"model": "clip"}).status == 200
    items = [{"text": f"poem {n}"} for n in range(12)]
    stored = sharded.post(f"{path}/items", json_body={"items": items}).json()["ids"]
    found = sharded.post(f"{path}/search", json_body={"text": "poem 7", "limit": 1})
    assert found.json()["results"][0]["id"] == stored[7]
    assert float(found.headers["server-timing"].split("index;dur=")[1].split(",")[0]) > 0
    listed = {c["name"]: c for c in sharded.get("/v1/collections").json()["data"]}
    assert listed["clip-shards"]["count"] == 12
