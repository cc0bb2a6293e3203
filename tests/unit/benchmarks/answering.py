"""A small HTTP server whose answers and pauses a test decides."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Answering:
    """`answer` takes the number of a request, from 0, and returns the bytes to send, or b"" to hang up."""

    answer: Callable[[int], Awaitable[bytes]]
    port: int = 0
    connections: int = 0
    bodies: list[bytes] = field(default_factory=list)
    inside: int = 0
    most_inside: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                number = len(self.bodies) - 1
                self.inside += 1
                self.most_inside = max(self.most_inside, self.inside)
                answer = await self.answer(number)
                self.inside -= 1
                writer.write(answer)
                if not answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def answering(answer: Callable[[int], Awaitable[bytes]]) -> AsyncIterator[Answering]:
    """Serve on a free port of loopback while the block runs."""
    served = Answering(answer)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()


def response(status: int = 200, body: bytes = b"{}", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body
