"""The first requests, which a gateway sends itself: lines to replicas are laid, kernels and code are warm."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Final

from serve_app.direct import Direct
from serve_app.inference import Inference, Unavailable
from serve_app.middleware import Timing

REPEATS: Final = 5
TEXT: Final = "the words of a rehearsal, about as many as usual"
# One white pixel (GIF89a): of the accepted formats the one with the shortest file.
IMAGE: Final = bytes.fromhex(
    "474946383961 0100 0100 80 00 00 ffffff 000000 2c 0000 0000 0100 0100 00 02 02 44 01 00 3b"
)


async def rehearse(inference: Inference, lines: Iterable[Direct], limit_s: float) -> None:
    """Returns once the encoder and the text classifiers have answered, or failed, or taken `limit_s` since
    they were there: what is wrong, their own requests will show. Image heads have next to nothing to do."""
    await asyncio.gather(*(line.laid() for line in lines))
    await asyncio.gather(*(_ask(inference, name, limit_s) for name in inference.models))


async def _ask(inference: Inference, name: str, limit_s: float) -> None:
    if isinstance(inference.models[name], Unavailable) or name in inference.heads:
        return
    requests: list[Callable[[], Awaitable[object]]]
    if name == inference.encoder_name:
        requests = [partial(inference.compute, Timing(), [content]) for content in (TEXT, IMAGE)]
    else:
        requests = [partial(inference.classify, name, [TEXT], Timing())]
    with suppress(Exception):
        await inference.probe(name)  # however long it takes to load
        async with asyncio.timeout(limit_s):
            for request in requests * REPEATS:
                await request()
