"""The requests a server is measured with: for infinity, where it can, of the same kinds and sizes."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.load.loops import Request
from benchmarks.payloads import Photos, json_strings, text

JSON: Final = "application/json"
COLLECTION: Final = "bench"
LONG_WORDS: Final = 90  # past CLIP's 77 tokens
LONG_CLASSIFY_WORDS: Final = 126  # 128 tokens for DistilBERT


@dataclass(frozen=True)
class Scenario:
    """One kind of request. `check` takes an answer's JSON and returns what was answered, one per item."""

    name: str
    path: str
    content_type: str
    body: Callable[[Photos, int], bytes]
    check: Callable[[Any], list[Any]]
    items: int = 1  # images or texts a request
    roof: str = ""  # the bare engine's measurement that bounds it, see benchmarks/roof.py
    peer: bool = False  # infinity takes it too

    @property
    def model(self) -> str:
        """Which of the served models answers."""
        return "news" if self.path == _CLASSIFY else "clip"

    def request(self, photos: Photos, number: int, host: str) -> bytes:
        """The whole HTTP request, different for every number."""
        body = self.body(photos, number)
        return (
            f"POST {self.path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: {self.content_type}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode() + body


def _embeddings(answer: Any) -> list[Any]:
    return [row["embedding"] for row in answer["data"]]


def _labels(answer: Any) -> list[Any]:
    return [sorted((label["label"], label["score"]) for label in row) for row in answer["data"]]


def _hits(answer: Any) -> list[Any]:
    return [[[hit["id"], hit["score"]] for hit in answer["results"]]]


def _embed_texts(words: int) -> Callable[[Photos, int], bytes]:
    return lambda _, number: b'{"model":"clip","input":%b}' % json_strings([text(number, words)])


def _classify(words: int) -> Callable[[Photos, int], bytes]:
    return lambda _, number: b'{"model":"news","input":%b}' % json_strings([text(number, words)])


def _embed_images(count: int) -> Callable[[Photos, int], bytes]:
    def body(photos: Photos, number: int) -> bytes:
        uris = b'","'.join(photos.data_uri(count * number + i) for i in range(count))
        return b'{"model":"clip","modality":"image","input":["%b"]}' % uris

    return body


def _search(words: int) -> Callable[[Photos, int], bytes]:
    return lambda _, number: json.dumps({"text": text(number, words), "limit": 10}).encode()


_EMBED: Final = "/v1/embeddings"
_CLASSIFY: Final = "/v1/classify"
_SEARCH: Final = f"/v1/collections/{COLLECTION}/search"
SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "image-raw", _EMBED, "image/jpeg", lambda photos, n: photos.jpeg(n), _embeddings, roof="photo"
        ),
        Scenario("image-uri", _EMBED, JSON, _embed_images(1), _embeddings, roof="photo", peer=True),
        Scenario("image-16", _EMBED, JSON, _embed_images(16), _embeddings, items=16, roof="photo", peer=True),
        Scenario("text", _EMBED, JSON, _embed_texts(9), _embeddings, roof="text", peer=True),
        Scenario(
            "text-long", _EMBED, JSON, _embed_texts(LONG_WORDS), _embeddings, roof="text-long", peer=True
        ),
        Scenario("classify", _CLASSIFY, JSON, _classify(12), _labels, roof="classify", peer=True),
        Scenario(
            "classify-long",
            _CLASSIFY,
            JSON,
            _classify(LONG_CLASSIFY_WORDS),
            _labels,
            roof="classify-long",
            peer=True,
        ),
        Scenario("search", _SEARCH, JSON, _search(9), _hits, roof="text"),
    )
}
# The body of a request with so many words, for the kinds that send one text.
TEXTS: Final = {"text": _embed_texts, "classify": _classify, "search": _search}
# Shares of the requests; every kind of work at once, as no single-kind benchmark shows it.
MIXES: Final[dict[str, dict[str, int]]] = {
    "mixed": {"image-raw": 4, "text": 3, "classify": 2, "search": 1},
    "mixed-infer": {"image-uri": 4, "text": 3, "classify": 3},  # what infinity can do of it
}
NAMES: Final = (*SCENARIOS, *MIXES)


def parts(name: str) -> dict[str, int]:
    """The kinds of request in a scenario or mix, and their shares. Raises KeyError."""
    return MIXES[name] if name in MIXES else {SCENARIOS[name].name: 1}


def takes_peer(name: str) -> bool:
    """Whether infinity can answer every request of it."""
    return all(SCENARIOS[kind].peer for kind in parts(name))


def requests(name: str, photos: Photos, host: str, seed: int) -> Iterator[Request]:
    """Endless requests, none twice; other seeds give other ones."""
    rng = random.Random(seed)
    shares = parts(name)
    kinds, weights = list(shares), list(shares.values())
    number = rng.randrange(10**9)
    while True:
        number += 1
        kind = rng.choices(kinds, weights)[0] if len(kinds) > 1 else kinds[0]
        yield kind, SCENARIOS[kind].request(photos, number, host)


def different(answers: list[Any]) -> bool:
    """Whether answers to different requests differ, as they must unless something cheats."""
    return len({json.dumps(answer) for answer in answers}) == len(answers)
