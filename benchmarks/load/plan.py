"""One run of load: planned in one process, driven in another, so that neither slows the other."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from benchmarks.load.summary import Latency, Summary

ROOT = Path(__file__).parent.parent.parent


class LoadError(RuntimeError):
    """The server could not be measured: its answer to a probe was wrong, or the generator broke."""


@dataclass(frozen=True)
class Plan:
    """A closed loop of `clients`, or with `rate` an open one of so many requests a second."""

    url: str
    scenario: str
    photos: str  # directory made by `build_photos`
    seconds: float
    clients: int = 1
    rate: float | None = None
    arrivals: Literal["poisson", "fixed"] = "poisson"
    warm_up_s: float = 1.0
    deadline_s: float = 60.0
    good_ms: float = 1000.0  # an answer later than this helps nobody who waits for it
    seed: int = 0


def drive(plan: Plan, meanwhile: Callable[[], None] | None = None) -> Summary:
    """Run the plan in a process of its own, calling `meanwhile` again and again. Raises LoadError."""
    command = [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(plan))]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while meanwhile is not None and process.poll() is None:
                meanwhile()
            output, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise LoadError(f"{plan.scenario}: {errors.strip()[-2000:]}")
    return as_summary(json.loads(output))


def as_summary(values: dict[str, Any]) -> Summary:
    """A Summary from its JSON."""
    values = values | {name: Latency(**values[name]) for name in ("latency", "refused")}
    values["kinds"] = {kind: Latency(**latency) for kind, latency in values["kinds"].items()}
    return Summary(**{field.name: values[field.name] for field in fields(Summary)})
