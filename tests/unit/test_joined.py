"""Calls that travel together: when they leave, and that each caller gets its own answer or error."""

import asyncio
import time
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from deployments.errors import BadInput, NotReady
from serve_app.errors import ApiError
from serve_app.joined import AT_ONCE, SMALLEST_SHARE, Joined
from tests.waiting import started

Calls = list[tuple[str, list[int]]]


class Slow:
    """Answers each item with its square once it is let go; a negative item is an error."""

    def __init__(self) -> None:
        self.calls: Calls = []
        self.gate = asyncio.Event()
        self.error: BaseException = NotReady("the model is away")

    async def __call__(self, key: str, items: Sequence[int]) -> list[int]:
        self.calls.append((key, list(items)))
        await self.gate.wait()
        if 666 in items:
            raise self.error
        for place, item in enumerate(items):
            if item < 0:
                raise BadInput(f"{item} is negative", place)
        return [item * item for item in items]


def part(answer: list[int], first: int, last: int, waited_ms: float) -> list[int]:
    return answer[first:last]


def joined(slow: Slow, most: int = 4, workers: int = 1, least: int = 1) -> Joined[str, int, list[int]]:
    return Joined(slow, part, most, workers, least)


def test_those_of_one_turn_of_the_event_loop_go_in_two_halves() -> None:
    async def scenario() -> None:
        slow = Slow()
        call = joined(slow, most=32)
        tasks = await started(*(call("a", [n]) for n in range(9)))
        assert slow.calls == [("a", [0, 1, 2, 3, 4])]  # the others are fewer, and wait for it
        tasks += await started(call("a", [9]))
        assert slow.calls[1:] == [("a", [5, 6, 7, 8, 9])]
        slow.gate.set()
        assert await asyncio.gather(*tasks) == [[n * n] for n in range(10)]
        assert await call("a", [10]) == [100]
        assert slow.calls[2:] == [("a", [10])]

    asyncio.run(scenario())


def test_few_are_not_cut_in_two() -> None:
    async def scenario() -> None:
        slow = Slow()
        call = joined(slow)
        tasks = await started(*(call("a", [n]) for n in range(SMALLEST_SHARE)))
        assert slow.calls == [("a", list(range(SMALLEST_SHARE)))]
        slow.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


@pytest.mark.parametrize("least", [1, 3])
def test_beside_a_call_as_many_leave_as_it_has_and_never_more_than_two_are_out(least: int) -> None:
    async def scenario() -> None:
        slow = Slow()
        call = joined(slow, most=32, least=least)
        tasks = await started(call("a", [0]))
        enough = list(range(1, 1 + least))
        for n in enough:
            assert slow.calls == [("a", [0])]
            tasks += await started(call("a", [n]))
        assert slow.calls == [("a", [0]), ("a", enough)]
        tasks += await started(*(call("a", [n]) for n in range(10, 20)))
        assert len(slow.calls) == AT_ONCE
        slow.gate.set()
        assert await asyncio.gather(*tasks) == [[n * n] for n in [0, *enough, *range(10, 20)]]

    asyncio.run(scenario())


def test_those_that_wait_leave_when_the_call_returns() -> None:
    async def scenario() -> None:
        slow = Slow()
        call = joined(slow, most=32, least=8)
        tasks = await started(call("a", [0]))
        tasks += await started(call("a", [1]), call("a", [2]))
        slow.gate.set()
        assert await asyncio.gather(*tasks) == [[0], [1], [4]]
        assert slow.calls == [("a", [0]), ("a", [1, 2])]

    asyncio.run(scenario())


def test_a_key_that_nobody_asks_about_any_longer_is_forgotten() -> None:
    async def scenario() -> None:
        slow = Slow()
        slow.gate.set()
        call = joined(slow)
        await asyncio.gather(*(call(f"key {n}", [n]) for n in range(20)))
        with pytest.raises(BadInput):
            await call("bad", [-1])
        for _ in range(3):
            await asyncio.sleep(0)
        assert not call._groups

    asyncio.run(scenario())


def test_a_call_is_nobodys_request() -> None:
    mine: ContextVar[str] = ContextVar("mine", default="nobody")
    seen = []

    async def answer(key: str, items: Sequence[int]) -> list[int]:
        seen.append(mine.get())
        return list(items)

    async def scenario() -> None:
        mine.set("a caller")
        assert await Joined(answer, part, 4)("a", [1]) == [1]

    asyncio.run(scenario())
    assert seen == ["nobody"]


def test_no_worker_is_idle_while_something_waits() -> None:
    async def scenario() -> None:
        slow = Slow()
        call = joined(slow, most=32, workers=3, least=8)
        tasks = []
        for n in range(5):
            tasks += await started(call("a", [n]))
        assert slow.calls == [("a", [0]), ("a", [1]), ("a", [2])]
        slow.gate.set()
        assert await asyncio.gather(*tasks) == [[n * n] for n in range(5)]

    asyncio.run(scenario())


def test_keys_do_not_mix_and_calls_are_bounded() -> None:
    async def scenario() -> None:
        slow = Slow()
        call = joined(slow, most=4)
        busy = [call(key, [0] * 4) for key in "ab" for _ in range(AT_ONCE)]
        more = [call("a", [1, 2, 3]), call("b", [1]), call("a", [4]), call("a", [5, 6]), call("b", [7])]
        tasks = await started(*busy, *more)
        assert len(slow.calls) == 2 * AT_ONCE
        slow.gate.set()
        results = await asyncio.gather(*tasks)
        assert results[-5:] == [[1, 4, 9], [1], [16], [25, 36], [49]]
        assert sorted(slow.calls[2 * AT_ONCE :]) == [("a", [1, 2, 3, 4]), ("a", [5, 6]), ("b", [1, 7])]

    asyncio.run(scenario())


def test_an_error_of_an_item_reaches_only_the_caller_whose_it_is() -> None:
    async def scenario() -> None:
        slow = Slow()
        call = joined(slow, most=8, least=8)
        out = [[0] * 8] * AT_ONCE
        tasks = await started(*(call("a", items) for items in [*out, [1], [2, -2], [3], [-4]]))
        slow.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        one, bad, three, worse = results[AT_ONCE:]
        assert (one, three) == ([1], [9])
        for error, message, index in ((bad, "-2 is negative", 1), (worse, "-4 is negative", 0)):
            assert isinstance(error, BadInput)
            assert (error.message, error.index) == (message, index)
        assert [items for _, items in slow.calls[AT_ONCE:]] == [[1, 2, -2, 3, -4], [1, 3, -4], [1, 3]]

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [NotReady("gone"), ApiError(503, "code", "gone", "model"), OSError("gone")])
def test_any_other_error_is_everybody_s_and_nothing_is_asked_again(error: Exception) -> None:
    async def scenario() -> None:
        slow = Slow()
        slow.error = error
        call = joined(slow, least=4)
        out = [[0] * 4] * AT_ONCE
        tasks = await started(*(call("a", items) for items in [*out, [1], [666], [3]]))
        slow.gate.set()
        errors = (await asyncio.gather(*tasks, return_exceptions=True))[AT_ONCE:]
        assert [(type(one), str(one)) for one in errors] == [(type(error), "gone")] * 3
        assert len({id(error) for error in errors}) == 3
        assert len(slow.calls) == AT_ONCE + 1
        assert await call("a", [2]) == [4]

    asyncio.run(scenario())


def test_a_caller_who_leaves_takes_nobody_along() -> None:
    async def scenario() -> None:
        slow = Slow()
        call = joined(slow, most=2, least=2)
        tasks = await started(*(call("a", [n]) for n in range(2 * AT_ONCE + 2)))
        assert len(slow.calls) == AT_ONCE
        leaving = {1, 2 * AT_ONCE}  # one that is out with another, and one that waits
        for n in leaving:
            tasks[n].cancel()
        slow.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {
            n for n, result in enumerate(results) if isinstance(result, asyncio.CancelledError)
        } == leaving
        assert all(result == [n * n] for n, result in enumerate(results) if n not in leaving)
        assert slow.calls[AT_ONCE:] == [("a", [2 * AT_ONCE + 1])]

    asyncio.run(scenario())


def test_a_call_that_all_have_left_ends() -> None:
    async def scenario() -> None:
        slow = Slow()
        call = joined(slow, least=2)
        tasks = await started(call("a", [1]), call("a", [2]))
        assert slow.calls == [("a", [1, 2])]
        later = await started(call("a", [3]))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await started()
        assert slow.calls[1:] == [("a", [3])]  # there is room for it, though the gate is shut
        slow.gate.set()
        assert await later[0] == [9]

    asyncio.run(scenario())


def test_a_call_that_is_cancelled_where_it_went_does_not_hang() -> None:
    async def scenario() -> None:
        slow = Slow()
        slow.gate.set()
        slow.error = asyncio.CancelledError()
        call = joined(slow)
        with pytest.raises(NotReady, match="cancelled"):
            await call("a", [666])
        assert await call("a", [2]) == [4]

    asyncio.run(scenario())


def test_one_caller_gets_the_very_error() -> None:
    async def scenario() -> None:
        slow = Slow()
        slow.gate.set()
        slow.error = KeyError("gone")
        call = joined(slow)
        with pytest.raises(KeyError) as raised:
            await call("a", [666])
        assert raised.value is slow.error
        assert raised.traceback[-1].name == "__call__"  # where it came from, for the log

    asyncio.run(scenario())


def test_each_caller_is_told_how_long_it_waited_for_its_call_to_leave() -> None:
    async def scenario() -> None:
        slow, waited = Slow(), dict[int, float]()

        def noted(answer: list[int], first: int, last: int, waited_ms: float) -> list[int]:
            waited[answer[first]] = waited_ms
            return answer[first:last]

        call = Joined[str, int, list[int]](slow, noted, most=1)
        began = time.perf_counter()
        tasks = await started(*(call("a", [n]) for n in range(4)))
        await asyncio.sleep(0.03)
        slow.gate.set()
        await asyncio.gather(*tasks)
        whole_ms = (time.perf_counter() - began) * 1e3
        at_once = [waited[n * n] for n in range(AT_ONCE)]
        later = [waited[n * n] for n in range(AT_ONCE, 4)]
        assert max(at_once) + 25 <= min(later) <= max(later) <= whole_ms

    asyncio.run(scenario())
