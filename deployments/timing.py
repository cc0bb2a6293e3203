"""Where one request's time went: the one struct behind Server-Timing and the stage metrics."""

from dataclasses import dataclass, replace
from operator import add


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds a request spent in each stage."""

    queue: float = 0.0
    preprocess: float = 0.0
    model: float = 0.0
    index: float = 0.0

    def alongside(self, other: "StageTimes") -> "StageTimes":
        """Both ran at once: the longer of each stage."""
        return StageTimes(*map(max, vars(self).values(), vars(other).values()))

    def after_waiting(self, waited_ms: float) -> "StageTimes":
        """With what was waited before, which was in a queue as well."""
        return replace(self, queue=self.queue + waited_ms)

    def then(self, other: "StageTimes") -> "StageTimes":
        """One ran after the other: the sum of each stage."""
        return StageTimes(*map(add, vars(self).values(), vars(other).values()))
