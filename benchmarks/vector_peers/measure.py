"""The scenarios that every system goes through, each ending in one record."""

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import processes
from benchmarks.vector_peers.client import ANSWER_TIMEOUT_S, Measured
from benchmarks.vector_peers.dataset import FILTERS, Dataset, Queries, Truth
from benchmarks.vector_peers.system import Ids, Setting, System

Record = dict[str, Any]
"""Of one scenario. Seconds, milliseconds and bytes are named in the keys."""

TARGET_RECALL = 0.95
TUNING_CLIENTS = 2
LARGEST = 5  # processes named in the record of memory


@dataclass(frozen=True)
class Plan:
    clients: Sequence[int] = (1, 16)
    warm_up_s: float = 2.0
    seconds: float = 10.0  # measured, of each search scenario


def scenarios(system: System, data: Dataset, plan: Plan) -> Iterator[Record]:
    """Loads, builds, searches with and without filters, weighs and restarts an entered, empty system."""
    yield from _load(system, data)
    tuning, reported = data.queries()
    answers: Ids = {}
    setting: Setting = {}
    for category in FILTERS[::-1]:  # no filter last: the restart is measured with its setting
        setting, tuned = cheapest(system, tuning, system.settings(data), category)
        if system.setting_takes_restart:
            # Its first search opens the index, which the clients that are measured do not wait for.
            system.search(tuning.vectors[:1], setting, category, 1, None)
        for clients in plan.clients:
            window = plan.warm_up_s, plan.seconds
            measured, answers = system.search(reported.vectors, setting, category, clients, window)
            yield {
                "scenario": "search",
                "filter": category,
                "clients": clients,
                "setting": setting,
                "tuning_recall": round(tuned, 4),
                "recall": round(recall(answers, reported.truth[category]), 4),
                "queries": len(answers),
                **_speed(measured),
            }
    yield _memory(
        system,
        lambda: system.search(reported.vectors, setting, None, max(plan.clients), (0, plan.seconds)),
        after_s=0.8 * plan.seconds,
    )
    yield {"scenario": "disk", "bytes": system.bytes_on_disk()}
    yield _restart(system, reported, setting, answers)


def cheapest(
    system: System, tuning: Queries, settings: Sequence[Setting], category: str | None
) -> tuple[Setting, float]:
    """The fastest of the settings that reach the target, else the one that comes nearest; and its recall.

    All are tried, for PostgreSQL's planner may answer a larger ef_search in another, slower or faster way;
    but where trying one takes a restart the settings are halved, each tried only while it can matter.
    """

    def merit(tried: tuple[Setting, float, float]) -> tuple[bool, float]:
        _, reached, median_s = tried
        return (True, -median_s) if reached >= TARGET_RECALL else (False, reached)

    trials: list[tuple[Setting, float, float]] = []

    def reaches(setting: Setting) -> bool:
        measured, ids = system.search(tuning.vectors, setting, category, TUNING_CLIENTS, None)
        reached = recall(ids, tuning.truth[category])
        trials.append((setting, reached, float(np.median(measured.latencies))))
        return reached >= TARGET_RECALL

    if system.setting_takes_restart:
        bisect_left(settings, True, key=reaches)
    else:
        for setting in settings:
            reaches(setting)
    best, reached, _ = max(trials, key=merit)
    return best, reached


def recall(found: Ids, truth: Truth) -> float:
    """Mean share of the true nearest (K, or as many as pass the filter) over the answered queries."""
    shares = [len({*ids} & {*truth[number].tolist()}) / truth.shape[1] for number, ids in found.items()]
    return float(np.mean(shares))


def _load(system: System, data: Dataset) -> Iterator[Record]:
    began = time.perf_counter()
    system.load(data)
    loaded = time.perf_counter()
    system.build(data)
    built = time.perf_counter() - system.settling_s
    yield {
        "scenario": "load",
        "durability": system.durability,
        "load_s": round(loaded - began, 2),
        "build_s": round(built - loaded, 2),
        "vectors_per_s": round(data.count / (loaded - began), 1),
        "searchable_vectors_per_s": round(data.count / (built - began), 1),
        **system.details(),
    }


def _speed(measured: Measured) -> Record:
    p50, p99 = np.percentile(measured.latencies, (50, 99)) * 1e3
    return {
        "seconds": measured.seconds,
        "throughput_per_s": round(len(measured.latencies) / measured.seconds, 1),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
    }


def _memory(system: System, load: Callable[[], object], after_s: float) -> Record:
    """Weighs the system under load, for a page that no process has mapped counts for none."""
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        time.sleep(after_s)
        sizes = {pid: processes.memory(pid) for pid in system.processes()}
        loading.result()
    largest = sorted(sizes, key=lambda pid: sizes[pid]["total"], reverse=True)[:LARGEST]
    return {
        "scenario": "memory",
        **{f"{part}_bytes": sum(size[part] for size in sizes.values()) for part in processes.PARTS},
        "processes": len(sizes),
        "largest": [
            {"process": processes.command(pid).replace("\0", " ")[:60], **sizes[pid]} for pid in largest
        ],
    }


def _restart(system: System, queries: Queries, setting: Setting, before: Ids) -> Record:
    """Until a query gets the answer again that it had got before, which was a right one."""
    truth = queries.truth[None].tolist()
    number = max(before, key=lambda n: len({*before[n]} & {*truth[n]}))
    query, expected = queries.vectors[number : number + 1], {*before[number]}
    began = time.perf_counter()
    system.stop()
    stopped = time.perf_counter()
    system.start()
    while True:
        _, ids = system.search(query, setting, None, 1, None)
        if {*ids[0]} == expected:
            break
        if time.perf_counter() - stopped > ANSWER_TIMEOUT_S:
            raise RuntimeError(f"after the restart a query is answered {ids[0]}, not {expected}")
    finished = time.perf_counter()
    return {
        "scenario": "restart",
        "stop_s": round(stopped - began, 2),
        "start_s": round(finished - stopped, 2),
    }


def machine() -> Record:
    """What the numbers depend on apart from the system."""
    return {"cpus": os.cpu_count(), "load_average_1m": round(os.getloadavg()[0], 2)}
