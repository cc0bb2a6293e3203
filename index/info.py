"""What is told of a collection: its numbers, and what its searches find. Without FAISS, for the gateway."""

from dataclasses import dataclass
from typing import Final

from index.spec import Kind, Metric

EVALUATION_S: Final = 30.0
"""What an evaluation takes where there is more to measure."""


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection in numbers.

    `actual_kind` is what most rows are searched by now. `state` is "building" while rows are being moved
    to what their number asks for, and "ready" else; `problem` is why that failed, or what an index does not
    find. `recall` is recall@10 at `effort` (ef_search or nprobe), measured on stored vectors when the largest
    segment was built. `created` is in seconds since 1970.
    """

    name: str
    count: int
    dimensions: int
    metric: Metric
    kind: Kind
    actual_kind: str
    state: str
    problem: str | None
    segments: int
    effort: int | None
    recall: float | None
    indexed_keys: tuple[str, ...]
    model: str | None
    fingerprint: str | None
    created: int
    tombstones: int
    bytes_on_disk: int
    bytes_in_memory: int
    thumbnails: bool


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

    `queries` is how many there was time for. `knob` is what an effort is called; None, and no other settings,
    where there is none.
    """

    count: int
    queries: int
    k: int
    kind: str
    knob: str | None
    now: Setting
    exact: Latency
    settings: list[Setting]
