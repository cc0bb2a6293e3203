"""A line between replicas on one machine: calls over a Unix socket, beside Serve's handles.

A call through a handle goes through Serve's router and gRPC, whose work in the two replicas is several times
that of a search. A line has none of what Serve adds: no choice of a replica, no limit of requests, no
wait for a successor. So it is for short calls that are safe to repeat, and when it breaks the caller
goes back to the handle.

A frame is the length of what follows (4 bytes, big-endian) and a pickle: `(number, method, arguments)`
there, `(number, whether it went well, answer or error)` back.
"""

import asyncio
import os
import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, cast
from weakref import WeakSet

HEAD_BYTES: Final = 4


class _Frames(asyncio.Protocol):
    """Cuts what arrives into frames."""

    def __init__(
        self, received: Callable[["_Frames", Any], None], lost: Callable[[], None] = lambda: None
    ) -> None:
        self._received = received
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= HEAD_BYTES:
            end = HEAD_BYTES + int.from_bytes(self._buffer[:HEAD_BYTES])
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[HEAD_BYTES:end])
            del self._buffer[:end]
            self._received(self, pickle.loads(frame))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._lost()

    def send(self, content: object) -> None:
        """Nothing, once the connection is lost."""
        if self._transport is not None:
            frame = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
            self._transport.writelines((len(frame).to_bytes(HEAD_BYTES), frame))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Exchange:
    """Answers calls of `methods`, coroutine functions, on a socket at `path`; one left there goes."""

    def __init__(self, path: Path, *methods: Callable[..., Awaitable[Any]]) -> None:
        self.path = str(path)
        self._methods = {method.__name__: method for method in methods}
        self._tasks: set[asyncio.Task[None]] = set()
        self._callers: WeakSet[_Frames] = WeakSet()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Raises OSError where there cannot be a socket, such as under a path of more than 107 bytes."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._connected, self.path, start_serving=False)
        # For this user alone: whoever can write to it can run code here.
        os.chmod(self.path, 0o600)
        await self._server.start_serving()

    def close(self) -> None:
        """Break every line; the sockets are closed one turn of the event loop later."""
        if self._server is not None:
            self._server.close()
        for caller in self._callers:
            caller.close()

    def _connected(self) -> _Frames:
        caller = _Frames(self._called)
        self._callers.add(caller)
        return caller

    def _called(self, caller: _Frames, content: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(caller, *content))
        self._tasks.add(task)  # the event loop holds its tasks weakly
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, caller: _Frames, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            caller.send((number, True, await self._methods[method](*arguments)))
        except Exception as error:
            try:
                caller.send((number, False, error))
            except Exception:  # which cannot be pickled
                caller.send((number, False, RuntimeError(f"{type(error).__name__}: {error}")))


class Line:
    """One end of a connection to an exchange."""

    def __init__(self) -> None:
        self._frames = _Frames(self._answered, self._broken)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self.open = False

    @classmethod
    async def to(cls, path: str) -> "Line":
        """Raises OSError where there is no exchange, such as on another machine."""
        line = cls()
        await asyncio.get_running_loop().create_unix_connection(lambda: line._frames, path)
        line.open = True
        return line

    async def call(self, method: str, *arguments: Any) -> Any:
        """The method's answer; raises what it raises, or ConnectionError when the line breaks."""
        if not self.open:
            raise ConnectionError
        self._number += 1
        number, answer = self._number, asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._frames.send((number, method, arguments))
            return await answer
        finally:
            del self._waiting[number]

    def close(self) -> None:
        self._frames.close()

    def _answered(self, _: _Frames, content: Any) -> None:
        number, well, answer = content
        waiting = self._waiting.get(number)
        if waiting is not None and not waiting.done():  # else the caller went away
            if well:
                waiting.set_result(answer)
            else:
                waiting.set_exception(answer)

    def _broken(self) -> None:
        self.open = False
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError())
