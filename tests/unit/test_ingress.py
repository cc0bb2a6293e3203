"""Requests past Serve's replica: who goes away is noticed, nobody else is taken for gone."""

import asyncio
import logging
import re
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.settings import LimitSettings
from serve_app.ingress import WATCHED_AFTER_S, Ingress
from serve_app.limits import Admissions
from serve_app.middleware import RequestContext, request_id_of
from tests.waiting import PATIENCE_S

SCOPE: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "root_path": "", "headers": []}
BODY = {"type": "http.request", "body": b"all", "more_body": False}
END: Message = {"type": "http.response.body", "body": b"done"}


@pytest.fixture(autouse=True)
def nothing_served() -> Iterator[None]:
    yield
    Ingress.application = None


class Server:
    """uvicorn's side of one request: the body's messages, then nothing until the caller goes away or, as
    uvicorn has it, the answer is complete."""

    def __init__(self, *messages: Message) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self.arrives(*messages)
        self.sent: list[Message] = []

    def arrives(self, *messages: Message) -> None:
        for message in messages:
            self._messages.put_nowait(message)

    def end(self) -> None:
        self.arrives({"type": "http.disconnect"})

    async def receive(self) -> Message:
        return await self._messages.get()

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.end()


def start() -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}


async def serve_itself(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})


def serving(application: ASGIApp | None, server: Server, **scope: Any) -> "asyncio.Task[None]":
    Ingress.application = application

    async def handle() -> None:
        await Ingress(serve_itself)({**SCOPE, **scope}, server.receive, server.send)

    return asyncio.create_task(handle())


@pytest.mark.parametrize("given", ["mine", ""])
def test_every_answer_carries_the_requests_id(given: str) -> None:
    ids: list[str] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        ids.append(request_id_of(scope))
        await send(start())
        await send(END)

    async def main() -> None:
        server = Server(BODY)
        await serving(application, server, headers=[(b"x-request-id", b"mine")] if given else [])
        assert server.sent[0]["headers"] == [(b"a", b"b"), (b"x-request-id", ids[0].encode())]
        assert ids[0] == given or len(ids[0]) == 32

    asyncio.run(main())


def test_the_application_answers_and_serve_only_what_is_its_own() -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        assert await receive() == BODY
        await send(start())
        await send(END)

    async def main() -> None:
        server = Server(BODY)
        await serving(application, server)
        assert server.sent[1:] == [END]
        for path, app in (("/-/healthz", application), ("/", None)):
            server = Server(BODY)
            await serving(app, server, path=path)
            assert [message["status"] for message in server.sent] == [299]

    asyncio.run(main())


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize(
    ("method", "messages"), [("POST", ({**BODY, "more_body": True}, BODY)), ("GET", ())], ids=["POST", "GET"]
)
def test_who_goes_away_after_the_body_cancels_the_work_and_leaves_nothing(
    method: str, messages: tuple[Message, ...]
) -> None:
    content: list[weakref.ref[Any]] = []
    cancelled: list[str] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        array = np.zeros(3)
        content.append(weakref.ref(array))
        while messages and (await receive()).get("more_body"):
            pass
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(scope["method"])
            raise

    async def main() -> None:
        server = Server(*messages)
        handling = serving(application, server, method=method)
        await asyncio.sleep(2 * WATCHED_AFTER_S)
        assert not handling.done()
        server.end()
        await asyncio.wait({handling}, timeout=PATIENCE_S)
        assert handling.result() is None  # as if it had answered: there is nobody to tell
        assert cancelled == [method]
        assert server.sent == []

    asyncio.run(main())
    assert content[0]() is None


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("takes_s", [0, 2 * WATCHED_AFTER_S])
def test_who_is_answered_leaves_nothing(takes_s: float) -> None:
    kept: list[weakref.WeakMethod[Any]] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        kept.append(weakref.WeakMethod(send))  # of what holds the request
        await receive()
        await asyncio.sleep(takes_s)
        await send(start())
        await send(END)

    async def main() -> None:
        await serving(application, Server(BODY))
        await asyncio.sleep(0)  # whoever watched ends

    asyncio.run(main())
    assert kept[0]() is None


def test_who_goes_away_in_the_middle_of_the_body_is_told_of_by_receive() -> None:
    received: list[Message] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        while not received or received[-1].get("more_body"):
            received.append(await receive())

    async def main() -> None:
        part = {**BODY, "more_body": True}
        server = Server(part)
        handling = serving(application, server)
        for _ in range(2):
            await asyncio.sleep(2 * WATCHED_AFTER_S)
            server.arrives(part)
        await asyncio.sleep(0)
        server.end()
        await asyncio.wait({handling}, timeout=PATIENCE_S)
        assert received == [part] * 3 + [{"type": "http.disconnect"}]  # nobody else took any of it

    asyncio.run(main())


def test_every_request_is_logged_at_info(caplog: pytest.LogCaptureFixture) -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(END)

    async def main() -> None:
        wrapped = RequestContext(application, LimitSettings(), Admissions(LimitSettings()))
        await serving(wrapped, Server(BODY), path="/a%0Ab", headers=[(b"x-request-id", b"mine")])

    for level, lines in ((logging.WARNING, 0), (logging.INFO, 1)):
        with caplog.at_level(level, "ray.serve"):
            asyncio.run(main())
        assert len(caplog.messages) == lines
    assert re.fullmatch(r"POST unmatched 200 \d+\.\dms, request mine", caplog.messages[0])


def test_work_that_goes_on_after_the_answer_is_not_cancelled() -> None:
    finished = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(2 * WATCHED_AFTER_S)
        await send(start())
        await send(END)
        await asyncio.sleep(2 * WATCHED_AFTER_S)
        finished.append(True)

    async def main() -> None:
        server = Server(BODY)
        await serving(application, server)
        assert finished == [True]
        assert server.sent[1:] == [END]

    asyncio.run(main())


def test_a_cancellation_from_elsewhere_is_passed_on() -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.Event().wait()

    async def main() -> None:
        handling = serving(application, Server(BODY))
        await asyncio.sleep(2 * WATCHED_AFTER_S)
        handling.cancel()
        await asyncio.wait({handling})
        assert handling.cancelled()
        assert len(asyncio.all_tasks()) == 1  # the one that watched is gone too

    asyncio.run(main())
