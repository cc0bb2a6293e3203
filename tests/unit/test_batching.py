"""The batch queue against a model that names its inputs, with real threads and no timed sleeps."""

import asyncio
import logging
import pickle
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from configs.settings import BatchSettings
from deployments import batching
from deployments.batching import FREE_PADDING, Batched, BatchQueue, BatchReport
from deployments.errors import BadInput, ModelFailed, ModelLost, NotReady, Overloaded
from tests.fake_model import FakeModel
from tests.waiting import PATIENCE_S, until

Queue = BatchQueue[str, str]
Submit = asyncio.Task[Batched[str]]
Run = Callable[[Sequence[str]], Sequence[str | Exception]]


def make_queue(run: Run, *, max_items: int = 32, max_cost: int = 8192, **more: Any) -> Queue:
    more = {"name": "texts", "length": len, "stall_timeout_s": PATIENCE_S, **more}
    of_the_batch = {key: more.pop(key) for key in ("stall_timeout_s", "max_queued_items") if key in more}
    settings = BatchSettings(max_items=max_items, max_cost=max_cost, **of_the_batch)
    return BatchQueue(run, settings, **more)


def one(item: str) -> int:
    return 1


def outputs(*items: str) -> list[str]:
    return [FakeModel.output(item) for item in items]


def row(length: int, mark: str = "x") -> str:
    return mark * length


async def behind_a_forward(model: FakeModel, queue: Queue, *submits: Sequence[str]) -> list[Submit]:
    """With the model held in the forward of "first", queue each of these, in order."""
    tasks = [asyncio.create_task(queue.submit(["first"]))]
    await model.entered(1)
    queued = 0
    for items in submits:
        tasks.append(asyncio.create_task(queue.submit(items)))
        queued += len(items)
        await until(lambda: queue.waiting == queued)  # noqa: B023 — awaited before it changes
    return tasks


def batches_of(*submits: Sequence[str], **how: Any) -> list[list[str]]:
    """The batches that work queued behind a busy model is run in."""

    async def main() -> list[list[str]]:
        model = FakeModel(held=True)
        tasks = await behind_a_forward(model, make_queue(model, **how), *submits)
        model.release()
        results = await asyncio.gather(*tasks)
        assert [result.outputs for result in results[1:]] == [outputs(*items) for items in submits]
        return model.batches[1:]

    return asyncio.run(main())


# --- when a batch is formed


def test_an_idle_queue_starts_without_any_timer() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "call_later", None)  # a call would raise TypeError
            patch.setattr(loop, "call_at", None)
            result = await make_queue(FakeModel()).submit(["a"])
        assert result.outputs == outputs("a")

    asyncio.run(main())


def test_a_submit_to_an_idle_queue_is_one_batch() -> None:
    async def main() -> None:
        model = FakeModel()
        result = await make_queue(model).submit(["a", "b", "c"])
        assert result.outputs == outputs("a", "b", "c")
        assert model.batches == [["a", "b", "c"]]

    asyncio.run(main())


def test_submits_of_one_tick_share_a_batch() -> None:
    async def main() -> None:
        model = FakeModel()
        queue = make_queue(model)
        results = await asyncio.gather(*(queue.submit([item]) for item in "abc"))
        assert [result.outputs for result in results] == [outputs(item) for item in "abc"]
        assert model.batches == [["a", "b", "c"]]

    asyncio.run(main())


def test_a_busy_queue_gathers_all_that_waits_into_the_next_batch() -> None:
    assert batches_of(*("abcdefghij")) == [list("abcdefghij")]


def test_workers_run_as_many_batches_at_a_time_and_no_more() -> None:
    async def main(workers: int) -> None:
        together = threading.Barrier(workers, timeout=PATIENCE_S)
        running: list[str] = []
        most = 0

        def run(batch: Sequence[str]) -> list[str | Exception]:
            nonlocal most
            running.append(batch[0])
            most = max(most, len(running))
            together.wait()  # passes only once `workers` forwards are in here
            running.remove(batch[0])
            together.wait()
            return [FakeModel.output(item) for item in batch]

        with ThreadPoolExecutor(workers + 2) as threads:  # more threads than the queue may use
            queue = make_queue(run, max_items=1, executor=threads, workers=workers)
            items = [f"item {i}" for i in range(2 * workers)]
            results = await asyncio.gather(*(queue.submit([item]) for item in items))
        assert [result.outputs for result in results] == [outputs(item) for item in items]
        assert most == workers

    asyncio.run(main(workers=1))
    asyncio.run(main(workers=3))


def test_times_are_the_longest_over_the_items_of_a_submit() -> None:
    async def main() -> None:
        model = FakeModel(held=True)
        queue = make_queue(model, max_items=1)
        waiter = asyncio.create_task(queue.submit(["a", "b"]))
        await model.entered(1)
        entered = time.perf_counter()
        await until(lambda: time.perf_counter() - entered > 0.05)  # the time that has to show
        model.release()
        result = await waiter
        assert result.run_ms >= 50  # of "a"; "b" takes none
        assert result.queue_ms >= 50  # of "b"; "a" starts at once

    asyncio.run(main())


def test_an_empty_submit_returns_at_once() -> None:
    async def main() -> None:
        model = FakeModel()
        assert await make_queue(model).submit([]) == Batched([], 0.0, 0.0)
        assert model.batches == []

    asyncio.run(main())


# --- what goes into a batch


def test_max_items_bounds_a_batch() -> None:
    assert batches_of("abc", "de", max_items=2) == [["a", "b"], ["c", "d"], ["e"]]


def test_max_cost_bounds_rows_times_the_longest_row() -> None:
    rows = [row(10, mark) for mark in "abcde"]
    assert batches_of(rows, max_cost=29) == [rows[:2], rows[2:4], rows[4:]]
    assert batches_of(rows, max_cost=30) == [rows[:3], rows[3:]]
    # Two rows of 10 and one of 11 would cost 33.
    assert batches_of([row(10, "a"), row(10, "b"), row(11)], max_cost=32) == [
        [row(10, "a"), row(10, "b")],
        [row(11)],
    ]


def test_an_item_above_max_cost_runs_alone() -> None:
    assert batches_of([row(50), "ab", "cd"], max_cost=10) == [[row(50)], ["ab", "cd"]]


def test_rows_of_similar_length_go_together_oldest_first() -> None:
    rows = [row(9), row(300, "a"), row(8), row(310, "b"), row(10), row(305, "c")]
    assert batches_of(rows) == [
        [row(9), row(8), row(10)],
        [row(300, "a"), row(305, "c"), row(310, "b")],
    ]
    assert batches_of([row(20, "a"), row(20, "b"), row(21, "c"), row(20, "d")], max_items=3) == [
        [row(20, "a"), row(20, "b"), row(20, "d")],
        [row(21, "c")],
    ]


def test_a_short_row_is_left_for_later_once_its_padding_exceeds_its_length() -> None:
    assert batches_of([row(200), row(100)]) == [[row(200), row(100)]]
    assert batches_of([row(200), row(99)]) == [[row(200)], [row(99)]]


def test_a_long_row_is_left_for_later_once_it_pads_the_others_by_more_than_its_length() -> None:
    three = [row(100, mark) for mark in "abc"]
    assert batches_of([*three, row(150)]) == [[*three, row(150)]]  # pads three rows by 50
    assert batches_of([*three, row(151)]) == [three, [row(151)]]  # by 51
    assert batches_of(["abc", row(500)]) == [["abc", row(500)]]  # one tiny row costs less than a forward


def test_a_little_padding_is_always_cheaper_than_another_forward() -> None:
    free = row(1 + FREE_PADDING // 2)  # pads "a" and "b" by FREE_PADDING together, more than its length
    assert batches_of(["a", "b", free]) == [["a", "b", free]]
    assert batches_of(["a", "b", free + "x"]) == [["a", "b"], [free + "x"]]


@hypothesis_settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 600), max_size=8), max_size=12),
    st.integers(1, 8),
    st.integers(1, 2000),
)
def test_any_work_is_answered_in_order_within_bounds_and_oldest_first(
    submits: list[list[int]], max_items: int, max_cost: int
) -> None:
    marks = map(chr, range(0x4E00, 0x9FFF))  # a letter of its own for each row
    named = [[row(length, next(marks)) for length in lengths] for lengths in submits]
    oldest_first = [item for items in named for item in items]
    batches = batches_of(*named, max_items=max_items, max_cost=max_cost)  # checks the outputs
    assert sorted(item for batch in batches for item in batch) == sorted(oldest_first)
    for batch in batches:
        cost, tokens = len(batch) * max(map(len, batch)), sum(map(len, batch))
        assert len(batch) <= max_items
        assert cost <= max_cost or len(batch) == 1
        assert cost - tokens <= tokens + FREE_PADDING
        assert oldest_first[0] in batch
        oldest_first = [item for item in oldest_first if item not in batch]


def test_an_odd_row_does_not_starve_under_a_stream_of_others() -> None:
    async def main() -> None:
        model = FakeModel(held=True)
        queue = make_queue(model, max_items=2)
        first, odd = await behind_a_forward(model, queue, [row(500)])
        others: list[Submit] = []
        batches_when_odd_was_done: list[int] = []

        def keep_two_waiting(report: BatchReport) -> None:
            if len(model.batches) < 20:
                others.extend(asyncio.create_task(queue.submit([row(5)])) for _ in range(2))

        queue._on_batch = keep_two_waiting
        odd.add_done_callback(lambda _: batches_when_odd_was_done.append(len(model.batches)))
        model.release()
        await asyncio.gather(first, odd)
        await until(lambda: len(model.batches) >= 20 and queue.waiting == 0)
        await asyncio.gather(*others)
        assert model.batches[1][0] == row(500)
        assert batches_when_odd_was_done[0] <= 3

    asyncio.run(main())


def bytecodes_for(submits: int, lengths: int) -> int:
    """The queue's own work, in executed bytecodes, for so many submits of 128 rows of so many lengths."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != batching.__file__:
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    async def main() -> None:
        texts = [[row(1 + (7 * i + j) % lengths) for j in range(128)] for i in range(submits)]
        queue = make_queue(lambda batch: list(batch), length=len)
        outer = sys.gettrace()
        sys.settrace(trace)
        try:
            results = await asyncio.gather(*map(queue.submit, texts))
        finally:
            sys.settrace(outer)
        assert [result.outputs for result in results] == texts

    asyncio.run(main())
    return count


@pytest.mark.parametrize("lengths", [1, 64])
def test_work_grows_with_the_rows_queued_not_with_their_square(lengths: int) -> None:
    assert bytecodes_for(32, lengths) < 5 * bytecodes_for(8, lengths)


# --- cancellation


def test_a_cancelled_submit_leaves_the_queue_and_takes_no_room() -> None:
    async def main() -> None:
        model = FakeModel(held=True)
        queue = make_queue(model, max_items=2)
        tasks = await behind_a_forward(model, queue, ["a"], ["gone 1", "gone 2"], ["b"])
        tasks[2].cancel()
        await until(tasks[2].done)
        assert queue.waiting == 2
        model.release()
        assert (await tasks[1]).outputs == outputs("a")
        assert (await tasks[3]).outputs == outputs("b")
        assert model.batches == [["first"], ["a", "b"]]

    asyncio.run(main())


def test_a_submit_cancelled_in_the_tick_its_batch_is_formed_is_left_out() -> None:
    async def main() -> None:
        model = FakeModel()
        queue = make_queue(model, max_items=2)
        tasks = [asyncio.create_task(queue.submit([item])) for item in ("a", "gone", "b")]

        async def cancel() -> None:
            tasks[1].cancel()

        await asyncio.gather(*tasks, cancel(), return_exceptions=True)  # runs before the queue's callback
        assert model.batches == [["a", "b"]]
        assert tasks[1].cancelled()

    asyncio.run(main())


def test_a_waiter_cancelled_during_its_forward_does_not_disturb_the_others() -> None:
    async def main() -> None:
        model = FakeModel(held=True)
        queue = make_queue(model, length=one)
        tasks = [asyncio.create_task(queue.submit([item])) for item in ("a", "gone", "b")]
        await model.entered(1)
        tasks[1].cancel()
        await until(tasks[1].done)
        later = asyncio.create_task(queue.submit(["later"]))
        model.release()
        assert (await tasks[0]).outputs == outputs("a")
        assert (await tasks[2]).outputs == outputs("b")
        assert (await later).outputs == outputs("later")
        assert model.batches == [["a", "gone", "b"], ["later"]]
        queue.check()

    asyncio.run(main())


def test_cancelling_a_submit_half_way_drops_what_has_not_run() -> None:
    async def main() -> None:
        model = FakeModel(held=True)
        queue = make_queue(model, max_items=1)
        gone = asyncio.create_task(queue.submit(["a", "never", "never"]))
        await model.entered(1)
        gone.cancel()
        await until(gone.done)
        model.release()
        assert (await queue.submit(["b"])).outputs == outputs("b")
        assert model.batches == [["a"], ["b"]]

    asyncio.run(main())


# --- failures


async def failure_of(waiter: Coroutine[Any, Any, Any] | Submit) -> Exception:
    try:
        result = await waiter
    except Exception as error:
        return error
    raise AssertionError(f"no failure but {result}")


def test_an_item_error_reaches_only_its_waiter_and_points_at_its_place() -> None:
    async def main() -> None:
        bad = BadInput("cannot be read")
        queue = make_queue(FakeModel(answers={"bad": bad}))
        good, failing = queue.submit(["a", "b"]), queue.submit(["c", "d", "bad"])
        result, error = await asyncio.gather(good, failure_of(failing))
        assert result.outputs == outputs("a", "b")
        assert isinstance(error, BadInput)
        assert (error.message, error.index) == ("cannot be read", 2)
        assert bad.index is None  # the model's own instance is left as it was

    asyncio.run(main())


@pytest.mark.parametrize("error", [ValueError("odd"), StopIteration("odd")])
def test_an_item_error_of_another_type_reaches_only_its_waiter(error: Exception) -> None:
    async def main() -> None:
        queue = make_queue(FakeModel(answers={"bad": error}))
        good, raised = await asyncio.gather(queue.submit(["a"]), failure_of(queue.submit(["bad"])))
        assert good.outputs == outputs("a")
        assert error in (raised, raised.__cause__)  # a coroutine cannot raise StopIteration itself

    asyncio.run(main())


def test_a_failed_item_drops_the_rest_of_its_submit_that_has_not_run() -> None:
    async def main() -> None:
        model = FakeModel(answers={"bad": BadInput("bad")}, held=True)
        queue = make_queue(model, length=one, max_items=2)
        _, failing, good = await behind_a_forward(model, queue, ["a", "bad", "never", "never"], ["b"])
        model.release()
        error = await failure_of(failing)
        assert isinstance(error, BadInput)
        assert error.index == 1
        assert (await good).outputs == outputs("b")
        assert model.batches == [["first"], ["a", "bad"], ["b"]]

    asyncio.run(main())


def test_a_raising_model_fails_every_waiter_of_that_batch_and_no_other() -> None:
    async def main() -> None:
        model = FakeModel(raises={"bad": RuntimeError("CUDA out of memory")}, held=True)
        queue = make_queue(model, max_items=2)
        first, one, two, after = await behind_a_forward(model, queue, ["bad"], ["a"], ["b"])
        model.release()
        errors = [await failure_of(one), await failure_of(two)]
        assert (await first).outputs == outputs("first")
        assert (await after).outputs == outputs("b")
        for error in errors:
            assert isinstance(error, ModelFailed)
            assert error.message == "texts: the model failed: RuntimeError: CUDA out of memory"
            assert error.index is None  # no item is known to be at fault
            assert isinstance(error.__cause__, RuntimeError)
        assert errors[0] is not errors[1]
        queue.check()

    asyncio.run(main())


def test_a_lost_model_ends_the_queue_and_every_wait() -> None:
    async def main() -> None:
        model = FakeModel(raises={"bad": ModelLost("the GPU is gone")}, held=True)
        queue = make_queue(model, max_items=2)
        first, one, _, after = await behind_a_forward(model, queue, ["bad"], ["a"], ["b"])
        model.release()
        assert (await first).outputs == outputs("first")
        for error in (await failure_of(one), await failure_of(after), await failure_of(queue.submit(["c"]))):
            assert type(error) is ModelLost
        with pytest.raises(ModelLost, match="the GPU is gone"):
            queue.check()

    asyncio.run(main())


class Unprintable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    "raised", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), Unprintable(), MemoryError()]
)
def test_nothing_a_model_raises_ends_the_queue(raised: BaseException) -> None:
    async def main() -> None:
        queue = make_queue(FakeModel(raises={"bad": raised}))
        error = await failure_of(queue.submit(["bad"]))
        assert isinstance(error, ModelFailed)
        assert type(raised).__name__ in error.message
        assert (await queue.submit(["a"])).outputs == outputs("a")
        queue.check()

    asyncio.run(main())


def test_a_typed_error_raised_for_a_whole_batch_keeps_its_type() -> None:
    async def main() -> None:
        queue = make_queue(FakeModel(raises={"bad": NotReady("weights are reloading", 7)}))
        error = await failure_of(queue.submit(["a", "bad"]))
        assert type(error) is NotReady
        assert (error.message, error.index) == ("weights are reloading", None)

    asyncio.run(main())


@pytest.mark.parametrize("wrong", [[], ["one"], ["one", "two", "three"]])
def test_a_wrong_number_of_outputs_fails_the_batch(wrong: list[str]) -> None:
    async def main() -> None:
        right = FakeModel()
        queue = make_queue(lambda batch: wrong if len(batch) == 2 else right(batch))
        one, two = await asyncio.gather(failure_of(queue.submit(["a"])), failure_of(queue.submit(["b"])))
        for error in (one, two):
            assert isinstance(error, ModelFailed)
            assert str(error) == f"texts: 2 items went in, {len(wrong)} outputs came out"
        assert (await queue.submit(["c"])).outputs == outputs("c")

    asyncio.run(main())


def test_no_outputs_at_all_fail_the_batch() -> None:
    async def main() -> None:
        queue = make_queue(lambda batch: None)  # type: ignore[arg-type, return-value]
        assert isinstance(await failure_of(queue.submit(["a"])), ModelFailed)
        queue.check()

    asyncio.run(main())


def test_errors_survive_pickling_and_stay_small() -> None:
    def deep(batch: Sequence[str], level: int = 200) -> list[str | Exception]:
        if level:
            return deep(batch, level - 1)
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("shape " * 10_000) from inner

    async def main() -> None:
        queue = make_queue(deep)
        error = await failure_of(queue.submit(["a"]))
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is ModelFailed
        assert (copy.message, copy.index) == (error.message, None)  # type: ignore[attr-defined]
        assert len(str(error)) < 600
        assert isinstance(error.__cause__, ValueError)
        assert "in deep" not in "".join(traceback.format_exception(error))  # no frames, with a batch in each

    asyncio.run(main())


def test_a_failed_batch_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        queue = make_queue(FakeModel(raises={"bad": RuntimeError("boom")}))
        await failure_of(queue.submit(["bad", "a"]))

    asyncio.run(main())
    (record,) = caplog.records
    assert record.getMessage() == "texts: a batch of 2 items failed"
    assert record.exc_info


def bad_length(item: str) -> Any:
    if item == "raises":
        raise ValueError("no length")
    return 1.5 if item == "a fraction" else len(item)


@pytest.mark.parametrize(("item", "error"), [("raises", ValueError), ("a fraction", TypeError)])
def test_a_bad_length_is_its_callers_own_error(item: str, error: type[Exception]) -> None:
    async def main() -> None:
        model = FakeModel()
        queue = make_queue(model, length=bad_length)
        failed, good = await asyncio.gather(failure_of(queue.submit(["a", item])), queue.submit(["b"]))
        assert isinstance(failed, error)
        assert good.outputs == outputs("b")
        assert model.batches == [["b"]]  # nothing of the bad submit was queued
        queue.check()

    asyncio.run(main())


def test_a_zero_length_item_is_one_row_like_any_other() -> None:
    assert batches_of(["", "a", ""], max_cost=2) == [["", "a"], [""]]


def test_a_raising_on_batch_is_logged_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        def on_batch(report: BatchReport) -> None:
            raise ValueError("metrics are down")

        queue = make_queue(FakeModel(), on_batch=on_batch)
        for item in "ab":
            assert (await queue.submit([item])).outputs == outputs(item)
        queue.check()

    asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == ["texts: on_batch failed"] * 2


def test_on_batch_reports_what_the_batch_was() -> None:
    async def main() -> None:
        reports: list[BatchReport] = []
        model = FakeModel(answers={"bad": BadInput("bad")}, raises={"worse": ValueError()}, held=True)
        queue = make_queue(model, max_items=2, on_batch=reports.append)
        tasks = await behind_a_forward(model, queue, ["bad", "four"], ["worse"])
        model.release()
        await asyncio.gather(*tasks, return_exceptions=True)
        # After the first "worse" is left: the batch between was formed before.
        assert [(report.items, report.waiting) for report in reports] == [(1, 1), (2, 0), (1, 0)]
        assert all(report.run_ms >= 0 for report in reports)

    asyncio.run(main())


# --- bounds on what waits


def test_overload_is_refused_whole_and_queues_nothing() -> None:
    async def main() -> None:
        model = FakeModel(held=True)
        queue = make_queue(model, max_queued_items=3)
        tasks = await behind_a_forward(model, queue, ["a", "b"])  # what runs does not count
        error = await failure_of(queue.submit(["c", "d"]))
        assert isinstance(error, Overloaded)
        assert queue.waiting == 2
        tasks.append(asyncio.create_task(queue.submit(["e"])))
        await until(lambda: queue.waiting == 3)
        assert isinstance(await failure_of(queue.submit(["f"])), Overloaded)
        tasks[1].cancel()  # makes room
        await until(tasks[1].done)
        tasks.append(asyncio.create_task(queue.submit(["g", "h"])))
        await until(lambda: queue.waiting == 3)
        model.release()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert model.batches == [["first"], ["e", "g", "h"]]

    asyncio.run(main())


# --- health


def test_check_raises_while_a_forward_has_stalled() -> None:
    async def main() -> None:
        model = FakeModel(held=True)
        queue = make_queue(model, stall_timeout_s=0.02)
        queue.check()
        waiter = asyncio.create_task(queue.submit(["a"]))
        await model.entered(1)

        def stalled() -> bool:
            try:
                queue.check()
            except NotReady:
                return True
            return False

        await until(stalled)
        with pytest.raises(NotReady, match=r"texts: a forward has run for .* s, longer than 0\.02 s"):
            queue.check()
        model.release()
        assert (await waiter).outputs == outputs("a")
        queue.check()

    asyncio.run(main())


def test_an_idle_queue_never_counts_as_stalled() -> None:
    async def main() -> None:
        queue = make_queue(FakeModel(), stall_timeout_s=1e-9)
        await queue.submit(["a"])
        queue.check()

    asyncio.run(main())


@contextmanager
def expected_crash() -> Iterator[list[BaseException]]:
    """Collects what the event loop would log as an exception in a callback."""
    crashes: list[BaseException] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: crashes.append(context["exception"]))
    yield crashes
    loop.set_exception_handler(None)


def test_a_bug_in_forming_batches_tells_every_waiter_and_the_health_check() -> None:
    async def main() -> None:
        model = FakeModel(held=True)
        queue = make_queue(model)
        tasks = await behind_a_forward(model, queue, ["a"], ["b"])
        bug = RuntimeError("a bug")

        def take(settings: BatchSettings) -> Any:
            raise bug

        queue._waiting.take = take  # type: ignore[method-assign]
        with expected_crash() as crashes:
            model.release()
            assert (await tasks[0]).outputs == outputs("first")  # it had been answered
            for waiter in tasks[1:]:
                error = await failure_of(waiter)
                assert isinstance(error, ModelFailed)
                assert str(error) == "texts: the batch queue broke: RuntimeError: a bug"
        assert crashes == [bug]
        assert isinstance(await failure_of(queue.submit(["c"])), ModelFailed)
        with pytest.raises(ModelFailed, match="a bug"):
            queue.check()

    asyncio.run(main())


def test_an_executor_shut_down_by_someone_else_tells_every_waiter_and_the_health_check() -> None:
    async def main() -> None:
        model = FakeModel(held=True)
        with ThreadPoolExecutor(1) as threads:
            queue = make_queue(model, executor=threads)
            tasks = await behind_a_forward(model, queue, ["a"])
            threads.shutdown(wait=False)
            with expected_crash() as crashes:
                model.release()
                assert (await tasks[0]).outputs == outputs("first")
                assert isinstance(await failure_of(tasks[1]), ModelFailed)
            assert len(crashes) == 1
            with pytest.raises(ModelFailed, match="cannot schedule new futures after shutdown"):
                queue.check()

    asyncio.run(main())


def test_a_forward_its_executor_never_ran_tells_its_waiter() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as threads:
            busy = threading.Event()
            threads.submit(busy.wait, PATIENCE_S)
            queue = make_queue(FakeModel(), executor=threads)
            waiter = asyncio.create_task(queue.submit(["a"]))
            await until(lambda: len(queue._running) == 1)
            with expected_crash() as crashes:
                threads.shutdown(wait=False, cancel_futures=True)
                assert isinstance(await failure_of(waiter), ModelFailed)
            assert [type(crash) for crash in crashes] == [asyncio.CancelledError]
            busy.set()

    asyncio.run(main())


# --- the end


class Pixels:
    """An item that can be watched."""


@pytest.mark.parametrize("end", ["answered", "failed", "miscounted", "cancelled"])
@pytest.mark.usefixtures("no_collections")
def test_a_queue_keeps_nothing_of_a_submit_that_ended(end: str, caplog: pytest.LogCaptureFixture) -> None:
    def run(batch: Sequence[Pixels]) -> Sequence[int | Exception]:
        if end == "failed":
            raise ValueError("failed")
        return [] if end == "miscounted" else [1] * len(batch)

    async def submit(queue: BatchQueue[Pixels, int]) -> list[weakref.ref[Pixels]]:
        items = [Pixels(), Pixels(), Pixels()]
        waiter = asyncio.create_task(queue.submit(items))
        await asyncio.sleep(0)  # one tick, in which it queues its items
        if end == "cancelled":
            waiter.cancel()
        await asyncio.wait([waiter])
        assert waiter.cancelled() == (end == "cancelled")
        assert waiter.cancelled() or bool(waiter.exception()) == (end in ("failed", "miscounted"))
        return [weakref.ref(item) for item in items]

    async def main() -> None:
        queue: BatchQueue[Pixels, int] = BatchQueue(run, BatchSettings(max_items=2), name="images")
        items = await submit(queue)
        await until(lambda: not queue._running)
        # The callback of the last forward returns, and the executor's thread lets go of its work.
        await until(lambda: not any(item() for item in items))
        assert not queue._waiting._rows
        assert not queue._requests

    # A record kept by pytest has the batch in its traceback.
    with caplog.at_level(logging.CRITICAL, "ray.serve"):
        asyncio.run(main())


def test_a_queue_serves_one_event_loop_only() -> None:
    queue = make_queue(FakeModel())  # made before there is a loop
    assert asyncio.run(queue.submit(["a"])).outputs == outputs("a")
    with pytest.raises(RuntimeError, match="texts belongs to another event loop"):
        asyncio.run(queue.submit(["b"]))


def test_items_without_a_length_cost_one_each() -> None:
    async def main() -> None:
        batches: list[int] = []

        def run(batch: Sequence[object]) -> Sequence[int | Exception]:
            batches.append(len(batch))
            return [id(item) for item in batch]

        queue: BatchQueue[object, int] = BatchQueue(run, BatchSettings(max_cost=2), name="images")
        items = [object(), object(), object()]
        assert (await queue.submit(items)).outputs == [id(item) for item in items]
        assert batches == [2, 1]

    asyncio.run(main())
