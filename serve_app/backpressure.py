"""Has Serve read a request's body no faster than the application takes it.

Ray Serve 2.60 reads ahead without a bound, in its proxy and again in the replica (`MessageQueue` and
`ASGIReceiveProxy`, `ray/serve/_private/http_util.py`; `ASGIDIReceiveProxy` beside it): of 400 MB sent at
once both held the whole. Here each waits while a few MiB of one body are not yet taken, and so the sender
waits too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from typing import Any, Final

from ray.serve._private import direct_ingress_http_util, http_util, proxy

MAX_WAITING_BYTES: Final = 4 * 1024 * 1024  # of one body, in each of the two places
POLL_S: Final = 0.005  # a replica that waits has a batch in its hands, which takes longer

Message = MutableMapping[str, Any]
Receive = Callable[..., Awaitable[Any]]


class BoundedQueue(http_util.MessageQueue):
    """A body's messages on their way from the proxy to the replica, which takes all there are at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._waiting_bytes = 0
        self._taken = asyncio.Event()

    async def __call__(self, message: Message) -> None:
        """Put, as soon as there is room. What is empty always has room, however large the message."""
        while self._waiting_bytes > MAX_WAITING_BYTES:
            self._taken.clear()
            await self._taken.wait()
        await super().__call__(message)
        self._waiting_bytes += _size(message)

    def get_messages_nowait(self) -> list[Message]:
        messages: list[Message] = super().get_messages_nowait()
        self._waiting_bytes = 0
        self._taken.set()
        return messages


def bound_proxy() -> list[Any]:
    """Run in Serve's proxy (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH); it adds no middleware."""
    module: Any = proxy
    module.MessageQueue = BoundedQueue
    return []


def bound_replica() -> None:
    """Run in a replica that takes requests, before the first."""
    behind_the_proxy: Any = http_util.ASGIReceiveProxy
    behind_the_proxy._receive_asgi_messages = _WhenThereIsRoom("_receive_asgi_messages")
    listening: Any = direct_ingress_http_util.ASGIDIReceiveProxy
    listening._receive = _WhenThereIsRoom("_receive")


class _WhenThereIsRoom:
    """A descriptor over Serve's receive callback: reading it gives one that waits while too much is queued.

    Made at each read: one that is kept would be a cycle with its queue, and hold all there was of a request
    until a garbage collection, of which that makes many.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __set__(self, receiver: Any, receive: Receive) -> None:
        vars(receiver)[self._name] = receive

    def __get__(self, receiver: Any, kind: type) -> Any:
        if receiver is None:
            return self
        return partial(_when_there_is_room, receiver, vars(receiver)[self._name])


async def _when_there_is_room(receiver: Any, receive: Receive, *asked: Any) -> Any:
    while sum(map(_size, _waiting(receiver))) > MAX_WAITING_BYTES:  # noqa: ASYNC110 — no event of Serve's
        await asyncio.sleep(POLL_S)
    return await receive(*asked)


def _waiting(receiver: Any) -> Iterable[Any]:
    # The deque of an asyncio.Queue, which has no bytes of its own.
    waiting: Iterable[Any] = receiver.queue._queue
    return waiting


def _size(message: Any) -> int:
    return len(message.get("body", b"")) if isinstance(message, MutableMapping) else 0
