"""A bad request never hurts its neighbours."""

from concurrent.futures import ThreadPoolExecutor

import requests

from tests.photos import WORDS, jpeg, stamped
from tests.server import Server
from tests.waiting import PATIENCE_S

CLIENTS = 32
REQUESTS = 6  # of each client


def test_every_good_image_among_truncated_ones_is_answered(server: Server) -> None:
    names = list(WORDS)

    def client(number: int) -> list[tuple[bool, int]]:
        outcomes = []
        with requests.Session() as session:
            for turn in range(REQUESTS):
                good = (number + turn) % 4 != 0
                # Stamped, or the gateway would remember most of them.
                image = stamped(jpeg(names[(number + turn) % len(names)]), REQUESTS * number + turn)
                answer = session.post(
                    f"{server.url}/v1/embeddings",
                    data=image if good else image[: len(image) // 3],
                    headers={"content-type": "image/jpeg"},
                    timeout=PATIENCE_S,
                )
                outcomes.append((good, answer.status_code))
        return outcomes

    with ThreadPoolExecutor(CLIENTS) as pool:
        outcomes = [outcome for each in pool.map(client, range(CLIENTS)) for outcome in each]
    assert {status for good, status in outcomes if good} == {200}
    assert {status for good, status in outcomes if not good} == {422}
    assert server.get("/health/ready").status_code == 200


def test_the_first_answer_after_bad_ones_is_still_right(server: Server) -> None:
    body = {"content-type": "image/jpeg"}
    first, second = (stamped(jpeg("coffee"), number) for number in (10**6, 10**6 + 1))
    before = server.post("/v1/embeddings", data=first, headers=body).json()["data"]
    for broken in (b"", b"\xff\xd8\xff", jpeg("coffee")[:-2000], b"\0" * 100_000):
        assert server.post("/v1/embeddings", data=broken, headers=body).status_code == 422
    after = server.post("/v1/embeddings", data=second, headers=body).json()["data"]
    assert after == before
