"""The batch queue: what waits becomes one forward each time a worker is free, with no timer.

An idle queue starts at once and a busy one gathers while the model runs, so batches grow with load by
themselves. A timer cannot do that: shorter than a forward it cuts small batches while the model is busy,
longer it makes an idle caller wait.

Nor is there a loop task that could die unseen: `_turn`, a callback after each submit and each forward,
forms the batches. Should it raise all the same (a bug here, an executor shut down by someone else), every
waiter is told at once, later submits fail fast and `check` raises.
"""

import asyncio
import itertools
import logging
import math
import operator
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from configs.settings import BatchSettings
from deployments.errors import ModelFailed, ModelLost, NotReady, Overloaded, SightlineError

Item = TypeVar("Item")
Output = TypeVar("Output")

logger = logging.getLogger("ray.serve")

# Tokens of padding that a batch may always hold, because a forward of its own costs more: as much as some 16
# tokens on a CPU (DistilBERT takes 3.0 ms for one row of 16, and 1.5 ms a row in a batch of 32), as hundreds
# on a GPU, where a small forward waits for kernel launches.
FREE_PADDING = 64
MAX_CAUSE_CHARS = 500  # of a failure's text sent to callers: it can hold a whole graph; the log has it all


@dataclass(frozen=True)
class Batched(Generic[Output]):
    """Outputs in the order of the items, and the longest any of them waited and ran."""

    outputs: list[Output]
    queue_ms: float
    run_ms: float


@dataclass(frozen=True)
class BatchReport:
    """One finished batch, for metrics."""

    items: int
    run_ms: float
    waiting: int  # items left in the queue


@dataclass(eq=False, slots=True)
class _Request(Generic[Item, Output]):
    """One submit. Its error is kept here and not in the future: asyncio logs one that nobody retrieves."""

    done: asyncio.Future[None]
    submitted: float
    rows: "list[_Row[Item, Output]]" = field(default_factory=list)
    outputs: dict[int, Output] = field(default_factory=dict)  # by place in `rows`
    queue_s: float = 0.0
    run_s: float = 0.0
    error: Exception | None = None
    error_place: int | None = None

    def finish(self, error: Exception | None = None, place: int | None = None) -> None:
        if not self.done.done():
            self.error, self.error_place = error, place
            self.done.set_result(None)


@dataclass(eq=False, slots=True)
class _Row(Generic[Item, Output]):
    ticket: int  # counts up: the smallest is the oldest
    place: int
    item: Item
    length: int
    request: _Request[Item, Output]


@dataclass(eq=False)
class _Batch(Generic[Item, Output]):
    rows: list[_Row[Item, Output]]
    handed_over: float
    started: float = 0.0
    finished: float = 0.0
    outputs: Sequence[Output | Exception] = ()  # one per row
    all_failed: bool = False  # by one error, which no single row is to blame for


class _Waiting(Generic[Item, Output]):
    """The rows not yet in a batch, and the choice of those that go next."""

    def __init__(self) -> None:
        # By length, then by ticket: the oldest row of a length is its first, and any row leaves in O(1).
        # OrderedDict, because a dict emptied from its front walks over the holes every time.
        self._rows: dict[int, OrderedDict[int, _Row[Item, Output]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def add(self, row: _Row[Item, Output]) -> None:
        self._rows.setdefault(row.length, OrderedDict())[row.ticket] = row

    def discard(self, rows: Sequence[_Row[Item, Output]]) -> None:
        for row in rows:
            same = self._rows.get(row.length)
            if same and same.pop(row.ticket, None) and not same:
                del self._rows[row.length]

    def oldest(self, length: int) -> _Row[Item, Output] | None:
        """The oldest row of a length. Rows whose caller went this very tick leave here."""
        while same := self._rows.get(length):
            row = next(iter(same.values()))
            if not row.request.done.done():
                return row
            self.discard(row.request.rows)
        return None

    def take(self, settings: BatchSettings) -> list[_Row[Item, Output]]:
        """The next batch: the oldest row, then rows by how near their length is, the oldest first.

        A row waits for a later batch if it would pass `max_cost`, or if the padding it causes (its own, where
        it is shorter than the longest row; everyone else's, where it is longer) exceeds its length and
        the batch's exceeds FREE_PADDING. So beyond that at least half of what a batch costs is real tokens, a
        row above `max_cost` goes alone, and none starves, as the oldest always goes. Time: O(d log d + rows)
        for d distinct lengths.
        """
        batch: list[_Row[Item, Output]] = []
        first = min(
            filter(None, map(self.oldest, list(self._rows))), key=lambda row: row.ticket, default=None
        )
        if first is None:
            return batch
        longest = total = padding = 0
        for length in sorted(self._rows, key=lambda length: (abs(length - first.length), length)):
            while len(batch) < settings.max_items and (row := self.oldest(length)):
                cost = (len(batch) + 1) * max(longest, length)
                padded = cost - total - length
                wasteful = padded - padding > length and padded > FREE_PADDING
                if batch and (wasteful or cost > settings.max_cost):
                    break
                self.discard([row])
                batch.append(row)
                longest, total, padding = max(longest, length), total + length, padded
        return batch


def _one(item: object) -> int:
    return 1


class BatchQueue(Generic[Item, Output]):
    """Turns concurrent submits into batches for `run`, a blocking function called in `executor`.

    `run` takes a list of items and returns for each an output, or an Exception, which reaches only
    that item's caller. `workers` forwards run at a time; the executor needs as many threads (None is
    the event loop's default one). The queue belongs to the event loop of its first submit.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Output | Exception]],
        settings: BatchSettings,
        *,
        name: str,
        length: Callable[[Item], int] = _one,
        executor: Executor | None = None,
        workers: int = 1,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self._run = run
        self._settings = settings
        self._name = name
        self._length = length
        self._executor = executor
        self._workers = workers
        self._on_batch = on_batch
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tickets = itertools.count()
        self._requests: set[_Request[Item, Output]] = set()
        self._waiting = _Waiting[Item, Output]()
        self._running: dict[_Batch[Item, Output], asyncio.Future[None]] = {}
        self._ended: SightlineError | None = None

    @property
    def waiting(self) -> int:
        """Items queued and in no batch yet."""
        return len(self._waiting)

    async def submit(self, items: Sequence[Item]) -> Batched[Output]:
        """Run the items in as few batches as they fit; a cancelled submit takes out those still queued.

        Raises:
            Overloaded: they would pass `settings.max_queued_items`; none was queued.
            ModelFailed: `run` raised on a batch with one of them, or returned the wrong number of outputs.
            Exception: what `run` returned for one of them; a SightlineError carries its place in `items`.
        """
        if self._ended:
            raise _fresh(self._ended)
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise RuntimeError(f"batch queue {self._name} belongs to another event loop")
        lengths = [max(1, operator.index(self._length(item))) for item in items]
        if not lengths:
            return Batched([], 0.0, 0.0)
        most = self._settings.max_queued_items
        if self.waiting + len(lengths) > most:
            raise Overloaded(
                f"{self._name}: {self.waiting} items wait, the limit is {most}, "
                f"so {len(lengths)} more cannot be queued"
            )
        request = _Request[Item, Output](loop.create_future(), time.perf_counter())
        self._requests.add(request)
        for place, (item, length) in enumerate(zip(items, lengths, strict=True)):
            request.rows.append(_Row(next(self._tickets), place, item, length, request))
            self._waiting.add(request.rows[-1])
        loop.call_soon(self._turn)  # not at once: submits of the same tick join the batch
        try:
            await request.done
        finally:
            self._requests.discard(request)
            self._waiting.discard(request.rows)
            request.rows.clear()  # rows point back, and the cycle would keep the items until a collection
        if request.error:
            raise _fresh(request.error, request.error_place)
        outputs = [request.outputs[place] for place in range(len(lengths))]
        return Batched(outputs, request.queue_s * 1e3, request.run_s * 1e3)

    def check(self) -> None:
        """Raise if the queue broke, or a forward has run longer than `stall_timeout_s`."""
        if self._ended:
            raise _fresh(self._ended)
        running = list(self._running)  # in one step, as a health check may come from another thread
        age_s = time.perf_counter() - min((batch.handed_over for batch in running), default=math.inf)
        if age_s > self._settings.stall_timeout_s:
            limit_s = self._settings.stall_timeout_s
            raise NotReady(f"{self._name}: a forward has run for {age_s:.1f} s, longer than {limit_s:g} s")

    def _turn(
        self, ran: _Batch[Item, Output] | None = None, forward: asyncio.Future[None] | None = None
    ) -> None:
        """Deliver a batch that ran, then give every free worker the next one."""
        try:
            if ran and forward:
                del self._running[ran]
                forward.result()  # raises if the executor, not the model, failed
                self._deliver(ran)
                if isinstance(ran.outputs[0], ModelLost):
                    self._end(ran.outputs[0])  # so that `check` says so, and Serve replaces the replica
            while len(self._running) < self._workers and (rows := self._waiting.take(self._settings)):
                batch = _Batch(rows, time.perf_counter())
                future = asyncio.get_running_loop().run_in_executor(self._executor, self._forward, batch)
                self._running[batch] = future
                future.add_done_callback(partial(self._turn, batch))
            if ran:
                self._report(ran)
        except BaseException as error:
            self._end(_model_failed(f"{self._name}: the batch queue broke", error))
            raise  # the event loop logs it

    def _forward(self, batch: _Batch[Item, Output]) -> None:
        """In the executor: call `run`, making a failure of any kind the error of every row."""
        batch.started = time.perf_counter()
        n = len(batch.rows)
        try:
            batch.outputs = list(self._run([row.item for row in batch.rows]))
            if len(batch.outputs) != n:
                raise ModelFailed(f"{self._name}: {n} items went in, {len(batch.outputs)} outputs came out")
        except BaseException as error:
            logger.exception("%s: a batch of %d items failed", self._name, n)
            batch.outputs = [_model_failed(f"{self._name}: the model failed", error)] * n
            batch.all_failed = True
        batch.finished = time.perf_counter()

    def _deliver(self, batch: _Batch[Item, Output]) -> None:
        for row, output in zip(batch.rows, batch.outputs, strict=True):
            request = row.request
            if isinstance(output, Exception):
                request.finish(output, None if batch.all_failed else row.place)
                continue
            request.outputs[row.place] = output
            request.queue_s = max(request.queue_s, batch.started - request.submitted)
            request.run_s = max(request.run_s, batch.finished - batch.started)
            if len(request.outputs) == len(request.rows):
                request.finish()

    def _report(self, batch: _Batch[Item, Output]) -> None:
        if self._on_batch:
            run_ms = (batch.finished - batch.started) * 1e3
            try:
                self._on_batch(BatchReport(len(batch.rows), run_ms, self.waiting))
            except Exception:
                logger.exception("%s: on_batch failed", self._name)

    def _end(self, error: SightlineError) -> None:
        self._ended = self._ended or error
        for request in self._requests:
            request.finish(error)


def _model_failed(what: str, error: BaseException) -> SightlineError:
    """The error for callers: without frames, which would keep the batch's arrays alive; the log has them."""
    error.with_traceback(None)
    if isinstance(error, SightlineError):
        return error
    reason = "".join(traceback.format_exception_only(error)).strip()  # also of an error whose str() raises
    failed = ModelFailed(f"{what}: {reason[:MAX_CAUSE_CHARS]}")
    error.__cause__ = error.__context__ = None
    failed.__cause__ = error
    return failed


def _fresh(error: Exception, place: int | None = None) -> Exception:
    """A copy for one waiter: one instance raised in many tasks would gather all their tracebacks."""
    if not isinstance(error, SightlineError):
        return error
    fresh = type(error)(error.message) if place is None else error.at(place)
    fresh.__cause__ = error.__cause__
    return fresh
