"""What wraps every request: the time limit of one whose route asks for more, and what a failed one leaves."""

import asyncio
import logging
import weakref

import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from configs.settings import LimitSettings
from serve_app.limits import Admissions
from serve_app.middleware import RequestContext, extend_time_limit
from serve_app.remote import together


def test_a_route_can_have_more_time_than_others() -> None:
    async def main(more_s: float) -> None:
        async with asyncio.timeout(0.01) as limit:
            request = Request({"type": "http", "state": {"time_limit": limit}})
            extend_time_limit(request, more_s)
            await asyncio.sleep(0.1)

    asyncio.run(main(60))
    with pytest.raises(TimeoutError):
        asyncio.run(main(0.02))


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize(("path", "status"), [("/slow", 408), ("/broken", 500)])
def test_a_request_that_failed_leaves_nothing_behind(
    path: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    kept = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        content = np.zeros(3)
        kept.append(weakref.ref(content))
        try:
            if scope["path"] == "/slow":
                await asyncio.Event().wait()
            raise ValueError("broken")
        except BaseException as error:
            known = error  # from its traceback to this frame and back
            raise known from None

    limits = LimitSettings(request_timeout_s=0.05)
    wrapped = RequestContext(app, limits, Admissions(limits))
    with caplog.at_level(logging.CRITICAL, "ray.serve"):  # a record kept by pytest has the traceback
        assert TestClient(wrapped).get(path).status_code == status
    assert kept[0]() is None


@pytest.mark.usefixtures("no_collections")
def test_a_request_whose_caller_went_away_leaves_nothing_behind() -> None:
    kept = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        content = np.zeros(3)
        kept.append(weakref.ref(content))
        await together(asyncio.sleep(60), asyncio.sleep(60))

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(_: Message) -> None:
        pass

    async def main() -> None:
        wrapped = RequestContext(app, LimitSettings(), Admissions(LimitSettings()))
        scope = {"type": "http", "path": "/", "method": "GET"}
        request = asyncio.create_task(wrapped(scope, receive, send))
        await asyncio.sleep(0.01)
        request.cancel()
        await asyncio.wait([request])
        assert request.cancelled()
        assert kept[0]() is None

    asyncio.run(main())


def test_one_request_too_many_is_told_when_to_come_back_and_health_is_answered() -> None:
    asked: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])
        await JSONResponse({})(scope, receive, send)

    limits = LimitSettings(max_inflight_requests=1, retry_after_s=7)
    admissions = Admissions(limits)
    client = TestClient(RequestContext(app, limits, admissions))
    assert client.get("/v1/models").status_code == 200
    with admissions.requests.admit(1):
        refused = client.get("/v1/models")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
        assert client.get("/health/ready").status_code == 200
    assert client.get("/v1/models").status_code == 200
    assert asked == ["/v1/models", "/health/ready", "/v1/models"]
