"""Writes that wait for one another share a commit, and nothing else."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from index.commits import Change, GroupCommit
from index.errors import BadItem, IndexUnavailable
from index.spec import CollectionSpec
from index.store import Row, Store, Writer
from tests.waiting import PATIENCE_S, wait_until


class Counted(Store):
    """Counts its transactions, and holds the first up until it is let go."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.transactions = 0
        self.begun, self.go = threading.Event(), threading.Event()

    @contextmanager
    def transaction(self) -> Iterator[Writer]:
        self.transactions += 1
        with super().transaction() as writer:
            self.begun.set()
            assert self.go.wait(PATIENCE_S)
            yield writer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Counted]:
    store = Counted.create(tmp_path, CollectionSpec(name="c", dimensions=1), 0)
    yield store
    store.close(IndexUnavailable("over"))


def put(id: str) -> Callable[[Writer], Change[str]]:
    def write(writer: Writer) -> Change[str]:
        writer.put([Row(id, "{}", bytes(4), None)])
        if id.startswith("bad"):
            raise BadItem(f"{id} is refused")
        return Change(id)

    return write


def together(commits: GroupCommit, store: Counted, ids: list[str]) -> list[Any]:
    """Outcomes of writes that all wait while another commits."""
    outcomes: dict[str, Any] = {}

    def run(id: str) -> None:
        try:
            outcomes[id] = commits.run(put(id))
        except Exception as error:
            outcomes[id] = error

    threads = [threading.Thread(target=run, args=(id,)) for id in ["first", *ids]]
    threads[0].start()
    assert store.begun.wait(PATIENCE_S)
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: len(commits._waiting) == len(ids), what="writes that wait", every_s=0.001)
    store.go.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    return [outcomes[id] for id in ids]


def stored(store: Store) -> int:
    with store.snapshot() as reader:
        return len(reader.rowids())


def test_those_that_wait_share_one_transaction(store: Counted) -> None:
    commits = GroupCommit(store, lambda writer, changes: None, lambda writer: None)
    ids = [f"id{n}" for n in range(20)]
    assert together(commits, store, ids) == ids
    assert store.transactions == 2
    assert stored(store) == 21


def test_no_more_than_so_many_share_one(store: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.commits.MOST_WRITES", 5)
    commits = GroupCommit(store, lambda writer, changes: None, lambda writer: None)
    ids = [f"id{n}" for n in range(20)]
    assert together(commits, store, ids) == ids
    assert store.transactions == 5


def test_one_that_is_refused_leaves_the_others_alone_and_nothing_behind(store: Counted) -> None:
    seen: list[int] = []
    commits = GroupCommit(store, lambda writer, changes: seen.append(len(changes)), lambda writer: None)
    good, bad, other = together(commits, store, ["good", "bad", "other"])
    assert (good, other) == ("good", "other")
    assert isinstance(bad, BadItem)
    assert store.transactions == 2
    assert seen == [1, 2]
    with store.snapshot() as reader:
        assert reader.present(["first", "good", "bad", "other"]) == {"first", "good", "other"}


def test_an_error_of_the_files_reaches_each_with_a_traceback_of_its_own(store: Counted) -> None:
    def fail(_: Writer, changes: list[Change[object]]) -> None:
        if len(changes) > 1:
            raise IndexUnavailable("the disk is full")

    commits = GroupCommit(store, fail, lambda writer: None)
    errors = together(commits, store, ["a", "b", "c"])
    assert [str(error) for error in errors] == ["the disk is full"] * 3
    assert len({id(error) for error in errors}) == 3
    assert stored(store) == 1
