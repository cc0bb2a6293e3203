"""Calls of one kind that arrive together, or while others are out, travel together."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from deployments.errors import NotReady
from index.errors import LocatedError
from serve_app.middleware import waiting_for_a_call

Key = TypeVar("Key")
Item = TypeVar("Item")
Answer = TypeVar("Answer")

AT_ONCE = 2
"""Calls out to each worker: while an answer is on its way back there is the next to work on."""

SMALLEST_SHARE = 4
"""Items that are not cut into two calls. With 2 the rates of 4 to 32 clients are up to a fifth lower, with 8
those of 8 to 32 are."""


@dataclass(eq=False)
class _Waiting(Generic[Item, Answer]):
    items: Sequence[Item]
    answer: "asyncio.Future[Answer]"
    since: float  # seconds of the performance counter
    call: "_Call | None" = None  # once it is out
    waited_ms: float = 0.0  # until then


@dataclass(eq=False)
class _Call:
    task: "asyncio.Task[None]"
    callers: int  # who wait for it


@dataclass(eq=False)
class _Group(Generic[Item, Answer]):
    out: int = 0  # calls
    items_out: int = 0
    waiting: list[_Waiting[Item, Answer]] = field(default_factory=list)
    due: bool = False  # it is looked at after this turn of the event loop


class Joined(Generic[Key, Item, Answer]):
    """Joins calls of the same key, so that what a call costs beside its items is paid once for many.

    While a worker is free, a call leaves at the end of this turn of the event loop with all that came in it.
    While all are busy, what comes waits until one is free, or until it is as much as each call under way
    holds and at least `least` items: then one more call leaves, so that a worker finds its next. No call
    takes more than its share of all items, unless these are few: callers who are answered together ask again
    together, and the workers would idle in between. So half of them are worked on while the other half is
    answered.

    An error that names an item (`index`) reaches only the caller whose it is, and the rest is asked again
    without it; any other is everybody's.
    """

    def __init__(
        self,
        call: Callable[[Key, Sequence[Item]], Awaitable[Answer]],
        part: Callable[[Answer, int, int, float], Answer],
        most: int,
        workers: int = 1,
        least: int = 1,
    ) -> None:
        """`call` makes a call of a key; `part` takes the answer to items first to last (exclusive) out of
        the answer to all, and is told how many milliseconds these waited for the call to leave; at most
        `most` items travel together, unless one caller has more. `workers` is how many calls are worked on
        at a time, `least` how many items a call has that leaves while all are at work."""
        self._call = call
        self._part = part
        self._most = most
        self._workers = workers
        self._least = least
        self._groups: defaultdict[Key, _Group[Item, Answer]] = defaultdict(_Group)

    async def __call__(self, key: Key, items: Sequence[Item]) -> Answer:
        """The answer to these items; raises what the call raises."""
        group = self._groups[key]
        mine = _Waiting[Item, Answer](items, asyncio.get_running_loop().create_future(), time.perf_counter())
        group.waiting.append(mine)
        self._look_soon(key, group)
        try:
            with waiting_for_a_call():
                return await mine.answer
        finally:
            if mine.call:
                mine.call.callers -= 1
                if not mine.call.callers:
                    mine.call.task.cancel()  # which has ended, unless all have left

    def _look_soon(self, key: Key, group: _Group[Item, Answer]) -> None:
        if not group.due:
            group.due = True
            asyncio.get_running_loop().call_soon(self._look, key, group)

    def _look(self, key: Key, group: _Group[Item, Answer]) -> None:
        """Send what is to go now."""
        group.due = False
        group.waiting = [waiting for waiting in group.waiting if not waiting.answer.done()]  # who left
        items = sum(len(waiting.items) for waiting in group.waiting)
        share = max(SMALLEST_SHARE, self._least, -(-(items + group.items_out) // (AT_ONCE * self._workers)))
        while group.waiting and self._may_leave(group, items):
            together = [group.waiting.pop(0)]
            size = len(together[0].items)
            while group.waiting and size + len(group.waiting[0].items) <= min(share, self._most):
                together.append(group.waiting.pop(0))
                size += len(together[-1].items)
            items -= size
            group.out += 1
            group.items_out += size
            # In a context of its own, for it is nobody's request.
            loop = asyncio.get_running_loop()
            task = loop.create_task(self._send(key, together), context=Context())
            task.add_done_callback(partial(self._returned, key, group, together))
            call = _Call(task, len(together))
            now = time.perf_counter()
            for waiting in together:
                waiting.call = call
                waiting.waited_ms = (now - waiting.since) * 1e3
        if not group.waiting and not group.out:
            self._groups.pop(key, None)

    def _may_leave(self, group: _Group[Item, Answer], items: int) -> bool:
        """Whether there is a call for the `items` that wait."""
        if group.out < self._workers:
            return True
        each_has = group.items_out / group.out
        return group.out < AT_ONCE * self._workers and items >= max(self._least, each_has)

    def _returned(
        self,
        key: Key,
        group: _Group[Item, Answer],
        together: list[_Waiting[Item, Answer]],
        task: "asyncio.Task[None]",
    ) -> None:
        group.out -= 1
        group.items_out -= sum(len(waiting.items) for waiting in together)
        error = None if task.cancelled() else task.exception()
        for waiting in together:
            if waiting.answer.done():
                continue
            waiting.answer.set_exception(error or NotReady("the call was cancelled where it went; try again"))
        self._look_soon(key, group)

    async def _send(self, key: Key, together: list[_Waiting[Item, Answer]]) -> None:
        while together:
            try:
                answer = await self._call(key, [item for waiting in together for item in waiting.items])
            except Exception as error:
                together = _rest(together, error)
            else:
                self._deliver(together, answer)
                return

    def _deliver(self, together: list[_Waiting[Item, Answer]], answer: Answer) -> None:
        first = 0
        for waiting in together:
            last = first + len(waiting.items)
            if not waiting.answer.done():
                waiting.answer.set_result(self._part(answer, first, last, waiting.waited_ms))
            first = last


def place_of(error: Exception) -> int | None:
    """The place of the item that the error is about, if it is about one."""
    return error.index if isinstance(error, LocatedError) else None


def own_error(error: Exception, place: int | None) -> Exception:
    """A copy for one of many who get it, about the item at `place` if about one: an error that is raised in
    many tasks gathers the tracebacks of all."""
    if place is not None and isinstance(error, LocatedError):
        return error.at(place)
    try:
        return copy(error).with_traceback(None)
    except Exception:  # its class cannot be made from what it says
        return error


def _rest(together: list[_Waiting[Item, Answer]], error: Exception) -> list[_Waiting[Item, Answer]]:
    """Give the error to whom it belongs; the others, who are to be asked for again."""
    if len(together) == 1:  # as it is, with its traceback
        if not together[0].answer.done():
            together[0].answer.set_exception(error)
        return []
    place = place_of(error)
    if place is not None and place >= sum(len(waiting.items) for waiting in together):
        place = None  # of none of them
    first, rest = 0, []
    for waiting in together:
        last = first + len(waiting.items)
        if place is not None and not first <= place < last:
            rest.append(waiting)
        elif not waiting.answer.done():
            waiting.answer.set_exception(own_error(error, None if place is None else place - first))
        first = last
    return rest
