"""What a serving benchmark shows: rates beside the roof and the peer, where the time went, JSON lines."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.load.summary import Summary
from benchmarks.scenarios import SCENARIOS

# Where the time of one request goes, in the order it passes through.
PATH: Final = ("http", "parse", "transport", "preprocess", "queue", "model", "index", "answer")
_INSIDE: Final = ("preprocess", "queue", "model", "index")

Roof = Mapping[str, Mapping[str, Any]]
"""The bare engine's best, by the model's name and then the kind of work (benchmarks/roof.py)."""


@dataclass(frozen=True)
class Row:
    """One server under one load; without a summary when it could not do it."""

    server: str
    scenario: str
    load: str
    offered_per_s: float | None  # of an open loop
    summary: Summary | None
    when: float  # seconds since 1970

    @property
    def measured(self) -> Summary:
        assert self.summary is not None
        return self.summary


def roof_of(row: Row, roof: Roof | None) -> float | None:
    """Items per second of the bare engine at what the row's model is served at."""
    scenario = SCENARIOS.get(row.scenario)
    if roof is None or scenario is None:
        return None
    return float(roof[scenario.model][scenario.roof]["items_per_s"])


def breakdown(summary: Summary) -> dict[str, float] | None:
    """Mean milliseconds a request spent in each part of PATH; None for servers that do not say.

    `http` is what the gateway did not see: sockets, Serve's proxy, the load generator, and timeouts.
    `transport` is what calls to deployments took beyond the stages in them: serialising, sending, scheduling.
    """
    stages = summary.stages_ms
    if "calls" not in stages:
        return None
    gateway = stages["parse"] + stages["calls"] + stages["answer"]
    inside = {name: stages.get(name, 0.0) for name in _INSIDE}
    # Calls of one request that run at once count by their longest in each stage, so the sum may exceed them.
    transport = max(0.0, stages["calls"] - sum(inside.values()))
    spent = {"http": summary.latency.mean_ms - gateway, "transport": transport}
    spent |= inside | {name: stages[name] for name in ("parse", "answer")}
    return {name: round(spent[name], 2) for name in PATH}


def table(rows: Sequence[Row], roof: Roof | None) -> str:
    """Throughput and latency of every row; under them each load's ratio to the peer and the roof."""
    head = f"{'':14}{'load':14}{'server':11}{'items/s':>9}{'good/s':>9}{'of roof':>9}{'to peer':>9}"
    lines = [
        head + "".join(f"{name:>10}" for name in ("p50 ms", "p90 ms", "p99 ms", "max ms")) + "  statuses"
    ]
    for row in rows:
        name = f"{row.scenario:14}{row.load:14}{row.server:11}"
        if row.summary is None:
            lines.append(f"{name}  refused: see above")
            continue
        summary, limit = row.summary, roof_of(row, roof)
        share = f"{summary.items_per_s / limit:.0%}" if limit else ""
        peer = next((r.summary for r in rows if _same_load(r, row) and r.summary), None)
        ratio = f"{summary.items_per_s / peer.items_per_s:.1f}x" if peer and peer.items_per_s else ""
        cells = f"{summary.items_per_s:9.1f}{summary.goodput_per_s:9.1f}{share:>9}{ratio:>9}"
        times = summary.latency
        cells += "".join(f"{ms:10.1f}" for ms in (times.p50_ms, times.p90_ms, times.p99_ms, times.max_ms))
        cells += "  " + ", ".join(f"{count} x {status}" for status, count in sorted(summary.statuses.items()))
        if summary.statuses.get("429"):
            cells += f" (429 in p50 {summary.refused.p50_ms:.0f}, p99 {summary.refused.p99_ms:.0f} ms)"
        lines.append(name + cells)
    return "\n".join(lines)


def stage_table(rows: Sequence[Row]) -> str:
    """Where one request's time went, mean milliseconds."""
    lines = [f"{'mean ms':14}{'':14}{'total':>9}" + "".join(f"{name:>12}" for name in PATH)]
    for row in rows:
        if row.summary is not None and (spent := breakdown(row.summary)) is not None:
            total = row.summary.latency.mean_ms
            cells = "".join(f"{spent[name]:12.2f}" for name in PATH)
            lines.append(f"{row.scenario:14}{row.load:14}{total:9.2f}{cells}")
    return "\n".join(lines)


def append(path: Path, row: Row, roof: Roof | None) -> str:
    """The row as one JSON line, also added to the file."""
    values: dict[str, Any] = {"benchmark": "serving", **asdict(row), "roof_items_per_s": roof_of(row, roof)}
    if row.summary is not None:
        values["breakdown_ms"] = breakdown(row.summary)
    line = json.dumps(values)
    with path.open("a") as file:
        file.write(line + "\n")
    return line


def _same_load(candidate: Row, row: Row) -> bool:
    return candidate.server != row.server == "sightline" and (
        (candidate.scenario, candidate.load) == (row.scenario, row.load)
    )
