"""Much data at once: streams of items or vectors into a collection, and which ids are still to be sent."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from configs.settings import LimitSettings
from deployments.errors import Overloaded
from index.items import Item, content_id
from serve_app import body, schemas, upserts
from serve_app.errors import KNOWN, ApiError, api_error
from serve_app.inputs import Content
from serve_app.limits import HoldsTooMuch, check_depth
from serve_app.middleware import lift_time_limit, timing_of
from serve_app.openapi import accepts
from serve_app.responses import json_response
from serve_app.routes.context import gateway_of
from serve_app.streams import ArrayBody, Line, discard, lines

router = APIRouter(tags=["items"])

BATCH_ITEMS: Final = 500  # held in memory and written to disk together
BATCH_BYTES: Final = 8 * 1024 * 1024  # of lines; one that is longer is a batch of its own


@router.post(
    "/v1/collections/{name}/missing",
    response_model=schemas.MissingResponse,
    openapi_extra=accepts(schemas.MissingRequest),
)
async def missing(request: Request, name: schemas.CollectionName) -> Response:
    """Those of the ids that no item has: what a job that was stopped has still to send."""
    gateway = gateway_of(request)
    asked = await body.read_json(request, schemas.MissingRequest, gateway.settings.limits.max_body_bytes)
    request.state.named = "ids[{}]".format
    return json_response({"missing": await gateway.index.missing(name, asked.ids)})


async def upsert_lines(request: Request, name: str, fingerprint: str | None) -> Response:
    """Stores an NDJSON body, an item on each line."""
    gateway = gateway_of(request)
    limits = gateway.settings.limits
    await gateway.index.info(name)  # 404 before anything is read
    stream = _Stream(request, "line")
    batches = _batches(lines(stream.chunks, limits.max_body_bytes))
    while True:
        with gateway.admissions.memory.holding():
            async with stream.step():
                batch = await anext(batches, None)
                if batch is None:
                    return stream.answer()
                items = await asyncio.to_thread(_parse, batch, limits)
            parts = list(_cut(items, limits))[::-1]
            while parts:
                part = parts.pop()
                names = [f"line {number}" for number, _ in part]
                async with stream.step(names):
                    ids = await _store(request, name, [item for _, item in part], fingerprint, names)
                if ids is None:
                    half = len(part) // 2
                    parts += [part[half:], part[:half]]
                else:
                    stream.add(ids, last=part[-1].number)


async def upsert_array(
    request: Request, name: str, fingerprint: str | None, id_prefix: str | None
) -> Response:
    """Stores a `.npy` body, a vector in each row."""
    gateway = gateway_of(request)
    info = await gateway.index.info(name)
    stream = _Stream(request, "row")
    array = ArrayBody(stream.chunks)
    with gateway.admissions.memory.holding():
        async with stream.step():
            columns = await array.read_header()
            if columns != info.dimensions:
                message = (
                    f"the array's rows are {columns} numbers; collection {name!r} takes {info.dimensions}"
                )
                raise ApiError(422, "invalid_array", message)
    start = 0
    rows = array.rows(max(1, min(BATCH_ITEMS, BATCH_BYTES // (8 * columns))))
    while True:
        with gateway.admissions.memory.holding():
            async with stream.step():
                batch = await anext(rows, None)
            if batch is None:
                return stream.answer()
            items = [
                Item(content_id(row) if id_prefix is None else f"{id_prefix}{number}", row, {})
                for number, row in enumerate(batch, start)
            ]
            async with stream.step([f"row {number}" for number in range(start, start + len(batch))]):
                ids = await upserts.write(gateway, name, items, fingerprint, timing_of(request))
            start += len(batch)
            stream.add(ids, last=start - 1)


class _Stream:
    """What one stream has stored. An error in it says so, for what is stored stays."""

    def __init__(self, request: Request, unit: str) -> None:
        self.chunks = request.stream()
        self._unit = unit
        self._timeout_s = lift_time_limit(request)  # from here on it holds for each step
        self._stored = 0
        self._last: int | None = None
        self._ids: list[str] = []

    @asynccontextmanager
    async def step(self, names: Sequence[str] = ()) -> AsyncIterator[None]:
        """One step, within the time limit of a request; `names` are the body's words for a batch's items."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError:
            message = f"the next batch took longer than {self._timeout_s:g} s to arrive and be stored"
            raise self._stopped(ApiError(408, "timeout", message), perhaps=bool(names)) from None
        except KNOWN as error:
            await discard(self.chunks)
            told = api_error(error, names.__getitem__)
            raise self._stopped(told, perhaps=bool(names) and told.status >= 500) from None

    def add(self, ids: Sequence[str], last: int) -> None:
        """These are on disk, up to the line or row `last`."""
        self._stored += len(ids)
        self._last = last
        if self._stored <= schemas.SHOWN_IDS:
            self._ids += ids

    def answer(self) -> Response:
        shown = self._ids if self._stored <= schemas.SHOWN_IDS else None
        return json_response({"upserted": self._stored, "ids": shown})

    def _stopped(self, error: ApiError, perhaps: bool) -> ApiError:
        """`perhaps` the batch under way is stored too, or will be."""
        if self._last is None:
            done = (
                "Perhaps the first batch is stored: send everything again."
                if perhaps
                else "Nothing was stored."
            )
        else:
            more = "perhaps the next batch too" if perhaps else "nothing after them"
            done = (
                f"The {self._stored} items up to {self._unit} {self._last} are stored and {more}: "
                f"send again from {self._unit} {self._last + 1}."
            )
        # `line 7.vector` begins with `line 7`; the message itself says what of it is wrong.
        message = f"{error.param.split('.')[0]}: {error.message}" if error.param else error.message
        return ApiError(error.status, error.code, f"{message}. {done}", error.param, retry=error.retry)


async def _batches(source: AsyncIterator[Line]) -> AsyncIterator[list[Line]]:
    batch: list[Line] = []
    size = 0
    async for line in source:
        if batch and (len(batch) == BATCH_ITEMS or size + len(line.text) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line.text)
    if batch:
        yield batch


class _Parsed(NamedTuple):
    number: int
    item: schemas.UpsertItem


def _parse(batch: Sequence[Line], limits: LimitSettings) -> list[_Parsed]:
    """Raises ApiError naming the first line that is no item."""
    parsed = []
    for number, text in batch:
        try:
            item = body.validate(orjson.loads(text), schemas.UpsertItem)
            check_depth(item.metadata, "metadata")
            parsed.append(_Parsed(number, item))
        except orjson.JSONDecodeError as error:
            message = f'not valid JSON ({error}); a line is one item, such as {{"id":"a","text":"a red car"}}'
            raise ApiError(422, "invalid_line", message, f"line {number}") from None
        except ApiError as error:
            param = f"line {number}.{error.param}" if error.param else f"line {number}"
            raise ApiError(error.status, error.code, error.message, param) from None
    return parsed


def _cut(items: Sequence[_Parsed], limits: LimitSettings) -> Iterator[list[_Parsed]]:
    """The items in their order, in parts that hold no more images and texts than one request may."""
    part: list[_Parsed] = []
    images = texts = 0
    for parsed in items:
        image, text = parsed.item.image is not None, parsed.item.text is not None
        if part and (images + image > limits.max_images or texts + text > limits.max_texts):
            yield part
            part, images, texts = [], 0, 0
        part.append(parsed)
        images, texts = images + image, texts + text
    if part:
        yield part


async def _store(
    request: Request,
    name: str,
    items: Sequence[schemas.UpsertItem],
    fingerprint: str | None,
    names: Sequence[str],
) -> list[str] | None:
    """The ids; None where there was no room for what has to be fetched, and may be for less."""
    gateway = gateway_of(request)
    retry_s = gateway.settings.limits.retry_after_s
    refetch_s = retry_s
    while True:
        with gateway.admissions.memory.holding():
            try:
                contents = await upserts.read(gateway, items, names.__getitem__)
            except (HoldsTooMuch, Overloaded) as error:
                if len(items) == 1 and isinstance(error, HoldsTooMuch):
                    raise
            else:
                return await _store_in_turn(request, name, items, contents, fingerprint, retry_s)
        if len(items) > 1:
            return None
        await asyncio.sleep(refetch_s)
        refetch_s *= 2


async def _store_in_turn(
    request: Request,
    name: str,
    items: Sequence[schemas.UpsertItem],
    contents: Mapping[int, Content],
    fingerprint: str | None,
    retry_s: float,
) -> list[str]:
    """A stream waits where a single request would be sent away."""
    while True:
        try:
            return await upserts.store(
                gateway_of(request), name, items, contents, fingerprint, timing_of(request)
            )
        except Overloaded:
            await asyncio.sleep(retry_s)
