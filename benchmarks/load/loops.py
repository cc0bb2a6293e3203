"""The two ways to load a server: clients that wait for their answers, and arrivals that wait for nobody."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from benchmarks.load.connection import Answer, Connection

TIMEOUT = 0  # in place of a status: no answer within the deadline
BROKEN = -1  # likewise: the connection was refused or broke

Request = tuple[str, bytes]  # the kind of request, and all of its bytes
clock = time.perf_counter


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times are seconds after the measured window began, so warm-up lies below 0."""

    kind: str
    intended: float  # when it was meant to be sent; latency counts from here
    sent: float
    finished: float
    status: int
    timing: bytes


@dataclass
class Run:
    """All samples of a run, warm-up included, and how long its measured window was."""

    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    client_cpu_s: float = 0.0  # processor time of this process within the window


@dataclass(frozen=True)
class Target:
    host: str
    port: int
    deadline_s: float  # for one request

    async def exchange(
        self, connection: Connection | None, request: bytes
    ) -> tuple[Connection | None, Answer]:
        """Send on the connection, or a new one; gives back the connection if it can be used again."""
        try:
            async with asyncio.timeout(self.deadline_s):
                if connection is None or not connection.usable:
                    connection = await Connection.open(self.host, self.port)
                answer = await connection.exchange(request)
        except TimeoutError:
            return None, Answer(TIMEOUT, b"", b"")
        except OSError:
            return None, Answer(BROKEN, b"", b"")
        return connection, answer


async def closed_loop(
    target: Target, requests: Iterator[Request], clients: int, seconds: float, warm_up_s: float
) -> Run:
    """`clients` that each send their next request when the last was answered.

    The window lasts `seconds`, or up to four times as long until there are as many answers as clients.
    What is out when it ends is waited for, each request up to its deadline.
    """
    start = clock() + warm_up_s
    run = Run()
    answered = 0
    enough = asyncio.Event()
    stopped = asyncio.Event()

    async def client() -> None:
        nonlocal answered
        connection: Connection | None = None
        while not stopped.is_set():
            kind, request = next(requests)
            sent = clock() - start
            connection, answer = await target.exchange(connection, request)
            finished = clock() - start
            answered += finished >= 0
            if answered >= clients:
                enough.set()
            run.samples.append(Sample(kind, sent, sent, finished, answer.status, answer.timing))
            # As a decent client: it comes back when it was told to, and hammers no server that is down.
            wait = 0.01 if answer.status == BROKEN else answer.retry_after_s
            if wait:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), wait)
        if connection is not None:
            connection.close()

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    await asyncio.sleep(warm_up_s)
    cpu = time.process_time()
    await asyncio.sleep(seconds)
    with suppress(TimeoutError):
        await asyncio.wait_for(enough.wait(), 3 * seconds)
    run.seconds, run.client_cpu_s = clock() - start, time.process_time() - cpu
    stopped.set()
    await asyncio.gather(*tasks)  # what hangs is then seen to, and the next run finds an idle server
    return run


def arrivals(rate: float, begin: float, end: float, rng: random.Random | None) -> list[float]:
    """Times from `begin` to `end`, of a Poisson process or, without `rng`, evenly spaced."""
    gaps: Iterator[float] = (
        itertools.repeat(1 / rate) if rng is None else (rng.expovariate(rate) for _ in itertools.count())
    )
    return list(itertools.takewhile(lambda at: at < end, itertools.accumulate(gaps, initial=begin)))[1:]


async def open_loop(
    target: Target,
    requests: Iterator[Request],
    times: Sequence[float],
    seconds: float,
) -> Run:
    """Send at `times`, seconds relative to the window's begin, whether or not earlier ones were answered.

    Latency counts from the intended time, also when this process comes late to it, so a stall of the
    server is felt by all requests that fell into it (no coordinated omission).
    """
    run = Run(seconds=seconds)
    idle: list[Connection] = []
    start = clock() - min(0.0, times[0]) + 0.05
    cpu_marks: list[float] = []

    async def send(intended: float) -> None:
        kind, request = next(requests)
        sent = clock() - start
        connection, answer = await target.exchange(idle.pop() if idle else None, request)
        run.samples.append(Sample(kind, intended, sent, clock() - start, answer.status, answer.timing))
        if connection is not None:
            idle.append(connection)

    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    for mark in (0.0, seconds):
        loop.call_later(start + mark - clock(), lambda: cpu_marks.append(time.process_time()))
    for intended in times:
        if (wait := start + intended - clock()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(send(intended))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.sleep(max(0.0, start + seconds - clock()))
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    run.client_cpu_s = cpu_marks[-1] - cpu_marks[0]
    return run
