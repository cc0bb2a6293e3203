"""Health: alive while the process answers, ready while everything a request needs can answer."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from serve_app import schemas
from serve_app.inference import Unavailable
from serve_app.remote import call
from serve_app.responses import json_response
from serve_app.routes.context import gateway_of

router = APIRouter(tags=["health"])


@router.get("/health", include_in_schema=False)
@router.get("/v1/health", include_in_schema=False)
async def health() -> Response:
    """What infinity's clients ask for: the server's time."""
    return json_response({"unix": time.time()})


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", response_model=schemas.Health)
async def live() -> Response:
    """200 while this process answers at all."""
    return json_response({"status": "alive", "dependencies": {}})


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", response_model=schemas.Health, responses={503: {"model": schemas.Health}})
async def ready(request: Request) -> Response:
    """200 when every dependency can answer, 503 with each one's state otherwise.

    A model without weights is `unavailable` and does not make the rest unready.
    """
    gateway = gateway_of(request)
    limit_s = gateway.settings.gateway.health_timeout_s
    # Pairs, for a model may be called as a shard is.
    probes: list[tuple[str, Coroutine[Any, Any, object] | None]] = []
    if gateway.preprocessor is not None:
        probes.append(("preprocessor", call(gateway.preprocessor, "ready")))
    probes += gateway.index.probes().items()
    for name, model in gateway.inference.models.items():
        probes.append((name, None if isinstance(model, Unavailable) else gateway.inference.probe(name)))
    # Waited for and not told: what is not there, the others say.
    _, *states = await asyncio.gather(
        _state(gateway.rehearsed(), limit_s), *(_state(probe, limit_s) for _, probe in probes)
    )
    is_ready = all(state in ("ready", "unavailable") for state in states)
    status = "ready" if is_ready else "not ready"
    return json_response(
        {"status": status, "dependencies": dict(zip((name for name, _ in probes), states, strict=True))},
        200 if is_ready else 503,
    )


async def _state(probe: Coroutine[Any, Any, object] | None, limit_s: float) -> str:
    if probe is None:
        return "unavailable"
    try:
        async with asyncio.timeout(limit_s):
            await probe
    except TimeoutError:
        return f"no answer within {limit_s:g} s"
    except Exception as error:
        return str(error) or type(error).__name__
    return "ready"
