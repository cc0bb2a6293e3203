"""The first requests, which a gateway sends itself: lines to replicas are laid, kernels and code are warm."""

import asyncio
from base64 import b64encode
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import orjson
from starlette.types import ASGIApp, Message, Scope

from serve_app.body import JSON
from serve_app.direct import Direct
from serve_app.inference import Inference, Unavailable

REPEATS: Final = 5


def text(number: int) -> str:
    """As long as usual."""
    return f"the words of rehearsal {number}, about as many as usual"


def image(number: int) -> bytes:
    """A pixel of colour `number` (GIF89a): of the accepted formats the one with the shortest file."""
    colours = f"{number:06x} 000000"
    return bytes.fromhex(
        f"474946383961 0100 0100 80 00 00 {colours} 2c 0000 0000 0100 0100 00 02 02 44 01 00 3b"
    )


def _data_uri(data: bytes) -> str:
    return f"data:image/gif;base64,{b64encode(data).decode()}"


async def rehearse(
    app: ASGIApp, inference: Inference, lines: Iterable[Direct], key: str, limit_s: float
) -> None:
    """Returns once all models that there are have had their turn, and answered, failed or taken `limit_s` of
    it: what is wrong, their own requests will show.

    The requests take the whole way through `app`, with `key`, one at a time. No two that the encoder gets are
    the same, for the cache to miss.
    """
    turn = asyncio.Lock()
    asked = (_ask(app, inference, name, key, limit_s, turn) for name in inference.models)
    await asyncio.gather(*(line.laid() for line in lines), *asked)


async def _ask(
    app: ASGIApp, inference: Inference, name: str, key: str, limit_s: float, turn: asyncio.Lock
) -> None:
    if isinstance(inference.models[name], Unavailable):
        return
    is_head = name in inference.heads
    with suppress(Exception):
        for needed in (inference.encoder_name, name) if is_head else (name,):
            await inference.probe(needed)  # however long it takes to load
        async with turn, asyncio.timeout(limit_s):
            for number in range(REPEATS):
                content = _data_uri(image(REPEATS + number)) if is_head else text(number)
                asked = orjson.dumps({"model": name, "input": [content]})
                if name == inference.encoder_name:
                    await _post(app, "/v1/embeddings", JSON, asked, key)
                    await _post(app, "/v1/embeddings", "image/gif", image(number), key)
                else:
                    await _post(app, "/v1/classify", JSON, asked, key)


async def _post(app: ASGIApp, path: str, media_type: str, body: bytes, key: str) -> None:
    """Raises RuntimeError unless the answer is 200."""
    headers = {"content-type": media_type, "content-length": str(len(body)), "authorization": f"Bearer {key}"}
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    arriving: list[Message] = [{"type": "http.request", "body": body}]
    statuses = []

    async def receive() -> Message:
        if not arriving:
            await asyncio.Event().wait()  # nobody leaves
        return arriving.pop()

    async def send(message: Message) -> None:
        if "status" in message:
            statuses.append(message["status"])

    # In a context of its own, as a server gives each request.
    await asyncio.ensure_future(app(scope, receive, send))
    if statuses != [200]:
        raise RuntimeError(f"{path} answered {statuses}")
