"""Starting in every documented way, models by a settings change alone, and data that outlives a restart."""

import importlib.util
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from benchmarks.memory import processes
from serve_app import rehearsal
from tests.assets import clip_directory, distilbert_directory
from tests.photos import data_uri, jpeg
from tests.server import LOOPBACK, PATIENT, ROOT, Server, free_port, running, stop
from tests.waiting import PATIENCE_S, wait_until

KEPT = "/v1/collections/kept"
WORK_S = 3.0  # what the server is to be found at

# With an import path `serve run` listens on port 8000 and no other, unless Serve already runs.
SERVE_RUN_ON_PORT = """
import ray, sys
from ray import serve
from ray.serve.scripts import cli
ray.init(address="local", namespace="serve", include_dashboard=False, runtime_env=%r)
serve.start(http_options={"host": "127.0.0.1", "port": PORT})
cli(["run", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small CLIP and a DistilBERT of its real size, random weights."""
    root = tmp_path_factory.mktemp("models")
    return {
        "clip": clip_directory(root / "clip"),
        "news": distilbert_directory(root / "news", ("world", "sport"), tiny=False),
    }


def test_local_directories_are_served_by_a_settings_change_and_their_data_outlives_the_server(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    args = {
        **PATIENT,
        "data_dir": str(data),
        "clip": {"source": str(directories["clip"])},
        "classifiers": {"news": {"source": str(directories["news"])}},
    }
    port = free_port()
    command = [sys.executable, "-m", "serve_app.cli", "serve", "CONFIG"]
    command += ["--port", "PORT", "--metrics-port", str(port)]
    with running(args, command) as server:
        wait_for_metrics(server, port)
        models = {model["id"]: model for model in server.get("/v1/models").json()["data"]}
        assert models["clip"]["dimensions"] == 16
        assert models["news"]["labels"] == ["world", "sport"]
        row = server.post("/v1/classify", json={"model": "news", "input": "a match"}).json()["data"][0]
        assert sum(label["score"] for label in row) == pytest.approx(1, abs=1e-3)
        assert server.put(KEPT, json={}).status_code == 200
        names = ("chelsea", "coffee", "rocket")
        items = [{"id": name, "image": data_uri(jpeg(name)), "metadata": {"n": name}} for name in names]
        assert server.post(f"{KEPT}/items", json={"items": items}).status_code == 200
        before = searched(server)
        # Where one may be written when the settings name no other place.
        snapshot = server.post(f"{KEPT}/snapshot", json={"to": str(data / "snapshots")})
        assert snapshot.status_code == 200, snapshot.text
        assert importlib.util.find_spec("pandas")  # or the next line would hold without our doing
        assert not [name for name, maps in memory_maps(server).items() if "/pandas/" in maps]
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(server.post, "/v1/classify", json=long_work(server))
            wait_until_at_work(server)
            stop(server.process, signal.SIGTERM)
            assert answer.result().status_code == 200
        assert server.process.returncode == 0, server.log.read_text()
        assert "Sightline is stopping" in server.log.read_text()

    # Not Sightline's own command.
    settings = [f"clip.source={directories['clip']}", f"data_dir={data}", "cache_dir=CACHE"]
    settings += [f"{key}={value}" for key, value in PATIENT.items()]
    command = [sys.executable, "-c", SERVE_RUN_ON_PORT % LOOPBACK, "serve_app.app:build_app", *settings]
    with running({}, command) as server:
        assert server.get(KEPT).json()["count"] == len(items)
        assert server.get(f"{KEPT}/items/coffee").json()["metadata"] == {"n": "coffee"}
        assert searched(server) == before
        assert server.post("/v1/embeddings", json={"input": "a cat"}).status_code == 200
        large = server.post("/v1/embeddings", json={"input": [data_uri(jpeg("motorcycle", 100))] * 8})
        assert large.status_code == 200


def searched(server: Server) -> list[str]:
    query = {"image": data_uri(jpeg("coffee"))}
    hits = server.post(f"{KEPT}/search", json=query).json()["results"]
    assert hits[0] == {"id": "coffee", "score": pytest.approx(1, abs=1e-3), "metadata": {"n": "coffee"}}
    return [hit["id"] for hit in hits]


def memory_maps(server: Server) -> dict[str, str]:
    """What the server's processes have mapped, the files of imported packages among it."""
    found = {}
    for process in processes("RAY_TMPDIR", str(server.directory)):
        with suppress(OSError):  # it ended meanwhile
            found[f"{process.name} {process.pid}"] = Path(f"/proc/{process.pid}/maps").read_text()
    assert any("/ray/" in maps for maps in found.values())
    return found


def wait_for_metrics(server: Server, port: int) -> None:
    """Embed on a new server, and wait until Prometheus would find what that did on `port`."""
    wait_for_metric(port, "the gateway's rehearsal", lambda text: "ray_sightline_forward_ms" in text)
    for _ in range(3):
        assert server.post("/v1/embeddings", json={"input": ["a cat", "a dog"]}).status_code == 200
    hang_up(server)
    wanted = {"http_requests", "http_request_ms", "forward_ms", "embedding_cache_bytes"}
    wait_for_metric(port, f"{wanted}", lambda text: all(f"ray_sightline_{name}" in text for name in wanted))
    gone = re.compile(r'^ray_sightline_http_requests\w*{.*status="499".*} 1(\.0)?$', re.M)
    wait_for_metric(port, "the request whose caller went away to be cancelled", gone.search)
    rehearsed = 2 * rehearsal.REPEATS  # a text and an image each time
    counts = {"hit": 4, "miss": 2 + rehearsed}
    wait_for_metric(port, f"{counts} of the cache", lambda text: cache_counts(text) == counts)


def wait_for_metric(port: int, what: str, found_in: Callable[[str], object]) -> None:
    def shown() -> str:
        lines = re.findall(r"^ray_sightline.*$", metrics(port), re.M)
        return "\n".join(["", *(line for line in lines if "_bucket" not in line)])

    def found() -> object:
        return found_in(metrics(port))

    wait_until(found, what=what, despite=(requests.ConnectionError,), shown=shown, every_s=0.5)


def hang_up(server: Server) -> None:
    """Leave while the server works on what it was sent."""
    body = json.dumps(long_work(server)).encode()
    head = f"POST /v1/classify HTTP/1.1\r\nhost: local\r\ncontent-length: {len(body)}\r\n\r\n"
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + body)
        wait_until_at_work(server)


def long_work(server: Server) -> dict[str, object]:
    """What to classify takes this server about `WORK_S`: not as long as Serve lets a replica finish."""
    texts = (f"{number} " + "some words " * 60 for number in itertools.count())
    took_s = 0.0
    for _ in range(2):  # the first may be slower than any other
        began = time.perf_counter()
        tried = {"model": "news", "input": [next(texts) for _ in range(4)]}
        assert server.post("/v1/classify", json=tried).status_code == 200
        took_s = time.perf_counter() - began
    count = min(64, max(4, round(4 * WORK_S / took_s)))
    return {"model": "news", "input": [next(texts) for _ in range(count)]}


def wait_until_at_work(server: Server) -> None:
    def pending() -> int:
        return int(server.get("/v1/models").json()["data"][0]["stats"]["results_pending"])

    wait_until(pending, what="work", every_s=0.02)  # it is over in seconds


def cache_counts(text: str) -> dict[str, float]:
    """Contents looked for in the embedding cache, by result."""
    lines = re.findall(r'^ray_sightline_embedding_cache_contents\w*{.*result="(\w+)".*} (\S+)$', text, re.M)
    return {result: float(count) for result, count in lines}


def metrics(port: int) -> str:
    return requests.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S).text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "cannot be read"),
        (["serve_config.yaml", "--set", "clip"], "--set takes KEY=VALUE"),
        (["serve_config.yaml", "--set", "clip.source=[x"], "not valid YAML"),
        (["serve_config.yaml", "--set", "clip.sorce=x"], "did you mean 'source'"),
    ],
)
def test_a_command_line_mistake_is_one_sentence(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "serve_app.cli", "serve", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_setting_stops_the_start_and_names_the_known_one() -> None:
    with (
        pytest.raises(AssertionError, match=r"unknown setting 'clip.sorce'; did you mean 'source'"),
        running({"clip": {"sorce": "starter"}}),
    ):
        raise RuntimeError("the server started")
