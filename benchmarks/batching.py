"""BatchQueue against Ray Serve's `@serve.batch`: one fake model, one load, real replicas, one run.

The model takes 50 ms and 2 ms per item, so what it serves depends on the size of its batches. At 100 requests
a second a queue that drains whenever the model is free settles where a batch is what arrives during
a forward: n = 100/s * (50 ms + 2 ms * n), so n = 6.25, a forward takes 62.5 ms, and a request waits for half
of the one before it: about 94 ms. Requests are sent at the times of a Poisson process whether or not earlier
ones were answered, and their latency counts from the time they were meant to be sent.

    python -m benchmarks.batching
"""

import argparse
import asyncio
import json
import logging
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from configs.settings import BatchSettings
from deployments.batching import BatchQueue
from deployments.ray_cluster import connected

FORWARD_S = 0.050
PER_ITEM_S = 0.002
MAX_ITEMS = 32
MAX_ONGOING = 10_000  # never the limit: @serve.batch falls thousands of requests behind
WARM_UP = 20  # requests that open connections and fill caches, not measured
ALONE = 50  # requests of the one-at-a-time measurement
DRAIN_S = 120.0  # for a variant that fell behind


@dataclass(frozen=True)
class Result:
    """What one variant did. Latencies are in milliseconds."""

    mean_batch: float
    p50_ms: float
    p99_ms: float
    throughput_per_s: float
    alone_p50_ms: float
    alone_p99_ms: float


class FakeModel:
    """Doubles its items, in a sleep that costs what a forward would. Counts its batches."""

    def __init__(self) -> None:
        self.batches = 0
        self.items = 0

    def forward(self, items: Sequence[int]) -> list[int]:
        self.batches += 1
        self.items += len(items)
        time.sleep(FORWARD_S + PER_ITEM_S * len(items))
        return [2 * item for item in items]

    def counts(self) -> tuple[int, int]:
        return self.batches, self.items


class OnBatchQueue(FakeModel):
    def __init__(self) -> None:
        super().__init__()
        self.queue: BatchQueue[int, int] = BatchQueue(
            self.forward,
            BatchSettings(max_items=MAX_ITEMS),
            name="fake",
            executor=ThreadPoolExecutor(1),
        )

    async def __call__(self, item: int) -> int:
        return (await self.queue.submit([item])).outputs[0]


class OnServeBatch(FakeModel):
    def __init__(self, batch_wait_timeout_s: float) -> None:
        from ray import serve

        super().__init__()
        executor = ThreadPoolExecutor(1)

        @serve.batch(max_batch_size=MAX_ITEMS, batch_wait_timeout_s=batch_wait_timeout_s)
        async def batched(items: list[int]) -> list[int]:
            return await asyncio.get_running_loop().run_in_executor(executor, self.forward, items)

        self.batched: Any = batched  # takes one item from each caller

    async def __call__(self, item: int) -> int:
        output: int = await self.batched(item)
        return output


VARIANTS: dict[str, tuple[type[FakeModel], tuple[float, ...]]] = {
    "BatchQueue": (OnBatchQueue, ()),
    # 0.01 s is its default. Which wait is the best depends on the load: below the time of a forward, 63 ms at
    # this one, it falls behind or nearly so, above it everybody waits longer than needed.
    **{f"@serve.batch, wait {wait} s": (OnServeBatch, (wait,)) for wait in (0.01, 0.05, 0.07, 0.1)},
}


@contextmanager
def local_ray() -> Iterator[None]:
    """A Ray of our own on two CPUs of this machine, with Serve and no proxy, stopped at the end."""
    with connected(None, cpus=2):
        from ray import serve

        try:
            serve.start(proxy_location="Disabled")
            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            yield
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]


async def timed(handle: Any, item: int, intended: float) -> tuple[float, float]:
    """Latency from the intended time, and the time of the answer, in seconds of the event loop's clock."""
    answer = await handle.remote(item)
    finished = asyncio.get_running_loop().time()
    assert answer == 2 * item, f"the answer to {item} was {answer}"
    return finished - intended, finished


async def measure(handle: Any, rate: float, seconds: float, seed: int) -> Result:
    now = asyncio.get_running_loop().time
    await asyncio.gather(*(timed(handle, item, now()) for item in range(WARM_UP)))
    alone = [(await timed(handle, item, now()))[0] for item in range(ALONE)]

    batches_before, items_before = await handle.counts.remote()
    draw = random.Random(seed)
    start = intended = now() + 0.1
    requests: list[asyncio.Task[tuple[float, float]]] = []
    while (intended := intended + draw.expovariate(rate)) < start + seconds:
        await asyncio.sleep(max(0.0, intended - now()))
        requests.append(asyncio.create_task(timed(handle, len(requests), intended)))
    async with asyncio.timeout(DRAIN_S):
        done = await asyncio.gather(*requests)
    batches, items = await handle.counts.remote()

    latencies = [latency for latency, _ in done]
    return Result(
        mean_batch=(items - items_before) / (batches - batches_before),
        p50_ms=percentile(latencies, 50) * 1e3,
        p99_ms=percentile(latencies, 99) * 1e3,
        throughput_per_s=len(done) / (max(finished for _, finished in done) - start),
        alone_p50_ms=percentile(alone, 50) * 1e3,
        alone_p99_ms=percentile(alone, 99) * 1e3,
    )


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def run(rate: float, seconds: float, seed: int) -> dict[str, Result]:
    from ray import serve

    results = {}
    for number, (name, (model, arguments)) in enumerate(VARIANTS.items()):
        deployment = serve.deployment(max_ongoing_requests=MAX_ONGOING, ray_actor_options={"num_cpus": 0.1})
        app = deployment(model).bind(*arguments)
        handle = serve.run(app, name=f"variant-{number}", route_prefix=None)
        results[name] = asyncio.run(measure(handle, rate, seconds, seed))
        serve.delete(f"variant-{number}")
    return results


def table(results: dict[str, Result]) -> Iterator[str]:
    yield f"{'':27}{'mean batch':>12}{'p50 ms':>16}{'p99 ms':>16}{'answers/s':>15}{'alone p50 ms':>19}"
    ours = results["BatchQueue"]
    for name, result in results.items():
        cells = [f"{name:27}{result.mean_batch:12.1f}"]
        for field, width in (
            ("p50_ms", 16),
            ("p99_ms", 16),
            ("throughput_per_s", 15),
            ("alone_p50_ms", 19),
        ):
            value = getattr(result, field)
            cells.append(f"{f'{value:.0f} ({value / getattr(ours, field):.2f}x)':>{width}}")
        yield "".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="BatchQueue against @serve.batch, in real replicas")
    parser.add_argument("--rate", type=float, default=100, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20, help="of load for each variant")
    parser.add_argument("--seed", type=int, default=0, help="of the arrival times, the same for each variant")
    options = parser.parse_args()
    with local_ray():
        import ray

        results = run(options.rate, options.seconds, options.seed)
        version = ray.__version__
    print(
        f"{options.rate:g} requests/s for {options.seconds:g} s, Poisson, open loop; brackets: to BatchQueue"
    )
    print(*table(results), sep="\n")
    print(
        json.dumps(
            {
                "benchmark": "batching",
                "ray": version,
                **vars(options),
                "variants": {name: asdict(result) for name, result in results.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
