"""A hub on loopback that serves model directories, the way the real one answers huggingface_hub."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.waiting import PATIENCE_S


class FakeHub:
    """`revisions` maps a model and a revision to a directory; `requests` lists the paths asked for."""

    def __init__(self) -> None:
        self.revisions: dict[tuple[str, str], Path] = {}
        self.discussions: dict[str, list[dict[str, Any]]] = {}
        self.requests: list[str] = []
        self.open = threading.Event()  # cleared, the hub accepts connections and answers nothing
        self.open.set()
        self.endpoint = ""

    def add(self, model: str, directory: Path, revision: str = "main") -> str:
        """Serve `directory`; returns its commit."""
        commit = hashlib.sha1(f"{model} {directory}".encode()).hexdigest()
        self.revisions[model, revision] = self.revisions[model, commit] = directory
        return commit

    def commit(self, model: str, revision: str) -> str:
        directory = self.revisions[model, revision]
        return hashlib.sha1(f"{model} {directory}".encode()).hexdigest()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.requests.append(path)
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        model, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        file = self.revisions.get((model, revision), Path("absent")) / name
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        data = file.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit(model, revision)}, data

    def _api(self, model: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        if rest == ["discussions"]:
            found = self.discussions.get(model, [])
            return _json({"discussions": found, "count": len(found), "start": 0})
        revision = rest[1] if rest else "main"
        directory = self.revisions.get((model, revision))
        if directory is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error":"Repository not found"}'
        files = [file for file in sorted(directory.iterdir()) if file.is_file()]
        if rest and rest[0] == "tree":
            entries = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files
            ]
            return _json(entries)
        return _json(
            {
                "id": model,
                "sha": self.commit(model, revision),
                "siblings": [{"rfilename": file.name} for file in files],
            }
        )


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def serve() -> Iterator[FakeHub]:
    """A hub that runs while the context lasts."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.open.wait(PATIENCE_S)
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.open.set()
        server.shutdown()
        server.server_close()
