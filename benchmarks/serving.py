"""The serving path under load: throughput and latency of each scenario, beside the roof and a peer.

    python -m benchmarks.serving [--scenarios image-raw,text] [--clients 1,32] [--seconds 5] [--peer infinity]

Starts `sightline serve` as users do, on a free port, with models of random weights (benchmarks/models.py).
Each scenario ends in one JSON line, also appended to .cache/bench/serving.jsonl; a picture lies beside it.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from benchmarks import infinity, memory, picture
from benchmarks.load.plan import ROOT, LoadError, Plan, drive
from benchmarks.load.summary import Summary
from benchmarks.models import build_models
from benchmarks.payloads import build_photos
from benchmarks.report import Roof, Row, append, stage_table, table
from benchmarks.scenarios import NAMES, takes_peer
from benchmarks.servers import CACHE, PHOTOS, Target, arguments, fill_collection, sightline
from configs.settings import Precision, Settings

OVERLOAD: Final = "image-raw"
MIXED: Final = "mixed"
OVERLOAD_FACTOR: Final = 2.0  # of the closed loop's peak
STEADY_SHARE: Final = 0.7  # likewise


def main() -> None:
    options = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop what was started, as on Ctrl-C
    build_photos(PHOTOS)
    settings = Settings.from_args(arguments(options.set, *build_models(CACHE)))
    roof = measure_roof(options.roof_seconds, settings) if options.roof else None
    bench = Bench(roof, options.seconds, options.seed)
    with sightline(options.set) as target:
        fill_collection(target.url)
        bench.closed(target, options.scenarios, options.clients)
        if options.open:
            bench.open(target, MIXED, STEADY_SHARE, max(options.clients), options.seconds)
            # Longer, for the queues to fill.
            bench.open(target, OVERLOAD, OVERLOAD_FACTOR, max(options.clients), options.overload_seconds)
        print(memory.report(memory.processes(*target.mark)), flush=True)
    if options.peer:
        with infinity.running(CACHE) as server:
            target = Target("infinity", server.url, ("BENCH_MARK", server.mark))
            bench.closed(target, [name for name in options.scenarios if takes_peer(name)], options.clients)
            print(memory.report(memory.processes(*target.mark)), flush=True)
    print(table(bench.rows, bench.roof), stage_table(bench.rows), sep="\n\n")
    path = CACHE / "bench" / "serving.png"
    picture.draw(bench.rows, bench.roof, path)
    print(f"picture: {path.relative_to(ROOT)}")


class Bench:
    """Drives loads one after the other and keeps their rows."""

    def __init__(self, roof: Roof | None, seconds: float, seed: int) -> None:
        self.roof = roof
        self.rows: list[Row] = []
        self._seconds = seconds
        self._seed = seed

    def closed(self, target: Target, scenarios: Sequence[str], clients: Sequence[int]) -> None:
        """Every scenario at every number of clients, each waiting for its answers."""
        for scenario in scenarios:
            for count in clients:
                plan = Plan(target.url, scenario, str(PHOTOS), self._seconds, count, seed=self._next_seed())
                self._drive(target, plan, f"{count} clients" if count > 1 else "1 client")

    def open(self, target: Target, scenario: str, factor: float, clients: int, seconds: float) -> None:
        """Poisson arrivals at `factor` times what the closed loop of `clients` reached."""
        if not self._peaks(scenario):
            self.closed(target, [scenario], [clients])
        rate = factor * max(self._peaks(scenario))
        plan = Plan(target.url, scenario, str(PHOTOS), seconds, rate=rate, seed=self._next_seed())
        self._drive(target, plan, f"{factor:g} x peak")

    def _peaks(self, scenario: str) -> list[float]:
        rows = (row for row in self.rows if row.scenario == scenario and row.offered_per_s is None)
        return [row.measured.answers_per_s for row in rows]

    def _next_seed(self) -> int:
        """Another for every run, so that no request is sent twice."""
        self._seed += 2  # each run probes with the one between
        return self._seed

    def _drive(self, target: Target, plan: Plan, load: str) -> None:
        print(f"{target.name}: {plan.scenario}, {load} …", file=sys.stderr, flush=True)
        summary: Summary | None = None
        try:
            summary = drive(plan)
        except LoadError as error:
            if target.name == "sightline":
                raise
            print(f"{target.name} cannot do it: {error}", file=sys.stderr)  # a finding about the peer
        self.rows.append(Row(target.name, plan.scenario, load, plan.rate, summary, time.time()))
        print(append(CACHE / "bench" / "serving.jsonl", self.rows[-1], self.roof), flush=True)


def measure_roof(seconds: float, settings: Settings) -> Roof:
    """The bare engine at the precision that each model is served at, in this sitting."""
    precisions = {"clip": settings.clip.precision, "news": settings.classifiers["news"].precision}
    measured = {precision: best_of_engine(seconds, precision) for precision in set(precisions.values())}
    return {model: measured[precision] for model, precision in precisions.items()}


def best_of_engine(seconds: float, precision: Precision) -> dict[str, Any]:
    """By kind of work, the best layout and batch size at this precision; measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.roof", "--precisions", precision, "--seconds", str(seconds)]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(output, flush=True)
    (best,) = json.loads(output.splitlines()[-1])["best"].values()
    result: dict[str, Any] = best
    return result


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scenarios", type=_names, default=list(NAMES))
    parser.add_argument("--clients", type=lambda value: [int(n) for n in value.split(",")], default=[1, 32])
    parser.add_argument("--seconds", type=float, default=5, help="of load for each scenario, after a warm-up")
    parser.add_argument("--overload-seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of ours")
    parser.add_argument("--peer", choices=["infinity"])
    parser.add_argument("--roof", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--roof-seconds", type=float, default=1, help="for each of the roof's measurements")
    parser.add_argument("--open", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(argv)


def _names(value: str) -> list[str]:
    names = [name for name in value.split(",") if name]
    if unknown := set(names) - set(NAMES):
        raise argparse.ArgumentTypeError(
            f"no such scenario: {', '.join(unknown)}; there are {', '.join(NAMES)}"
        )
    return names


if __name__ == "__main__":
    main()
