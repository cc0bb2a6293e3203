"""Sightline: a real server, started as the tests start it, and a collection of raw vectors."""

import time
from base64 import b64encode
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import requests

from benchmarks.vector_peers.client import http_request
from benchmarks.vector_peers.dataset import Dataset, Floats, K
from benchmarks.vector_peers.system import POLL_S, Context, HttpSystem, Setting
from tests import server

COLLECTION = "/v1/collections/items"
BUILD_TIMEOUT_S = 3600
CALL_TIMEOUT_S = 300
SETTLED_S = 6.5
"""Ready for so long: five seconds after the last write smaller segments may join the largest."""
# Search parameters of each kind to try, as fields of the search request; {} is what Sightline chose itself.
EF_SEARCH: list[Setting] = [{}, *({"effort": ef} for ef in (16, 24, 32, 48, 64, 96, 128))]
NPROBE: list[Setting] = [{}, *({"effort": nprobe} for nprobe in (4, 8, 11, 16, 22, 32, 45, 64))]
SETTINGS = {"hnsw": EF_SEARCH, "auto": EF_SEARCH, "ivf": NPROBE, "ivf-pq": NPROBE}


class Sightline(HttpSystem):
    """The whole application with its starter encoder, as `sightline serve` runs it."""

    name = "sightline"
    durability = "SQLite, synchronous=FULL: fsync before every answer"

    def __init__(self, context: Context, kind: str) -> None:
        super().__init__(context)
        self.label = f"{self.name} {kind}"
        self.version = Path("serve_app/__init__.py").read_text().split('"')[-2]
        self._kind = kind
        self._server: server.Server | None = None
        self._running = ExitStack()

    def start(self) -> None:
        settings = {"data_dir": str(self.directory / "data"), "clip": {"source": "starter"}}
        self._server = self._running.enter_context(server.running(settings, env=self.mark))
        self.port = urlsplit(self._server.url).port or 0

    def stop(self) -> None:
        self._running.close()
        self._server = None

    def load(self, data: Dataset) -> None:
        spec = {"dimensions": data.dimensions, "kind": self._kind, "indexed_keys": ["category"]}
        self._call("PUT", "", spec)
        self.send_items(data, f"{COLLECTION}/items")

    def build(self, data: Dataset) -> None:
        self._wait_until_built(data.count)

    def settings(self, data: Dataset) -> list[Setting]:
        return SETTINGS.get(self._kind, [{}])

    def search_request(self, query: Floats, setting: Setting, category: str | None) -> bytes:
        body: dict[str, object] = {"vector": query, "limit": K, **setting}
        if category is not None:
            body["filter"] = {"must": [{"key": "category", "match": {"value": category}}]}
        encoded = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        return http_request("POST", f"{COLLECTION}/search", encoded)

    @staticmethod
    def found(body: bytes) -> list[int]:
        return [int(hit["id"]) for hit in orjson.loads(body)["results"]]

    @staticmethod
    def upsert_request(path: str, ids: range, vectors: Floats, categories: Sequence[str]) -> bytes:
        items = [
            {
                "id": str(id),
                "vector": b64encode(vector.tobytes()).decode(),
                "metadata": {"category": category},
            }
            for id, vector, category in zip(ids, vectors, categories, strict=True)
        ]
        return http_request("POST", path, orjson.dumps({"items": items}))

    def details(self) -> dict[str, Any]:
        info = self._call("GET", "", None)
        return {
            name: info[name]
            for name in ("kind", "actual_kind", "effort", "recall", "segments", "bytes_in_memory")
        }

    def _wait_until_built(self, count: int) -> None:
        """Until the collection holds every item and nothing is left to do in the background."""
        deadline = time.monotonic() + BUILD_TIMEOUT_S
        ready_since = time.monotonic()
        while time.monotonic() < deadline:
            info = self._call("GET", "", None)
            if info["state"] != "ready" or info["count"] != count:
                ready_since = time.monotonic()
            elif (settling_s := time.monotonic() - ready_since) > SETTLED_S:
                self.settling_s = settling_s
                return
            time.sleep(POLL_S)
        raise RuntimeError(f"the index was not built within {BUILD_TIMEOUT_S} s: {info}")

    def _call(self, method: str, path: str, body: object) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}{COLLECTION}{path}"
        answer = requests.request(method, url, json=body, timeout=CALL_TIMEOUT_S)
        if not answer.ok:
            raise RuntimeError(f"{method} {url}: {answer.status_code} {answer.text[:2000]}")
        result: dict[str, Any] = answer.json()
        return result
