"""What every route takes from the app it belongs to, and puts on every answer."""

import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from serve_app.middleware import request_id_of

if TYPE_CHECKING:
    from serve_app.gateway import Gateway


def gateway_of(request: Request) -> "Gateway":
    """The gateway whose app this request came to."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def envelope(request: Request, tokens: int) -> dict[str, Any]:
    """`usage`, `id` and `created` (Unix seconds), the end of every model answer."""
    return {
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "id": request_id_of(request.scope),
        "created": int(time.time()),
    }
