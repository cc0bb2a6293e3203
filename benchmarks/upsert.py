"""Durable vectors per second through HTTP, by body and number of clients: `python -m benchmarks.upsert`.

Starts a server of its own unless `--url` names one. Prints one JSON line per scenario. Bodies are made
before the clock starts; the clients share the machine with the server.
"""

import argparse
import base64
import http.client
import io
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

import numpy as np
import orjson
from numpy.typing import NDArray

from tests.server import running

DIMENSIONS: Final = 512
COLLECTION: Final = "benchmark-upsert"

Body = tuple[str, str, bytes]  # query string, content type, content


def numbers(vectors: NDArray[np.float32], first: int) -> Body:
    items = [{"id": f"item-{first + i}", "vector": row.tolist()} for i, row in enumerate(vectors)]
    return "", "application/json", orjson.dumps({"items": items})


def base64_strings(vectors: NDArray[np.float32], first: int) -> Body:
    items = [
        {"id": f"item-{first + i}", "vector": base64.b64encode(row.tobytes()).decode()}
        for i, row in enumerate(vectors)
    ]
    return "", "application/json", orjson.dumps({"items": items})


def lines(vectors: NDArray[np.float32], first: int) -> Body:
    rows = (
        {"id": f"item-{first + i}", "vector": base64.b64encode(row.tobytes()).decode()}
        for i, row in enumerate(vectors)
    )
    return "", "application/x-ndjson", b"\n".join(map(orjson.dumps, rows))


def array(vectors: NDArray[np.float32], first: int) -> Body:
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    return f"?id_prefix=item-{first}-", "application/x-npy", buffer.getvalue()


BODIES: Final = {"numbers": numbers, "base64": base64_strings, "ndjson": lines, "npy": array}


def measure(url: str, name: str, clients: int, batches: int, batch: int) -> dict[str, object]:
    """Stores `batches` bodies of `batch` vectors each from `clients` threads."""
    request(url, "DELETE", f"/v1/collections/{COLLECTION}", "", b"", accept=(200, 404))
    settings = json.dumps({"dimensions": DIMENSIONS}).encode()
    request(url, "PUT", f"/v1/collections/{COLLECTION}", "application/json", settings)
    rng = np.random.default_rng(0)
    bodies = [
        BODIES[name](rng.standard_normal((batch, DIMENSIONS), dtype=np.float32), first)
        for first in range(0, batches * batch, batch)
    ]
    latencies: list[float] = []

    def client(mine: Sequence[Body]) -> None:
        with connected(url) as connection:
            for query, media_type, content in mine:
                begun = time.perf_counter()
                path = f"/v1/collections/{COLLECTION}/items{query}"
                connection.request("POST", path, content, {"content-type": media_type})
                answer = connection.getresponse()
                text = answer.read()
                assert answer.status == 200, text
                latencies.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client, bodies[i::clients]) for i in range(clients)]:
            done.result()
    seconds = time.perf_counter() - begun
    stored = json.loads(request(url, "GET", f"/v1/collections/{COLLECTION}", "", b""))["count"]
    assert stored == batches * batch, stored
    request(url, "DELETE", f"/v1/collections/{COLLECTION}", "", b"")
    return {
        "body": name,
        "clients": clients,
        "batch": batch,
        "dimensions": DIMENSIONS,
        "vectors_per_s": round(stored / seconds),
        "p50_ms": round(1e3 * float(np.median(latencies)), 1),
        "body_mb": round(len(bodies[0][2]) / 1e6, 2),
    }


@contextmanager
def connected(url: str) -> Iterator[http.client.HTTPConnection]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=60)
    try:
        yield connection
    finally:
        connection.close()


def request(
    url: str, method: str, path: str, media_type: str, content: bytes, accept: tuple[int, ...] = (200,)
) -> bytes:
    with connected(url) as connection:
        connection.request(method, path, content, {"content-type": media_type} if media_type else {})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status in accept, text
        return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upsert", description=__doc__)
    parser.add_argument("--url", help="a running server without keys")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--bodies", nargs="*", default=list(BODIES), choices=list(BODIES))
    given = parser.parse_args()

    def run(url: str) -> None:
        for name in given.bodies:
            for clients in given.clients:
                print(json.dumps(measure(url, name, clients, given.batches, given.batch)), flush=True)

    if given.url:
        run(given.url)
        return
    with running({"clip": {"source": "starter"}}) as server:
        run(server.url)


if __name__ == "__main__":
    main()
