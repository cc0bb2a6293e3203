"""Answers: JSON with numpy arrays in it, and bare arrays for clients that ask for them."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response

from deployments.models.base import Vectors

NPY = "application/x-npy"
OCTETS = "application/octet-stream"


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON; numpy arrays become lists without a detour through Python floats."""
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY),
        status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def wants_array(request: Request) -> str | None:
    """The array media type that the Accept header prefers to JSON, if there is one (RFC 9110, 12.5.1)."""
    weights: dict[str, float] = {}
    for part in request.headers.get("accept", "").split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weights[kind] = float(quality)
        except ValueError:
            weights[kind] = 0.0
    best = max((NPY, OCTETS), key=lambda kind: weights.get(kind, 0.0))
    # JSON is what is sent unless something else is asked for more, and by name.
    return best if weights.get(best, 0.0) > weights.get("application/json", 0.0) else None


def array_response(vectors: Vectors, media_type: str) -> Response:
    """float32[n, dimensions] as a `.npy` file, or as bare little-endian rows one after the other."""
    little_endian = np.ascontiguousarray(vectors, dtype="<f4")
    if media_type == OCTETS:
        return Response(little_endian.tobytes(), media_type=OCTETS)
    buffer = io.BytesIO()
    np.save(buffer, little_endian, allow_pickle=False)
    return Response(buffer.getvalue(), media_type=NPY)
