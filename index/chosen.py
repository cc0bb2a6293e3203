"""Which rows of a view pass a filter, and the filters that it was asked for last."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from index.items import Rowids

KEPT_BYTES: Final = 16 * 1024 * 1024
"""Of the filters kept with one view: two million rows, however many filters they passed."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Positions of rows in each segment of a view and, at the end, in its tail; each ascending."""

    parts: tuple[Rowids, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


class RecentFilters:
    """What passed the filters asked for last. It belongs to one view, so a write leaves it behind."""

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._chosen: OrderedDict[str, Chosen] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, filter: str) -> Chosen | None:
        with self._lock:
            chosen = self._chosen.get(filter)
            if chosen is not None:
                self._chosen.move_to_end(filter)
            return chosen

    def keep(self, filter: str, chosen: Chosen) -> None:
        """Unless it is too large for a quarter of the room, in place of those not asked for longest."""
        size = _size(filter, chosen)
        with self._lock:
            if size * 4 > self._most_bytes or filter in self._chosen:
                return
            self._chosen[filter] = chosen
            self._bytes += size
            while self._bytes > self._most_bytes:
                self._bytes -= _size(*self._chosen.popitem(last=False))


def _size(filter: str, chosen: Chosen) -> int:
    return len(filter) + chosen.nbytes + 1000  # the objects themselves
