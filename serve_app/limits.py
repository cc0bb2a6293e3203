"""Load shed at the door: how much may be in flight, decided before work is done on it."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from configs.settings import LimitSettings
from deployments.errors import BadInput, Overloaded
from deployments.models.characters import check_characters
from index.items import MAX_METADATA_DEPTH
from serve_app.errors import ApiError

POLL_S: Final = 0.1
AHEAD_BYTES: Final = 2 * 1024 * 1024  # most batches of a stream; they end at 8
FEW_BYTES: Final = 256 * 1024  # most texts, searches and photos; all that max_inflight_requests of them hold


class Admission:
    """Counts what is being worked on; beyond the limit callers are asked to come back."""

    def __init__(self, noun: str, limit: int, retry_after_s: int) -> None:
        self._noun = noun
        self.limit = limit
        self._retry_after_s = retry_after_s
        self.inflight = 0

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Hold room for `count` while the block runs. Raises Overloaded when there is none.

        What finds the place empty is always let in, so that nothing is too large for ever.
        """
        if self.inflight and count and self.inflight + count > self.limit:
            raise Overloaded(
                f"{self.inflight} {self._noun} are being worked on and at most {self.limit} may be at once; "
                f"try again in {self._retry_after_s} s"
            )
        self.inflight += count
        try:
            yield
        finally:
            self.inflight -= count


class HoldsTooMuch(ApiError):  # noqa: N818 — named like the errors of the deployments
    """One request would hold more than all of them may."""


class Memory:
    """Counts the bytes that requests hold: of bodies, as they arrive, and of images fetched for them.

    The first FEW_BYTES of every request are always let in: slow uploads cannot keep small requests out.
    """

    def __init__(self, limit: int, retry_after_s: int) -> None:
        self.limit = limit
        self._retry_after_s = retry_after_s
        self.held = 0

    @contextmanager
    def holding(self) -> Iterator[None]:
        """What `hold` counts while the block runs is held until its end."""
        mine = _Held(self, _HELD.get())
        token = _HELD.set(mine)
        try:
            yield
        finally:
            _HELD.reset(token)
            self.held -= mine.bytes

    def grow(self, mine: "_Held", size: int) -> None:
        if mine.bytes + size > self.limit:
            message = f"one request may hold {self.limit} bytes, fetched images included; split it"
            raise HoldsTooMuch(413, "too_large", message)
        if not self.has_room(mine, size):
            raise Overloaded(
                f"requests hold {self.held} bytes and may hold {self.limit}; "
                f"try again in {self._retry_after_s} s"
            )
        self.add(mine, size)

    def has_room(self, mine: "_Held", size: int) -> bool:
        """Also for one that is alone, however much it holds."""
        return self.held + size <= self.limit or mine.bytes + size <= FEW_BYTES or self.held == mine.in_all

    def add(self, mine: "_Held", size: int) -> None:
        self.held += size
        mine.bytes += size


@dataclass(eq=False)
class _Held:
    memory: Memory
    around: "_Held | None"  # what the same request held before
    bytes: int = 0
    spare: int = 0  # of these, not there yet

    @property
    def in_all(self) -> int:
        return self.bytes + (self.around.in_all if self.around else 0)


_HELD: ContextVar[_Held | None] = ContextVar("held", default=None)


def hold(size: int) -> None:
    """Count so many bytes more for the request whose task this is.

    Raises:
        Overloaded: all requests together would hold too much.
        HoldsTooMuch: this one would (413).
    """
    if (mine := _HELD.get()) is not None:
        mine.memory.grow(mine, size)


async def hold_in_turn(size: int) -> None:
    """Like `hold`, for what is bounded otherwise and can be read later: waits before the first of it.

    Only a request that holds nothing waits: two that each hold some would wait for each other. It makes sure
    of AHEAD_BYTES first; what comes after is counted without waiting, even past the limit.
    """
    if (mine := _HELD.get()) is None:
        return
    if not mine.bytes:
        while not mine.memory.has_room(mine, AHEAD_BYTES):  # noqa: ASYNC110 — many may have made room at once
            await asyncio.sleep(POLL_S)
        mine.memory.add(mine, AHEAD_BYTES)
        mine.spare = AHEAD_BYTES
    mine.memory.add(mine, max(0, size - mine.spare))
    mine.spare = max(0, mine.spare - size)


class Admissions:
    """The gateway's limits on requests, images, texts and bytes in flight."""

    def __init__(self, limits: LimitSettings) -> None:
        wait = limits.retry_after_s
        self.requests = Admission("requests", limits.max_inflight_requests, wait)
        self._images = Admission("images", limits.max_inflight_images, wait)
        self._texts = Admission("texts", limits.max_inflight_texts, wait)
        self.memory = Memory(limits.max_inflight_bytes, wait)

    @contextmanager
    def admit(self, contents: Sequence[str | bytes]) -> Iterator[None]:
        """Hold room for texts (str) and images (bytes) while the block runs. Raises Overloaded."""
        texts = sum(isinstance(content, str) for content in contents)
        with self._images.admit(len(contents) - texts), self._texts.admit(texts):
            yield

    def stats(self) -> dict[str, float]:
        """The load now, as infinity's clients read it."""
        inflight = self._images.inflight + self._texts.inflight
        counted = [a.inflight / a.limit for a in (self.requests, self._images, self._texts)]
        fraction = max(*counted, self.memory.held / self.memory.limit)
        return {"queue_fraction": fraction, "queue_absolute": inflight, "results_pending": inflight}


def check_counts(images: int, texts: int, limits: LimitSettings, param: str = "input") -> None:
    """Raises 413 when one request carries too many images or texts."""
    for count, limit, noun in (
        (images, limits.max_images, "images"),
        (texts, limits.max_texts, "texts"),
    ):
        if count > limit:
            message = f"the request has {count} {noun}; at most {limit} are accepted, so split it"
            raise ApiError(413, "too_many_items", message, param)


def check_text(text: str, limits: LimitSettings, param: str) -> None:
    """Raises 413 for a text that is too long, 422 for one that is none.

    What a model would refuse is refused here, for there it may be among those of many callers.
    """
    if len(text) > limits.max_text_chars:
        message = f"the text has {len(text)} characters; at most {limits.max_text_chars} are accepted"
        raise ApiError(413, "text_too_long", message, param)
    try:
        check_characters(text)
    except BadInput as error:
        raise ApiError(422, "invalid_input", error.message, param) from None


def check_depth(value: object, param: str) -> None:
    """Raises 422 for JSON nested deeper than anything here needs, which could not be passed on.

    To be called beside the event loop for what may be large: 31 MiB of `[]` take two seconds.
    """
    level = [value]
    for _ in range(MAX_METADATA_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    message = f"nested more than {MAX_METADATA_DEPTH} deep"
    raise ApiError(422, "too_deep", message, param)
