"""Items of a collection: stored, read, paged through and deleted."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from index.items import Item, content_id
from serve_app import body, schemas
from serve_app.errors import ApiError
from serve_app.inputs import Content, as_vector
from serve_app.limits import check_depth
from serve_app.middleware import timing_of
from serve_app.openapi import accepts
from serve_app.responses import json_response
from serve_app.routes.context import gateway_of

router = APIRouter(tags=["items"])
METADATA_HEADER = "x-metadata"


@router.post(
    "/v1/collections/{name}/items",
    response_model=schemas.UpsertResponse,
    openapi_extra=accepts(schemas.UpsertRequest),
)
async def upsert(request: Request, name: schemas.CollectionName) -> Response:
    """Stores items, replacing those whose id is taken; all of them or none.

    When this has answered, they survive any crash. Of an index of several shards, one that is lost in the
    middle may leave its part unwritten: the answer is 503 then, and sending the same again completes it.
    """
    gateway = gateway_of(request)
    asked = await body.read_json(request, schemas.UpsertRequest, gateway.settings.limits.max_body_bytes)
    request.state.list_name = "items"
    for i, item in enumerate(asked.items):
        check_depth(item.metadata, gateway.settings.limits, f"items[{i}].metadata")
    places = [i for i, item in enumerate(asked.items) if item.vector is None]
    given = [_given(asked.items[i]) for i in places]
    read = await gateway.inputs.read(given, param=lambda i: f"items[{places[i]}]")
    contents = dict(zip(places, read, strict=True))
    vectors: dict[int, Any] = {
        i: as_vector(item.vector) for i, item in enumerate(asked.items) if item.vector is not None
    }
    fingerprint = None
    if contents:
        embedded, fingerprint = await _embed(request, read, places)
        vectors |= dict(zip(contents, embedded, strict=True))
    items = [
        Item(
            id=item.id if item.id is not None else content_id(contents.get(i, vectors[i])),
            vector=vectors[i],
            metadata=item.metadata,
        )
        for i, item in enumerate(asked.items)
    ]
    return await _stored(request, name, items, fingerprint)


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
    check_depth(parsed, gateway.settings.limits, "metadata")
    images, _ = await body.read_images(request, gateway.settings.limits)
    if len(images) > 1:
        raise ApiError(422, "too_many_items", f"an id holds one image; the form has {len(images)}", "files")
    vectors, fingerprint = await _embed(request, list(images), None)
    item = Item(id=id, vector=vectors[0], metadata=parsed)
    return await _stored(request, name, [item], fingerprint)


@router.get("/v1/collections/{name}/items/{id:path}", response_model=schemas.Item)
async def get(
    request: Request,
    name: schemas.CollectionName,
    id: str,
    include: Annotated[str, Query(description="comma-separated: metadata, vector")] = "metadata",
) -> Response:
    """One item; its vector too with `?include=vector`."""
    wanted = {part.strip() for part in include.split(",")} | {"metadata"}
    if unknown := wanted - {"metadata", "vector"}:
        message = f"include: {', '.join(sorted(unknown))} is not known; metadata and vector are"
        raise ApiError(422, "invalid_request", message, "include")
    item = await gateway_of(request).index.get(name, id, tuple(wanted))
    return json_response({"id": item.id, **show_item(item)})


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
    shown = [{"id": record.id, **show_item(record)} for record in found.records]
    return json_response({"items": shown, "cursor": found.next_cursor})


@router.delete("/v1/collections/{name}/items/{id:path}", response_model=schemas.DeleteResponse)
async def delete(request: Request, name: schemas.CollectionName, id: str) -> Response:
    """Deletes one item; 404 when it is not there."""
    if not await gateway_of(request).index.delete(name, [id]):
        raise ApiError(404, "item_not_found", f"no item {id!r} in collection {name!r}")
    return json_response({"deleted": 1})


def show_item(item: Any) -> dict[str, Any]:
    """The optional parts of an item or a hit that were asked for."""
    return {key: value for key in ("metadata", "vector") if (value := getattr(item, key)) is not None}


async def _stored(request: Request, name: str, items: list[Item], fingerprint: str | None) -> Response:
    ids, times = await gateway_of(request).index.upsert(name, items, fingerprint)
    timing_of(request).add(times)
    return json_response({"upserted": len(ids), "ids": ids})


async def _embed(request: Request, contents: list[Content], places: list[int] | None) -> tuple[Any, str]:
    """The contents' vectors and the fingerprint of the model that made them."""
    gateway = gateway_of(request)
    with gateway.admissions.admit(contents):
        embedded = await gateway.inference.embed(contents, timing_of(request), places)
    return embedded.vectors, embedded.fingerprint


def _given(item: schemas.UpsertItem) -> schemas.TextInput | schemas.ImageInput:
    if item.image is not None:
        return schemas.ImageInput(image=item.image)
    return schemas.TextInput(text=item.text or "")
