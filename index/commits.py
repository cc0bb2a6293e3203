"""Grouped commits: writes that wait for one another share one transaction, and one flush of the disk."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar, cast

import numpy as np

from index.errors import VectorIndexError
from index.items import Rowids, Vectors
from index.store import Store, Writer

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
NO_ROWIDS: Final = np.empty(0, np.int64)
MOST_WRITES: Final = 64
"""Of one transaction: the first of them waits for the last."""


@dataclass(frozen=True)
class Change(Generic[Result_co]):
    """What a write did to the rows: rowids removed, rowids added and their vectors; and its answer."""

    result: Result_co
    removed: Rowids = field(default_factory=NO_ROWIDS.copy)
    added: Rowids = field(default_factory=NO_ROWIDS.copy)
    vectors: Vectors | None = None


@dataclass(eq=False)
class _Waiting:
    write: Callable[[Writer], Change[object]]
    change: Change[object] | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.change is not None or self.error is not None


class GroupCommit:
    """Runs writes one after another; those that arrive while one commits share the next commit.

    `before` is called inside the transaction with its changes, `after` once it is on disk; both, like
    the writes, while holding `lock`.
    """

    def __init__(
        self,
        store: Store,
        before: Callable[[Writer, list[Change[object]]], None],
        after: Callable[[Writer], None],
    ) -> None:
        self.lock = threading.Lock()
        self._store = store
        self._before = before
        self._after = after
        self._arrivals = threading.Lock()
        self._waiting: list[_Waiting] = []

    def run(self, write: Callable[[Writer], Change[Result]]) -> Result:
        """`write`'s answer, once what it did is on disk.

        Raises what `write` raises; VectorIndexError of one write leaves the others of its group alone.
        Every other error is one of the files, and reaches all of them.
        """
        mine = _Waiting(write)
        with self._arrivals:
            self._waiting.append(mine)
        with self.lock:
            while not mine.done:  # else one that had the lock before did it too
                with self._arrivals:
                    group, self._waiting = self._waiting[:MOST_WRITES], self._waiting[MOST_WRITES:]
                self._commit(group)
        if mine.error:
            raise mine.error
        assert mine.change is not None
        return cast(Change[Result], mine.change).result

    def _commit(self, group: list[_Waiting]) -> None:
        changes: dict[_Waiting, Change[object]] = {}
        try:
            with self._store.transaction() as writer:
                for waiting in group:
                    try:
                        with _savepoint(writer):
                            changes[waiting] = waiting.write(writer)
                    except VectorIndexError as error:
                        waiting.error = error
                self._before(writer, list(changes.values()))
            self._after(writer)
        except BaseException as error:
            # One that is raised in many threads gathers their tracebacks, so each gets its own.
            for waiting in group:
                waiting.error = waiting.error or _copy(error)
        else:
            for waiting, change in changes.items():
                waiting.change = change


@contextmanager
def _savepoint(writer: Writer) -> Iterator[None]:
    writer.execute("SAVEPOINT one_write")
    try:
        yield
    except VectorIndexError:
        writer.execute("ROLLBACK TO one_write")
        writer.execute("RELEASE one_write")
        raise
    writer.execute("RELEASE one_write")


def _copy(error: BaseException) -> BaseException:
    return type(error)(*error.args) if isinstance(error, VectorIndexError) else error
