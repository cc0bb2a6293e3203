"""A shard's replica is killed: the others go on, everybody is told, and its successor has everything."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from index.catalog import LOCK_NAME
from index.shards import shard_directory, shard_of
from tests.assets import clip_directory
from tests.server import PATIENT, SERVE_RUN, Server, replicas, running
from tests.waiting import wait_until

SHARDS, LOST = 3, 1
ANSWERS_WITHIN_S = 5  # a shard that is well, on a busy machine; one that is down is waited for so long
PATH = "/v1/collections/kept"
IDS = [f"item/{n}" for n in range(60)]


def test_a_killed_shard_is_left_out_until_its_successor_goes_on_with_its_data(tmp_path: Path) -> None:
    args = {
        **PATIENT,
        "data_dir": str(tmp_path / "data"),
        "clip": {"source": str(clip_directory(tmp_path / "clip")), "precision": "fp32"},
        "index": {"shards": SHARDS, "shard_timeout_s": ANSWERS_WITHIN_S},
        "gateway": {"health_timeout_s": ANSWERS_WITHIN_S},
    }
    with running(args, command=[*SERVE_RUN, "CONFIG"]) as server:  # and not Sightline's own command
        assert server.put(PATH, json={"dimensions": 8}).status_code == 200
        vectors = np.random.default_rng(5).normal(size=(len(IDS), 8)).tolist()
        items = [{"id": id, "vector": vector} for id, vector in zip(IDS, vectors, strict=True)]
        assert server.post(f"{PATH}/items", json={"items": items}).status_code == 200
        before = search(server)
        assert len(before["results"]) == len(IDS)

        with kept_down(server, tmp_path / "data" / "index"):
            for _ in range(3):
                refused = server.post(f"{PATH}/search", json={"vector": vectors[0]})
                assert refused.status_code == 503
                assert refused.json()["error"]["message"].startswith(f"index-{LOST} did not answer")
            partial = search(server, partial=True)
            assert (partial["partial"], partial["missing_shards"]) == (True, [f"index-{LOST}"])
            there = [hit for hit in before["results"] if shard_of(hit["id"], SHARDS) != LOST]
            assert partial["results"] == there
            assert write(server, LOST) == 503
            assert write(server, LOST + 1) == 200
            ready = server.get("/health/ready")
            assert ready.status_code == 503
            states = {name for name, state in ready.json()["dependencies"].items() if state != "ready"}
            assert states == {f"index-{LOST}"}

        wait_until(lambda: whole(server), what="the shard", shown=server.said_last)
        assert write(server, LOST) == 200
        after = search(server)
        assert [hit for hit in after["results"] if hit["id"] in IDS] == before["results"]
        assert len(after["results"]) == len(IDS) + 2


def whole(server: Server) -> bool:
    ready = server.get("/health/ready").status_code == 200
    return ready and "partial" not in search(server, partial=True)


def search(server: Server, **asked: Any) -> dict[str, Any]:
    answer = server.post(f"{PATH}/search", json={"vector": [1] * 8, "limit": 100, **asked})
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


def write(server: Server, shard: int) -> int:
    """Store an item that this shard owns; the status."""
    id = next(id for id in map("new/{}".format, range(1000)) if shard_of(id, SHARDS) == shard)
    return server.post(f"{PATH}/items", json={"items": [{"id": id, "vector": [9] * 8}]}).status_code


@contextmanager
def kept_down(server: Server, root: Path) -> Iterator[None]:
    """Kill the lost shard's replica, and hold its files so that no successor can start meanwhile."""
    with (shard_directory(root, LOST, SHARDS) / LOCK_NAME).open("ab") as lock:
        (pid,) = replicas(server, f"VectorIndex-{LOST}")
        os.kill(pid, signal.SIGKILL)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
