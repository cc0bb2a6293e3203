"""The index replica is killed at random moments under writes: no acknowledged write or delete is lost.

Two rounds here; `make crash` runs fifty (ROUNDS=…).
"""

import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field

import requests

from tests.server import Server, replicas
from tests.waiting import PATIENCE_S, wait_until

ROUNDS = int(os.environ.get("ROUNDS", "2"))
CLIENTS = 3
IDS_PER_CLIENT = 700
DIMENSIONS = 16
PATH = "/v1/collections/kept"
WRITES_FOR_S = (0.2, 2.5)
GONE = 0
"""The value of an id that is not stored; others are in the item's metadata and its vector."""


@dataclass
class Client:
    """Writes ids of its own and knows what each may be now: one value, or two after a lost answer."""

    number: int
    server: Server
    random: random.Random
    known: dict[str, set[int]] = field(default_factory=dict)
    acknowledged: int = 0
    last: int = 0

    def write_until(self, stop: threading.Event) -> None:
        with requests.Session() as session:
            while not stop.is_set():
                ids = [f"{self.number}/{self.random.randrange(IDS_PER_CLIENT)}" for _ in range(100)]
                ids = list(dict.fromkeys(ids))
                self.last += 1
                value = GONE if self.random.random() < 0.3 else self.last
                for id in ids:
                    self.known.setdefault(id, {GONE}).add(value)
                route, asked = "/delete", dict[str, object](ids=ids)
                if value != GONE:
                    route, asked = "/items", {"items": [item(id, value) for id in ids]}
                try:
                    answer = session.post(self.server.url + PATH + route, json=asked, timeout=PATIENCE_S)
                except requests.RequestException:
                    return  # whether it was done is not known
                if answer.status_code != 200:
                    assert answer.status_code == 503, answer.text
                    return
                self.acknowledged += 1
                for id in ids:
                    self.known[id] = {value}


def item(id: str, value: int) -> dict[str, object]:
    return {"id": id, "vector": vector(id, value), "metadata": {"value": value}}


def vector(id: str, value: int) -> list[float]:
    chance = random.Random(f"{id}={value}")
    return [round(chance.gauss(0, 1), 4) for _ in range(DIMENSIONS)]


def test_no_acknowledged_write_is_lost_when_the_index_is_killed(strained: Server) -> None:
    seed = random.randrange(2**32)
    assert strained.put(PATH, json={"dimensions": DIMENSIONS, "kind": "hnsw"}).status_code == 200
    clients = [Client(n, strained, random.Random(f"{seed}/{n}")) for n in range(CLIENTS)]
    for round in range(ROUNDS):
        write_and_kill(strained, clients, random.Random(f"{seed}/{round}").uniform(*WRITES_FOR_S))
        check(strained, clients, f"seed {seed}, round {round}")


def write_and_kill(server: Server, clients: list[Client], after_s: float) -> None:
    (pid,) = replicas(server, "VectorIndex")
    stop = threading.Event()
    threads = [threading.Thread(target=client.write_until, args=(stop,)) for client in clients]
    before = [client.acknowledged for client in clients]

    def writing() -> bool:
        assert all(thread.is_alive() for thread in threads), "a client has ended"
        return all(client.acknowledged > n for client, n in zip(clients, before, strict=True))

    for thread in threads:
        thread.start()
    try:
        wait_until(writing, what="writes")
        time.sleep(after_s)  # the moment is what this test is about
        os.kill(pid, signal.SIGKILL)
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    def back() -> bool:
        return pid not in replicas(server, "VectorIndex") and server.get("/health/ready").status_code == 200

    wait_until(back, what="the index", shown=server.said_last, every_s=0.1)


def check(server: Server, clients: list[Client], what: str) -> None:
    """Everything stored is what its client knows, and a search finds it by its vector."""
    stored: dict[str, int] = {}
    cursor = None
    while True:
        asked = {"limit": 1000} | ({"cursor": cursor} if cursor is not None else {})
        page = server.get(f"{PATH}/items", params=asked).json()
        stored |= {item["id"]: item["metadata"]["value"] for item in page["items"]}
        if (cursor := page["cursor"]) is None:
            break
    for client in clients:
        for id, possible in client.known.items():
            assert stored.get(id, GONE) in possible, f"{what}: {id} is {stored.get(id)}, not {possible}"
            client.known[id] = {stored.get(id, GONE)}
    assert stored.keys() <= {id for client in clients for id in client.known}
    sample = random.Random(what).sample(sorted(stored), min(200, len(stored)))
    queries = [{"vector": vector(id, stored[id])} for id in sample]
    if queries:
        found = server.post(f"{PATH}/search", json={"queries": queries, "limit": 1, "exact": True})
        assert [hits[0]["id"] for hits in found.json()["results"]] == sample, what
    assert server.get(PATH).json()["count"] == len(stored), what
