"""Chroma: its own server, `chroma run`, with its HNSW index and defaults."""

import base64
import subprocess
from collections.abc import Sequence
from importlib.metadata import version as installed_version

import orjson
import requests

from benchmarks import processes
from benchmarks.vector_peers.client import ANSWER_TIMEOUT_S, Measured, http_request
from benchmarks.vector_peers.dataset import Dataset, Floats, K
from benchmarks.vector_peers.system import Context, HttpSystem, Ids, Setting, wait_until
from tests.server import free_port, stop

COLLECTIONS = "/api/v2/tenants/default_tenant/databases/default_database/collections"
EF_SEARCH = (10, 16, 24, 32, 48, 64, 100, 150, 200, 300, 500)


class Chroma(HttpSystem):
    """The server reads a changed ef_search when it opens the collection, so a new setting restarts it."""

    name = "chroma"
    durability = "SQLite, journal_mode=delete: fsync before every answer"
    setting_takes_restart = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.version = context.client.call(installed_version, "chromadb")
        self._process: subprocess.Popen[bytes] | None = None
        self._collection = ""
        self._setting: Setting = {}

    def start(self) -> None:
        self.port = free_port()
        log = self.directory / "server.log"
        command = [self.context.peers_python.parent / "chroma", "run", "--path", self.directory / "data"]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*map(str, command), "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=self.directory,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=processes.environment(self.mark, ANONYMIZED_TELEMETRY="False"),
            )
        wait_until(self._answers, self._process, log)

    def stop(self) -> None:
        if self._process:
            stop(self._process)
            self._process = None

    def load(self, data: Dataset) -> None:
        made = self._call(
            "POST", COLLECTIONS, {"name": "items", "configuration": {"hnsw": {"space": "cosine"}}}
        )
        self._collection = f"{COLLECTIONS}/{made['id']}"
        self.send_items(data, f"{self._collection}/add")

    def build(self, data: Dataset) -> None:
        """The first search brings the index up to the log's end and waits for that."""
        query = {"query_embeddings": [data.vectors()[-1].tolist()], "n_results": 1, "include": []}
        found = self._call("POST", f"{self._collection}/query", query)["ids"][0]
        if found != [str(data.count - 1)]:
            raise RuntimeError(f"the last item that was stored is not found; got {found}")

    def settings(self, data: Dataset) -> list[Setting]:
        return [{"ef_search": value} for value in EF_SEARCH]

    def search(
        self,
        queries: Floats,
        setting: Setting,
        category: str | None,
        clients: int,
        window: tuple[float, float] | None,
    ) -> tuple[Measured, Ids]:
        self._apply(setting)
        return super().search(queries, setting, category, clients, window)

    def _apply(self, setting: Setting) -> None:
        if setting != self._setting:
            self._call("PUT", self._collection, {"new_configuration": {"hnsw": setting}})
            self.stop()
            self.start()
            self._setting = setting

    def search_request(self, query: Floats, setting: Setting, category: str | None) -> bytes:
        body: dict[str, object] = {
            "query_embeddings": [query],
            "n_results": K,
            "include": ["metadatas", "distances"],
        }
        if category is not None:
            body["where"] = {"category": category}
        encoded = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        return http_request("POST", f"{self._collection}/query", encoded)

    @staticmethod
    def found(body: bytes) -> list[int]:
        return [int(id) for id in orjson.loads(body)["ids"][0]]

    @staticmethod
    def upsert_request(path: str, ids: range, vectors: Floats, categories: Sequence[str]) -> bytes:
        """Vectors in base64, as Chroma's own client sends them."""
        body = {
            "ids": [str(id) for id in ids],
            "embeddings": [base64.b64encode(vector.tobytes()).decode() for vector in vectors],
            "metadatas": [{"category": category} for category in categories],
        }
        return http_request("POST", path, orjson.dumps(body))

    def _answers(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/api/v2/heartbeat", timeout=5).ok
        except requests.RequestException:
            return False

    def _call(self, method: str, path: str, body: object) -> dict[str, list[list[str]]]:
        answer = requests.request(
            method, f"http://127.0.0.1:{self.port}{path}", json=body, timeout=ANSWER_TIMEOUT_S
        )
        if not answer.ok:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:2000]}")
        result: dict[str, list[list[str]]] = answer.json()
        return result
