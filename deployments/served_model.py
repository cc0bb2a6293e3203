"""One model behind its batch queue: what every model deployment is made of."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from configs.settings import BatchSettings
from deployments.batching import BatchQueue
from deployments.errors import SightlineError
from deployments.metrics import BatchMetrics
from deployments.models.base import Model
from deployments.timing import StageTimes

Item = TypeVar("Item")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Served(Generic[Output]):
    """Outputs in the order of the items, the items' lengths (tokens, or images) and where time went."""

    outputs: list[Output]
    lengths: list[int]
    times: StageTimes


class ServedModel(Generic[Item, Output]):
    """Prepares items off the event loop, then runs them in whatever batches form."""

    def __init__(self, name: str, model: Model[Item, Any, Output], batch: BatchSettings) -> None:
        self._model = model
        self._queue: BatchQueue[Any, Output] = BatchQueue(
            model.run,
            batch,
            name=name,
            length=model.length,
            executor=ThreadPoolExecutor(model.concurrency, f"{name}-forward"),
            workers=model.concurrency,
            on_batch=BatchMetrics(name).record,
        )

    async def __call__(self, items: Sequence[Item]) -> Served[Output]:
        """Raises BadInput pointing at the first item the model cannot use, before any is queued."""
        start = time.perf_counter()
        prepared = await asyncio.to_thread(self._prepare, items)
        preparing_ms = (time.perf_counter() - start) * 1e3
        batched = await self._queue.submit(prepared)
        return Served(
            outputs=batched.outputs,
            lengths=list(map(self._model.length, prepared)),
            times=StageTimes(preprocess=preparing_ms, queue=batched.queue_ms, model=batched.run_ms),
        )

    def check(self) -> None:
        """Raises when batches no longer complete."""
        self._queue.check()

    def _prepare(self, items: Sequence[Item]) -> list[Any]:
        prepared = []
        for index, item in enumerate(items):
            try:
                prepared.append(self._model.pre(item))
            except SightlineError as error:
                raise error.at(index) from None
        return prepared
