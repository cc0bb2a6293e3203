"""Calls that arrive while others of their kind are out travel together."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from copy import copy
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from deployments.errors import SightlineError
from index.errors import VectorIndexError
from serve_app.middleware import waiting_for_a_call

Key = TypeVar("Key")
Item = TypeVar("Item")
Answer = TypeVar("Answer")

AT_ONCE = 2
"""Calls out to each replica: while an answer is on its way back there is the next to work on."""


@dataclass(eq=False)
class _Waiting(Generic[Item, Answer]):
    items: Sequence[Item]
    answer: "asyncio.Future[Answer]"


@dataclass
class _Group(Generic[Item, Answer]):
    out: int = 0
    waiting: list[_Waiting[Item, Answer]] = field(default_factory=list)


class Joined(Generic[Key, Item, Answer]):
    """Joins calls of the same key, so that what a call costs beside its items is paid once for many.

    Nobody waits for company: a call goes at once while fewer than `at_once` of its key are out. Those that
    come meanwhile leave as one when a call returns. An error that names an item (`index`) reaches only
    the caller whose it is, and the rest is asked again without it; any other is everybody's.
    """

    def __init__(
        self,
        call: Callable[[Key, Sequence[Item]], Awaitable[Answer]],
        part: Callable[[Answer, int, int], Answer],
        most: int,
        at_once: int = AT_ONCE,
    ) -> None:
        """`call` makes a call of a key; `part` takes the answer to items first to last (exclusive) out of
        the answer to all; at most `most` items travel together, unless one caller has more."""
        self._call = call
        self._part = part
        self._most = most
        self._at_once = at_once
        self._groups: defaultdict[Key, _Group[Item, Answer]] = defaultdict(_Group)

    async def __call__(self, key: Key, items: Sequence[Item]) -> Answer:
        """The answer to these items; raises what the call raises."""
        group = self._groups[key]
        if group.out < self._at_once:
            return await self._alone(key, group, items)
        mine = _Waiting[Item, Answer](items, asyncio.get_running_loop().create_future())
        group.waiting.append(mine)
        with waiting_for_a_call():
            return await mine.answer

    async def _alone(self, key: Key, group: _Group[Item, Answer], items: Sequence[Item]) -> Answer:
        group.out += 1
        try:
            return await self._call(key, items)
        finally:
            self._returned(key, group)

    def _returned(self, key: Key, group: _Group[Item, Answer]) -> None:
        group.out -= 1
        group.waiting = [waiting for waiting in group.waiting if not waiting.answer.done()]  # who left
        if group.waiting:
            together = [group.waiting.pop(0)]
            size = len(together[0].items)
            while group.waiting and size + len(group.waiting[0].items) <= self._most:
                together.append(group.waiting.pop(0))
                size += len(together[-1].items)
            group.out += 1
            # In a context of its own, for it is nobody's request.
            loop = asyncio.get_running_loop()
            _keep(loop.create_task(self._send(key, group, together), context=Context()))
        elif not group.out:
            self._groups.pop(key, None)

    async def _send(
        self, key: Key, group: _Group[Item, Answer], together: list[_Waiting[Item, Answer]]
    ) -> None:
        try:
            while together:
                try:
                    answer = await self._call(key, [item for waiting in together for item in waiting.items])
                except Exception as error:
                    together = _rest(together, error)
                else:
                    self._deliver(together, answer)
                    return
        finally:
            self._returned(key, group)

    def _deliver(self, together: list[_Waiting[Item, Answer]], answer: Answer) -> None:
        first = 0
        for waiting in together:
            last = first + len(waiting.items)
            if not waiting.answer.done():
                waiting.answer.set_result(self._part(answer, first, last))
            first = last


def place_of(error: Exception) -> int | None:
    """The place of the item that the error is about, if it is about one."""
    return error.index if isinstance(error, SightlineError | VectorIndexError) else None


def own_error(error: Exception, place: int | None) -> Exception:
    """A copy for one of many who get it, about the item at `place` if about one: an error that is raised in
    many tasks gathers the tracebacks of all."""
    if place is not None and isinstance(error, SightlineError | VectorIndexError):
        return error.at(place)
    return copy(error).with_traceback(None)


def _rest(together: list[_Waiting[Item, Answer]], error: Exception) -> list[_Waiting[Item, Answer]]:
    """Give the error to whom it belongs; the others, who are to be asked for again."""
    place = place_of(error)
    first, rest = 0, []
    for waiting in together:
        last = first + len(waiting.items)
        if place is not None and not first <= place < last:
            rest.append(waiting)
        elif not waiting.answer.done():
            waiting.answer.set_exception(own_error(error, None if place is None else place - first))
        first = last
    return rest


_TASKS: set["asyncio.Task[None]"] = set()  # the event loop holds its tasks weakly


def _keep(task: "asyncio.Task[None]") -> None:
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)
