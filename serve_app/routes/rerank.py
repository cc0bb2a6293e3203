"""Reranking: `/v1/rerank`, documents of text or image ordered by closeness to a query of either."""

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from serve_app import body, schemas
from serve_app.middleware import timing_of
from serve_app.openapi import accepts
from serve_app.responses import json_response
from serve_app.routes.context import envelope, gateway_of

router = APIRouter(tags=["rerank"])


@router.post(
    "/v1/rerank", response_model=schemas.RerankResponse, openapi_extra=accepts(schemas.RerankRequest)
)
@router.post("/rerank", include_in_schema=False)
async def rerank(request: Request) -> Response:
    """Documents by cosine similarity to the query, highest first."""
    gateway = gateway_of(request)
    asked = await body.read_json(request, schemas.RerankRequest, gateway.settings.limits.max_body_bytes)
    name = gateway.inference.encoder_named(asked.model)
    query = await gateway.inputs.read([asked.query], param=lambda _: "query")
    documents = await gateway.inputs.read(asked.documents, param="documents[{}]".format)
    request.state.named = lambda i: "query" if i == len(documents) else f"documents[{i}]"
    with gateway.admissions.admit([*documents, *query]):
        embedded = await gateway.inference.embed([*documents, *query], timing_of(request))
    scores = embedded.vectors[:-1] @ embedded.vectors[-1]
    results = [
        {"index": int(i), "relevance_score": float(scores[i])}
        | ({"document": _shown(asked.documents[i])} if asked.return_documents else {})
        for i in np.argsort(-scores, kind="stable")[: asked.top_n]
    ]
    answer = {"object": "rerank", "model": asked.model or name, "results": results}
    return json_response({**answer, **envelope(request, embedded.tokens)})


def _shown(document: schemas.Input) -> str:
    if isinstance(document, schemas.TextInput):
        return document.text
    return document.image if isinstance(document, schemas.ImageInput) else document
