"""Recall@k of approximate search against exact search, on the rows of a collection themselves."""

from typing import Final

import numpy as np

from index.flat import Scores
from index.items import Vectors
from index.segment import Segment, SegmentView, Tuning

QUERIES: Final = 256  # one standard error of a recall of 0.95: about half a point
NEIGHBOURS: Final = 10


TOLERANCE: Final = 1e-5
"""Relative difference of scores that float32 rounding makes."""


def recall(found: Scores, true: Scores) -> float:
    """The share of results found [q, k] at least as near as the k-th true neighbour, by their scores.

    By scores and not by rows, as ann-benchmarks.com does: of equals any one is right.
    """
    if true.size == 0:
        return 1.0
    furthest = true[:, -1:]
    return float(np.mean(found >= furthest - TOLERANCE * np.maximum(1, np.abs(furthest))))


def tuned(segment: Segment, target: float) -> Tuning:
    """The smallest effort at which queries like the stored vectors reach recall@10 of `target`.

    A stored vector itself is too easy a query, for HNSW's graph leads to it. So each is moved by the
    difference of two of its neighbours: off the graph, and still where vectors are found.
    """
    assert segment.kind is not None
    rows = np.sort(np.random.default_rng(0).permutation(len(segment.rowids))[:QUERIES])
    view = SegmentView(segment, np.ones(len(segment.rowids), np.bool_))
    stored: Vectors = np.ascontiguousarray(segment.vectors[rows])
    _, near = view.search(stored, NEIGHBOURS + 1, None, exact=True)  # the first is the vector itself
    fifth, tenth = (segment.vectors[np.searchsorted(segment.rowids, near[:, place])] for place in (5, 10))
    queries = stored + fifth - tenth
    if segment.metric == "cosine":
        queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    true, _ = view.search(queries, NEIGHBOURS, None, exact=True)
    reached = Tuning(0, 0.0)
    for effort in segment.kind.efforts(len(segment.rowids)):
        found, _ = view.search(queries, NEIGHBOURS, None, exact=False, effort=effort)
        reached = Tuning(effort, recall(found, true))
        if reached.recall >= target:
            break
    return reached
