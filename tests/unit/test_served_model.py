"""A model behind its queue runs as many batches at once as it says are worth it."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.settings import BatchSettings
from deployments.models.base import Model
from deployments.served_model import ServedModel
from tests.waiting import PATIENCE_S


class Meeting(Model[int, int, int]):
    """Doubles numbers, once `concurrency` forwards are under way; counts the most there ever were."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._all_here = threading.Barrier(concurrency, timeout=PATIENCE_S)
        self._lock = threading.Lock()
        self._running = self.most = 0

    @property
    def concurrency(self) -> int:
        return self._concurrency

    def pre(self, item: int) -> int:
        return item

    def forward(self, batch: Sequence[int]) -> NDArray[Any]:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
        self._all_here.wait()
        with self._lock:
            self._running -= 1
        return 2 * np.array(batch)

    def post(self, rows: NDArray[Any]) -> list[int]:
        return list(rows)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_as_many_batches_run_at_once_as_the_model_is_worth(concurrency: int) -> None:
    async def main() -> None:
        model = Meeting(concurrency)
        served = await ServedModel("doubling", model, BatchSettings(max_items=1))(range(6))
        assert served.outputs == [0, 2, 4, 6, 8, 10]
        assert model.most == concurrency

    asyncio.run(main())
