"""More load than can be done: the rest is told to come back at once, and nobody else notices."""

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import requests

from tests.photos import data_uri, jpeg, stamped
from tests.server import FLOOD, Server

PHOTO = {"content-type": "image/jpeg"}


def test_a_flood_of_single_photos_is_shed_and_the_server_stays_ready(strained: Server) -> None:
    def post(number: int) -> requests.Response:
        photo = stamped(jpeg("rocket"), number)  # else the gateway would answer all but the first itself
        return strained.post("/v1/embeddings", data=photo, headers=PHOTO)

    assert post(FLOOD).status_code == 200  # and the photo is made, which takes longer than a flood
    with ThreadPoolExecutor(FLOOD) as pool:
        flood = [pool.submit(post, i) for i in range(FLOOD)]
        assert strained.get("/health/ready").status_code == 200
        answers = [request.result() for request in flood]
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}, statuses
    for answer in answers:
        if answer.status_code == 429:
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "overloaded"
            assert "calls;dur=0.00" in answer.headers["server-timing"]  # at once: no replica was asked
    assert post(FLOOD + 1).status_code == 200


def test_a_photo_that_the_gateway_knows_is_answered_in_the_midst_of_a_flood(strained: Server) -> None:
    def post(number: int) -> int:
        photo = stamped(jpeg("rocket"), number)
        return strained.post("/v1/embeddings", data=photo, headers=PHOTO).status_code

    known = 10**6
    assert post(known) == 200
    with ThreadPoolExecutor(FLOOD) as pool:
        flood = [pool.submit(post, known + 1 + i) for i in range(FLOOD)]
        statuses = [post(known)]
        while not all(request.done() for request in flood):
            statuses.append(post(known))
    assert 429 in {request.result() for request in flood}
    assert set(statuses) == {200}


def test_a_large_request_keeps_out_no_small_one(strained: Server) -> None:
    numbers = itertools.count(2 * 10**6)

    def post(images: int) -> int:
        contents = [data_uri(stamped(jpeg("rocket"), next(numbers))) for _ in range(images)]
        return strained.post("/v1/embeddings", json={"model": "clip", "input": contents}).status_code

    assert post(1) == 200
    with ThreadPoolExecutor(1) as pool:
        large = [pool.submit(post, 64) for _ in range(3)]  # one after the other
        small = [post(1)]
        while not large[-1].done():
            small.append(post(1))
    assert {request.result() for request in large} == {200}
    assert set(small) == {200}
    assert len(small) > 3
