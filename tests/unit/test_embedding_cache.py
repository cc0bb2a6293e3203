"""The embedding cache: what it keeps and lets go, and who gets what when contents are asked for at once."""

import asyncio
import hashlib
import tracemalloc
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from deployments.errors import BadInput, NotReady, Overloaded, SightlineError, TooLarge
from serve_app.embedding_cache import OVERHEAD_BYTES, SHARED_CONTENTS, Embedding, EmbeddingCache, Found
from serve_app.inputs import Content
from tests.waiting import started

DIMENSIONS = 16
ENTRY_BYTES = 4 * DIMENSIONS + OVERHEAD_BYTES
ROOM = 100 * ENTRY_BYTES


def vector(content: Content, fingerprint: str = "a") -> Any:
    """A vector that tells its content and its model."""
    seed = hashlib.sha256(f"{fingerprint}{content!r}".encode()).digest()
    return np.random.default_rng(list(seed)).standard_normal(DIMENSIONS, np.float32)


class Encoder:
    """Embeds once it is let go; contents that begin with `bad` are errors, and so is any with `down`."""

    def __init__(self, fingerprint: str = "a", free: bool = True) -> None:
        self.fingerprint = fingerprint
        self.calls: list[list[Content]] = []
        self.gate = asyncio.Event()
        self.error: Exception = NotReady("the encoder is down")
        if free:
            self.gate.set()

    async def __call__(self, contents: Sequence[Content]) -> list[Embedding]:
        self.calls.append(list(contents))
        await self.gate.wait()
        if "down" in contents:
            raise self.error
        for place, content in enumerate(contents):
            if isinstance(content, str) and content.startswith("bad"):
                raise BadInput(f"{content} is bad", place)
        return [Embedding(vector(c, self.fingerprint), self.fingerprint, len(c)) for c in contents]


def check(found: Found, contents: Sequence[Content], fingerprint: str = "a") -> None:
    for content, embedding in zip(contents, found.embeddings, strict=True):
        assert np.array_equal(embedding.vector, vector(content, fingerprint))
        assert (embedding.tokens, embedding.fingerprint) == (len(content), fingerprint)


def scenario(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@scenario
async def test_only_what_is_missing_is_asked_for_and_the_order_is_kept() -> None:
    cache, encoder = EmbeddingCache(ROOM), Encoder()
    check(await cache("a", ["x", b"x", "y"], encoder), ["x", b"x", "y"])
    found = await cache("a", ["z", "y", b"x", "w", "x"], encoder)
    check(found, ["z", "y", b"x", "w", "x"])
    assert encoder.calls == [["x", b"x", "y"], ["z", "w"]]
    assert found.counts == {"hit": 3, "miss": 2}


@scenario
async def test_the_least_recently_used_go_first() -> None:
    cache, encoder = EmbeddingCache(3 * ENTRY_BYTES), Encoder()
    for content in ("one", "two", "three", "one", "four"):
        await cache("a", [content], encoder)
    assert cache.bytes == 3 * ENTRY_BYTES
    assert (await cache("a", ["one", "three", "four"], encoder)).counts == {"hit": 3}
    assert (await cache("a", ["two"], encoder)).counts == {"miss": 1}


@scenario
async def test_a_request_larger_than_the_cache_is_answered() -> None:
    cache, encoder = EmbeddingCache(2 * ENTRY_BYTES), Encoder()
    contents = [str(n) for n in range(9)]
    for _ in range(2):
        check(await cache("a", contents, encoder), contents)
    assert cache.bytes == 2 * ENTRY_BYTES


@pytest.mark.parametrize("dimensions", [16, 512])
def test_the_memory_it_takes_is_what_it_counts(dimensions: int) -> None:
    async def embed(contents: Sequence[Content]) -> list[Embedding]:
        rows = np.ones((len(contents), dimensions), np.float32)
        return [Embedding(row, "f" * 64, 1000) for row in rows]

    async def filled() -> None:
        cache = EmbeddingCache(2_000_000)
        await cache("f" * 64, ["warm"], embed)
        before, _ = tracemalloc.get_traced_memory()
        for first in range(0, 6000, 100):
            await cache("f" * 64, [f"{first + n}" for n in range(100)], embed)
        taken = tracemalloc.get_traced_memory()[0] - before
        assert cache.bytes > 0.99 * 2_000_000
        assert 0.75 * cache.bytes < taken < cache.bytes

    tracemalloc.start()
    try:
        asyncio.run(filled())
    finally:
        tracemalloc.stop()


@scenario
async def test_what_is_being_computed_is_not_asked_for_again() -> None:
    cache, encoder = EmbeddingCache(ROOM), Encoder(free=False)
    tasks = await started(
        cache("a", ["x", "y", "x"], encoder), cache("a", ["z", "y"], encoder), cache("a", ["y"], encoder)
    )
    assert encoder.calls == [["x", "y"], ["z"]]
    encoder.gate.set()
    first, second, third = await asyncio.gather(*tasks)
    check(first, ["x", "y", "x"])
    check(second, ["z", "y"])
    check(third, ["y"])
    assert first.counts == {"miss": 2, "joined": 1}
    assert second.counts == {"miss": 1, "joined": 1}
    assert third.counts == {"joined": 1}
    assert (await cache("a", ["x", "y", "z"], encoder)).counts == {"hit": 3}


@scenario
async def test_a_caller_who_leaves_takes_nobody_s_answer_along() -> None:
    cache, encoder = EmbeddingCache(ROOM), Encoder(free=False)
    tasks = await started(*(cache("a", ["x"], encoder) for _ in range(4)))
    assert encoder.calls == [["x"]]
    tasks[2].cancel()  # one that waits
    await asyncio.wait([tasks[2]])
    assert encoder.calls == [["x"]]
    tasks[0].cancel()  # the one it is computed for
    await asyncio.wait([tasks[0]])
    await started()
    assert encoder.calls == [["x"]] * 2, "one of those who wait has it computed, and one alone"
    encoder.gate.set()
    for task in (tasks[1], tasks[3]):
        check(await task, ["x"])
    assert tasks[0].cancelled()
    assert tasks[2].cancelled()


@scenario
async def test_an_item_s_error_reaches_those_who_asked_for_it_at_their_place() -> None:
    cache, encoder = EmbeddingCache(ROOM), Encoder(free=False)
    await cache("a", ["known"], encoder_of("a"))
    tasks = await started(
        cache("a", ["known", "x", "bad"], encoder),
        cache("a", ["bad"], encoder),
        cache("a", ["known", "known", "y", "bad", "x"], encoder),
        cache("a", ["x"], encoder),
    )
    encoder.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome, place in zip(outcomes, (2, 0, 3), strict=False):
        assert isinstance(outcome, BadInput)
        assert (outcome.message, outcome.index) == ("bad is bad", place)
    assert len({id(outcome) for outcome in outcomes}) == 4
    assert isinstance(outcomes[3], Found)
    check(outcomes[3], ["x"])
    assert (await cache("a", ["x", "y"], encoder)).counts == {"hit": 2}
    with pytest.raises(BadInput):  # it is not kept
        await cache("a", ["bad"], encoder)


@pytest.mark.parametrize("error", [NotReady("down"), OSError("down")])
def test_any_other_error_is_everybody_s_and_nothing_is_kept(error: Exception) -> None:
    async def run() -> None:
        cache, encoder = EmbeddingCache(ROOM), Encoder(free=False)
        encoder.error = error
        tasks = await started(*(cache("a", contents, encoder) for contents in (["x", "down"], ["x"], ["x"])))
        encoder.gate.set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [(type(one), str(one)) for one in errors] == [(type(error), "down")] * 3
        assert len({id(one) for one in errors}) == 3
        assert len(encoder.calls) == 1
        assert cache.bytes == 0
        check(await cache("a", ["x"], encoder), ["x"])

    asyncio.run(run())


@pytest.mark.parametrize("error", [Overloaded("too much"), TooLarge("too much")])
def test_who_asks_for_too_much_is_refused_alone(error: Exception) -> None:
    async def run() -> None:
        cache, encoder = EmbeddingCache(ROOM), Encoder(free=False)
        encoder.error = error
        tasks = await started(*(cache("a", contents, encoder) for contents in (["x", "y", "down"], ["y"])))
        encoder.gate.set()
        large, small = await asyncio.gather(*tasks, return_exceptions=True)
        assert type(large) is type(error)
        assert isinstance(small, Found)
        check(small, ["y"])

    asyncio.run(run())


@scenario
async def test_another_model_has_entries_of_its_own() -> None:
    cache = EmbeddingCache(ROOM)
    await cache("a", ["x"], encoder_of("a"))
    found = await cache("b", ["x"], encoder_of("b"))
    check(found, ["x"], "b")
    assert found.counts == {"miss": 1}
    # Another than the caller knew answered: the caller sees whose it is, and nobody after it gets it.
    found = await cache("b", ["y"], encoder_of("c"))
    check(found, ["y"], "c")
    for fingerprint in ("b", "c"):
        assert (await cache(fingerprint, ["y"], encoder_of(fingerprint))).counts == {"miss": 1}


@scenario
async def test_what_is_not_to_be_kept_is_still_found_and_joined() -> None:
    cache, encoder = EmbeddingCache(ROOM), Encoder(free=False)
    tasks = await started(cache("a", ["x", "y"], encoder, keep=False), cache("a", ["y"], encoder))
    encoder.gate.set()
    await asyncio.gather(*tasks)
    assert encoder.calls == [["x", "y"]]
    found = await cache("a", ["x", "y"], encoder, keep=False)
    assert found.counts == {"miss": 1, "hit": 1}, "y was asked for by one whose contents are kept"


@scenario
async def test_a_changed_answer_changes_nothing_here() -> None:
    cache, encoder = EmbeddingCache(ROOM), Encoder()
    (await cache("a", ["x"], encoder)).embeddings[0].vector[:] = 0
    check(await cache("a", ["x"], encoder), ["x"])


@scenario
async def test_without_room_everything_is_computed() -> None:
    cache, encoder = EmbeddingCache(0), Encoder(free=False)
    tasks = await started(*(cache("a", ["x", "x"], encoder) for _ in range(2)))
    assert encoder.calls == [["x", "x"]] * 2
    encoder.gate.set()
    for found in await asyncio.gather(*tasks):
        check(found, ["x", "x"])
        assert not found.counts
    with pytest.raises(SightlineError):
        await cache("a", ["bad"], encoder)


def encoder_of(fingerprint: str) -> Encoder:
    return Encoder(fingerprint)


def test_nobody_waits_for_a_large_request() -> None:
    async def main() -> None:
        cache, slow, quick = EmbeddingCache(ROOM), Encoder(free=False), Encoder()
        large = [*(f"text {n}" for n in range(SHARED_CONTENTS)), "a cat", "a cat"]
        (waiting,) = await started(cache("a", large, slow))
        assert slow.calls == [large[:-1]]  # what it holds twice is embedded once
        check(await cache("a", ["a cat"], quick), ["a cat"])
        assert quick.calls == [["a cat"]]
        slow.gate.set()
        check(await waiting, large)

    asyncio.run(main())
