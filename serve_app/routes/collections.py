"""Collections: made, listed, dropped and searched under `/v1/collections`."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from configs.settings import Settings
from index.info import EVALUATION_S
from index.items import Hit, Wanted
from index.spec import CollectionSpec
from serve_app import body, schemas
from serve_app.errors import ApiError
from serve_app.inputs import Given
from serve_app.limits import check_depth
from serve_app.middleware import extend_time_limit, timing_of
from serve_app.openapi import accepts
from serve_app.responses import json_response
from serve_app.routes.context import gateway_of

router = APIRouter(tags=["collections"])


@router.post(
    "/v1/collections/{name}/search",
    response_model=schemas.SearchResponse,
    openapi_extra=accepts(schemas.SearchRequest),
)
async def search(request: Request, name: schemas.CollectionName) -> Response:
    """The items closest to a text, an image, a vector or an item already stored."""
    gateway = gateway_of(request)
    settings = gateway.settings
    asked = await body.read_json(
        request,
        schemas.SearchRequest,
        settings.limits.max_body_bytes,
        lambda asked: _check_size(asked, settings),
    )
    request.state.named = _named(asked)
    queries, fingerprint = await _queries(request, asked)
    wanted = Wanted(
        asked.limit, asked.filter, frozenset(asked.include), asked.exact, asked.effort, fingerprint
    )
    found = await gateway.index.search(name, queries, wanted, asked.partial)
    timing_of(request).add(found.times)
    shown = [[_hit(hit) for hit in hits] for hits in found.hits]
    answer: dict[str, Any] = {"results": shown[0] if asked.queries is None else shown}
    if found.missing:
        answer |= {"partial": True, "missing_shards": found.missing}
    return json_response(answer)


@router.put(
    "/v1/collections/{name}",
    response_model=schemas.Collection,
    openapi_extra=accepts(schemas.CreateCollection),
)
async def create(request: Request, name: schemas.CollectionName) -> Response:
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
        indexed_keys=asked.indexed_keys,
        model=model,
        fingerprint=fingerprint,
        thumbnails=asked.thumbnails,
    )
    return json_response(asdict(await gateway.index.create(spec)))


@router.get("/v1/collections", response_model=schemas.CollectionList)
async def list_all(request: Request) -> Response:
    """Every collection, by name; those whose files cannot be used with the reason."""
    infos, unavailable = await gateway_of(request).index.list_all()
    shown = [asdict(info) for info in infos]
    broken = [{"name": name, "reason": reason} for name, reason in unavailable.items()]
    return json_response({"object": "list", "data": shown, "unavailable": broken})


@router.get("/v1/collections/{name}", response_model=schemas.Collection)
async def get(request: Request, name: schemas.CollectionName) -> Response:
    """Counts, kind, bytes, model and fingerprint of one collection."""
    return json_response(asdict(await gateway_of(request).index.info(name)))


@router.delete("/v1/collections/{name}")
async def drop(request: Request, name: schemas.CollectionName) -> Response:
    """Deletes the collection and everything in it."""
    await gateway_of(request).index.drop(name)
    return json_response({"name": name, "deleted": True})


@router.post(
    "/v1/collections/{name}/delete",
    response_model=schemas.DeleteResponse,
    openapi_extra=accepts(schemas.DeleteRequest),
)
async def delete_many(request: Request, name: schemas.CollectionName) -> Response:
    """Deletes items by id or by filter; ids that are not there are not counted."""
    gateway = gateway_of(request)
    limits = gateway.settings.limits
    asked = await body.read_json(
        request,
        schemas.DeleteRequest,
        limits.max_body_bytes,
        lambda asked: check_depth(asked.filter, "filter"),
    )
    if asked.ids is not None:
        deleted = await gateway.index.delete(name, asked.ids)
    else:
        deleted = await gateway.index.delete_where(name, asked.filter or {})
    return json_response({"deleted": deleted})


@router.post(
    "/v1/collections/{name}/evaluate",
    response_model=schemas.Evaluation,
    openapi_extra=accepts(schemas.EvaluateRequest),
)
async def evaluate(request: Request, name: schemas.CollectionName) -> Response:
    """Measures recall@k and latency against exact search, with queries like the stored vectors.

    Takes up to about half a minute; where that does not do for all queries, fewer are used.
    """
    gateway = gateway_of(request)
    asked = await body.read_json(request, schemas.EvaluateRequest, gateway.settings.limits.max_body_bytes)
    extend_time_limit(request, gateway.settings.limits.request_timeout_s + EVALUATION_S)
    return json_response(asdict(await gateway.index.evaluate(name, asked.queries, asked.k)))


@router.post(
    "/v1/collections/{name}/snapshot",
    response_model=schemas.Snapshot,
    openapi_extra=accepts(schemas.SnapshotRequest),
)
async def snapshot(request: Request, name: schemas.CollectionName) -> Response:
    """Copies the collection, while it is in use, to a directory or object store; answers when all is there.

    A new data directory is filled from it with the setting `index.restore_from`.
    """
    gateway = gateway_of(request)
    asked = await body.read_json(request, schemas.SnapshotRequest, gateway.settings.limits.max_body_bytes)
    extend_time_limit(request, gateway.settings.index.snapshot_timeout_s)
    manifest = await gateway.index.snapshot(name, asked.to)
    files = [file for part in manifest.parts for file in part.values()]
    return json_response(
        {
            "collection": name,
            "to": asked.to,
            "id": manifest.id,
            "created": manifest.created,
            "shards": len(manifest.parts),
            "files": len(files),
            "bytes": sum(file.size for file in files),
        }
    )


def _check_size(asked: schemas.SearchRequest, settings: Settings) -> None:
    """Raises 422 or 413 for a search whose answer would be too large, or whose filter is too deep."""
    limits, most = settings.limits, settings.index.max_search_limit
    if asked.limit > most:
        raise ApiError(422, "invalid_request", f"limit: at most {most} results are given", "limit")
    count = len(asked.queries or [None])
    if count > limits.max_texts:
        message = f"{count} queries; at most {limits.max_texts} are accepted, so split the request"
        raise ApiError(413, "too_many_items", message, "queries")
    if count * asked.limit > limits.max_search_results:
        message = (
            f"{count} queries of limit {asked.limit}; at most {limits.max_search_results} results are given"
        )
        raise ApiError(413, "too_many_results", message, "limit")
    check_depth(asked.filter, "filter")


def _named(asked: schemas.SearchRequest) -> Callable[[int], str] | None:
    """The request's words for its queries; a vector or an id that is alone has none."""
    if asked.queries:
        return "queries[{}]".format
    only = next((kind for kind in ("text", "image") if getattr(asked, kind) is not None), None)
    return None if only is None else lambda _: only


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
        queries.append(query.id if query.id is not None else query.vector)
    if not given:
        return queries, None
    named = request.state.named
    contents = await gateway.inputs.read(given, param=lambda i: named(places[i]))
    with gateway.admissions.admit(contents):
        embedded = await gateway.inference.embed(contents, timing_of(request), places)
    for place, vector in zip(places, embedded.vectors, strict=True):
        queries[place] = vector
    return queries, embedded.fingerprint


def _hit(hit: Hit) -> dict[str, Any]:
    shown = {"id": hit.id, "score": hit.score}
    if hit.metadata_json is not None:
        shown["metadata"] = orjson.Fragment(hit.metadata_json)
    if hit.vector is not None:
        shown["vector"] = hit.vector
    return shown
