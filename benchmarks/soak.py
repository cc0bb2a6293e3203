"""Mixed load for a long time, with the memory of every process watched: does anything grow without end?

    python -m benchmarks.soak [--seconds 1800] [--clients 8] [--bound-mib 64]

Passes when every request was answered with 200, no replica was replaced, and the memory of each process,
and of all together, grew by no more than the bound after the warm-up: by a line fitted to the samples, which
shows a steady leak, and between their first and last tenth, which shows a step and a leak that began late.
Memory is PSS without that of files, mapped segments of the index among them, which the system takes back: a
process's share of a library's pages grows when another that maps it ends. Ends in one JSON line, also
appended to .cache/bench/soak.jsonl.
"""

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

from benchmarks import memory
from benchmarks.load.plan import Plan, drive
from benchmarks.load.summary import Summary
from benchmarks.memory import Process
from benchmarks.payloads import build_photos
from benchmarks.servers import CACHE, PHOTOS, Target, fill_collection, sightline

SCENARIO = "mixed"
CACHE_BYTES = 1024 * 1024
# Above what the PSS of all processes together grew by in half an hour, 7 to 37 MiB; below a leak of a
# kilobyte for each of its 95 000 requests, 90 MiB.
BOUND_MIB = 64.0
SAMPLES = 60  # of memory in one soak, at least a second apart: each reads the page tables of every process


@dataclass(frozen=True)
class Sample:
    seconds: float  # since the load began
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class Growth:
    """Of the samples after the warm-up."""

    first_mib: float
    last_mib: float
    mib_per_hour: float  # by a line through them
    mib: float  # by that line, over the time that was watched
    step_mib: float  # from the median of the first tenth to that of the last


@dataclass(frozen=True)
class Soak:
    """What was seen; `problems` is empty when it passes."""

    seconds: float
    bound_mib: float
    total: Growth
    by_process: Mapping[str, Growth]
    load: Summary
    problems: tuple[str, ...]


def soak(
    target: Target,
    seconds: float,
    warm_up_s: float,
    bound_mib: float,
    clients: int = 1,
    rate: float | None = None,
) -> Soak:
    """Load `target`, whose collection is filled, for `warm_up_s` and then `seconds`.

    A closed loop of `clients`, or with `rate` an open one of so many requests a second. Raises LoadError.
    """
    build_photos(PHOTOS)
    plan = Plan(
        target.url,
        SCENARIO,
        str(PHOTOS),
        seconds,
        clients,
        rate,
        warm_up_s=warm_up_s,
        seed=time.time_ns(),
    )
    samples: list[Sample] = []
    interval_s = max(1.0, seconds / SAMPLES)
    began = time.monotonic()

    def weigh() -> None:
        samples.append(Sample(time.monotonic() - began, tuple(memory.processes(*target.mark))))
        time.sleep(interval_s)

    load = drive(plan, meanwhile=weigh)
    watched = [sample for sample in samples if warm_up_s <= sample.seconds <= warm_up_s + seconds]
    return judge(watched, load, bound_mib)


def judge(samples: Sequence[Sample], load: Summary, bound_mib: float) -> Soak:
    """Raises ValueError with fewer than two samples."""
    if len(samples) < 2:
        raise ValueError("too short: memory was sampled less than twice after the warm-up")
    lasting = set.intersection(*({process.pid for process in sample.processes} for sample in samples))
    names = {process.pid: process.name for process in samples[0].processes if process.pid in lasting}
    total = grown(samples, lasting)
    by_process = {
        f"{name} ({pid})": grown(samples, {pid})
        for pid, name in sorted(names.items(), key=lambda item: item[1])
    }
    problems = []
    if set(load.statuses) != {"200"}:
        problems.append(f"answers other than 200: {load.statuses}")
    replaced = {
        process.name
        for sample in samples
        for process in sample.processes
        if process.pid not in lasting and process.replica
    }
    if replaced:
        problems.append(f"replicas came or went: {', '.join(sorted(replaced))}")
    came = sum(p.own_mib for p in samples[-1].processes if p.pid not in lasting)
    if came > bound_mib:
        problems.append(
            f"processes that came in the meantime hold {came:.0f} MiB, the bound is {bound_mib:g}"
        )
    if leaks := [
        f"{name} by {growth.mib:.0f} (step {growth.step_mib:.0f}) MiB"
        for name, growth in [("all", total), *by_process.items()]
        if max(growth.mib, growth.step_mib) > bound_mib
    ]:
        problems.append(f"memory grew, the bound is {bound_mib:g} MiB: {', '.join(leaks)}")
    seconds = samples[-1].seconds - samples[0].seconds
    return Soak(round(seconds, 1), bound_mib, total, by_process, load, tuple(problems))


def grown(samples: Sequence[Sample], pids: set[int]) -> Growth:
    """The growth of these processes' own memory together, by the median of all pairs' slopes (Theil and Sen).

    It takes no notice of a few samples that fell into a burst of work, which move a least-squares line, nor
    of a step or of a late leak, which the medians of the first and last tenth show.
    """
    points = [(s.seconds, sum(p.own_mib for p in s.processes if p.pid in pids)) for s in samples]
    slope = statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2))
    mib = slope * (points[-1][0] - points[0][0])
    weights = [weight for _, weight in points]
    tenth = -(-len(weights) // 10)
    step = statistics.median(weights[-tenth:]) - statistics.median(weights[:tenth])
    return Growth(*(round(value, 1) for value in (weights[0], weights[-1], slope * 3600, mib, step)))


def report(result: Soak) -> str:
    lines = [f"{'':34}{'first MiB':>11}{'last MiB':>11}{'MiB/hour':>11}{'growth MiB':>12}{'step MiB':>10}"]
    for name, growth in [*result.by_process.items(), ("all", result.total)]:
        lines.append(
            f"{name:34}{growth.first_mib:11.1f}{growth.last_mib:11.1f}"
            f"{growth.mib_per_hour:11.1f}{growth.mib:12.1f}{growth.step_mib:10.1f}"
        )
    latency = result.load.latency
    lines.append(
        f"{result.load.answers_per_s:.1f} requests/s for {result.seconds:g} s, "
        f"p50 {latency.p50_ms:.0f} ms, p99 {latency.p99_ms:.0f} ms, {result.load.statuses}"
    )
    return "\n".join([*lines, *(f"FAILED: {problem}" for problem in result.problems)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800, help="that memory is watched")
    parser.add_argument("--warm-up", type=float, help="seconds before; a tenth of the others by default")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--bound-mib", type=float, default=BOUND_MIB, help="growth that is taken for noise")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of ours")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop what was started, as on Ctrl-C
    warm_up_s = options.seconds / 10 if options.warm_up is None else options.warm_up
    # An embedding cache that is full before the watching begins.
    with sightline([f"embedding_cache.max_bytes={CACHE_BYTES}", *options.set]) as target:
        fill_collection(target.url)
        result = soak(target, options.seconds, warm_up_s, options.bound_mib, options.clients)
    print(report(result))
    line = json.dumps({"benchmark": "soak", "when": time.time(), **asdict(result)})
    with (CACHE / "bench" / "soak.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
