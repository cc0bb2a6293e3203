"""How long a start takes, and whether the first request after it is slower than those that follow.

    python -m benchmarks.start [--starts 4] [--kinds text,image-raw,classify,search]

Starts `sightline serve` with the benchmark's models, already converted, as many times as asked, until
/health/ready says so. Each start sends one request of each kind after a pause, beginning with another kind
each time, then 100 of each, one after the other, and at last some after a pause again, for a machine that had
nothing to do takes longer over the first request as over any. Texts have 5 to 15 words, as people's differ
too: one of another length than the last takes the engine 2 ms longer, the first as well as the hundredth.
Ends in one JSON line.
"""

import argparse
import asyncio
import itertools
import json
import random
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from benchmarks.load.connection import Connection
from benchmarks.payloads import Photos, build_photos
from benchmarks.scenarios import SCENARIOS, TEXTS
from benchmarks.servers import PHOTOS, fill_collection, sightline

WARM_REQUESTS: Final = 100
IDLE_REQUESTS: Final = 8
PAUSE_S: Final = 1.0  # before each of these, and before the first ones
KINDS: Final = ("text", "image-raw", "classify", "search")


@dataclass(frozen=True)
class First:
    """One kind of request in one start; `place` is when it was first sent, counted from 0."""

    kind: str
    place: int
    first_ms: float
    warm_p50_ms: float
    idle_p50_ms: float  # after a pause each


def main() -> None:
    options = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop what was started, as on Ctrl-C
    build_photos(PHOTOS)
    starts: list[float] = []
    seen: list[First] = []
    for number in range(options.starts):
        turn = number % len(options.kinds)
        began = time.monotonic()
        with sightline() as target:
            starts.append(time.monotonic() - began)
            if "search" in options.kinds:
                fill_collection(target.url)  # over another connection, and no model's work
            kinds = [*options.kinds[turn:], *options.kinds[:turn]]
            seen += asyncio.run(first_requests(target.url, kinds, seed=number))
        print(f"ready after {starts[-1]:.1f} s; {kinds[0]} first: {seen[-len(kinds)]}", flush=True)
    print(table(seen, options.kinds))
    results = {"benchmark": "start", "ready_s": starts, "first": [asdict(first) for first in seen]}
    print(json.dumps(results))


async def first_requests(url: str, kinds: Sequence[str], seed: int) -> list[First]:
    """Raises RuntimeError at an answer that is not 200."""
    place = urlsplit(url)
    assert place.hostname
    assert place.port
    photos = Photos(PHOTOS)
    sent = itertools.count(1000 * seed)

    async def measured(kind: str) -> float:
        scenario, number = SCENARIOS[kind], next(sent)
        if body := TEXTS.get(kind):
            scenario = replace(scenario, body=body(random.Random(number).randint(5, 15)))
        request = scenario.request(photos, number, place.netloc)
        began = time.perf_counter()
        answer = await connection.exchange(request)
        if answer.status != 200:
            raise RuntimeError(f"{kind}: {answer.status} {answer.body[:500]!r}")
        return (time.perf_counter() - began) * 1e3

    async def after_a_pause(kind: str) -> float:
        await asyncio.sleep(PAUSE_S)
        return await measured(kind)

    connection = await Connection.open(place.hostname, place.port)
    try:
        first = {kind: await after_a_pause(kind) for kind in kinds}
        warm = {
            kind: statistics.median([await measured(kind) for _ in range(WARM_REQUESTS)]) for kind in kinds
        }
        idle: dict[str, list[float]] = {kind: [] for kind in kinds}
        for kind in [*kinds] * IDLE_REQUESTS:
            idle[kind].append(await after_a_pause(kind))
    finally:
        connection.close()
    return [
        First(kind, place, first[kind], warm[kind], statistics.median(idle[kind]))
        for place, kind in enumerate(kinds)
    ]


def table(seen: Sequence[First], kinds: Sequence[str]) -> str:
    """Per kind, over all starts: its first request, those where it was the very first, and the medians."""
    lines = [
        f"{'':10}{'very first ms':>24}{'first p50 ms':>14}{'warm p50 ms':>13}{'after 1 s idle':>16}"
        f"{'first / warm':>14}{'first / idle':>14}"
    ]
    for kind in kinds:
        rows = [row for row in seen if row.kind == kind]
        very = ", ".join(f"{row.first_ms:.1f}" for row in rows if row.place == 0)
        first, warm, idle = (
            statistics.median(values)
            for values in zip(*((r.first_ms, r.warm_p50_ms, r.idle_p50_ms) for r in rows), strict=True)
        )
        ratios = f"{first / warm:14.2f}{first / idle:14.2f}"
        lines.append(f"{kind:10}{very:>24}{first:14.1f}{warm:13.1f}{idle:16.1f}{ratios}")
    return "\n".join(lines)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--kinds", type=kinds_of, default=list(KINDS))
    return parser.parse_args(argv)


def kinds_of(value: str) -> list[str]:
    kinds = value.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    return kinds


if __name__ == "__main__":
    main()
