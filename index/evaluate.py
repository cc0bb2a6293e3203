"""Recall@k of approximate search against exact search, with queries made from the stored vectors."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from index.flat import Scores
from index.items import Rowids, Vectors
from index.segment import Segment, SegmentView, Tuning
from index.spec import Metric
from index.view import View

QUERIES: Final = 256  # one standard error of a recall of 0.95: about half a point
NEIGHBOURS: Final = 10
EXACT_TIMED: Final = 20  # an exact search of a million vectors takes a tenth of a second
LEAST_RECALL: Final = 0.5
TOLERANCE: Final = 1e-5
"""Relative difference of scores that float32 rounding makes."""


def recall(found: Scores, true: Scores) -> float:
    """The share of results found [q, k] at least as near as the k-th true neighbour, by their scores.

    By scores and not by rows, as ann-benchmarks.com does: of equals any one is right. Rounding is relative to
    the scores, which may all be tiny.
    """
    if true.size == 0:
        return 1.0
    furthest = true[:, -1:]
    return float(np.mean(found >= furthest - TOLERANCE * np.abs(true).max(axis=1, keepdims=True)))


@dataclass(frozen=True)
class Latency:
    """Of single queries, one after another, in the index itself: milliseconds."""

    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Setting:
    """What one effort (ef_search or nprobe; None where there is no such knob) gives and takes."""

    effort: int | None
    recall: float
    latency: Latency


@dataclass(frozen=True)
class Evaluation:
    """Recall@k and latency of searches as they are answered now, of exact ones, and at other efforts.

    `knob` is what an effort is called; None, and no other settings, where every search is exact.
    """

    count: int
    queries: int
    k: int
    kind: str
    knob: str | None
    now: Setting
    exact: Latency
    settings: list[Setting]


def evaluate(
    view: View, metric: Metric, sample: Vectors, k: int, efforts: dict[str, int], budget_s: float
) -> Evaluation:
    """Measure a view with queries like `sample` [q, d], vectors stored in it.

    Efforts of the largest segment's kind are tried upwards until every neighbour is found or
    `budget_s` is over.
    """
    give_up = time.monotonic() + budget_s
    queries = off_graph(
        lambda vectors, limit: view.search(vectors, limit, exact=True)[1], view.vectors_of, sample, metric
    )
    exact, true = _timed(lambda query: view.search(query, k, exact=True)[0], queries[:EXACT_TIMED])
    if len(queries) > EXACT_TIMED:
        true = np.concatenate([true, view.search(queries[EXACT_TIMED:], k, exact=True)[0]])
    largest = view.largest
    kind = largest.kind if largest and not largest.useless else None

    def at(efforts: dict[str, int], effort: int | None) -> Setting:
        latency, found = _timed(lambda query: view.search(query, k, efforts=efforts)[0], queries)
        return Setting(effort, recall(found, true), latency)

    tuning = largest.tuning if largest else None
    knob = kind.effort if kind else None
    chosen = efforts.get(knob, tuning.effort if tuning else 0) if knob else None
    now = at(efforts, chosen)
    settings: list[Setting] = []
    tried = kind.efforts(len(largest.rowids)) if kind and largest and knob else ()
    for effort in tried:
        if time.monotonic() > give_up or (settings and settings[-1].recall == 1):
            break
        settings.append(at({str(knob): effort}, effort))
    return Evaluation(view.living, len(queries), k, view.kind, knob, now, exact, settings)


def tuned(segment: Segment, target: float) -> Tuning:
    """The smallest effort at which queries like the stored vectors reach recall@10 of `target`."""
    assert segment.kind is not None
    rows = np.sort(np.random.default_rng(0).permutation(len(segment.rowids))[:QUERIES])
    view = SegmentView(segment, np.ones(len(segment.rowids), np.bool_))
    queries = off_graph(
        lambda vectors, limit: view.search(vectors, limit, None, exact=True)[1],
        lambda rowids: segment.vectors[np.searchsorted(segment.rowids, rowids)],
        np.ascontiguousarray(segment.vectors[rows]),
        segment.metric,
    )
    true, _ = view.search(queries, NEIGHBOURS, None, exact=True)
    reached = Tuning(0, 0.0)
    for effort in segment.kind.efforts(len(segment.rowids)):
        found, _ = view.search(queries, NEIGHBOURS, None, exact=False, effort=effort)
        reached = Tuning(effort, recall(found, true))
        if reached.recall >= target:
            return reached
    return replace(reached, useless=reached.recall < LEAST_RECALL)


def off_graph(
    nearest: Callable[[Vectors, int], Rowids],
    vectors_of: Callable[[Rowids], Vectors],
    stored: Vectors,
    metric: Metric,
) -> Vectors:
    """Queries [q, d] like stored vectors [q, d]: each moved by the difference of two of its neighbours.

    A stored vector itself is too easy a query, for HNSW's graph leads to it. Moved so it is off the
    graph, and still where vectors are found: on 50 000 clustered vectors recall@10 was 0.955, fresh ones
    of the same clusters gave 0.971 and the stored ones themselves 0.988.
    """
    near = nearest(stored, NEIGHBOURS + 1)  # the first is the vector itself
    if near.shape[1] <= NEIGHBOURS:
        return stored
    queries = stored + vectors_of(near[:, NEIGHBOURS // 2]) - vectors_of(near[:, NEIGHBOURS])
    if metric == "cosine":
        queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return queries


def _timed(search: Callable[[Vectors], Scores], queries: Vectors) -> tuple[Latency, Scores]:
    times, found = [], []
    for row in range(len(queries)):
        start = time.perf_counter()
        found.append(search(queries[row : row + 1]))
        times.append(1e3 * (time.perf_counter() - start))
    p50, p99 = np.percentile(times, [50, 99])
    return Latency(float(p50), float(p99)), np.concatenate(found)
