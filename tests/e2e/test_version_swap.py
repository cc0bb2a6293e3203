"""A classifier's version changed by `serve deploy` while requests keep coming: none fails."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.assets import clip_directory, distilbert_directory
from tests.server import LOOPBACK, PATIENT, Server, environment, free_port, running
from tests.waiting import PATIENCE_S

REQUESTS_PER_S = 20
MOST_PENDING = 64  # or a slow machine would work on what has piled up for minutes

# A cluster with the dashboard, which `serve deploy` talks to, and the application deployed on it.
CLUSTER = """
import ray, signal, subprocess, sys
ray.init(address="local", namespace="serve", include_dashboard=True, dashboard_host="127.0.0.1",
         dashboard_port=%d, runtime_env=%r)
subprocess.run([sys.executable, "-m", "ray.serve.scripts", "deploy", "CONFIG", "-a", %r], check=True)
try:
    signal.pause()
finally:
    ray.shutdown()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models") / "news"
    distilbert_directory(root / "1", labels=("world", "sport"), seed=1)
    distilbert_directory(root / "2", labels=("world", "sport"), seed=2)
    return root


def test_a_swap_under_load_fails_no_request(model: Path, tmp_path: Path) -> None:
    port = free_port()
    dashboard = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", CLUSTER % (port, LOOPBACK, dashboard)]
    news = {"source": str(model), "precision": "fp32", "versions": {"version": "1"}}
    clip = {"source": str(clip_directory(tmp_path / "clip")), "precision": "fp32"}
    with running({**PATIENT, "clip": clip, "classifiers": {"news": news}}, command) as server:
        outcomes = Outcomes()
        with ThreadPoolExecutor(32) as clients, outcomes.load(server, clients):
            outcomes.wait_for(lambda seen: len(seen) >= 2 * REQUESTS_PER_S)
            deploy(server, dashboard, {"version": "2"})
            outcomes.wait_for(lambda seen: seen[-1] == (200, "2"))
            deploy(server, dashboard, {"version": "1", "candidate": "2", "candidate_percent": 50})
            outcomes.wait_for(lambda seen: {(200, "1"), (200, "2")} <= set(seen[-20:]))
        assert {status for status, _ in outcomes.seen} == {200}
        assert outcomes.seen[0] == (200, "1")
        notes = server.get("/v1/models/news").json()["notes"]
        assert any("candidate version 2" in note for note in notes)


def deploy(server: Server, dashboard: str, user_config: dict[str, Any]) -> None:
    """What a user does: change `user_config` in the file and run `serve deploy`."""
    config = server.directory / "serve_config.yaml"
    document = yaml.safe_load(config.read_text())
    deployments = [{"name": "TextClassifier-news", "user_config": user_config}]
    document["applications"][0]["deployments"] = deployments
    config.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(config), "-a", dashboard]
    subprocess.run(
        command, check=True, env=environment(server.directory), capture_output=True, timeout=PATIENCE_S
    )


class Outcomes:
    """The status and version of every answer, in the order they arrived."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str | None]] = []
        self._arrived = threading.Condition()
        self._room = threading.Semaphore(MOST_PENDING)

    def load(self, server: Server, clients: ThreadPoolExecutor) -> "_Load":
        def ask() -> None:
            if self._room.acquire(blocking=False):
                clients.submit(self._ask, server)

        return _Load(ask)

    def wait_for(self, condition: Any) -> None:
        with self._arrived:
            assert self._arrived.wait_for(lambda: self.seen and condition(self.seen), PATIENCE_S)

    def _ask(self, server: Server) -> None:
        body = {"model": "news", "input": "the match was won"}
        try:
            answer = requests.post(f"{server.url}/v1/classify", json=body, timeout=PATIENCE_S)
            outcome = (answer.status_code, answer.json().get("version"))
        except requests.RequestException:
            outcome = (0, None)
        with self._arrived:
            self.seen.append(outcome)
            self._arrived.notify_all()
        self._room.release()


class _Load:
    """Sends at a steady rate, while fewer than MOST_PENDING wait for their answers, until the block ends."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._over.is_set():
            self._send()
            due += 1 / REQUESTS_PER_S
            self._over.wait(max(0.0, due - time.monotonic()))
