"""The models served: `/v1/models`."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from serve_app import schemas
from serve_app.inference import Unavailable
from serve_app.responses import json_response
from serve_app.routes.context import gateway_of

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=schemas.ModelList)
@router.get("/models", include_in_schema=False)
async def list_models(request: Request) -> Response:
    """Every configured model, with where its weights came from and what runs it."""
    names = gateway_of(request).inference.models
    return json_response({"object": "list", "data": [await _shown(request, name) for name in names]})


@router.get("/v1/models/{id:path}", response_model=schemas.Model)
async def get_model(request: Request, id: str) -> Response:
    """One model by its name, or by the hub id or directory it was loaded from."""
    return json_response(await _shown(request, gateway_of(request).inference.name_of(id)))


async def _shown(request: Request, name: str) -> dict[str, Any]:
    gateway = gateway_of(request)
    inference = gateway.inference
    model = inference.models[name]
    stats = gateway.admissions.stats() | {"batch_size": gateway.settings.clip.batch.max_items}
    shown = dict.fromkeys(schemas.Model.model_fields) | {"id": name, "object": "model", "stats": stats}
    if isinstance(model, Unavailable):
        return shown | {
            "task": "text-classification",
            "labels": [],
            "notes": list(model.source.notes),
            "state": "unavailable",
        }
    info = asdict(await inference.info(name))
    return shown | {key: info[key] for key in shown if key in info} | {"id": name, "state": "ready"}
