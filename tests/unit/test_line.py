"""Calls without Serve between: answers and errors as they are, and the handle wherever a line breaks."""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from configs.settings import IndexSettings, LimitSettings
from deployments.line import Exchange, Line
from deployments.vector_index import VectorIndex
from index.errors import BadVector, CollectionNotFound
from index.items import Item, Wanted
from index.spec import CollectionSpec
from serve_app.shards import Shards
from tests.unit.test_shards import Handle, ids


async def echo(value: Any, after_s: float = 0) -> Any:
    await asyncio.sleep(after_s)
    return value


async def fail(error: Exception) -> None:
    raise error


async def fail_unpicklably() -> None:
    raise ValueError(lambda: None)


async def closed(exchange: Exchange, line: Line) -> None:
    exchange.close()
    while line.open:  # noqa: ASYNC110 — of a state that only tests wait for
        await asyncio.sleep(0.001)


def on_a_line(use: Callable[[Exchange, Line], Awaitable[None]]) -> None:
    async def main() -> None:
        exchange = Exchange(Path(directory, "line"), echo, fail, fail_unpicklably)
        await exchange.open()
        line = await Line.to(exchange.path)
        assert await line.call("echo", "hello") == "hello"
        await use(exchange, line)
        await closed(exchange, line)

    with TemporaryDirectory() as directory:
        asyncio.run(main())


def test_each_call_gets_its_own_answer_whatever_the_order() -> None:
    async def use(_: Exchange, line: Line) -> None:
        waits = [0.02, 0, 0.01]
        answers = await asyncio.gather(*(line.call("echo", (n, wait), wait) for n, wait in enumerate(waits)))
        assert answers == list(enumerate(waits))
        large = np.arange(1_000_000, dtype=np.float32)
        assert ((await line.call("echo", large)) == large).all()

    on_a_line(use)


def test_errors_come_as_they_were_raised() -> None:
    async def use(_: Exchange, line: Line) -> None:
        with pytest.raises(BadVector, match="too long") as caught:
            await line.call("fail", BadVector("too long", 3))
        assert caught.value.index == 3
        with pytest.raises(RuntimeError, match="ValueError"):
            await line.call("fail_unpicklably")
        with pytest.raises(KeyError):
            await line.call("no such method")
        assert await line.call("echo", 1) == 1

    on_a_line(use)


def test_who_went_away_disturbs_nobody() -> None:
    async def use(_: Exchange, line: Line) -> None:
        gone = asyncio.create_task(line.call("echo", 1, 0.02))
        await asyncio.sleep(0.001)
        gone.cancel()
        assert await line.call("echo", 2, 0.04) == 2

    on_a_line(use)


def test_a_broken_line_says_so_to_all_who_wait_and_come() -> None:
    async def use(_: Exchange, line: Line) -> None:
        waiting = [asyncio.create_task(line.call("echo", n, 60)) for n in range(3)]
        await asyncio.sleep(0.01)
        line.close()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ConnectionError] * 3
        assert not line.open
        with pytest.raises(ConnectionError):
            await line.call("echo", 1)

    on_a_line(use)


def test_only_this_user_reaches_it() -> None:
    async def use(exchange: Exchange, _: Line) -> None:
        assert stat.S_IMODE(os.stat(exchange.path).st_mode) == 0o600

    on_a_line(use)


def test_searches_take_the_line_and_the_handle_where_there_is_none(tmp_path: Path) -> None:
    async def main() -> None:
        handle = Handle(VectorIndex(IndexSettings(threads=1), LimitSettings(), tmp_path))
        shards = Shards([handle], IndexSettings(), LimitSettings(), lines=True)  # type: ignore[list-item]
        shard = shards._shards[0]

        async def search() -> None:
            found = await shards.search("a", [np.zeros(2, np.float32)], Wanted(1))
            assert ids(found) == ["x"]

        async def laid() -> None:
            while shard._line is None or not shard._line.open:  # noqa: ASYNC110 — as above
                await asyncio.sleep(0.001)

        await shards.create(CollectionSpec(name="a", dimensions=2, metric="l2"))
        await shards.upsert("a", [Item("x", [1, 0])], None)
        await search()
        await laid()
        handle.calls.clear()
        await search()
        assert handle.calls == []
        with pytest.raises(CollectionNotFound):
            await shards.search("b", [np.zeros(2, np.float32)], Wanted(1))
        assert handle.calls == []
        assert shard._line is not None
        shard._line.close()  # as when the replica dies
        await search()
        assert handle.calls[0] == "search"
        await laid()
        await search()
        assert handle.index._exchange is not None
        await closed(handle.index._exchange, shard._line)
        handle.index._catalog.close()

    asyncio.run(main())
