"""The time limit of a request, where its route asks for more."""

import asyncio

import pytest
from starlette.requests import Request

from serve_app.middleware import extend_time_limit


def test_a_route_can_have_more_time_than_others() -> None:
    async def main(more_s: float) -> None:
        async with asyncio.timeout(0.01) as limit:
            request = Request({"type": "http", "state": {"time_limit": limit}})
            extend_time_limit(request, more_s)
            await asyncio.sleep(0.1)

    asyncio.run(main(60))
    with pytest.raises(TimeoutError):
        asyncio.run(main(0.02))
