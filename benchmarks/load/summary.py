"""What a run of load says: throughput, latency, statuses, goodput and where the server spent the time."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load.loops import BROKEN, TIMEOUT, Run, Sample

_NAMES = {TIMEOUT: "timeout", BROKEN: "broken"}


@dataclass(frozen=True)
class Latency:
    """Milliseconds; NaN-free: all 0 when there was no sample."""

    p50_ms: float = 0.0
    p90_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    mean_ms: float = 0.0

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Latency":
        values = sorted((sample.finished - sample.intended) * 1e3 for sample in samples)
        if not values:
            return cls()
        p50, p90, p99 = (round(percentile(values, percent), 2) for percent in (50, 90, 99))
        return cls(p50, p90, p99, round(values[-1], 2), round(statistics.fmean(values), 2))


@dataclass(frozen=True)
class Summary:
    """One run.

    Rates count the answers of status 200 that came within the window. All else is of the requests that were
    meant to be sent in it, whenever their answers came, and of timeouts that reach into it from the warm-up.
    """

    seconds: float
    requests: int
    answers_per_s: float
    items_per_s: float
    goodput_per_s: float  # answers that took at most `good_ms`
    latency: Latency  # of status 200, and of timeouts, which count for as long as they were waited for
    refused: Latency  # of answers 429: how soon a client learns that there is no room
    statuses: dict[str, int]
    kinds: dict[str, Latency]  # of mixed traffic
    stages_ms: dict[str, float]  # means over the answers of status 200, from Server-Timing
    late_p99_ms: float  # how late this process sent, at the 99th percentile: its own share in the latency
    client_cpu_ms: float  # of this process, a request


def summarise(run: Run, items: dict[str, int], good_ms: float) -> Summary:
    """`items` says how many images or texts a request of each kind carries."""
    finished = [sample for sample in run.samples if 0 <= sample.finished < run.seconds]
    # By when they were sent: of those that finished within the window none took longer than it lasts.
    counted = [
        sample
        for sample in run.samples
        if 0 <= sample.intended < run.seconds or (sample.status == TIMEOUT and sample.finished >= 0)
    ]
    waited = [sample for sample in counted if sample.status in (200, TIMEOUT)]
    done = [sample for sample in finished if sample.status == 200]
    good = [sample for sample in done if (sample.finished - sample.intended) * 1e3 <= good_ms]
    by_kind: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in waited:
        by_kind[sample.kind].append(sample)
    lateness = sorted((sample.sent - sample.intended) * 1e3 for sample in counted)
    return Summary(
        seconds=round(run.seconds, 3),
        requests=len(counted),
        answers_per_s=round(len(done) / run.seconds, 2),
        items_per_s=round(sum(items[sample.kind] for sample in done) / run.seconds, 2),
        goodput_per_s=round(len(good) / run.seconds, 2),
        latency=Latency.of(waited),
        refused=Latency.of([sample for sample in counted if sample.status == 429]),
        statuses=dict(Counter(_NAMES.get(s.status, str(s.status)) for s in counted)),
        kinds={kind: Latency.of(samples) for kind, samples in sorted(by_kind.items())},
        stages_ms=mean_stages([sample.timing for sample in counted if sample.status == 200]),
        late_p99_ms=round(percentile(lateness, 99), 2) if lateness else 0.0,
        client_cpu_ms=round(run.client_cpu_s * 1e3 / max(1, len(finished)), 3),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank, of sorted values."""
    return values[max(0, math.ceil(len(values) * percent / 100) - 1)]


def stages(header: bytes) -> dict[str, float]:
    """A Server-Timing header's durations by name, milliseconds (W3C Server Timing)."""
    durations = {}
    for entry in header.decode("latin-1").split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            if parameter.startswith("dur="):
                durations[name] = float(parameter[4:])
    return durations


def mean_stages(headers: Sequence[bytes]) -> dict[str, float]:
    totals: Counter[str] = Counter()
    for header in headers:
        totals.update(stages(header))
    return {name: round(total / len(headers), 3) for name, total in totals.items()}
