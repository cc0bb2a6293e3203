"""Work on collections in the background: moving rows into segments, merging those, dropping tombstones."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from index.ann import kind_for
from index.spec import Kind
from index.view import View

if TYPE_CHECKING:
    from index.collection import Collection

POLL_S: Final = 0.5
RETRY_S: Final = 60.0
"""After a failure, such as a full disk."""
IDLE_SHARE: Final = 10
"""In quiet times smaller segments join the largest once they hold one row in so many."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """Rewrite the segments `first` to `last` (exclusive), and the tail if so, as one segment."""

    first: int
    last: int
    tail: bool


def due(view: View, kind: Kind, *, segment_rows: int, compact_ratio: float, idle: bool) -> Work | None:
    """What should be rewritten now, if anything.

    A full tail becomes a segment, together with the segments before it that are no larger than
    what has come together so far: so the sizes at least double from one to the next older, there are
    few segments, and a row is rewritten a logarithmic number of times. In quiet times so does one that an
    index would search faster, or a segment; and segments that are small beside the largest join it.
    """
    segments = view.segments
    sizes = [part.living for part in segments]
    rows = view.tail.living
    if rows >= segment_rows or (idle and kind_for(kind, rows, view.living)):
        first = len(segments)
        while first and sizes[first - 1] <= rows:
            first -= 1
            rows += sizes[first]
        if idle and _should_join([*sizes[:first], rows]):
            first = 0
        return Work(first, len(segments), tail=True)
    for place, part in enumerate(segments):
        if compaction_due(part.size - part.living, part.size, compact_ratio):
            return Work(place, place + 1, tail=False)
    if idle and _should_join(sizes):
        return Work(0, len(segments), tail=False)
    for place, part in enumerate(segments if idle else ()):
        # Flat, for the rows were few then.
        if part.segment.kind is None and kind_for(kind, part.living, view.living):
            return Work(place, place + 1, tail=False)
    return None


def compaction_due(dead: int, rows: int, compact_ratio: float) -> bool:
    """Whether so many of the rows are dead that the others should be rewritten without them."""
    return dead > compact_ratio * rows or 0 < dead == rows


def _should_join(sizes: Sequence[int]) -> bool:
    """Whether all but the largest are enough to be worth rewriting it."""
    return len(sizes) > 1 and (sum(sizes) - max(sizes)) * IDLE_SHARE >= sum(sizes)


class Maintenance:
    """A thread that does what is due in every collection, a piece of each in turn, until it is stopped."""

    def __init__(self, collections: Callable[[], Iterable["Collection"]]) -> None:
        self._collections = collections
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="index-maintenance", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns once the work under way was given up, which is soon except while training."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        pause_until: WeakKeyDictionary[Collection, float] = WeakKeyDictionary()
        more = False
        while not self._stop.wait(0 if more else POLL_S):
            more = False
            for collection in self._collections():
                if self._stop.is_set() or time.monotonic() < pause_until.get(collection, 0):
                    continue
                try:
                    more |= collection.maintain(self._stop.is_set)
                except Exception as error:
                    # Searches and writes go on without it; `info` shows the reason.
                    logger.warning("maintenance of %r failed: %s", collection.spec.name, error)
                    pause_until[collection] = time.monotonic() + RETRY_S
