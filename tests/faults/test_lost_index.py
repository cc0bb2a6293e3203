"""The index's replica dies under searches, which go to it past Serve: every one of them is answered."""

import os
import signal
from pathlib import Path

from tests.server import Server, replicas
from tests.unit.index.threads import running
from tests.waiting import wait_until

PATH = "/v1/collections/lost"
CLIENTS = 4


def test_searches_outlive_the_replica_they_were_sent_to(strained: Server) -> None:
    assert strained.put(PATH, json={"dimensions": 2}).status_code == 200
    items = [{"id": str(n), "vector": [1, n]} for n in range(50)]
    assert strained.post(f"{PATH}/items", json={"items": items}).status_code == 200
    answers: list[tuple[int, str]] = []

    def search() -> None:
        answer = strained.post(f"{PATH}/search", json={"vector": [1, 7], "limit": 1})
        answers.append((answer.status_code, answer.text))

    with running(*[search] * CLIENTS):
        before = wait_for(answers, 100)
        (pid,) = replicas(strained, "VectorIndex")
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"OMP_WAIT_POLICY=PASSIVE" in environment, "FAISS's threads take the others' cores"
        os.kill(pid, signal.SIGKILL)
        wait_for(answers, before + 100 + CLIENTS)
    assert {status for status, _ in answers} == {200}, {text for status, text in answers if status != 200}
    assert all('"id":"7"' in text for _, text in answers)
    assert replicas(strained, "VectorIndex") != [pid]


def wait_for(answers: list[tuple[int, str]], count: int) -> int:
    def shown() -> str:
        return f"{len(answers)} answers, {answers[-1:]}"

    wait_until(lambda: len(answers) >= count, what=f"{count} answers", shown=shown)
    return len(answers)
