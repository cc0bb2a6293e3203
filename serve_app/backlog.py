"""How long what is asked of a model now would wait, told from how fast it has been answering."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Final

from deployments.errors import Overloaded, SightlineError

MEMORY_S: Final = 2.0
"""Of load: answers from longer ago count little in the speed."""

TOGETHER_S: Final = 0.001
"""Answers so close to one another are those of one batch, and so are those that come faster than usual."""

Turn = Callable[[int], AbstractAsyncContextManager[None]]


class Backlog:
    """The items that one gateway has out at a model, and how many of them come back in a second.

    By Little's law a new request waits for the items out, divided by the items answered per second. Each of
    several gateways sees its share of both numbers, and the sum over replicas, so the quotient is everyone's
    wait. The rate is measured only under load, because an idle model answers one by one, far below its
    best; and between consecutive answers, because they come a batch at a time.
    """

    def __init__(
        self,
        noun: str,
        *,
        items_per_call: int,
        calls_at_once: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`calls_at_once` is for each request: the rest of a large one lets others pass."""
        self.items_per_call = items_per_call
        self._noun = noun
        self._calls_at_once = calls_at_once
        self._share = items_per_call * calls_at_once
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._out = 0
        self._answered = 0.0  # under load; fading, as the time they took
        self._loaded_s = 0.0
        self._counted = False  # whether the last answer was one of these
        self._has_answered = False  # under load or not
        self._since = clock()  # the last answer, or the time when there was nothing out, whichever is later
        self._loaded_since = self._since  # there has been more out than one request's share

    def check(self) -> None:
        """Raises Overloaded where a request that comes now would wait too long, whatever its size.

        What one request has out is never too much, however slow the model. The first answers tell little:
        when many come at once, the first of them is a batch of its own, at half the speed of those after it.
        """
        if self._out <= self._share or not self._has_answered:
            return
        wait_s = unanswered_s = self._clock() - max(self._since, self._loaded_since)
        enough = self._answered >= self._share
        if enough or self._loaded_s + unanswered_s > min(self._max_wait_s, MEMORY_S / 2):
            wait_s = max(wait_s, self._out * self._pace_s())
        if wait_s > self._max_wait_s:
            raise Overloaded(
                f"{self._out} {self._noun} are being worked on, which takes {wait_s:.1f} s; new ones are "
                f"accepted while it takes at most {self._max_wait_s:g} s"
            )

    @contextmanager
    def admit(self, count: int) -> Iterator[Turn]:
        """Room for a request of `count` items while the block runs, in which each call waits for its turn.

        Raises Overloaded.
        """
        if count:
            self.check()
        room = asyncio.Semaphore(self._calls_at_once)
        left = 0

        def keep(items: int, answered: int | None = None) -> None:
            nonlocal left
            if answered is not None:
                self._count(answered)
            elif not self._out:
                self._since = self._clock()
            before = self._out
            self._out += min(items, self._share) - min(left, self._share)
            if before <= self._share < self._out:
                self._loaded_since = self._clock()
            left = items

        @asynccontextmanager
        async def turn(items: int) -> AsyncIterator[None]:
            async with room:
                try:
                    yield
                except SightlineError as error:
                    if error.index is not None:  # an answer, but none that tells the model's speed
                        keep(left - items, answered=0)
                    raise
            keep(left - items, answered=items)

        keep(count)
        try:
            yield turn
        finally:
            keep(0)

    def _pace_s(self) -> float:
        """What an item takes under load; 0 where nothing is known."""
        return self._loaded_s / self._answered if self._answered else 0.0

    def _count(self, answered: int) -> None:
        """Items came back."""
        now = self._clock()
        took_s = now - self._since
        # What is left of a batch when its first answers have ended the load belongs to these.
        together = took_s < max(TOGETHER_S, self._pace_s())
        self._counted = self._out > self._share or (self._counted and together)
        if self._counted:
            fade = math.exp(-took_s / MEMORY_S)
            # As if they had come bit by bit in that time.
            weight = -math.expm1(-took_s / MEMORY_S) * MEMORY_S / took_s if took_s else 1.0
            self._answered = self._answered * fade + answered * weight
            self._loaded_s = self._loaded_s * fade + took_s * weight
        self._has_answered = True
        self._since = now
