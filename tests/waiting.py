"""Waiting for a condition, never longer than it may take, and a failure that says what did not come."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Seen = TypeVar("Seen")

PATIENCE_S = 600  # beyond any wait of a passing test, on a machine several times slower too


def wait_until(
    condition: Callable[[], Seen],
    *,
    what: str,
    despite: tuple[type[Exception], ...] = (),
    shown: Callable[[], object] | None = None,
    every_s: float = 0.05,
) -> Seen:
    """Look until `condition` gives something true, and return that.

    An error of `despite` counts as something false. When time is up, an AssertionError names `what` and tells
    what `shown` gives, or else what was seen last.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        seen: Seen | Exception
        try:
            seen = condition()
            if seen:
                return seen
        except despite as error:
            seen = error
        if time.monotonic() >= deadline:
            raise AssertionError(_missed(what, shown() if shown else repr(seen)))
        time.sleep(every_s)


async def until(condition: Callable[[], object], *, what: str = "a condition") -> None:
    """`wait_until` beside other tasks, and with looks a millisecond apart: what it waits for is near."""
    deadline = time.monotonic() + PATIENCE_S
    while not (seen := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(_missed(what, repr(seen)))
        await asyncio.sleep(0.001)


async def started(*calls: Coroutine[Any, Any, Seen]) -> list[asyncio.Task[Seen]]:
    """The calls as tasks, each of which has come to its first wait."""
    tasks = [asyncio.create_task(call) for call in calls]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def _missed(what: str, last: object) -> str:
    return f"waited {PATIENCE_S} s for {what}; last seen: {last}"
