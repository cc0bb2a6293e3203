"""More load than can be done: the rest is told to come back at once, and nobody else notices."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import requests

from tests.photos import jpeg, stamped
from tests.server import Server

CLIENTS = 400  # each with one photo; 256 images are taken in at a time


def test_a_flood_of_single_photos_is_shed_and_the_server_stays_ready(server: Server) -> None:
    headers = {"content-type": "image/jpeg"}

    def post(number: int) -> requests.Response:
        photo = stamped(jpeg("rocket"), number)  # else the gateway would answer all but the first itself
        return requests.post(f"{server.url}/v1/embeddings", data=photo, headers=headers, timeout=120)

    with ThreadPoolExecutor(CLIENTS) as pool:
        flood = [pool.submit(post, i) for i in range(CLIENTS)]
        assert server.get("/health/ready").status_code == 200
        answers = [request.result() for request in flood]
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {200, 429}, statuses
    assert statuses[200] >= 256
    for answer in answers:
        if answer.status_code == 429:
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "overloaded"
    assert server.post("/v1/embeddings", data=jpeg("rocket"), headers=headers).status_code == 200
