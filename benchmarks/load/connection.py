"""One HTTP/1.1 keep-alive connection, as cheap as Python can make it: the load shares the server's cores."""

import asyncio
from dataclasses import dataclass

import httptools


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `timing` is the Server-Timing header as it was sent, parsed after the run."""

    status: int
    timing: bytes
    body: bytes
    retry_after_s: float = 0.0


class Connection(asyncio.Protocol):
    """Sends one request at a time. Broken once an exchange fails: open another."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._reset()

    @classmethod
    async def open(cls, host: str, port: int) -> "Connection":
        """Raises OSError."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def exchange(self, request: bytes) -> Answer:
        """Send a whole request and wait for the whole answer. Raises ConnectionError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._transport.write(request)
        try:
            return await answer
        except asyncio.CancelledError:
            self._transport.abort()  # its answer would be taken for the next request's
            raise

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._timing = b""
        self._retry_after = b"0"
        self._body: list[bytes] = []

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"the answer is not HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(ConnectionResetError(f"the server closed the connection: {error}"))

    def _fail(self, error: ConnectionError) -> None:
        if self._transport is not None:
            self._transport.abort()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"server-timing":
            self._timing = value
        elif name.lower() == b"retry-after":
            self._retry_after = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            wait = float(self._retry_after) if self._retry_after.isdigit() else 0.0
            self._answer.set_result(Answer(status, self._timing, b"".join(self._body), wait))
        self._reset()
