"""The load generator measures what it says, above all when the server does badly."""

import asyncio
import random
from collections.abc import Iterator

import pytest

from benchmarks.load.connection import Connection
from benchmarks.load.loops import (
    BROKEN,
    TIMEOUT,
    Request,
    Run,
    Sample,
    Target,
    arrivals,
    closed_loop,
    open_loop,
)
from benchmarks.load.summary import Latency, stages, summarise
from tests.unit.benchmarks.answering import answering, response

ITEMS = {"a": 1}


def requests() -> Iterator[Request]:
    number = 0
    while True:
        body = str(number).encode()
        yield "a", b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        number += 1


async def soon(_: int) -> bytes:
    await asyncio.sleep(0.01)
    return response()


def test_arrivals_go_on_while_the_server_stalls_and_their_wait_counts() -> None:
    """Coordinated omission: a generator that waits for answers would see one slow request here, not half."""
    stalled_for, rate, seconds = 50, 100.0, 1.0  # requests; a second
    stall_s = (stalled_for - 1) / rate

    async def scenario() -> tuple[Run, int]:
        released = asyncio.Event()

        async def stalled(number: int) -> bytes:
            if number == stalled_for - 1:
                released.set()
            await released.wait()
            return response()

        async with answering(stalled) as server:
            target = Target("127.0.0.1", server.port, 10)
            run = await open_loop(target, requests(), arrivals(rate, 0, seconds, None), seconds)
            return run, server.most_inside

    run, most_inside = asyncio.run(scenario())
    assert len(run.samples) == 99
    assert {sample.status for sample in run.samples} == {200}
    assert most_inside >= stalled_for  # sent while none was answered
    waits = [sample.finished - sample.intended for sample in run.samples]
    assert max(waits) >= 0.9 * stall_s
    assert sum(wait >= stall_s / 2 for wait in waits) >= 10
    summary = summarise(run, ITEMS, good_ms=1000)
    assert summary.requests == 99
    assert summary.latency.p99_ms >= 900 * stall_s


def test_lateness_of_the_generator_itself_counts_and_is_shown() -> None:
    sample = Sample("a", intended=0.1, sent=0.4, finished=0.5, status=200, timing=b"")
    summary = summarise(Run([sample], 1.0), ITEMS, good_ms=1000)
    assert summary.latency.max_ms == pytest.approx(400)
    assert summary.late_p99_ms == pytest.approx(300)


def test_a_closed_loop_keeps_each_client_on_one_connection_with_one_request() -> None:
    async def scenario() -> None:
        async with answering(soon) as server:
            run = await closed_loop(Target("127.0.0.1", server.port, 10), requests(), 4, 0.2, 0.5)
            assert server.connections == 4
            assert server.most_inside <= 4
            assert len(server.bodies) == len(set(server.bodies)) == len(run.samples)
            assert any(sample.finished < 0 for sample in run.samples)  # the warm-up
            summary = summarise(run, ITEMS, good_ms=1000)
            assert summary.requests < len(run.samples)
            finished = sum(0 <= sample.finished < run.seconds for sample in run.samples)
            assert summary.answers_per_s == pytest.approx(finished / run.seconds, rel=0.01)

    asyncio.run(scenario())


@pytest.mark.parametrize("warm_up_s", [0, 0.1])  # it is sent in the window, or in the warm-up
def test_a_closed_loop_shows_a_request_that_is_never_answered(warm_up_s: float) -> None:
    deadline_s = 1.5

    async def scenario() -> Run:
        never = asyncio.Event()

        async def answer(number: int) -> bytes:
            if number == 0:
                await never.wait()
            return await soon(number)

        async with answering(answer) as server:
            target = Target("127.0.0.1", server.port, deadline_s)
            return await closed_loop(target, requests(), 4, 0.3, warm_up_s)

    run = asyncio.run(scenario())
    summary = summarise(run, ITEMS, good_ms=1000)
    assert summary.statuses["timeout"] == 1
    assert set(summary.statuses) == {"200", "timeout"}
    assert summary.latency.max_ms >= 1000 * deadline_s
    assert summary.kinds["a"] == summary.latency
    assert summary.answers_per_s > 0


def test_a_client_told_to_come_back_later_does_so() -> None:
    async def refusing(_: int) -> bytes:
        return response(429, headers="Retry-After: 30\r\n")

    async def scenario() -> Run:
        async with answering(refusing) as server:
            return await closed_loop(Target("127.0.0.1", server.port, 10), requests(), 3, 0.1, 0.1)

    assert [sample.status for sample in asyncio.run(scenario()).samples] == [429] * 3


def test_timeouts_and_broken_connections_are_counted_and_end_nothing() -> None:
    async def moody(number: int) -> bytes:
        if number % 3 == 0:
            await asyncio.sleep(60)
        return b"" if number % 3 == 1 else response()

    async def scenario() -> Run:
        async with answering(moody) as server:
            target = Target("127.0.0.1", server.port, deadline_s=0.5)
            return await open_loop(target, requests(), [0.01 * i for i in range(30)], 0.3)

    run = asyncio.run(scenario())
    assert sorted({sample.status for sample in run.samples}) == [BROKEN, TIMEOUT, 200]
    assert len(run.samples) == 30
    statuses = summarise(run, ITEMS, good_ms=1000).statuses
    assert set(statuses) == {"broken", "timeout", "200"}
    assert sum(statuses.values()) == 30


def test_answers_in_pieces_in_chunks_and_the_last_of_a_connection_are_read() -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nServer-Timing: queue;dur=1.5\r\n\r\n"
        b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        response(503, b"x" * 300_000),
        response(200, b"bye", "connection: close\r\n"),
    ]

    async def next_one(number: int) -> bytes:
        return answers[number]

    async def scenario() -> None:
        async with answering(next_one) as server:
            connection = await Connection.open("127.0.0.1", server.port)
            source = requests()
            first = await connection.exchange(next(source)[1])
            assert (first.status, first.body, first.timing) == (200, b"abcde", b"queue;dur=1.5")
            second = await connection.exchange(next(source)[1])
            assert (second.status, len(second.body), second.timing) == (503, 300_000, b"")
            third = await connection.exchange(next(source)[1])
            assert third.body == b"bye"
            assert not connection.usable

    asyncio.run(scenario())


def test_poisson_arrivals_have_their_rate_and_are_the_same_for_a_seed() -> None:
    times = arrivals(100, -1, 100, random.Random(1))
    assert times == arrivals(100, -1, 100, random.Random(1))
    assert times == sorted(times)
    assert len(times) == pytest.approx(10_100, rel=0.05)
    assert min(times) >= -1
    assert max(times) < 100


def test_a_summary_counts_answers_within_the_window_and_goodput_within_the_bound() -> None:
    def sample(intended: float, finished: float, status: int = 200) -> Sample:
        return Sample("a", intended, intended, finished, status, b"queue;dur=2.0, model;dur=4")

    samples = [
        sample(-0.5, -0.1),  # warm-up
        sample(0.1, 0.2),
        sample(0.2, 1.9),  # good for nobody
        sample(0.3, 0.301, 429),
        sample(1.9, 2.1),  # answered after the window
    ]
    summary = summarise(Run(samples, 2.0), {"a": 16}, good_ms=1000)
    assert summary.statuses == {"200": 3, "429": 1}
    assert summary.answers_per_s == 1.0
    assert summary.items_per_s == 16.0
    assert summary.goodput_per_s == 0.5
    assert summary.refused.max_ms == pytest.approx(1)
    assert summary.latency.max_ms == pytest.approx(1700)
    assert summary.stages_ms == {"queue": 2.0, "model": 4.0}


def test_percentiles_are_of_nearest_rank() -> None:
    samples = [Sample("a", 0, 0, i / 1000, 200, b"") for i in range(1, 101)]
    latency = Latency.of(samples)
    assert (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.max_ms) == (50, 90, 99, 100)
    assert Latency.of([]) == Latency()


def test_server_timing_is_read_as_its_standard_allows() -> None:
    assert stages(b'a;dur=1.5, b;desc="x";dur=2 ,c') == {"a": 1.5, "b": 2.0}
    assert stages(b"") == {}
