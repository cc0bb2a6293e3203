"""Calls without Serve between: answers and errors as they are, and the handle wherever a line breaks."""

import asyncio
import os
import stat
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import numpy as np
import pytest

from configs.settings import IndexSettings, LimitSettings
from deployments.line import LONGEST_PATH, Exchange, Line
from deployments.vector_index import VectorIndex
from index.errors import BadVector, CollectionNotFound
from index.items import Item, Wanted
from index.spec import CollectionSpec
from serve_app.shards import Shards
from tests.unit.test_shards import Handle, ids
from tests.waiting import PATIENCE_S, until


async def echo(value: Any, after_s: float = 0) -> Any:
    await asyncio.sleep(after_s)
    return value


async def fail(error: Exception) -> None:
    raise error


async def fail_unpicklably() -> None:
    raise ValueError(lambda: None)


begun: list[str] = []
ended: list[str] = []


async def wait_forever(name: str) -> None:
    begun.append(name)
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def closed(exchange: Exchange, line: Line) -> None:
    exchange.close()
    await until(lambda: not line.open, what="the line's end")


def on_a_line(use: Callable[[Exchange, Line], Awaitable[None]]) -> None:
    async def main() -> None:
        exchange = Exchange(echo, fail, fail_unpicklably, wait_forever)
        line = await Line.to(await exchange.opened())
        assert await line.call("echo", "hello") == "hello"
        await use(exchange, line)
        await closed(exchange, line)

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


@pytest.mark.usefixtures("no_collections")
def test_a_call_that_failed_keeps_none_of_its_arguments() -> None:
    async def use(_: Exchange, line: Line) -> None:
        argument = np.zeros(3)
        kept = weakref.ref(argument)
        with suppress(TypeError):
            await line.call("echo", argument, 0, "one too many")
        del argument
        await asyncio.sleep(0)  # what woke this task holds the answer
        assert kept() is None

    on_a_line(use)


def test_who_went_away_disturbs_nobody() -> None:
    async def use(exchange: Exchange, line: Line) -> None:
        gone = asyncio.create_task(line.call("echo", 1, 0.02))
        await until(lambda: exchange._tasks)
        gone.cancel()
        assert await line.call("echo", 2, 0.04) == 2

    on_a_line(use)


def test_what_nobody_waits_for_is_cancelled() -> None:
    async def use(exchange: Exchange, line: Line) -> None:
        other = await Line.to(await exchange.opened())
        cancelled = asyncio.create_task(line.call("wait_forever", "of a caller that went away"))
        lost = asyncio.create_task(other.call("wait_forever", "of a line that broke"))
        await until(lambda: len(begun) == 2)
        cancelled.cancel()
        assert await line.call("echo", 1) == 1
        assert ended == ["of a caller that went away"]
        other.close()
        with pytest.raises(ConnectionError):
            await lost
        await until(lambda: len(ended) == 2)
        assert not exchange._tasks

    begun.clear()
    ended.clear()
    on_a_line(use)


def test_an_exchange_that_ends_answers_what_was_asked_and_nothing_else() -> None:
    async def use(exchange: Exchange, line: Line) -> None:
        path = Path(await exchange.opened())
        asked = asyncio.create_task(line.call("echo", "before", 0.05))
        await until(lambda: exchange._tasks)
        ending = asyncio.create_task(exchange.drained())
        await until(lambda: exchange._ending)
        with pytest.raises(ConnectionError):
            await line.call("echo", "after")
        assert await asked == "before"
        await ending
        assert not path.parent.exists()

    on_a_line(use)


def test_what_was_asked_before_the_end_arrives_whole_however_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.line.FLUSH_S", PATIENCE_S)
    size = 5_000_000  # more than the socket's buffers hold

    async def ask(path: str, asked: Event) -> int:
        line = await Line.to(path)
        answer = asyncio.create_task(line.call("large", size, 0.05))
        await asyncio.sleep(0)
        asked.set()
        return len(await answer)

    async def large(size: int, after_s: float) -> bytes:
        await asyncio.sleep(after_s)
        return bytes(size)

    async def main() -> None:
        exchange, asked = Exchange(large), Event()
        path = await exchange.opened()
        # On an event loop of its own, as another process has.
        caller = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(ask(path, asked))))
        await asyncio.to_thread(asked.wait)
        await until(lambda: exchange._tasks)
        await exchange.drained()
        assert await caller == size

    asyncio.run(main())


def test_a_path_that_is_too_long_is_not_used() -> None:
    async def main(directory: str) -> None:
        for length, used in ((LONGEST_PATH, True), (LONGEST_PATH + 1, False)):
            path = Path(directory, "n" * (length - len(directory) - 1))
            exchange = Exchange(echo, path=path)
            assert (await exchange.opened() == str(path)) == used
            line = await Line.to(await exchange.opened())
            assert await line.call("echo", 1) == 1
            line.close()
            await exchange.drained()

    with TemporaryDirectory(dir="/tmp") as directory:  # a short path, unlike pytest's
        asyncio.run(main(directory))


def test_serve_drains_the_exchange_of_a_replica_and_python_does_not(tmp_path: Path) -> None:
    index = VectorIndex(IndexSettings(threads=1), LimitSettings(), tmp_path)
    assert index.__del__ == index._exchange.drained
    assert not hasattr(VectorIndex, "__del__")
    index._catalog.close()


def test_a_broken_line_says_so_to_all_who_wait_and_come() -> None:
    async def use(exchange: Exchange, line: Line) -> None:
        waiting = [asyncio.create_task(line.call("echo", n, 60)) for n in range(3)]
        await until(lambda: len(exchange._tasks) == 3)
        line.close()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ConnectionError] * 3
        assert not line.open
        with pytest.raises(ConnectionError):
            await line.call("echo", 1)

    on_a_line(use)


def test_only_this_user_reaches_it() -> None:
    async def use(exchange: Exchange, _: Line) -> None:
        assert stat.S_IMODE(os.stat(await exchange.opened()).st_mode) == 0o600

    on_a_line(use)


def test_searches_take_the_line_and_the_handle_where_there_is_none(tmp_path: Path) -> None:
    async def main() -> None:
        handle = Handle(VectorIndex(IndexSettings(threads=1), LimitSettings(), tmp_path))
        shards = Shards([handle], IndexSettings(), LimitSettings(), lines=True)  # type: ignore[list-item]
        direct = shards._shards[0].direct
        assert direct is not None

        async def search() -> None:
            found = await shards.search("a", [np.zeros(2, np.float32)], Wanted(1))
            assert ids(found) == ["x"]

        async def laid() -> None:
            await until(lambda: direct._line is not None and direct._line.open, what="an open line")

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
        assert direct._line is not None
        direct._line.close()  # as when the replica dies
        await search()
        assert handle.calls[0] == "search"
        await laid()
        await search()
        await closed(handle.index._exchange, direct._line)
        handle.index._catalog.close()

    asyncio.run(main())
