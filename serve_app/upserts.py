"""Items from a request into the index: what needs embedding is embedded, then all are stored at once."""

import asyncio
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from deployments.errors import BadInput
from deployments.models.base import THUMBNAIL_BYTES, THUMBNAIL_PX, Vectors
from index.errors import BadItem, ModelMismatch
from index.items import Item, content_id
from serve_app.inference import Embedded
from serve_app.inputs import Content
from serve_app.middleware import Timing
from serve_app.schemas import ImageInput, TextInput, UpsertItem

if TYPE_CHECKING:
    from serve_app.gateway import Gateway


async def read(
    gateway: "Gateway", given: Sequence[UpsertItem], named: Callable[[int], str]
) -> dict[int, Content]:
    """What is to be embedded, by its place among the items; `named` is the request's word for a place.

    Raises as `InputReader.read` does.
    """
    places = [i for i, item in enumerate(given) if item.vector is None]
    contents = await gateway.inputs.read([_input(given[i]) for i in places], param=lambda i: named(places[i]))
    return dict(zip(places, contents, strict=True))


async def store(
    gateway: "Gateway",
    name: str,
    given: Sequence[UpsertItem],
    contents: Mapping[int, Content],
    fingerprint: str | None,
    timing: Timing,
) -> list[str]:
    """The distinct ids of the items, once they are on disk; all of them are or none.

    `contents` is what `read` gave for them, `fingerprint` the caller's word for the model that made its
    vectors. Errors about an item carry its place.

    Raises:
        ModelMismatch: the vectors were not made by what the collection holds, or what embeds the rest.
        BadItem: a thumbnail is none, or the collection keeps none.
    """
    vectors: dict[int, Vectors] = {i: item.vector for i, item in enumerate(given) if item.vector is not None}
    thumbnails = await _thumbnails(gateway, name, given)
    if contents:
        places = list(contents)
        embedded = await embed(gateway, name, list(contents.values()), timing, places)
        thumbnails |= {places[i]: small for i, small in embedded.thumbnails.items()}
        if fingerprint not in (None, embedded.fingerprint) and vectors:
            raise ModelMismatch(
                f"the vectors come from fingerprint {fingerprint}, but the texts and images beside them are "
                f"embedded here by fingerprint {embedded.fingerprint}: send them to the server that serves "
                "that model, or leave fingerprint out if the vectors belong together"
            )
        fingerprint = embedded.fingerprint
        vectors |= dict(zip(places, embedded.vectors, strict=True))
    items = [
        Item(
            id=item.id if item.id is not None else content_id(contents.get(i, vectors[i])),
            vector=vectors[i],
            metadata=item.metadata,
            thumbnail=thumbnails.get(i),
        )
        for i, item in enumerate(given)
    ]
    return await write(gateway, name, items, fingerprint, timing)


async def embed(
    gateway: "Gateway",
    name: str,
    contents: Sequence[Content],
    timing: Timing,
    places: Sequence[int] | None = None,
) -> Embedded:
    """The contents' vectors, and thumbnails where the collection keeps them. Raises CollectionNotFound."""
    with gateway.admissions.admit(contents):
        images = any(isinstance(content, bytes) for content in contents)
        thumbnails = images and await gateway.index.keeps_thumbnails(name)
        # A million stored once must not push out what is searched for again and again.
        return await gateway.inference.embed(contents, timing, places, thumbnails=thumbnails, keep=False)


async def write(
    gateway: "Gateway", name: str, items: Sequence[Item], fingerprint: str | None, timing: Timing
) -> list[str]:
    """The distinct ids of items that are ready, once they are on disk; all of them are or none."""
    ids, times = await gateway.index.upsert(name, items, fingerprint)
    timing.add(times)
    return ids


async def _thumbnails(gateway: "Gateway", name: str, given: Sequence[UpsertItem]) -> dict[int, bytes]:
    """Those that the caller made, by place. Raises BadItem."""
    texts = {place: item.thumbnail for place, item in enumerate(given) if item.thumbnail is not None}
    if not texts:
        return {}
    if not await gateway.index.keeps_thumbnails(name):
        message = f"collection {name!r} keeps no thumbnails; leave them out, or make one with thumbnails"
        raise BadItem(message, next(iter(texts)))

    def read() -> dict[int, bytes]:
        return {place: _thumbnail(text, place) for place, text in texts.items()}

    thumbnails = await asyncio.to_thread(read)
    try:
        await gateway.inference.check_thumbnails(list(thumbnails.values()))
    except BadInput as error:
        if error.index is None:
            raise
        raise _no_thumbnail(error, list(thumbnails)[error.index]) from None
    return thumbnails


def _thumbnail(text: str, place: int) -> bytes:
    try:
        content = b64decode(text, validate=True)
    except ValueError as error:
        raise _no_thumbnail(error, place) from None
    if len(content) > THUMBNAIL_BYTES:
        raise _no_thumbnail(f"it has {len(content)} bytes", place)
    return content


def _no_thumbnail(reason: object, place: int) -> BadItem:
    accepted = f"{THUMBNAIL_PX} by {THUMBNAIL_PX} pixels and {THUMBNAIL_BYTES} bytes"
    return BadItem(f"a thumbnail is base64 of a JPEG of at most {accepted}; {reason}", place)


def _input(item: UpsertItem) -> TextInput | ImageInput:
    return ImageInput(image=item.image) if item.image is not None else TextInput(text=item.text or "")
