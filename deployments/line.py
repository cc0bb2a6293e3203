"""A line between replicas on one machine: calls over a Unix socket, beside Serve's handles.

A call through a handle goes through Serve's router and gRPC, whose work in the two replicas is several times
that of a search. A line has none of what Serve adds: no choice of a replica, no limit of requests, no
wait for a successor. So it is for short calls that are safe to repeat, and when it breaks the caller
goes back to the handle.

A frame is the length of what follows (4 bytes, big-endian) and a pickle: `(number, method, arguments)`
there, without a method when nobody waits any longer; `(number, whether it went well, answer or error)` back.
"""

import asyncio
import os
import pickle
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast
from weakref import WeakSet, finalize

HEAD_BYTES: Final = 4
LONGEST_PATH: Final = 107  # of a Unix socket, in bytes
FLUSH_S: Final = 5.0  # for callers to read the answers that a replica leaves behind


class _Frames(asyncio.Protocol):
    """Cuts what arrives into frames."""

    def __init__(self, received: Callable[["_Frames", Any], None], lost: Callable[["_Frames"], None]) -> None:
        self._received = received
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._gone = asyncio.Event()

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
        self._gone.set()
        self._lost(self)

    def send(self, content: object) -> None:
        """Nothing, once the connection is lost."""
        if self._transport is not None:
            frame = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
            self._transport.writelines((len(frame).to_bytes(HEAD_BYTES), frame))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def finish(self) -> None:
        """Close once all that was sent is out."""
        if self._transport is not None:
            self._transport.close()
            await self._gone.wait()


class Exchange:
    """Answers calls of `methods`, coroutine functions, on a Unix socket. What nobody waits for any longer is
    cancelled."""

    def __init__(self, *methods: Callable[..., Awaitable[Any]], path: Path | None = None) -> None:
        """`path` is where the socket is to be, and one left there goes. Without one, or with one that is too
        long, it is in a temporary directory."""
        self._methods = {method.__name__: method for method in methods}
        self._path = path if path is not None and len(os.fsencode(path)) <= LONGEST_PATH else None
        self._temporary = False
        self._tasks: dict[tuple[_Frames, int], asyncio.Task[None]] = {}
        self._callers: WeakSet[_Frames] = WeakSet()
        self._opening = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._ending = False

    async def opened(self) -> str:
        """The socket's path, from the first call on.

        Raises OSError where there cannot be a socket.
        """
        async with self._opening:
            if self._path is None:
                directory = tempfile.mkdtemp(prefix="sightline-")
                finalize(self, shutil.rmtree, directory, ignore_errors=True)
                self._path = Path(directory, "line.socket")
                self._temporary = True
            if self._server is None:
                loop = asyncio.get_running_loop()
                server = await loop.create_unix_server(self._connected, self._path, start_serving=False)
                # For this user alone: whoever can write to it can run code here.
                os.chmod(self._path, 0o600)
                await server.start_serving()
                self._server = server
            return str(self._path)

    async def drained(self) -> None:
        """Answer what was asked, send away who comes now, and close.

        As the instance attribute `__del__` of a deployment's object, Serve awaits it before it ends a
        replica: its own count of requests knows nothing of these.
        """
        self._ending = True
        while self._tasks:
            await asyncio.wait(self._tasks.values())
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await asyncio.gather(*(caller.finish() for caller in [*self._callers]))
        self.close()
        if self._server is not None and self._path is not None:
            self._path.unlink(missing_ok=True)
            if self._temporary:
                self._path.parent.rmdir()

    def close(self) -> None:
        """Break every line; the sockets are closed one turn of the event loop later."""
        if self._server is not None:
            self._server.close()
        for caller in self._callers:
            caller.close()

    def _connected(self) -> _Frames:
        caller = _Frames(self._called, self._hung_up)
        self._callers.add(caller)
        return caller

    def _called(self, caller: _Frames, content: Any) -> None:
        number, method, arguments = content
        if method is None:
            if (task := self._tasks.get((caller, number))) is not None:
                task.cancel()
            return
        if self._ending:
            caller.send((number, False, ConnectionError()))
            return
        task = asyncio.get_running_loop().create_task(self._answer(caller, number, method, arguments))
        self._tasks[caller, number] = task
        task.add_done_callback(lambda _: self._tasks.pop((caller, number)))

    def _hung_up(self, caller: _Frames) -> None:
        for (whose, _), task in self._tasks.items():
            if whose is caller:
                task.cancel()

    async def _answer(self, caller: _Frames, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            caller.send((number, True, await self._methods[method](*arguments)))
        except Exception as error:
            try:
                caller.send((number, False, error))
            except Exception:  # which cannot be pickled
                caller.send((number, False, RuntimeError(f"{type(error).__name__}: {error}")))


class OnLine:
    """A deployment whose methods can be called over a line."""

    def _answer_on_line(self, *methods: Callable[..., Awaitable[Any]], path: Path | None = None) -> None:
        """Arguments as of `Exchange`; to be called once, by the constructor."""
        self._exchange = Exchange(*methods, path=path)
        self.__del__ = self._exchange.drained  # for Serve alone: Python itself looks at the class

    async def line(self) -> str:
        """Where callers on this machine can call without Serve between, see `Line`.

        Raises OSError where there cannot be a socket.
        """
        return await self._exchange.opened()


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
        except asyncio.CancelledError:
            self._frames.send((number, None, ()))
            raise
        finally:
            del self._waiting[number]
            del answer  # its error leads to this frame: a cycle that would keep the arguments

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

    def _broken(self, _: _Frames) -> None:
        self.open = False
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError())
