"""The load client reads answers however they arrive, and hides no failure."""

import math
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest

from benchmarks.vector_peers import client
from benchmarks.vector_peers.client import HttpEndpoint, body_of, closed_loop, http_request, search, send_each

LENGTH = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nhello \r\n5;name=x\r\nworld\r\n0\r\n\r\n"
)


@pytest.mark.parametrize("message", [LENGTH, CHUNKED])
def test_a_body_is_read_only_when_it_is_whole(message: bytes) -> None:
    assert body_of(bytearray(message)) == b"hello world"
    assert all(body_of(bytearray(message[:end])) is None for end in range(len(message)))


@contextmanager
def serving(pieces: Sequence[bytes]) -> Iterator[tuple[HttpEndpoint, list[bytes]]]:
    """A server that answers every request with these pieces, sent apart; and the bodies it received."""
    received: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            while line := lines.readline():
                length = 0
                while line.strip():
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                    line = lines.readline()
                received.append(lines.read(length))
                for piece in pieces:
                    connection.sendall(piece)
                if not pieces:
                    return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield HttpEndpoint(listener.getsockname()[1]), received
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in (accepting, *threads):
                thread.join()


def requests(count: int) -> list[bytes]:
    return [http_request("POST", "/x", str(number).encode()) for number in range(count)]


def test_every_request_is_sent_once_and_its_answer_kept() -> None:
    with serving([CHUNKED[:20], CHUNKED[20:60], CHUNKED[60:]]) as (endpoint, received):
        measured = send_each(endpoint, requests(20), clients=3)
    assert sorted(received) == sorted(str(number).encode() for number in range(20))
    assert measured.answers == dict.fromkeys(range(20), b"hello world")
    assert len(measured.latencies) == 20


def test_a_connection_with_nothing_left_to_send_may_be_closed_while_another_waits() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        endpoint = HttpEndpoint(listener.getsockname()[1])
        connections = [endpoint.connect() for _ in range(2)]
        for connection in connections:
            stack.callback(connection.close)
        slow, idle = (stack.enter_context(listener.accept()[0]) for _ in connections)
        idle.sendall(LENGTH)
        idle.shutdown(socket.SHUT_WR)

        def source() -> Iterator[tuple[int, bytes]]:
            yield from enumerate(requests(2))
            slow.sendall(LENGTH)  # the idle one has its answer and asks for more

        measured = closed_loop(connections, source(), 0, math.inf)
    assert measured.answers == dict.fromkeys(range(2), b"hello world")


def test_a_search_goes_round_until_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving([LENGTH]) as (endpoint, received):
        clock = SimpleNamespace(perf_counter=lambda: len(received) / 100)  # 10 ms a request
        monkeypatch.setattr(client, "time", clock)
        measured = search(endpoint, requests(5), clients=2, warm_up_s=0.05, seconds=0.2)
    assert measured.answers.keys() == set(range(5))
    assert measured.seconds == 0.2
    assert 5 < len(measured.latencies) < len(received)  # the warm-up is not counted


def test_an_answer_that_is_an_error_raises() -> None:
    refusal = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy"
    with serving([refusal]) as (endpoint, _), pytest.raises(RuntimeError, match=r"429 .*busy"):
        send_each(endpoint, requests(2), clients=1)


def test_a_connection_that_is_closed_raises() -> None:
    with serving([]) as (endpoint, _), pytest.raises(ConnectionError, match="closed the connection"):
        send_each(endpoint, requests(2), clients=1)
