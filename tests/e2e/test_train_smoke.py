"""The whole way of a classifier: a CSV, training, a server, an answer."""

import subprocess
import sys
from pathlib import Path

from tests.server import CACHE, PATIENT, ROOT, running
from tests.waiting import PATIENCE_S
from training.smoke import UNSEEN


def test_from_a_csv_to_a_served_answer(tmp_path: Path) -> None:
    output = tmp_path / "models" / "messages"
    command = [sys.executable, "-m", "training.smoke", "--output", str(output), "--cache-dir", str(CACHE)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=PATIENCE_S)
    classifiers = {"messages": {"source": str(output)}}
    with running({**PATIENT, "clip": {"source": "starter"}, "classifiers": classifiers}) as server:
        body = {"model": "messages", "input": list(UNSEEN), "top_k": 1}
        answer = server.post("/v1/classify", json=body).json()
        assert [rows[0]["label"] for rows in answer["data"]] == list(UNSEEN.values())
        assert answer["version"] == "1"
        assert server.get("/v1/models/messages").json()["version"] == "1"
