"""Approximate nearest neighbours on FAISS: the kinds there are, how each is built and searched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import faiss
import numpy as np

from index.items import Rowids, Vectors
from index.spec import Kind, Metric

FAISS_METRIC: Final = {
    "cosine": faiss.METRIC_INNER_PRODUCT,  # vectors are stored normalised
    "dot": faiss.METRIC_INNER_PRODUCT,
    "l2": faiss.METRIC_L2,
}
LEAST_ROWS: Final = 1000
"""Below, quantisers have too little to learn from and exact search takes 0.1 ms."""
AUTO: Final = ((20_000, "flat"), (2_000_000, "hnsw"))
"""`auto` up to so many rows of 512 numbers; IVF above, for HNSW's links alone take 256 bytes a row."""
HNSW_LINKS: Final = 32
HNSW_BUILD_EFFORT: Final = 64
ADD_ROWS: Final = 8192
"""Rows added between two looks at whether to stop."""
KMEANS_TURNS: Final = 10
BEYOND_CODES: Final = 0.001
"""Tried where too little is found with codes from the least number to the greatest, of which one long vector
leaves all others the same few. But under dot, or of sparse vectors, it is the long ones that count."""
ROWS_PER_CENTROID: Final = 40  # FAISS warns below 39
PQ_ROWS: Final = 20_000  # for 256 centroids; FAISS warns below half as many

Stop = Callable[[], bool]


class Stopped(Exception):  # noqa: N818 — nothing went wrong
    """The caller wants the work on an index to end."""


@dataclass(frozen=True)
class AnnKind:
    """One kind of index.

    Searches take `oversample` candidates for each result wanted, which are then compared in float32.
    `effort` is the knob that trades time for recall, and `cost` what a search of that effort takes,
    in rows of an exact search. Numbers beyond `greatest` would be infinite in it.
    """

    name: Kind
    factory: Callable[[int, int], str]  # FAISS's index_factory string, from rows and dimensions
    oversample: int
    least_rows: int = LEAST_ROWS
    effort: str | None = None
    efforts: Callable[[int], Sequence[int]] = lambda rows: (0,)
    cost: Callable[[int, int], float] = lambda rows, effort: rows / 3
    greatest: float = float("inf")

    def parameters(self, effort: int, selector: faiss.IDSelector | None) -> Any:
        if self.effort == "ef_search":
            return faiss.SearchParametersHNSW(efSearch=effort, sel=selector)  # type: ignore[attr-defined]
        if self.effort == "nprobe":
            return faiss.SearchParametersIVF(nprobe=effort, sel=selector)  # type: ignore[call-arg]
        return faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]

    def reach(self, effort: int, count: int) -> int:
        """The effort of a search for so many: a graph's is no less."""
        return max(effort, count) if self.effort == "ef_search" else effort

    def holds(self, vectors: Vectors) -> bool:
        """Whether it can keep every number of these."""
        return self.greatest == float("inf") or max(vectors.max(), -vectors.min()) <= self.greatest

    @property
    def coded(self) -> bool:
        """Whether it keeps each number as one of 256 codes between two bounds."""
        return "SQ8" in self.factory(LEAST_ROWS, 8)

    def build(
        self, vectors: Vectors, metric: Metric, threads: int, stop: Stop, beyond: float = 0.0
    ) -> faiss.Index:
        """A trained index of all rows. Raises Stopped soon after `stop` says so (not while training).

        Where it is `coded`, the codes leave out the share `beyond` of a dimension's numbers at each end.
        """
        rows, dimensions = vectors.shape
        faiss.omp_set_num_threads(threads)
        index = faiss.index_factory(dimensions, self.factory(rows, dimensions), FAISS_METRIC[metric])
        kind = faiss.downcast_index(index)
        if isinstance(kind, faiss.IndexHNSW):
            kind.hnsw.efConstruction = HNSW_BUILD_EFFORT
        if isinstance(kind, faiss.IndexIVF):
            kind.cp.niter = KMEANS_TURNS
        if isinstance(kind, faiss.IndexIVFPQ):
            kind.pq.cp.niter = KMEANS_TURNS
        coded = faiss.downcast_index(kind.storage) if isinstance(kind, faiss.IndexHNSW) else kind
        if beyond and isinstance(coded, faiss.IndexScalarQuantizer | faiss.IndexIVFScalarQuantizer):
            coded.sq.rangestat = faiss.ScalarQuantizer.RS_quantiles
            coded.sq.rangestat_arg = beyond
        if not index.is_trained:
            index.train(_sample(vectors, max(PQ_ROWS, ROWS_PER_CENTROID * _lists(rows))))
        for start in range(0, rows, ADD_ROWS):
            if stop():
                raise Stopped
            index.add(np.ascontiguousarray(vectors[start : start + ADD_ROWS]))
        return index


def _lists(rows: int) -> int:
    """Inverted lists: four times the square root of the rows, as FAISS's guidelines have it."""
    return max(1, min(int(4 * rows**0.5), rows // ROWS_PER_CENTROID))


def _sub_quantisers(dimensions: int) -> int:
    """Bytes a vector in PQ: one for eight numbers, if the dimensions divide so."""
    return max(m for m in range(1, max(1, dimensions // 8) + 1) if dimensions % m == 0)


def _sample(vectors: Vectors, rows: int) -> Vectors:
    chosen = np.random.default_rng(0).permutation(len(vectors))[:rows]
    return np.ascontiguousarray(vectors[np.sort(chosen)])


def _probes(rows: int) -> Sequence[int]:
    lists = _lists(rows)
    return sorted({min(lists, int(2 ** (step / 2))) for step in range(1, 30)})


_IVF = AnnKind(
    "ivf",
    lambda rows, d: f"IVF{_lists(rows)},SQ8",
    oversample=3,
    effort="nprobe",
    efforts=_probes,
    cost=lambda rows, effort: _lists(rows) + rows * effort / _lists(rows),
)

KINDS: Final[dict[str, AnnKind]] = {
    kind.name: kind
    for kind in (
        AnnKind("flat-fp16", lambda rows, d: "SQfp16", oversample=2, greatest=65_504),
        AnnKind("sq8", lambda rows, d: "SQ8", oversample=3),
        AnnKind(
            "hnsw",
            lambda rows, d: f"HNSW{HNSW_LINKS}_SQ8",
            oversample=2,
            effort="ef_search",
            efforts=lambda rows: (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048),
            cost=lambda rows, effort: HNSW_LINKS * effort,
        ),
        _IVF,
        replace(
            _IVF,
            name="ivf-pq",
            factory=lambda rows, d: f"IVF{_lists(rows)},PQ{_sub_quantisers(d)}x8",
            oversample=10,
            least_rows=PQ_ROWS // 2,
        ),
    )
}
"""The approximate kinds; "flat" is none of them."""

EFFORTS: Final = tuple(dict.fromkeys(kind.effort for kind in KINDS.values() if kind.effort))
"""The names of what trades time for recall, which are the settings' too."""


def kind_for(kind: Kind, rows: int, total: int = 0) -> AnnKind | None:
    """What so many rows, of `total` in a collection of this kind, are kept in; None for exact search."""
    name: str = kind
    if kind == "auto":
        size = max(rows, min(total, AUTO[0][0]))  # beside a graph, few rows are the slow part if not in one
        name = next((name for most, name in AUTO if size < most), "ivf")
    found = KINDS.get(name)
    return found if found and rows >= found.least_rows else None


def candidates(
    index: faiss.Index,
    kind: AnnKind,
    queries: Vectors,
    count: int,
    effort: int,
    threads: int,
    selector: faiss.IDSelector | None,
) -> Rowids:
    """Positions [q, count] of rows that are probably near, nearest first as the index sees it; -1: none."""
    faiss.omp_set_num_threads(threads)  # OpenMP keeps it per calling thread
    parameters = kind.parameters(kind.reach(effort, count), selector)
    found = index.search(np.ascontiguousarray(queries, np.float32), count, params=parameters)
    positions: Rowids = found[1]
    return positions
