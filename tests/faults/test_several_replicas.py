"""Several gateways, and models that autoscale: more replicas under load, and one may be lost meanwhile."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from tests.photos import jpeg, stamped
from tests.server import PATIENT, Server, replicas, running
from tests.waiting import wait_until

CLIENTS = 24
MODELS = ("ClipEncoder", "TextClassifier-news")
GROWS = {"max_replicas": 2, "upscale_delay_s": 0}
FEW = 2
MANY = 10  # less than the clients that classify, and more than the calls would be that travelled together
LONG = "as many words as a model reads, and more " * 60
ITEMS = "/v1/collections/shared/items"


@pytest.fixture(scope="module")
def growing() -> Iterator[Server]:
    settings = {
        **PATIENT,
        "clip": {"source": "starter", "scale": {**GROWS, "target_ongoing_requests": FEW}},
        "classifiers": {"news": {"source": "starter", "scale": {**GROWS, "target_ongoing_requests": MANY}}},
        "preprocessor": {"placement": "pool", "scale": {"replicas": 2}},
        "gateway": {"scale": {"replicas": 2}},
    }
    with running(settings) as started:
        yield started


def test_models_grow_under_load_and_outlive_the_loss_of_a_replica(growing: Server) -> None:
    assert len(replicas(growing, "Gateway")) == 2
    assert len(replicas(growing, "TextClassifier-news")) == 1
    with load(growing) as answers:
        wait_under_load(
            "two of each", lambda: all(len(replicas(growing, model)) == 2 for model in MODELS), answers
        )
        lost = {replicas(growing, model)[0] for model in MODELS}
        for pid in lost:
            os.kill(pid, signal.SIGKILL)
        wait_under_load(
            "two of each without those that were killed",
            lambda: all(len(set(replicas(growing, model)) - lost) == 2 for model in MODELS),
            answers,
        )
        done = len(answers)
        wait_under_load("three answers a client", lambda: len(answers) > done + 3 * CLIENTS, answers)
    assert Counter(status for status, _ in answers) == {200: len(answers)}
    assert growing.get("/health/ready").status_code == 200


def test_whichever_replica_answers_the_vectors_are_the_same(growing: Server) -> None:
    assert len(replicas(growing, "ClipEncoder")) == 2, "by the load before"

    def embed(number: int) -> list[float]:
        photo = stamped(jpeg("coffee"), number)
        answer = growing.post("/v1/embeddings", data=photo, headers={"content-type": "image/jpeg"})
        vector: list[float] = answer.json()["data"][0]["embedding"]
        return vector

    vectors = np.array([embed(number) for number in range(20)], np.float32)
    assert vectors @ vectors[0] == pytest.approx(np.ones(20), abs=1e-3)


def test_what_one_gateway_stored_the_other_finds(growing: Server) -> None:
    assert growing.put("/v1/collections/shared", json={"dimensions": 2}).status_code == 200
    for n in range(20):
        item = {"id": str(n), "vector": [1, n]}
        assert growing.post(ITEMS, json={"items": [item]}).status_code == 200
        assert growing.get(f"{ITEMS}/{n}").status_code == 200
        found = growing.post("/v1/collections/shared/search", json={"vector": [1, n], "limit": 1}).json()
        assert found["results"][0]["id"] == str(n)


@contextmanager
def load(growing: Server) -> Iterator[list[tuple[int, str]]]:
    """Status and text of the answers to clients: three quarters classify long texts, which keep a model busy,
    the others embed such texts and photos."""
    answers: list[tuple[int, str]] = []
    stop = threading.Event()

    def client(number: int) -> None:
        while not stop.is_set():
            number += CLIENTS
            text = f"{number} {LONG}"
            if number % 4:
                answer = growing.post("/v1/classify", json={"model": "news", "input": text})
            elif number % 8:
                texts = [f"{place} {text}" for place in range(16)]  # two calls
                answer = growing.post("/v1/embeddings", json={"input": texts})
            else:
                photo = stamped(jpeg("coffee"), number)
                answer = growing.post("/v1/embeddings", data=photo, headers={"content-type": "image/jpeg"})
            answers.append((answer.status_code, answer.text))

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        try:
            yield answers
        finally:
            stop.set()
    for ended in clients:
        ended.result()


def wait_under_load(what: str, condition: Callable[[], bool], answers: list[tuple[int, str]]) -> None:
    """As long as it takes, every answer is a good one."""

    def met() -> bool:
        bad = [answer for answer in answers if answer[0] != 200]
        assert not bad, bad[0]
        return condition()

    def shown() -> str:
        return f"{len(answers)} answers"

    wait_until(met, what=what, shown=shown, every_s=0.2)
