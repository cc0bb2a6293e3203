"""The wait that is told from the speed of answers, on a clock of its own, and who is refused for it."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from deployments.errors import BadInput, Overloaded
from serve_app.backlog import MEMORY_S, Backlog, Turn
from tests.waiting import until


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Model:
    """A backlog and a model behind it that answers at a given speed."""

    def __init__(self, *, items_per_call: int = 4, calls_at_once: int = 2, max_wait_s: float = 1.0) -> None:
        self._clock = Clock()
        self.backlog = Backlog(
            "texts",
            items_per_call=items_per_call,
            calls_at_once=calls_at_once,
            max_wait_s=max_wait_s,
            clock=self._clock,
        )
        self._requests = ExitStack()

    def idle(self, seconds: float) -> None:
        self._clock.now_s += seconds

    def enter(self, count: int) -> Turn:
        """A request that stays until all end."""
        return self._requests.enter_context(self.backlog.admit(count))

    def end(self) -> None:
        self._requests.close()

    def refuses(self) -> bool:
        try:
            self.backlog.check()
        except Overloaded:
            return True
        return False

    async def answer(self, turn: Turn, items: int, per_s: float) -> None:
        async with turn(items):
            self._clock.now_s += items / per_s

    async def arrive(
        self,
        arriving_per_s: float,
        answered_per_s: Callable[[float], float],
        seconds: float,
        gap_s: float = 0,
    ) -> list[tuple[float, int]]:
        """Single items arrive and are answered up to 16 at a time, `gap_s` apart. When each that was let in
        came, and how many were out then."""
        waiting: list[Turn] = []
        batch: list[Turn] = []
        seen: list[tuple[float, int]] = []
        began_s, arrives_s, done_s = self._clock.now_s, 0.0, math.inf
        while (now_s := min(arrives_s, done_s)) < seconds:
            self._clock.now_s = began_s + now_s
            if now_s == done_s:
                for turn in batch:
                    await self.answer(turn, 1, per_s=math.inf)
                    self.idle(gap_s)
                batch, done_s = [], math.inf
            else:
                arrives_s += 1 / arriving_per_s
                if not self.refuses():
                    waiting.append(self.enter(1))
                    seen.append((now_s, len(waiting) + len(batch)))
            if waiting and not batch:
                batch, waiting = waiting[:16], waiting[16:]
                done_s = now_s + len(batch) / answered_per_s(now_s)
        return seen

    async def answered_at(self, per_s: float) -> None:
        """Under load, as it has been for long."""
        until_s = self._clock.now_s + 6 * MEMORY_S
        with self.backlog.admit(10**6) as turn, self.backlog.admit(10**6):
            while self._clock.now_s < until_s:
                await self.answer(turn, 4, per_s)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def test_requests_are_let_in_until_the_wait_is_too_long_and_again_when_it_is_not() -> None:
    async def main() -> None:
        model = Model(max_wait_s=1.02)
        await model.answered_at(per_s=20)
        turns = []
        while not model.refuses():
            turns.append(model.enter(1))
        assert len(turns) == 21  # 20 take 1 s
        refused = pytest.raises(Overloaded, match=r"21 texts .* takes 1\.1 s; .* at most 1\.02 s")
        with refused, model.backlog.admit(1):
            pass
        await model.answer(turns[0], 1, per_s=20)
        assert not model.refuses()

    run(main)


def test_the_faster_the_answers_the_more_is_let_in() -> None:
    async def main() -> None:
        model = Model(max_wait_s=0.5)
        for per_s in (400, 50, 200):
            await model.answered_at(per_s)
            model.idle(60)
            for _ in range(9):  # nor does an item alone tell anything
                with model.backlog.admit(1) as turn:
                    await model.answer(turn, 1, per_s=1)
            let_in = 0
            while not model.refuses():
                model.enter(1)
                let_in += 1
            assert let_in == pytest.approx(0.5 * per_s, rel=0.1)
            model.end()

    run(main)


def test_a_request_is_let_in_or_not_whatever_its_size() -> None:
    async def main() -> None:
        model = Model(max_wait_s=1.0)
        await model.answered_at(per_s=20)
        model.enter(1000)  # more than may wait
        assert not model.refuses()  # 8 of it are out at once
        while not model.refuses():
            model.enter(1)
        for size in (1, 1000):
            with pytest.raises(Overloaded), model.backlog.admit(size):
                pass
        with model.backlog.admit(0):
            pass  # asks nothing of this model

    run(main)


def test_behind_one_large_request_there_is_room_however_slow_the_model() -> None:
    async def main() -> None:
        model = Model(max_wait_s=1.0)
        await model.answered_at(per_s=0.1)
        model.enter(1000)
        assert not model.refuses()
        model.enter(1)
        assert model.refuses()

    run(main)


def test_before_the_first_answer_nobody_is_refused() -> None:
    async def main() -> None:
        model = Model()
        for _ in range(1000):
            model.enter(1)
            model.idle(1)
        assert not model.refuses()

    run(main)


def test_as_many_as_get_done_in_time_are_let_in_however_short_and_lumpy_the_load_has_been() -> None:
    async def main() -> None:
        model = Model(items_per_call=8, calls_at_once=2, max_wait_s=0.75)
        for _ in range(3):  # bursts of 32 clients: one image alone at 40 a second, then 16 at a time at 70
            turns = [model.enter(1) for _ in range(32)]
            for number, size in enumerate((1, 16, 16, 16, 16, 16)):
                model.idle(size / (70 if number else 40))
                for turn in turns[:size]:
                    await model.answer(turn, 1, per_s=math.inf)
                assert not model.refuses()
                turns[:size] = [model.enter(1) for _ in range(size)]
            while not model.refuses():
                turns.append(model.enter(1))
            assert len(turns) == pytest.approx(52, rel=0.1)  # 0.75 s at 70 a second
            model.end()
            model.idle(60)

    run(main)


@pytest.mark.parametrize("gap_s", [0, 0.002])
def test_a_slow_spell_is_forgotten_once_the_model_is_fast_again(gap_s: float) -> None:
    def images_per_s(now_s: float) -> float:
        return 7 if 20 < now_s < 40 else 70

    async def main() -> None:
        for arriving_per_s in (65, 140):
            model = Model(items_per_call=8, calls_at_once=2, max_wait_s=0.75)
            seen = await model.arrive(arriving_per_s, images_per_s, 70, gap_s)
            then = [out for now_s, out in seen if now_s > 50]
            if arriving_per_s < 70:
                assert len(then) == pytest.approx(20 * arriving_per_s, abs=1)  # nobody is refused
            else:
                assert max(then) == pytest.approx(52, rel=0.2)

    run(main)


@pytest.mark.parametrize(("per_s", "max_wait_s"), [(40, 5.0), (1, 0.75), (400, 0.75)])
def test_a_flood_waits_no_longer_than_it_may_or_is_one_request_s_share(
    per_s: float, max_wait_s: float
) -> None:
    async def main() -> None:
        model = Model(items_per_call=64, calls_at_once=2, max_wait_s=max_wait_s)
        seen = await model.arrive(5 * per_s + 100, lambda _: per_s, seconds=40)
        late = [out for now_s, out in seen if now_s > 20]  # the slowest has answered once by then
        assert max(late, default=0) <= max(1.3 * per_s * max_wait_s, 2 * 64 + 1)
        if per_s * max_wait_s > 2 * 64:
            assert max(late) >= 0.7 * per_s * max_wait_s

    run(main)


def test_a_model_that_hangs_after_its_first_answer_takes_nothing_more() -> None:
    async def main() -> None:
        model = Model(max_wait_s=1.0)
        turns = [model.enter(1) for _ in range(20)]
        model.idle(0.02)
        await model.answer(turns[0], 1, per_s=math.inf)
        assert not model.refuses()
        model.idle(0.9)
        assert not model.refuses()
        model.idle(0.2)
        assert model.refuses()

    run(main)


def test_a_model_that_hangs_after_light_work_takes_nothing_more() -> None:
    async def main() -> None:
        model = Model(max_wait_s=1.0)
        for _ in range(100):
            with model.backlog.admit(1) as turn:
                await model.answer(turn, 1, per_s=100)
        for _ in range(20):
            model.enter(1)
        assert not model.refuses()
        model.idle(1.1)
        assert model.refuses()

    run(main)


def test_one_slow_item_before_the_load_is_no_stall() -> None:
    async def main() -> None:
        model = Model(max_wait_s=0.75)
        await model.answered_at(per_s=70)
        model.enter(1)
        model.idle(0.9)
        for _ in range(40):
            assert not model.refuses()
            model.enter(1)

    run(main)


def test_an_item_that_is_refused_is_an_answer() -> None:
    async def main() -> None:
        model = Model(max_wait_s=1.0)
        await model.answered_at(per_s=100)
        for _ in range(20):
            model.enter(1)

        async def send_no_image() -> None:
            with model.backlog.admit(1) as turn:
                async with turn(1):
                    model.idle(0.1)
                    raise BadInput("no image").at(0)

        for _ in range(30):
            with pytest.raises(BadInput):
                await send_no_image()
            assert not model.refuses()

    run(main)


def test_items_that_are_refused_do_not_make_a_model_look_fast() -> None:
    async def main() -> None:
        model = Model(max_wait_s=1.0)
        turns = [model.enter(1) for _ in range(40)]

        async def send_no_image() -> None:
            with model.backlog.admit(1) as turn:
                async with turn(1):
                    raise BadInput("no image").at(0)

        for turn in turns[:20]:  # ten a second, and ten times as many that are no images
            for _ in range(10):
                with suppress(Overloaded, BadInput):
                    await send_no_image()
            await model.answer(turn, 1, per_s=10)
        assert model.refuses()  # twenty are out: two seconds

    run(main)


def test_a_stall_is_over_when_all_who_waited_have_left() -> None:
    async def main() -> None:
        model = Model(max_wait_s=1.0)
        await model.answered_at(per_s=100)
        for _ in range(20):
            model.enter(1)
        model.idle(5)
        assert model.refuses()
        model.end()
        model.idle(60)
        turns = [model.enter(1) for _ in range(20)]
        assert not model.refuses()
        await model.answer(turns[0], 1, per_s=100)
        assert not model.refuses()

    run(main)


def test_a_model_that_answers_no_more_takes_nothing_more() -> None:
    async def main() -> None:
        model = Model(max_wait_s=1.0)
        await model.answered_at(per_s=1000)
        for _ in range(9):
            model.enter(1)
        assert not model.refuses()
        model.idle(20)  # of waiting for it
        assert model.refuses()
        for _ in range(100):  # until what it answered before has faded to nothing
            model.idle(20)
            assert model.refuses()

    run(main)


def test_a_large_request_makes_its_calls_a_few_at_a_time_and_goes_on_as_they_return() -> None:
    async def main() -> None:
        model = Model(items_per_call=4, calls_at_once=2)
        returned = [asyncio.Event() for _ in range(5)]
        started: list[int] = []

        async def call(turn: Turn, number: int) -> None:
            async with turn(4):
                started.append(number)
                await returned[number].wait()

        with model.backlog.admit(20) as turn:
            calls = [asyncio.create_task(call(turn, number)) for number in range(5)]
            await until(lambda: len(started) == 2)
            returned[1].set()
            await until(lambda: len(started) == 3)
            assert started == [0, 1, 2]
            for event in returned:
                event.set()
            await asyncio.gather(*calls)

    run(main)


def test_what_a_request_has_still_to_get_counts_less_and_less_and_nothing_once_it_failed() -> None:
    async def main() -> None:
        model = Model(items_per_call=4, calls_at_once=2, max_wait_s=1.0)
        await model.answered_at(per_s=8)

        async def fail_half_way() -> None:
            with model.backlog.admit(20) as turn:
                model.enter(4)
                assert model.refuses()  # 8 of it are out
                for _ in range(3):
                    await model.answer(turn, 4, per_s=8)
                assert model.refuses()  # its last 8
                await model.answer(turn, 4, per_s=8)
                assert not model.refuses()
                async with turn(4):
                    raise RuntimeError

        with pytest.raises(RuntimeError):
            await fail_half_way()
        model.enter(4)
        assert not model.refuses()  # 8 again, all of others
        model.enter(1)
        assert model.refuses()

    run(main)
