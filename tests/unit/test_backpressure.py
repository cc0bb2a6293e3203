"""A body that nobody takes yet is not read on: in the proxy's queue and in the replica's."""

import asyncio
import pickle
import weakref
from typing import Any

import pytest
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from ray.serve._private.http_util import ASGIReceiveProxy

from serve_app.backpressure import MAX_WAITING_BYTES, BoundedQueue, bound_replica
from tests.waiting import until

CHUNK = {"type": "http.request", "body": b"x" * (MAX_WAITING_BYTES // 4), "more_body": True}


def test_the_proxy_waits_until_the_replica_takes_what_there_is() -> None:
    async def run() -> None:
        queue: Any = BoundedQueue()
        put = 0

        async def receive_all() -> None:
            nonlocal put
            for _ in range(20):
                await queue(CHUNK)
                put += 1

        reading = asyncio.create_task(receive_all())
        await until(lambda: put == 5)  # the one that goes over the bound is let in
        for _ in range(100):
            await asyncio.sleep(0)
        assert put == 5
        taken = 0
        while taken < 20:
            await queue.wait_for_message()
            taken += len(queue.get_messages_nowait())
            assert put - taken <= 5
        await reading

    asyncio.run(run())


def test_the_replica_asks_for_more_only_when_the_application_has_taken_it() -> None:
    bound_replica()
    bound_replica()  # twice is once

    async def run() -> None:
        asked = 0

        async def from_proxy(_: Any) -> bytes:
            nonlocal asked
            asked += 1
            return pickle.dumps([CHUNK] * 3 if asked <= 10 else [{"type": "http.disconnect"}])

        metadata: Any = None
        receive: Any = ASGIReceiveProxy({"type": "http"}, metadata, from_proxy)
        fetching = asyncio.create_task(receive.fetch_until_disconnect())
        await until(lambda: asked == 2)
        await asyncio.sleep(0.05)  # ten of its looks at the queue
        assert asked == 2
        kinds = [(await receive())["type"] for _ in range(31)]
        assert kinds == ["http.request"] * 30 + ["http.disconnect"]
        await fetching
        assert asked == 11

    asyncio.run(run())


def test_a_replica_that_listens_itself_does_so_too() -> None:
    bound_replica()

    async def run() -> None:
        received = 0

        async def from_socket() -> Any:
            nonlocal received
            received += 1
            return CHUNK if received <= 20 else {"type": "http.disconnect"}

        receive: Any = ASGIDIReceiveProxy({"type": "http"}, from_socket, asyncio.get_running_loop())
        fetching = receive.fetch_until_disconnect_task()
        await until(lambda: received == 5)
        await asyncio.sleep(0.05)
        assert received == 5
        kinds = [(await receive())["type"] for _ in range(21)]
        assert kinds == ["http.request"] * 20 + ["http.disconnect"]
        await fetching

    asyncio.run(run())


@pytest.mark.usefixtures("no_collections")
def test_a_body_that_was_taken_is_kept_by_nothing() -> None:
    bound_replica()

    async def from_socket() -> Any:
        return {"type": "http.disconnect"}

    async def from_proxy(_: Any) -> bytes:
        return pickle.dumps([await from_socket()])

    async def run() -> None:
        receive: Any = ASGIDIReceiveProxy({"type": "http"}, from_socket, asyncio.get_running_loop())
        await receive.fetch_until_disconnect_task()
        metadata: Any = None
        behind_the_proxy: Any = ASGIReceiveProxy({"type": "http"}, metadata, from_proxy)
        await behind_the_proxy.fetch_until_disconnect()
        kept = [weakref.ref(receive), weakref.ref(behind_the_proxy)]
        del receive, behind_the_proxy
        assert [one() for one in kept] == [None, None]

    asyncio.run(run())
