"""Collections: made, listed, dropped and searched under `/v1/collections`."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from index.collection import CollectionInfo
from index.items import Hit
from index.spec import CollectionSpec
from serve_app import body, schemas
from serve_app.errors import ApiError
from serve_app.inputs import Given, as_vector
from serve_app.middleware import timing_of
from serve_app.openapi import accepts
from serve_app.remote import call
from serve_app.responses import json_response
from serve_app.routes.context import gateway_of
from serve_app.routes.items import show_item

router = APIRouter(tags=["collections"])
Name = Annotated[str, Path(pattern=r"^[a-z0-9_-]{1,64}$", description="1 to 64 of a-z, 0-9, _ and -")]


@router.put(
    "/v1/collections/{name}",
    response_model=schemas.Collection,
    openapi_extra=accepts(schemas.CreateCollection),
)
async def create(request: Request, name: Name) -> Response:
    """Makes a collection for a model, or for vectors of your own with `dimensions`.

    Making one that exists with the same settings is no error.
    """
    gateway = gateway_of(request)
    asked = await body.read_json(request, schemas.CreateCollection, gateway.settings.limits.max_body_bytes)
    dimensions, model, fingerprint = asked.dimensions, None, None
    if asked.model is not None or dimensions is None:
        model = gateway.inference.encoder_named(asked.model)
        info = await gateway.inference.info(model)
        if dimensions not in (None, info.dimensions):
            message = (
                f"model {model!r} makes embeddings of {info.dimensions} dimensions; leave dimensions out"
            )
            raise ApiError(422, "wrong_dimensions", message, "dimensions")
        dimensions, fingerprint = info.dimensions, info.fingerprint
    spec = CollectionSpec(
        name=name,
        dimensions=dimensions or 0,
        metric=asked.metric,
        kind=asked.kind,
        model=model,
        fingerprint=fingerprint,
    )
    return json_response(_shown(await call(gateway.index, "create", spec)))


@router.get("/v1/collections", response_model=schemas.CollectionList)
async def list_all(request: Request) -> Response:
    """Every collection, by name."""
    infos = await call(gateway_of(request).index, "list_all")
    return json_response({"object": "list", "data": [_shown(info) for info in infos]})


@router.get("/v1/collections/{name}", response_model=schemas.Collection)
async def get(request: Request, name: Name) -> Response:
    """Counts, kind, bytes, model and fingerprint of one collection."""
    return json_response(_shown(await call(gateway_of(request).index, "info", name)))


@router.delete("/v1/collections/{name}")
async def drop(request: Request, name: Name) -> Response:
    """Deletes the collection and everything in it."""
    await call(gateway_of(request).index, "drop", name)
    return json_response({"name": name, "deleted": True})


@router.post(
    "/v1/collections/{name}/search",
    response_model=schemas.SearchResponse,
    openapi_extra=accepts(schemas.SearchRequest),
)
async def search(request: Request, name: Name) -> Response:
    """The items closest to a text, an image, a vector or an item already stored."""
    gateway = gateway_of(request)
    asked = await body.read_json(request, schemas.SearchRequest, gateway.settings.limits.max_body_bytes)
    limit = gateway.settings.index.max_search_limit
    if asked.limit > limit:
        raise ApiError(422, "invalid_request", f"limit: at most {limit} results are given", "limit")
    request.state.list_name = "queries" if asked.queries else None
    queries, fingerprint = await _queries(request, asked)
    results, times = await call(
        gateway.index,
        "search",
        name,
        queries,
        asked.limit,
        asked.filter,
        tuple(asked.include),
        asked.exact,
        fingerprint,
    )
    timing_of(request).add(times)
    shown = [[_hit(hit) for hit in hits] for hits in results]
    return json_response({"results": shown[0] if asked.queries is None else shown})


@router.post(
    "/v1/collections/{name}/delete",
    response_model=schemas.DeleteResponse,
    openapi_extra=accepts(schemas.DeleteRequest),
)
async def delete_many(request: Request, name: Name) -> Response:
    """Deletes items by id or by filter; ids that are not there are not counted."""
    gateway = gateway_of(request)
    asked = await body.read_json(request, schemas.DeleteRequest, gateway.settings.limits.max_body_bytes)
    if asked.ids is not None:
        deleted = await call(gateway.index, "delete", name, asked.ids)
    else:
        deleted = await call(gateway.index, "delete_where", name, asked.filter)
    return json_response({"deleted": deleted})


async def _queries(request: Request, asked: schemas.SearchRequest) -> tuple[list[Any], str | None]:
    """Each query as a vector or an item id, and the fingerprint of the model if it made any of them."""
    gateway = gateway_of(request)
    queries: list[Any] = []
    given: list[Given] = []
    places: list[int] = []
    for place, query in enumerate(asked.all_queries()):
        if query.text is not None:
            given.append(schemas.TextInput(text=query.text))
            places.append(place)
        elif query.image is not None:
            given.append(schemas.ImageInput(image=query.image))
            places.append(place)
        queries.append(query.id if query.id is not None else as_vector(query.vector or []))
    if not given:
        return queries, None
    contents = await gateway.inputs.read(given, param=lambda i: f"queries[{places[i]}]")
    with gateway.admission.admit(len(contents)):
        vectors, _ = await gateway.inference.embed(contents, timing_of(request), places)
    for place, vector in zip(places, vectors, strict=True):
        queries[place] = vector
    return queries, (await gateway.inference.info(gateway.inference.encoder_name)).fingerprint


def _shown(info: CollectionInfo) -> dict[str, Any]:
    return asdict(info)


def _hit(hit: Hit) -> dict[str, Any]:
    return {"id": hit.id, "score": hit.score, **show_item(hit)}
