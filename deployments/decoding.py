"""Decoding off the event loop: bytes in, checked pixels out, before any queue a bad image would share."""

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

import numpy as np

from configs.settings import PreprocessorSettings
from configs.threads import threads_for
from deployments.errors import NotReady, SightlineError
from deployments.models.base import THUMBNAIL_PX, Pixels
from deployments.models.images import check_jpeg, decode, decode_with_thumbnail
from deployments.timing import StageTimes

_LOWEST_PRIORITY: Final = 19

Result = TypeVar("Result")


def _yield_to_others() -> None:
    """Lower this thread's priority (Linux keeps one for each) below that of Ray's workers, which is 15.

    A forward's threads wait for each other: a decode that takes the core of one stops them all. Behind them,
    32 clients get 4% more images/s; in mixed load texts wait no longer (two cores, eight and five rounds).
    Next to a busy worker a decode still gets a third of its core.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)


class Decoder:
    """Decodes, orients, resizes and crops; Pillow releases the GIL, so its threads use every core."""

    def __init__(self, settings: PreprocessorSettings, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._stall_timeout_s = settings.stall_timeout_s
        self._begun: dict[object, float] = {}  # of each decode that runs, seconds of the monotonic clock
        self._pool = ThreadPoolExecutor(
            threads_for(settings.threads, settings.scale.cpus), "decode", _yield_to_others
        )

    async def __call__(
        self, images: Sequence[bytes], size: int, thumbnails: bool
    ) -> tuple[Pixels, list[bytes], StageTimes]:
        """uint8[n, size, size, 3] for n encoded images; and, where asked for, a small JPEG of each, its
        longest side at most THUMBNAIL_PX.

        Raises:
            BadInput, TooLarge: pointing at the first image that cannot be used.
        """
        start = time.perf_counter()
        small: list[bytes] = []
        if thumbnails:
            both = await self._each(
                images, lambda data: decode_with_thumbnail(data, size, self._max_pixels, THUMBNAIL_PX)
            )
            pixels, small = [one for one, _ in both], [other for _, other in both]
        else:
            pixels = await self._each(images, lambda data: decode(data, size, self._max_pixels))
        return np.stack(pixels), small, StageTimes(preprocess=(time.perf_counter() - start) * 1e3)

    async def check_thumbnails(self, thumbnails: Sequence[bytes]) -> None:
        """Raises BadInput, pointing at the first that is no whole JPEG or has a side of more than
        THUMBNAIL_PX."""
        await self._each(thumbnails, lambda data: check_jpeg(data, THUMBNAIL_PX))

    async def _each(self, images: Sequence[bytes], work: Callable[[bytes], Result]) -> list[Result]:
        loop = asyncio.get_running_loop()
        done = await asyncio.gather(
            *(loop.run_in_executor(self._pool, self._timed, work, data) for data in images),
            return_exceptions=True,
        )
        results: list[Result] = []
        for index, result in enumerate(done):
            if isinstance(result, SightlineError):
                raise result.at(index)
            if isinstance(result, BaseException):
                raise result
            results.append(result)
        return results

    def _timed(self, work: Callable[[bytes], Result], data: bytes) -> Result:
        this = object()
        self._begun[this] = time.monotonic()
        try:
            return work(data)
        finally:
            del self._begun[this]

    def check_health(self) -> None:
        """Raise if a decode has run longer than `stall_timeout_s`: only with its process can it be ended."""
        age_s = time.monotonic() - min(list(self._begun.values()), default=math.inf)
        if age_s > self._stall_timeout_s:
            raise NotReady(f"a decode has run for {age_s:.1f} s, longer than {self._stall_timeout_s:g} s")

    async def ready(self) -> None:
        """Returns when a thread of the pool has had time for it."""
        await asyncio.get_running_loop().run_in_executor(self._pool, lambda: None)
