"""The only place metric names exist; all are exported on Ray's Prometheus port."""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from deployments.batching import BatchReport
from deployments.timing import StageTimes

MILLISECONDS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000]
ITEMS: list[float] = [1, 2, 4, 8, 16, 32, 64, 128, 256]


class RequestMetrics:
    """What the gateway records once per HTTP request."""

    def __init__(self) -> None:
        self._requests = Counter(
            "sightline_http_requests", "HTTP requests answered", tag_keys=("route", "method", "status")
        )
        self._latency = Histogram(
            "sightline_http_request_ms",
            "Time from the request's arrival to its answer's last byte",
            boundaries=MILLISECONDS,
            tag_keys=("route", "method"),
        )
        self._stages = Histogram(
            "sightline_stage_ms",
            "Time a request spent in a stage: queue, preprocess, model, index",
            boundaries=MILLISECONDS,
            tag_keys=("stage",),
        )

    def record(self, route: str, method: str, status: int, total_ms: float, times: StageTimes) -> None:
        """One finished request; `route` is the path template, so its values stay few."""
        self._requests.inc(1, {"route": route, "method": method, "status": str(status)})
        self._latency.observe(total_ms, {"route": route, "method": method})
        for stage, spent_ms in vars(times).items():
            if spent_ms > 0:
                self._stages.observe(spent_ms, {"stage": stage})


class CacheMetrics:
    """What the gateway records once per request whose contents were looked for in the embedding cache."""

    def __init__(self) -> None:
        self._contents = Counter(
            "sightline_embedding_cache_contents",
            "Contents looked for: hit (in the cache), joined (another request was having it embedded), miss",
            tag_keys=("result",),
        )
        self._bytes = Gauge("sightline_embedding_cache_bytes", "Memory the entries take")

    def record(self, counts: Mapping[str, int], size_bytes: int) -> None:
        """`counts` by result."""
        for result, count in counts.items():
            self._contents.inc(count, {"result": result})
        self._bytes.set(size_bytes)


class BatchMetrics:
    """What a model's batch queue records once per batch."""

    def __init__(self, model: str) -> None:
        self._tags = {"model": model}
        self._items = Histogram(
            "sightline_batch_items", "Items in a batch", boundaries=ITEMS, tag_keys=("model",)
        )
        self._waiting = Gauge(
            "sightline_batch_waiting", "Items left in the queue after a batch", tag_keys=("model",)
        )
        self._forward = Histogram(
            "sightline_forward_ms", "One forward pass", boundaries=MILLISECONDS, tag_keys=("model",)
        )

    def record(self, report: BatchReport) -> None:
        self._items.observe(report.items, self._tags)
        self._forward.observe(report.run_ms, self._tags)
        self._waiting.set(report.waiting, self._tags)
