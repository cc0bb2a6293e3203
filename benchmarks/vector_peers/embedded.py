"""Systems that are libraries: each in a process of its own, with threads of it as the clients."""

import itertools
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.vector_peers.client import Measured
from benchmarks.vector_peers.dataset import Floats
from benchmarks.vector_peers.system import Context, Ids, Setting, System
from benchmarks.vector_peers.worker import Worker

Search = Callable[[Floats], list[int]]


class Embedded(System):
    """No socket and no encoding lie between client and search: less work than the servers do."""

    transport = "none: a library, searched by threads of its process"
    python: Path

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        assert self._worker, "not started"
        return self._worker

    def start(self) -> None:
        self._worker = Worker(self.python, self.mark)

    def stop(self) -> None:
        if self._worker:
            self._worker.close()
            self._worker = None

    @abstractmethod
    def searcher(self) -> Callable[[Path, Setting, str | None], Search]:
        """A module-level function that, in the worker, makes the function which searches for one vector."""

    def search(
        self,
        queries: Floats,
        setting: Setting,
        category: str | None,
        clients: int,
        window: tuple[float, float] | None,
    ) -> tuple[Measured, Ids]:
        arguments = self.directory, setting, category
        return self.worker.call(search_in_threads, self.searcher(), arguments, queries, clients, window)


def search_in_threads(
    make: Callable[[Path, Setting, str | None], Search],
    arguments: tuple[Path, Setting, str | None],
    queries: Floats,
    clients: int,
    window: tuple[float, float] | None,
) -> tuple[Measured, Ids]:
    """The closed loop of `client`, as threads that call `make(*arguments)` instead of sending."""
    search = make(*arguments)
    numbered = enumerate(queries) if window is None else itertools.cycle(enumerate(queries))
    warm_up_s, seconds = window or (0, float("inf"))
    clock = time.perf_counter
    start = clock() + warm_up_s
    end = start + seconds
    taking = threading.Lock()
    measured = Measured()
    ids: Ids = {}

    def run() -> None:
        while (sent := clock()) < end:
            with taking:
                following = next(numbered, None)
            if following is None:
                return
            number, query = following
            found = search(query)
            now = clock()
            if start <= now <= end:
                measured.latencies.append(now - sent)
            ids.setdefault(number, found)

    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(run) for _ in range(clients)]:
            future.result()
    measured.seconds = clock() - start if window is None else seconds
    return measured, ids
