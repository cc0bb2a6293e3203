"""Has Serve read a request's body no faster than the application takes it.

Ray Serve 2.60 reads ahead without a bound, in its proxy and again in the replica (`MessageQueue` and
`ASGIReceiveProxy`, `ray/serve/_private/http_util.py`; `ASGIDIReceiveProxy` beside it): of 400 MB sent at
once both held the whole. Here each waits while a few MiB of one body are not yet taken, and so the sender
waits too.
"""

import asyncio
import inspect
from collections.abc import Iterable, MutableMapping
from typing import Any, Final

from ray.serve._private import direct_ingress_http_util, http_util, proxy

MAX_WAITING_BYTES: Final = 4 * 1024 * 1024  # of one body, in each of the two places
POLL_S: Final = 0.005  # a replica that waits has a batch in its hands, which takes longer

Message = MutableMapping[str, Any]


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
    _bound(http_util.ASGIReceiveProxy, "receive_asgi_messages")
    _bound(direct_ingress_http_util.ASGIDIReceiveProxy, "receive")  # without the proxy in front


def _bound(kind: Any, name: str) -> None:
    """Have `kind`, which queues what the callback `name` gives, call it only when there is room."""
    init = kind.__init__
    if getattr(init, "bounded", False):
        return
    signature = inspect.signature(init)

    def bounded(self: Any, *arguments: Any, **named: Any) -> None:
        bound = signature.bind(self, *arguments, **named)
        receive = bound.arguments[name]

        async def when_there_is_room(*asked: Any) -> Any:
            while sum(map(_size, _waiting(self))) > MAX_WAITING_BYTES:  # noqa: ASYNC110 — no event of Serve's
                await asyncio.sleep(POLL_S)
            return await receive(*asked)

        bound.arguments[name] = when_there_is_room
        init(*bound.args, **bound.kwargs)

    bounded.bounded = True  # type: ignore[attr-defined]
    kind.__init__ = bounded


def _waiting(receive: Any) -> Iterable[Any]:
    waiting: Iterable[Any] = (
        receive.queue._queue
    )  # the deque of an asyncio.Queue, which has no bytes of its own
    return waiting


def _size(message: Any) -> int:
    return len(message.get("body", b"")) if isinstance(message, MutableMapping) else 0
