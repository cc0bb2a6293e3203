"""The load: a closed loop over a few connections, in one thread that does next to nothing per request.

Requests are encoded before the clock starts and answers are decoded after it stops, so that on a machine
that client and server share the client takes as little as it can, and the same from every system.
"""

import itertools
import math
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

RECEIVE_BYTES = 1 << 18
ANSWER_TIMEOUT_S = 1800
"""A server silent for longer is taken for hung; a million vectors may take minutes to open."""


@dataclass
class Measured:
    """Latencies in seconds of the requests answered in the window, which lasted `seconds`."""

    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    answers: dict[int, bytes] = field(default_factory=dict)
    """The first answer to each request, by its number."""


class Connection(Protocol):
    def fileno(self) -> int: ...

    def send(self, request: bytes) -> None: ...

    def receive(self) -> bytes | None:
        """Reads what has arrived: the answer once it is whole, before that None."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class HttpEndpoint:
    """A server on loopback. Its requests are whole HTTP/1.1 messages, see `http_request`."""

    port: int

    def connect(self) -> Connection:
        return HttpConnection(self.port)


@dataclass(frozen=True)
class PostgresEndpoint:
    """A prepared statement with one parameter in binary form, and what is executed before it."""

    conninfo: str
    setup: tuple[str, ...]
    statement: str

    def connect(self) -> Connection:
        from benchmarks.vector_peers.postgres_connection import PostgresConnection  # needs psycopg

        return PostgresConnection(self.conninfo, self.setup, self.statement)


Endpoint = HttpEndpoint | PostgresEndpoint


def http_request(method: str, path: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class HttpConnection:
    """A keep-alive connection, one request at a time. An answer that is not 2xx raises RuntimeError."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), ANSWER_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, request: bytes) -> None:
        self._socket.sendall(request)

    def receive(self) -> bytes | None:
        chunk = self._socket.recv(RECEIVE_BYTES)
        if not chunk:
            raise ConnectionError(f"the server closed the connection after {bytes(self._received[:500])!r}")
        self._received += chunk
        body = body_of(self._received)
        if body is None:
            return None
        if self._received[9:10] != b"2":
            raise RuntimeError(f"the server answered {bytes(self._received[:2000])!r}")
        self._received.clear()
        return body

    def close(self) -> None:
        self._socket.close()


def body_of(message: bytearray) -> bytes | None:
    """The body of an HTTP/1.1 response, or None while it is not whole."""
    head_end = message.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head, start = bytes(message[:head_end]).lower(), head_end + 4
    if b"\r\ntransfer-encoding: chunked" in head:
        return _unchunked(message, start)
    _, found, after = head.partition(b"\r\ncontent-length:")
    if not found:
        raise RuntimeError(f"a response without a length: {head!r}")
    end = start + int(after.split(b"\r\n", 1)[0])
    return bytes(message[start:end]) if len(message) >= end else None


def _unchunked(message: bytearray, start: int) -> bytes | None:
    parts: list[bytes] = []
    while (line_end := message.find(b"\r\n", start)) >= 0:
        size = int(message[start:line_end].split(b";")[0], 16)
        start = line_end + 2 + size + 2
        if len(message) < start:
            return None
        if size == 0:
            return b"".join(parts)
        parts.append(bytes(message[line_end + 2 : start - 2]))
    return None


def search(
    endpoint: Endpoint, requests: Sequence[bytes], clients: int, warm_up_s: float, seconds: float
) -> Measured:
    """Sends the requests over and over for that long."""
    return _run(endpoint, itertools.cycle(enumerate(requests)), clients, warm_up_s, seconds)


def send_each(endpoint: Endpoint, requests: Iterable[bytes], clients: int) -> Measured:
    """Sends every request once."""
    return _run(endpoint, enumerate(requests), clients, 0, math.inf)


def _run(
    endpoint: Endpoint,
    requests: Iterator[tuple[int, bytes]],
    clients: int,
    warm_up_s: float,
    seconds: float,
) -> Measured:
    connections = [endpoint.connect() for _ in range(clients)]
    try:
        return closed_loop(connections, requests, warm_up_s, seconds)
    finally:
        for connection in connections:
            connection.close()


def closed_loop(
    connections: Sequence[Connection],
    requests: Iterator[tuple[int, bytes]],
    warm_up_s: float,
    seconds: float,
) -> Measured:
    """Each connection sends its next request when it has the answer to the last one.

    Ends when `requests` do or the time is up; what is answered in the first `warm_up_s` or after the
    end is not counted.
    """
    measured = Measured()
    clock = time.perf_counter
    start = clock() + warm_up_s
    end = start + seconds
    waiting: dict[int, tuple[Connection, int, float]] = {}
    with selectors.DefaultSelector() as selector:

        def send_next(connection: Connection) -> None:
            if clock() < end and (following := next(requests, None)):
                number, request = following
                waiting[connection.fileno()] = connection, number, clock()
                connection.send(request)
            else:
                selector.unregister(connection)  # from now on its server may close it

        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
            send_next(connection)
        finished = start
        while waiting:
            ready = selector.select(ANSWER_TIMEOUT_S)
            if not ready:
                raise TimeoutError(f"no answer within {ANSWER_TIMEOUT_S} s")
            for key, _ in ready:
                connection, number, sent = waiting[key.fd]
                answer = connection.receive()
                if answer is None:
                    continue
                now = clock()
                if start <= now <= end:
                    measured.latencies.append(now - sent)
                    finished = now
                measured.answers.setdefault(number, answer)
                del waiting[key.fd]
                send_next(connection)
    measured.seconds = seconds if math.isfinite(seconds) else finished - start
    return measured
