"""Base64 as callers send it: whole images whatever their size, and nothing foreign."""

import asyncio
import os
from base64 import b64encode

import pytest

from configs.settings import FetchSettings, LimitSettings
from serve_app.errors import ApiError
from serve_app.fetch import ImageFetcher
from serve_app.inputs import DECODED_HERE, InputReader, decode_base64

SLICE = DECODED_HERE * 3 // 4


@pytest.mark.parametrize("size", [0, 1, 2, 3, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE, 3 * SLICE + 2])
def test_any_size(size: int) -> None:
    data = os.urandom(size)
    encoded = b64encode(data).decode()
    assert decode_base64(f"data:image/png;base64,{encoded}", "input") == data
    assert decode_base64("\r\n".join((encoded[:70], encoded[70:])), "input") == data


@pytest.mark.parametrize(
    "encoded",
    [
        "AAAA=AAA",
        "AAAAA",
        "AA AA===",
        "A" * (DECODED_HERE - 2) + "==" + "AAAA",  # which ends where a slice does
        "A" * (DECODED_HERE - 1) + "=" + "A" * DECODED_HERE,
        "A" * DECODED_HERE + "=",
        "A" * DECODED_HERE + "ä",
    ],
)
def test_what_is_no_base64_is_refused_wherever_it_stands(encoded: str) -> None:
    with pytest.raises(ApiError, match="broken base64"):
        decode_base64(encoded, "input")


def test_large_images_are_read_in_order_and_errors_name_theirs() -> None:
    images = [os.urandom(SLICE // 2 + n) for n in range(4)]
    values = [f"data:image/png;base64,{b64encode(image).decode()}" for image in images]

    async def read(*values: str) -> list[str | bytes]:
        fetcher = ImageFetcher(FetchSettings())
        return await InputReader(LimitSettings(), fetcher).read(["a text", *values])

    assert asyncio.run(read(*values)) == ["a text", *images]
    with pytest.raises(ApiError) as error:
        asyncio.run(read(*values[:2], values[2] + "!", values[3]))
    assert error.value.param == "input[3]"
