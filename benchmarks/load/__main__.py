"""Drives the load of a plan, given as JSON, and writes the summary as JSON.

python -m benchmarks.load '{"url": "http://127.0.0.1:8000", "scenario": "text", "photos":
    ".cache/bench/photos", "seconds": 5, "clients": 32}'
"""

import asyncio
import gc
import itertools
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.load.loops import Request, Target, arrivals, closed_loop, open_loop
from benchmarks.load.plan import LoadError, Plan
from benchmarks.load.summary import Summary, summarise
from benchmarks.payloads import Photos
from benchmarks.scenarios import SCENARIOS, different, parts, requests

PROBES = 3  # answers looked into before the load begins


async def drive(plan: Plan) -> Summary:
    """Raises LoadError when a probe's answer is wrong, or nothing would arrive in the window."""
    parsed = urlsplit(plan.url)
    target = Target(parsed.hostname or "", parsed.port or 80, plan.deadline_s)
    photos = Photos(Path(plan.photos))
    source = requests(plan.scenario, photos, parsed.netloc, plan.seed)
    for kind in parts(plan.scenario):
        await probe(target, kind, requests(kind, photos, parsed.netloc, plan.seed + 1))
    gc.freeze()  # the payloads need no looking after
    if plan.rate is None:
        run = await closed_loop(target, source, plan.clients, plan.seconds, plan.warm_up_s)
    else:
        rng = random.Random(plan.seed) if plan.arrivals == "poisson" else None
        times = arrivals(plan.rate, -plan.warm_up_s, plan.seconds, rng) if plan.rate > 0 else []
        if not times or times[-1] < 0:
            raise LoadError(f"no arrival in {plan.seconds:g} s at {plan.rate:g} requests/s")
        run = await open_loop(target, source, times, plan.seconds)
    items = {kind: SCENARIOS[kind].items for kind in parts(plan.scenario)}
    return summarise(run, items, plan.good_ms)


async def probe(target: Target, kind: str, source: Iterator[Request]) -> None:
    scenario = SCENARIOS[kind]
    outputs = []
    for _, request in itertools.islice(source, PROBES):
        connection, answer = await target.exchange(None, request)
        if connection is not None:
            connection.close()
        if answer.status != 200:
            raise LoadError(f"{kind}: status {answer.status}: {answer.body[:500]!r}")
        rows = scenario.check(json.loads(answer.body))
        if len(rows) != scenario.items or not all(rows):
            raise LoadError(f"{kind}: {scenario.items} items asked, {len(rows)} answered")
        outputs.extend(rows)
    if not different(outputs):
        raise LoadError(f"{kind}: different requests got the same answer")


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(asyncio.run(drive(Plan(**json.loads(sys.argv[1])))))))
    except LoadError as error:
        sys.exit(str(error))
