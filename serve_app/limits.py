"""Load shed at the door: how much may be in flight, decided before any work is done."""

from collections.abc import Iterator
from contextlib import contextmanager

from configs.settings import LimitSettings
from deployments.errors import Overloaded
from serve_app.errors import ApiError


class Admission:
    """Counts the images and texts being worked on; asks callers to come back beyond the limit."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._inflight = 0

    @contextmanager
    def admit(self, items: int) -> Iterator[None]:
        """Hold room for `items` while the block runs. Raises Overloaded when there is none."""
        limit = self._limits.max_inflight_items
        if self._inflight and self._inflight + items > limit:
            raise Overloaded(
                f"{self._inflight} items are being worked on and at most {limit} may be at once; "
                f"try again in {self._limits.retry_after_s} s"
            )
        self._inflight += items
        try:
            yield
        finally:
            self._inflight -= items


def check_counts(images: int, texts: int, limits: LimitSettings) -> None:
    """Raises 413 when one request carries too many images or texts."""
    for count, limit, noun in (
        (images, limits.max_images, "images"),
        (texts, limits.max_texts, "texts"),
    ):
        if count > limit:
            message = f"the request has {count} {noun}; at most {limit} are accepted, so split it"
            raise ApiError(413, "too_many_items", message, "input")
