"""Bodies without end: read as they arrive, in lines or in the rows of an array, never held whole.

What is read is held (`limits.hold_in_turn`) by whoever asks for the next line or rows.
"""

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np
from numpy.lib import format as npy
from starlette.requests import ClientDisconnect

from deployments.models.base import Vectors
from serve_app.errors import ApiError
from serve_app.limits import hold_in_turn

Chunks = AsyncGenerator[bytes, None]  # a request's `stream()`, of which there is one for the whole request

NDJSON: Final = "application/x-ndjson"
ACCEPTED: Final = (
    "accepted is a .npy file (version 1 or 2) of a two-dimensional array in C order, float16, float32 or "
    "float64, with a row for each vector"
)
_MAX_HEADER_BYTES: Final = 4096  # numpy writes 128
_DISCARD_S: Final = 5


class Line(NamedTuple):
    """One line of a body; `number` counts from 1, empty lines included."""

    number: int
    text: bytes


async def lines(chunks: Chunks, max_bytes: int) -> AsyncIterator[Line]:
    """The lines that hold anything. Raises 413 for one longer than `max_bytes`."""
    number, size = 1, 0
    begun: list[bytes] = []  # pieces of a line whose end has not come
    async for chunk in chunks:
        await hold_in_turn(len(chunk))
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            _check_length(size + len(end), max_bytes, number)
            if text := b"".join((*begun, end)).strip():
                yield Line(number, text)
            number, size, begun = number + 1, 0, []
        begun.append(rest)
        size += len(rest)
        _check_length(size, max_bytes, number)
    if text := b"".join(begun).strip():
        yield Line(number, text)


async def discard(chunks: Chunks) -> None:
    """Read what is left of a body, for some seconds: many clients read no answer before they have sent it."""
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(_DISCARD_S):
            async for _ in chunks:
                pass


def _check_length(size: int, max_bytes: int, number: int) -> None:
    if size > max_bytes:
        message = f"the line is longer than {max_bytes} bytes, which one item may have"
        raise ApiError(413, "line_too_long", message, f"line {number}")


class ArrayBody:
    """A `.npy` body: its header at once, its rows as they arrive."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._held = bytearray()
        self._rows = self._columns = 0
        self._dtype = np.dtype(np.float32)

    async def read_header(self) -> int:
        """The number of columns; to be called first.

        Raises 422 unless the array is of a kind that is accepted; never unpickles.
        """
        start = await self._take(8)
        major = start[6] if len(start) == 8 and start.startswith(npy.MAGIC_PREFIX) else 0
        if major not in (1, 2):
            raise _refused("this is no such file")
        length = await self._take(2 if major == 1 else 4)
        size = int.from_bytes(length, "little")
        if size > _MAX_HEADER_BYTES:
            raise _refused(f"its header is {size} bytes long")
        text = io.BytesIO(length + await self._take(size))
        read = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
        try:
            shape, fortran_order, dtype = read(text, max_header_size=_MAX_HEADER_BYTES)
        except Exception as error:  # numpy has Python's own parser read it, which raises whatever it likes
            raise _refused(f"its header cannot be read: {error}") from None
        if dtype.kind != "f" or dtype.itemsize > 8:
            raise _refused(f"its numbers are {dtype}")
        if len(shape) != 2 or fortran_order:
            raise _refused(f"its shape is {shape}" + (" in Fortran order" if fortran_order else ""))
        self._rows, self._columns = shape
        self._dtype = dtype
        return self._columns

    async def rows(self, at_once: int) -> AsyncIterator[Vectors]:
        """float32[up to `at_once`, columns], one after the other. Raises 422 where the body is cut short."""
        row_bytes = self._columns * self._dtype.itemsize
        for start in range(0, self._rows, at_once):
            wanted = min(at_once, self._rows - start)
            content = await self._take(wanted * row_bytes)
            if len(content) < wanted * row_bytes:
                row = start + len(content) // max(1, row_bytes)
                raise ApiError(
                    422, "invalid_array", f"the body ends here; its header promised {self._rows} rows",
                    f"row {row}",
                )  # fmt: skip
            rows = np.frombuffer(content, self._dtype).reshape(wanted, self._columns)
            with np.errstate(over="ignore"):  # beyond float32 is infinite, which the index refuses
                converted = rows.astype(np.float32, copy=False)
            yield converted
        if await self._take(1):
            message = f"the body goes on after the {self._rows} rows of its header"
            raise ApiError(422, "invalid_array", message, f"row {self._rows}")

    async def _take(self, size: int) -> bytes:
        """The next `size` bytes, or what is left of them."""
        while len(self._held) < size:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                break
            await hold_in_turn(len(chunk))
            self._held += chunk
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken


def _refused(found: str) -> ApiError:
    return ApiError(422, "invalid_array", f"{found}; {ACCEPTED}")
