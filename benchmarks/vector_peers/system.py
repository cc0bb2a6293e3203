"""What every measured system can do, and what HTTP systems share."""

import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import processes
from benchmarks.vector_peers import client
from benchmarks.vector_peers.client import Measured
from benchmarks.vector_peers.dataset import Dataset, Floats
from benchmarks.vector_peers.worker import Worker

Setting = dict[str, int]
"""Search parameters by the system's own names."""
Ids = dict[int, list[int]]
"""By the query's number, the ids that were found for it."""

START_TIMEOUT_S = 180.0
POLL_S = 0.02
BATCH = 500  # items in one upsert over HTTP
LOADERS = 4  # connections that load over HTTP


@dataclass(frozen=True)
class Context:
    """What a run shares: the peers' Python, a load client running in it, a place for the systems' files."""

    peers_python: Path
    client: Worker
    directory: Path


class System(ABC):
    """A vector search system with one collection. Entering starts it empty, leaving removes it.

    Items come from a Dataset: an id, a vector and the metadata `category`. All compare by cosine, and
    every hit comes with its id, its score and its category.
    """

    name: ClassVar[str]
    label: str  # in tables: the name, with the kind of index where there is a choice
    version: str
    durability: ClassVar[str]  # of the load, with the system's own defaults
    transport: ClassVar[str]
    setting_takes_restart: ClassVar[bool] = False
    """Where True, `settings` go from the fastest to the one that finds most, and not all are tried."""

    settling_s: float = 0.0
    """The end of the last `build`, in which nothing happened any more: a wait to see that it was over."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.label = self.name
        self.mark = processes.new_mark()
        self._exit = ExitStack()

    def __enter__(self) -> "System":
        with ExitStack() as stack:
            self.directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=self.context.directory))
            self.directory.chmod(0o755)  # PostgreSQL runs as another user
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            stack.callback(processes.end_all, self.mark)
            stack.callback(self.stop)
            self.start()
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @abstractmethod
    def start(self) -> None:
        """Starts it on its files and returns when it answers."""

    @abstractmethod
    def stop(self) -> None:
        """Stops it cleanly; does nothing if it does not run."""

    @abstractmethod
    def load(self, data: Dataset) -> None:
        """Stores every item; returns when they are acknowledged."""

    @abstractmethod
    def build(self, data: Dataset) -> None:
        """Returns when the index that searches will use holds every item."""

    @abstractmethod
    def settings(self, data: Dataset) -> list[Setting]:
        """Search settings to try."""

    @abstractmethod
    def search(
        self,
        queries: Floats,
        setting: Setting,
        category: str | None,
        clients: int,
        window: tuple[float, float] | None,
    ) -> tuple[Measured, Ids]:
        """Searches for the K nearest of every query: once each, or over and over for a window of
        (warm-up, measured) seconds."""

    def processes(self) -> list[int]:
        return processes.marked(self.mark)

    def details(self) -> dict[str, Any]:
        """What else is worth knowing about the index."""
        return {}

    def bytes_on_disk(self) -> int:
        return processes.bytes_on_disk(self.directory)


class HttpSystem(System):
    """A server on loopback, loaded and searched by the raw-socket client."""

    transport = "HTTP, JSON"
    port: int

    @staticmethod
    @abstractmethod
    def upsert_request(path: str, ids: range, vectors: Floats, categories: Sequence[str]) -> bytes:
        """One whole HTTP request that stores these items. Called in the load client."""

    @abstractmethod
    def search_request(self, query: Floats, setting: Setting, category: str | None) -> bytes: ...

    @staticmethod
    @abstractmethod
    def found(body: bytes) -> list[int]:
        """The ids in an answer to a search."""

    def send_items(self, data: Dataset, path: str) -> None:
        endpoint = client.HttpEndpoint(self.port)
        self.context.client.call(upsert_all, endpoint, type(self).upsert_request, path, data)

    def search(
        self,
        queries: Floats,
        setting: Setting,
        category: str | None,
        clients: int,
        window: tuple[float, float] | None,
    ) -> tuple[Measured, Ids]:
        requests = [self.search_request(query, setting, category) for query in queries]
        measured = send(self.context, client.HttpEndpoint(self.port), requests, clients, window)
        return measured, {number: self.found(body) for number, body in measured.answers.items()}


def send(
    context: Context,
    endpoint: client.Endpoint,
    requests: list[bytes],
    clients: int,
    window: tuple[float, float] | None,
) -> Measured:
    if window is None:
        return context.client.call(client.send_each, endpoint, requests, clients)
    return context.client.call(client.search, endpoint, requests, clients, *window)


def upsert_all(
    endpoint: client.HttpEndpoint,
    encode: Callable[[str, range, Floats, Sequence[str]], bytes],
    path: str,
    data: Dataset,
) -> None:
    """Encodes and sends every batch. Runs in the load client."""
    client.send_each(endpoint, (encode(path, *batch) for batch in data.batches(BATCH)), LOADERS)


def wait_until(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Polls a starting server; raises RuntimeError with the end of its log if it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        if ready():
            return
        time.sleep(POLL_S)
    raise RuntimeError(f"{process.args!r} did not become ready:\n{log.read_text(errors='replace')[-4000:]}")
