"""Snapshots asked for over HTTP, by one shard and by three, and new servers filled from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.app import build_app
from serve_app.cli import main
from tests.local.client import LocalClient

DIMENSIONS = 8
COLLECTION = "/v1/collections/kept"
QUERIES = [{"vector": q.tolist()} for q in np.random.default_rng(1).normal(size=(10, DIMENSIONS))]

Start = Callable[..., LocalClient]


@pytest.fixture
def start(app_args: dict[str, Any], client: LocalClient, tmp_path: Path) -> Start:
    """Starts a server with these index settings; its data lie in the directory of its name."""
    assert client.get("/health/ready").status == 200  # two encoders cannot be converted at once

    def start(name: str, **index: Any) -> LocalClient:
        app = build_app({**app_args, "data_dir": str(tmp_path / name), "classifiers": {}, "index": index})
        return LocalClient.serving(app, name)

    return start


def fill(client: LocalClient) -> None:
    client.put(COLLECTION, json_body={"dimensions": DIMENSIONS})
    vectors = np.random.default_rng(2).normal(size=(100, DIMENSIONS)).tolist()
    items = [{"id": f"item/{n}", "vector": v, "metadata": {"n": n}} for n, v in enumerate(vectors)]
    assert client.post(f"{COLLECTION}/items", json_body={"items": items}).status == 200
    assert client.post(f"{COLLECTION}/delete", json_body={"ids": ["item/3", "item/4"]}).status == 200


def contents(client: LocalClient) -> tuple[Any, Any]:
    items = client.get(f"{COLLECTION}/items", params={"limit": "1000"}).json()["items"]
    found = client.post(f"{COLLECTION}/search", json_body={"queries": QUERIES, "limit": 20}).json()["results"]
    assert (len(items), len(found)) == (98, len(QUERIES))
    return items, found


@pytest.mark.parametrize("shards", [1, 3])
def test_a_new_server_goes_on_from_a_snapshot_in_s3(start: Start, bucket: str, shards: int) -> None:
    place = "s3://bucket/sightline"
    client = start(f"source-{shards}", shards=shards, snapshot_locations=[f"{place}?{bucket}"])
    fill(client)
    to = f"{place}/of-{shards}"
    answer = client.post(f"{COLLECTION}/snapshot", json_body={"to": to})
    assert answer.status == 200, answer.content
    made = answer.json()
    assert (made["collection"], made["to"], made["shards"], made["files"]) == ("kept", to, shards, shards)
    assert made["bytes"] > 98 * 4 * DIMENSIONS
    new = start(f"new-{shards}", shards=shards, restore_from=f"{to}?{bucket}")
    assert contents(new) == contents(client)
    again = client.post(f"{COLLECTION}/snapshot", json_body={"to": f"of-{shards}"})
    assert (again.status, again.json()["error"]["code"]) == (409, "snapshot_exists")


@pytest.mark.parametrize("shards", [1, 3])
def test_a_snapshot_goes_below_the_data_directory_and_is_restored_on_the_command_line(
    start: Start, tmp_path: Path, shards: int, capsys: pytest.CaptureFixture[str]
) -> None:
    client = start("source", shards=shards)
    fill(client)
    assert client.post(f"{COLLECTION}/snapshot", json_body={"to": "monday"}).status == 200
    snapshots = str(tmp_path / "source" / "snapshots" / "monday")
    assert main(["restore", snapshots, str(tmp_path / "new")]) == 0
    assert f"restored kept; serve them with index.shards={shards}" in capsys.readouterr().out
    assert contents(start("new", shards=shards, restore_from=str(tmp_path / "nowhere"))) == contents(client)
    assert main(["restore", snapshots, str(tmp_path / "new")]) == 2
    assert "was used before" in capsys.readouterr().err
    assert main(["restore", str(tmp_path / "nowhere"), str(tmp_path / "other")]) == 2
    assert "holds no snapshot" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["/etc", "../x", "a/../../x", "file:///tmp/x", "s3://elsewhere/x", ".", ""])
def test_a_snapshot_anywhere_else_is_refused(client: LocalClient, to: str) -> None:
    client.put(COLLECTION, json_body={"dimensions": DIMENSIONS})
    answer = client.post(f"{COLLECTION}/snapshot", json_body={"to": to})
    assert answer.status == 422
    if to:
        assert answer.json()["error"]["code"] == "invalid_location"
        assert "/snapshots (index.snapshot_locations)" in answer.json()["error"]["message"]


def test_what_is_not_there_cannot_be_copied(client: LocalClient) -> None:
    answer = client.post("/v1/collections/nowhere/snapshot", json_body={"to": "x"})
    assert (answer.status, answer.json()["error"]["code"]) == (404, "collection_not_found")


def test_a_bucket_that_is_not_there_gets_503(start: Start, bucket: str) -> None:
    client = start("no-bucket", snapshot_locations=[f"s3://nowhere?{bucket}"])
    fill(client)
    answer = client.post(f"{COLLECTION}/snapshot", json_body={"to": "s3://nowhere/x"})
    assert (answer.status, answer.json()["error"]["code"]) == (503, "index_unavailable")
    assert "NO_SUCH_BUCKET" in answer.json()["error"]["message"]
    assert len(contents(client)) == 2
