"""The warm-up: every bucket where the engine has some, and numbers that are finite."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.settings import BatchSettings
from deployments.engines.buckets import bucket_shapes
from deployments.models.towers import ImageTower


class Recorded:
    """An engine that keeps the shapes it was called with."""

    name, precision, concurrency = "recorded", "fp16", 2

    def __init__(self, buckets: bool, answer: float = 1.0) -> None:
        self.buckets = buckets
        self.answer = answer
        self.called: list[Any] = []
        self.ready = False

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        assert not self.ready
        self.called.append(bucket_shapes(inputs, None))
        return np.full((len(inputs[0]), 1), self.answer, np.float32)

    def warmed_up(self) -> None:
        self.ready = True


@pytest.mark.parametrize("most", [1, 5, 32])
def test_each_bucket_runs_on_each_lane_and_no_batch_is_larger_than_allowed(most: int) -> None:
    engine = Recorded(buckets=True)
    tower = ImageTower(engine, 8)
    tower.warm_up(BatchSettings(max_items=most))
    assert engine.ready
    possible = {bucket_shapes([np.zeros((n, 8, 8, 3), np.uint8)], None) for n in range(1, most + 1)}
    assert Counter(engine.called) == dict.fromkeys(possible, engine.concurrency)


def test_without_buckets_a_few_usual_shapes_run() -> None:
    engine = Recorded(buckets=False)
    ImageTower(engine, 8).warm_up(BatchSettings())
    assert 2 <= len(set(engine.called)) < 10


@pytest.mark.parametrize("answer", [float("nan"), float("inf")])
def test_a_model_that_overflows_is_refused_with_what_to_do(answer: float) -> None:
    with pytest.raises(ValueError, match="fp16: choose precision fp32"):
        ImageTower(Recorded(buckets=False, answer=answer), 8).warm_up(BatchSettings())
