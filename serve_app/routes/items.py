"""Items of a collection: stored, read, paged through and deleted."""

import hashlib
from base64 import b64encode
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from index.errors import BadItem, IndexUnavailable, ItemNotFound
from index.items import Item, Record
from serve_app import body, schemas, upserts
from serve_app.errors import ApiError
from serve_app.limits import check_depth
from serve_app.middleware import timing_of
from serve_app.openapi import REF, accepts
from serve_app.responses import NPY, json_response
from serve_app.routes import bulk
from serve_app.routes.context import gateway_of
from serve_app.shard import ShardDown
from serve_app.streams import ACCEPTED, NDJSON

router = APIRouter(tags=["items"])
THUMBNAIL_TYPE = "image/jpeg"
METADATA_HEADER = "x-metadata"
STREAMS: dict[str, dict[str, Any]] = {
    NDJSON: {"schema": {"$ref": REF.format(model="UpsertItem"), "description": "one on each line"}},
    NPY: {"schema": {"type": "string", "format": "binary", "description": ACCEPTED}},
}


@router.post(
    "/v1/collections/{name}/items",
    response_model=schemas.UpsertResponse | schemas.StreamResponse,
    openapi_extra=accepts(schemas.UpsertRequest, also=STREAMS),
)
async def upsert(
    request: Request,
    name: schemas.CollectionName,
    fingerprint: Annotated[schemas.Fingerprint | None, Query(description=schemas.MADE_BY)] = None,
    id_prefix: Annotated[
        str | None, Query(description="ids of an array's rows are this and the row's number; else a hash")
    ] = None,
) -> Response:
    """Stores items, replacing those whose id is taken; a JSON body's all of them or none.

    When this has answered, they survive any crash. NDJSON and arrays may be of any length: they are
    stored in batches as they arrive. An error names the line or row, and what is stored before it stays.
    Of an index of several shards, one that is lost in the middle may leave its part unwritten: the answer
    is 503 then, and sending the same again completes it.
    """
    gateway = gateway_of(request)
    media_type = body.media_type_of(request)
    if media_type == NDJSON:
        return await bulk.upsert_lines(request, name, fingerprint)
    if media_type == NPY:
        return await bulk.upsert_array(request, name, fingerprint, id_prefix)
    if not body.is_json(media_type):
        raise body.unsupported(media_type, body.JSON, *STREAMS)
    limits = gateway.settings.limits

    def check(asked: schemas.UpsertRequest) -> None:
        for i, item in enumerate(asked.items):
            check_depth(item.metadata, f"items[{i}].metadata")

    asked = await body.read_json(request, schemas.UpsertRequest, limits.max_body_bytes, check)
    request.state.named = "items[{}]".format
    contents = await upserts.read(gateway, asked.items, "items[{}]".format)
    made_by = asked.fingerprint or fingerprint
    ids = await upserts.store(gateway, name, asked.items, contents, made_by, timing_of(request))
    return json_response({"upserted": len(ids), "ids": ids})


@router.put(
    "/v1/collections/{name}/items/{id:path}",
    response_model=schemas.UpsertResponse,
    openapi_extra={"requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string"}}}}},
)
async def put_image(
    request: Request,
    name: schemas.CollectionName,
    id: str,
    metadata: Annotated[
        str | None, Query(description=f"JSON object; also as header {METADATA_HEADER}")
    ] = None,
) -> Response:
    """Stores one image from a raw body under an id."""
    gateway = gateway_of(request)
    # Headers arrive as latin-1, whatever they hold; JSON is UTF-8.
    header = request.headers.get(METADATA_HEADER, "").encode("latin-1")
    given = metadata.encode() if metadata is not None else header
    parsed = body.parse_json(given or b"{}", "metadata")
    if not isinstance(parsed, dict):
        raise ApiError(422, "invalid_metadata", "metadata must be a JSON object", "metadata")
    check_depth(parsed, "metadata")
    images, _ = await body.read_images(request, gateway.settings.limits)
    request.state.named = None
    if len(images) > 1:
        raise ApiError(422, "invalid_request", f"an id holds one image; the form has {len(images)}", "files")
    embedded = await upserts.embed(gateway, name, images, timing_of(request))
    item = Item(id, embedded.vectors[0], parsed, thumbnail=embedded.thumbnails.get(0))
    ids = await upserts.write(gateway, name, [item], embedded.fingerprint, timing_of(request))
    return json_response({"upserted": len(ids), "ids": ids})


@router.get(
    "/v1/collections/{name}/items/{id:path}/thumbnail",
    response_class=Response,
    responses={200: {"content": {THUMBNAIL_TYPE: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def thumbnail(request: Request, name: schemas.CollectionName, id: str) -> Response:
    """The small JPEG of an image, in collections made with `thumbnails`.

    An item whose own id ends in `/thumbnail` comes first: it is answered as any other item.
    """
    unanswered = small = None
    try:
        return await get(request, name, f"{id}/thumbnail", request.query_params.get("include", "metadata"))
    except (ItemNotFound, BadItem):
        pass
    except (ShardDown, IndexUnavailable) as error:
        unanswered = error  # hardly any item is called so, and `id` may be on another shard
    try:
        small = (await gateway_of(request).index.get(name, id, ("thumbnail",))).thumbnail
    except ItemNotFound:
        if unanswered is None:
            raise
    if small is None and unanswered is not None:
        raise unanswered
    if small is None:
        message = (
            f"item {id!r} has no thumbnail: one is kept of images that are stored in a collection made with "
            '"thumbnails": true'
        )
        raise ApiError(404, "no_thumbnail", message)
    tag = f'"{hashlib.sha256(small).hexdigest()[:32]}"'
    # The item may be replaced at any time, so a cache asks each time, which costs no picture.
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    known = [
        given.strip().removeprefix("W/") for given in request.headers.get("if-none-match", "").split(",")
    ]
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(small, media_type=THUMBNAIL_TYPE, headers=headers)


@router.get("/v1/collections/{name}/items/{id:path}", response_model=schemas.StoredItem)
async def get(
    request: Request,
    name: schemas.CollectionName,
    id: str,
    include: Annotated[str, Query(description="comma-separated: metadata, vector, thumbnail")] = "metadata",
) -> Response:
    """One item; its vector and thumbnail too with `?include=vector,thumbnail`."""
    wanted = {part.strip() for part in include.split(",")} | {"metadata"}
    if unknown := wanted - {"metadata", "vector", "thumbnail"}:
        message = f"include: {', '.join(sorted(unknown))} is not known; metadata, vector and thumbnail are"
        raise ApiError(422, "invalid_request", message, "include")
    item = await gateway_of(request).index.get(name, id, tuple(wanted))
    shown = {"id": item.id, **_shown(item)}
    if item.thumbnail is not None:
        shown["thumbnail"] = b64encode(item.thumbnail).decode()
    return json_response(shown)


@router.get("/v1/collections/{name}/items", response_model=schemas.Page)
async def page(
    request: Request,
    name: schemas.CollectionName,
    limit: Annotated[int, Query(ge=1)] = 100,
    cursor: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """Pages through everything: give each answer's `cursor` back until it is null."""
    gateway = gateway_of(request)
    most = gateway.settings.limits.max_page
    if limit > most:
        raise ApiError(422, "invalid_request", f"limit: at most {most} items are on one page", "limit")
    found = await gateway.index.page(name, limit, cursor)
    shown = [{"id": record.id, **_shown(record)} for record in found.records]
    return json_response({"items": shown, "cursor": found.next_cursor})


@router.delete("/v1/collections/{name}/items/{id:path}", response_model=schemas.DeleteResponse)
async def delete(request: Request, name: schemas.CollectionName, id: str) -> Response:
    """Deletes one item; 404 when it is not there."""
    if not await gateway_of(request).index.delete(name, [id]):
        raise ApiError(404, "item_not_found", f"no item {id!r} in collection {name!r}")
    return json_response({"deleted": 1})


def _shown(record: Record) -> dict[str, Any]:
    """The optional parts that were asked for."""
    return {key: value for key in ("metadata", "vector") if (value := getattr(record, key)) is not None}
