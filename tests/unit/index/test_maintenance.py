"""What is due in the background, from the sizes of a collection's segments and of its rows in memory."""

import threading
from typing import Any

import numpy as np
import pytest

from index.ann import AUTO, KINDS, Stop
from index.flat import FlatRows
from index.maintenance import Maintenance, Work, due
from index.segment import Segment, SegmentView
from index.spec import Kind
from index.view import View
from tests.waiting import PATIENCE_S

MANY = AUTO[0][0]


def view(sizes: tuple[int, ...], tail: int, flat: bool = False) -> View:
    segments = []
    for number, size in enumerate(sizes):
        rowids, vectors = np.arange(size) + 10**6 * number, np.zeros((size, 1), np.float32)
        kind = None if flat else KINDS["hnsw"]
        segment = Segment(number, rowids, vectors, "l2", threads=1, kind=kind)
        segments.append(SegmentView(segment, np.ones(size, np.bool_)))
    rowids = np.arange(tail) + 10**9
    return View(segments, FlatRows(rowids, np.zeros((tail, 1), np.float32), "l2", threads=1))


@pytest.mark.parametrize(
    ("kind", "sizes", "tail", "quiet", "busy"),
    [
        ("hnsw", (), 1000, Work(0, 0, tail=True), None),
        ("hnsw", (12_000,), 999, None, None),
        ("hnsw", (12_000,), 1100, Work(1, 1, tail=True), None),
        ("hnsw", (12_000,), 2000, Work(0, 1, tail=True), None),  # a tenth and more: all in one
        ("hnsw", (50_000, 1500), 1500, Work(1, 2, tail=True), None),  # sizes at least double
        ("hnsw", (12_000, 1500), 1500, Work(0, 2, tail=True), None),
        ("hnsw", (12_000, 1500), 0, Work(0, 2, tail=False), None),
        ("hnsw", (50_000, 1500), 0, None, None),
        ("hnsw", (500_000,), 10_000, Work(1, 1, tail=True), Work(1, 1, tail=True)),
        ("flat", (500_000,), 9999, None, None),
        ("ivf-pq", (500_000,), 9999, None, None),
        ("auto", (MANY - 1001,), 1000, None, None),
        ("auto", (MANY - 1000,), 1000, Work(1, 1, tail=True), None),
    ],
)
def test_what_is_due(
    kind: Kind, sizes: tuple[int, ...], tail: int, quiet: Work | None, busy: Work | None
) -> None:
    for idle, work in ((True, quiet), (False, busy)):
        assert due(view(sizes, tail), kind, segment_rows=10_000, compact_ratio=0.2, idle=idle) == work


def test_flat_segments_get_an_index_once_the_rows_have_become_many() -> None:
    def work(kind: Kind, idle: bool) -> Work | None:
        segments = view((MANY, 1900), 0, flat=True)
        return due(segments, kind, segment_rows=10_000, compact_ratio=0.2, idle=idle)

    assert work("auto", idle=True) == Work(0, 1, tail=False)
    assert work("auto", idle=False) is None
    assert work("flat", idle=True) is None


@pytest.mark.parametrize(
    ("ratio", "dead", "work"), [(1, 99, None), (1, 100, Work(0, 1, False)), (0.2, 0, None)]
)
def test_a_segment_of_dead_rows_alone_is_always_dropped(ratio: float, dead: int, work: Work | None) -> None:
    of = view((100,), 0)
    (part,) = of.segments
    of = View([part.without(part.segment.rowids[:dead])], of.tail)
    assert due(of, "hnsw", segment_rows=10_000, compact_ratio=ratio, idle=False) == work


def test_a_collection_with_ever_more_to_do_leaves_the_others_their_turn() -> None:
    done: list[str] = []
    turn = threading.Event()

    class Busy:
        def __init__(self, name: str) -> None:
            self.name = name

        def maintain(self, stop: Stop) -> bool:
            done.append(self.name)
            if len(done) == 6:
                turn.set()
            return not turn.is_set()

    both: Any = [Busy("a"), Busy("b")]
    maintenance = Maintenance(lambda: both)
    assert turn.wait(PATIENCE_S)
    maintenance.stop()
    assert done[:6] == ["a", "b"] * 3
