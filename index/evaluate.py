"""Recall@k of approximate search against exact search, with queries made from the stored vectors."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from index.flat import Mask, Scores
from index.info import Evaluation, Latency, Setting
from index.items import Rowids, Vectors
from index.segment import Segment, SegmentView, Tuning
from index.spec import Metric
from index.view import View

QUERIES: Final = 256  # one standard error of a recall of 0.95: about half a point
NEIGHBOURS: Final = 10
EXACT_TIMED: Final = 20  # an exact search of a million vectors takes a tenth of a second
FIRST_QUERIES: Final = 4  # which tell how many there is time for
LEAST_RECALL: Final = 0.5
TOLERANCE: Final = 1e-6
"""Relative difference of a score's float32 roundings: at most 8.3e-7, up to 4096 dimensions."""

Found = tuple[Scores, Rowids]  # of one search, both [q, k]


def recall(found: Scores, true: Scores, same: Mask | None = None) -> float:
    """The share of results found [q, k] at least as near as the k-th true neighbour, by their scores.

    By scores and not by rows, as ann-benchmarks.com does: of equals any one is right. Rounding is relative to
    the scores, which may all be tiny. `same` [q, k] says which of the results found are true neighbours.
    """
    if true.size == 0:
        return 1.0
    near = found >= true[:, -1:] - TOLERANCE * np.abs(true).max(axis=1, keepdims=True)
    return float(np.mean(near if same is None else near | same))


def _recall(found: Found, true: Found) -> float:
    """The same with rowids: of long vectors roundings differ by more."""
    same = (found[1][:, :, None] == true[1][:, None]).any(axis=2)
    return recall(found[0], true[0], same)


def evaluate(
    view: View, metric: Metric, sample: Vectors, k: int, efforts: dict[str, int], budget_s: float
) -> Evaluation:
    """Measure a view with queries like `sample` [q, d], vectors stored in it, in about `budget_s`.

    Fewer queries are used where the time does not do for all: half of it is for what is true, a tenth for
    the latency of exact searches, and half of the rest for searches as they are answered now. Then efforts
    of the largest segment's kind are tried upwards until every neighbour is found or the time is over.
    """
    start = time.monotonic()
    queries, true = _asked(view, metric, sample, k, start + 0.5 * budget_s)
    exact, _ = _timed(
        lambda query: view.search(query, k, exact=True), queries[:EXACT_TIMED], start + 0.6 * budget_s
    )
    largest = view.largest
    kind = largest.kind if largest and not largest.useless else None
    tuning = largest.tuning if largest else None
    knob = kind.effort if kind else None
    give_up = start + budget_s

    def at(efforts: dict[str, int], effort: int | None, until: float) -> tuple[Setting, int]:
        latency, found = _timed(lambda query: view.search(query, k, efforts=efforts), queries, until)
        used = len(found[0])
        return Setting(effort, _recall(found, (true[0][:used], true[1][:used])), latency), used

    chosen = efforts.get(knob, tuning.effort if tuning else 0) if knob else None
    now, used = at(efforts, chosen, start + (0.8 if knob else 1) * budget_s)
    queries = queries[:used]
    settings: list[Setting] = []
    for effort in kind.efforts(len(largest.rowids)) if kind and largest and knob else ():
        if time.monotonic() > give_up or (settings and settings[-1].recall == 1):
            break
        setting, tried = at({str(knob): effort}, effort, give_up)
        if tried < used:
            break
        settings.append(setting)
    return Evaluation(view.living, used, k, view.kind, knob, now, exact, settings)


def _asked(view: View, metric: Metric, sample: Vectors, k: int, until: float) -> tuple[Vectors, Found]:
    """Queries like the sample, as many as there is time for, and what is nearest to them."""
    queries, scores, rowids = [], [], []
    done, count = 0, FIRST_QUERIES
    while True:
        began = time.monotonic()
        part = sample[done : done + count]
        queries.append(
            off_graph(
                lambda vectors, limit: view.search(vectors, limit, exact=True)[1],
                view.vectors_of,
                part,
                metric,
            )
        )
        true = view.search(queries[-1], k, exact=True)
        scores.append(true[0])
        rowids.append(true[1])
        done += len(part)
        now = time.monotonic()
        count = int((until - now) * len(part) / (now - began))  # many at once take no longer each
        if done == len(sample) or count < 1:
            return np.concatenate(queries), (np.concatenate(scores), np.concatenate(rowids))


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
    true = view.search(queries, NEIGHBOURS, None, exact=True)
    reached = Tuning(0, 0.0)
    holds = segment.kind.holds(segment.vectors)
    for effort in segment.kind.efforts(len(segment.rowids)):
        if not view.approximates(segment.kind, view.size, NEIGHBOURS, effort):
            # Every row is compared at this effort. Not for PQ, whose vectors may not fit in memory.
            reached = replace(reached, effort=effort) if segment.kind.coded else reached
            break
        found = view.search(queries, NEIGHBOURS, None, exact=False, effort=effort)
        reached = Tuning(effort, _recall(found, true), useless=not holds)
        if reached.recall >= target:
            return reached
    return replace(reached, useless=not holds or reached.recall < LEAST_RECALL)


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


def _timed(search: Callable[[Vectors], Found], queries: Vectors, until: float) -> tuple[Latency, Found]:
    """The first query always, the others as long as it is not `until`."""
    times: list[float] = []
    scores, rowids = [], []
    for row in range(len(queries)):
        start = time.perf_counter()
        found = search(queries[row : row + 1])
        times.append(1e3 * (time.perf_counter() - start))
        scores.append(found[0])
        rowids.append(found[1])
        if time.monotonic() > until:
            break
    p50, p99 = np.percentile(times, [50, 99])
    return Latency(float(p50), float(p99)), (np.concatenate(scores), np.concatenate(rowids))
