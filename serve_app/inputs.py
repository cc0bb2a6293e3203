"""What callers send as text or image, made into `str` (a text) or `bytes` (an encoded image)."""

import asyncio
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Literal

from configs.settings import LimitSettings
from serve_app.errors import ApiError
from serve_app.fetch import ImageFetcher
from serve_app.limits import check_counts, check_text
from serve_app.remote import together
from serve_app.schemas import ImageInput, TextInput

# "data:image/png;base64,…" and its kind, but not "Data: the new oil".
DATA_URI = re.compile(r"data:[^,\s]{0,256}[;,]", re.IGNORECASE)

DECODED_HERE = 1 << 20
"""Characters of base64 in a request, which take some 4 ms; more is decoded in a thread."""

FETCHES = 8  # of one request at once, for others to have some of the connections

Modality = Literal["text", "image"]
Content = str | bytes
Given = str | TextInput | ImageInput


class InputReader:
    """Turns request values into contents, within the limits, fetching URLs where that is on."""

    def __init__(self, limits: LimitSettings, fetcher: ImageFetcher) -> None:
        self._limits = limits
        self._fetcher = fetcher

    async def read(
        self,
        values: Sequence[Given],
        modality: Modality | None = None,
        param: Callable[[int], str] = "input[{}]".format,
    ) -> list[Content]:
        """One `str` or `bytes` per value.

        A plain string is a text, unless it is a `data:` URI or `modality` says image. `param` names
        the part of the request that a value came from, for errors.

        Raises:
            ApiError: 400 broken base64, 413 too many, 422 of another kind than `modality`.
            Overloaded: requests hold too much already of what was fetched for them.
        """
        if not values:
            return []
        kinds = [_kind(value, modality, param(i)) for i, value in enumerate(values)]
        images = kinds.count("image")
        check_counts(images, len(values) - images, self._limits, param(0).split("[")[0])
        strings = [_string(value) for value in values]
        large = sum(len(s) for s, kind in zip(strings, kinds, strict=True) if kind == "image") > DECODED_HERE
        fetches = asyncio.Semaphore(FETCHES)

        async def content(string: str, kind: Modality, param: str) -> Content:
            if kind == "text":
                check_text(string, self._limits, param)
                return string
            if string.startswith(("https://", "http://")):
                async with fetches:
                    return await self._fetcher.fetch(string, param)
            if large:
                return await asyncio.to_thread(decode_base64, string, param)
            return decode_base64(string, param)

        return await together(
            *(
                content(string, kind, param(i))
                for i, (string, kind) in enumerate(zip(strings, kinds, strict=True))
            )
        )


def _string(value: Given) -> str:
    match value:
        case ImageInput():
            return value.image
        case TextInput():
            return value.text
    return value


def decode_base64(value: str, param: str) -> bytes:
    """The bytes of a `data:…;base64,` URI or of bare base64. Raises 400."""
    if DATA_URI.match(value):
        head, comma, value = value.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            message = "a data URI must look like data:image/jpeg;base64,… with base64 after the comma"
            raise ApiError(400, "invalid_data_uri", message, param)
    # Line breaks are how many tools write base64; nothing else foreign is let through.
    value = value.replace("\n", "").replace("\r", "")
    try:
        # In slices, for each holds up all other threads.
        decoded = [
            binascii.a2b_base64(value[first : first + DECODED_HERE], strict_mode=True)
            for first in range(0, len(value), DECODED_HERE)
        ]
        if any(len(part) < DECODED_HERE * 3 // 4 for part in decoded[:-1]):
            raise binascii.Error("Excess data after padding")
        return b"".join(decoded)
    except (binascii.Error, ValueError) as error:
        message = f"broken base64: {error}; an image is a data URI or bare base64"
        raise ApiError(400, "invalid_base64", message, param) from None


def _kind(value: Given, modality: Modality | None, param: str) -> Modality:
    kind: Modality
    if isinstance(value, ImageInput):
        kind = "image"
    elif isinstance(value, TextInput):
        kind = "text"
    elif modality is not None:
        return modality
    else:
        return "image" if DATA_URI.match(value) else "text"
    if modality not in (None, kind):
        message = f"modality is {modality!r}, but this input is {kind}; leave modality out to mix"
        raise ApiError(422, "modality_mismatch", message, param)
    return kind
