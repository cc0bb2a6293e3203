"""Requests past Serve's replica: who goes away is noticed, nobody else is taken for gone."""

import asyncio
import gc
import weakref
from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.ingress import BRIEF_S, Ingress
from serve_app.middleware import request_id_of

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
        self._messages = [*messages]
        self.ended = asyncio.Event()
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        await self.ended.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.ended.set()


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


def test_who_goes_away_after_the_body_cancels_the_work_and_leaves_nothing() -> None:
    content: list[weakref.ref[Any]] = []
    cancelled: list[str] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        array = np.zeros(3)
        content.append(weakref.ref(array))
        while (await receive()).get("more_body"):
            pass
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(scope["path"])
            raise

    async def main() -> None:
        server = Server({**BODY, "more_body": True}, BODY)
        handling = serving(application, server)
        await asyncio.sleep(2 * BRIEF_S)
        assert not handling.done()
        server.ended.set()
        await asyncio.wait_for(handling, 5)  # as if it had answered: there is nobody to tell
        assert cancelled == ["/"]
        assert server.sent == []

    gc.disable()
    try:
        asyncio.run(main())
        assert content[0]() is None
    finally:
        gc.enable()


def test_who_goes_away_in_the_middle_of_the_body_is_told_of_by_receive() -> None:
    received: list[MutableMapping[str, Any]] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        while not received or received[-1].get("more_body"):
            received.append(await receive())

    async def main() -> None:
        server = Server({**BODY, "more_body": True})
        handling = serving(application, server)
        await asyncio.sleep(2 * BRIEF_S)
        assert len(received) == 1  # nobody else took the rest
        server.ended.set()
        await asyncio.wait_for(handling, 5)
        assert received[-1] == {"type": "http.disconnect"}

    asyncio.run(main())


def test_work_that_goes_on_after_the_answer_is_not_cancelled() -> None:
    finished = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(2 * BRIEF_S)
        await send(start())
        await send(END)
        await asyncio.sleep(2 * BRIEF_S)
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
        await asyncio.sleep(2 * BRIEF_S)
        handling.cancel()
        await asyncio.wait({handling})
        assert handling.cancelled()
        assert len(asyncio.all_tasks()) == 1  # the one that watched is gone too

    asyncio.run(main())
