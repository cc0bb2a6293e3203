"""Embeddings: `/v1/embeddings`, in OpenAI's shape, for texts and images."""

from base64 import b64encode
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from deployments.models.base import Vectors
from serve_app import body, schemas
from serve_app.errors import ApiError
from serve_app.inputs import Content
from serve_app.middleware import timing_of
from serve_app.openapi import accepts
from serve_app.responses import NPY, OCTETS, array_response, json_response, wants_array
from serve_app.routes.context import envelope, gateway_of

router = APIRouter(tags=["embeddings"])


@dataclass(frozen=True)
class Asked:
    """An embedding request, whatever content type it came as."""

    contents: list[Content]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


@router.post(
    "/v1/embeddings",
    response_model=schemas.EmbeddingResponse,
    responses={200: {"content": {NPY: {}, OCTETS: {}}}},
    openapi_extra=accepts(schemas.EmbeddingRequest, images=True),
)
@router.post("/embeddings", include_in_schema=False)
@router.post("/embeddings_image", include_in_schema=False)
@router.post("/v1/embeddings_image", include_in_schema=False)
async def embed(request: Request) -> Response:
    """Embeds texts and images into one space.

    Send JSON, one raw image body, or image files as `multipart/form-data`. With
    `Accept: application/x-npy` or `application/octet-stream` the answer is the bare float32 array.
    """
    gateway = gateway_of(request)
    asked = await _read(request)
    name = gateway.inference.encoder_named(asked.model)
    info = await gateway.inference.info(name)
    if asked.dimensions and asked.dimensions != info.dimensions:
        message = f"model {name!r} makes embeddings of {info.dimensions} dimensions and no other"
        raise ApiError(422, "wrong_dimensions", message, "dimensions")
    with gateway.admissions.admit(asked.contents):
        embedded = await gateway.inference.embed(asked.contents, timing_of(request))
    if array_type := wants_array(request):
        return array_response(embedded.vectors, array_type)
    return json_response(
        {
            "object": "list",
            "model": asked.model or name,
            "data": _data(embedded.vectors, asked.encoding_format),
            **envelope(request, embedded.tokens),
        }
    )


async def _read(request: Request) -> Asked:
    gateway = gateway_of(request)
    limits = gateway.settings.limits
    if not body.is_json(body.media_type_of(request)):
        images, fields = await body.read_images(request, limits, body.JSON)
        asked = body.validate({**fields, "input": []}, schemas.EmbeddingRequest)
        return Asked(list(images), asked.model, asked.encoding_format, asked.dimensions)
    asked = await body.read_json(request, schemas.EmbeddingRequest, limits.max_body_bytes)
    values = asked.input if isinstance(asked.input, list) else [asked.input]
    # An older route of infinity's, on which strings are images without saying so.
    modality = "image" if request.url.path.endswith("_image") else asked.modality
    contents = await gateway.inputs.read(values, modality)
    return Asked(contents, asked.model, asked.encoding_format, asked.dimensions)


def _data(vectors: Vectors, encoding: Literal["float", "base64"]) -> list[dict[str, Any]]:
    rows: Any = np.ascontiguousarray(vectors, dtype="<f4")
    if encoding == "base64":
        rows = [b64encode(row.tobytes()).decode() for row in rows]
    return [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
