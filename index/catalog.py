"""All collections of a data directory: create, open, list, delete."""

import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from uuid import uuid4

from configs.settings import NAME_PATTERN, IndexSettings, LimitSettings
from configs.threads import threads_for
from index.collection import Collection
from index.errors import CollectionNotFound, IndexUnavailable
from index.info import CollectionInfo
from index.maintenance import Maintenance
from index.snapshots import sync_directory
from index.spec import CollectionSpec
from index.store import DAMAGED, FILE_NAME, Store

LOCK_NAME = ".lock"
UNFINISHED = ".unfinished-"
"""Prefix of directories being created or deleted; no collection's name can start with a dot."""
LOCK_POLL_S = 0.05


class Catalog:
    """Every collection under `root`, each in a directory of its name; the only writer there.

    Safe to use from many threads. A collection that cannot be opened does not keep the others from
    it: its error is in `unavailable`, `get` raises it, and the next `get` tries again.
    """

    def __init__(
        self,
        root: Path,
        settings: IndexSettings | None = None,
        limits: LimitSettings | None = None,
        *,
        lock_timeout_s: float = 0,
        maintenance: bool = True,
    ) -> None:
        """Open `root`, made if missing, and all its collections.

        Waits up to `lock_timeout_s` for another process that has it open. With `maintenance` a thread
        does what is due in the background; without, nobody calls `Collection.maintain` but the caller.

        Raises:
            IndexUnavailable: it cannot be written to, or another process has it open.
        """
        self.root = root
        self._settings = settings or IndexSettings()
        self._limits = limits or LimitSettings()
        self._lock = threading.RLock()
        self._closed = False
        self._maintenance: Maintenance | None = None
        self._names: set[str] = set()
        self._open: dict[str, Collection] = {}
        self._unavailable: dict[str, IndexUnavailable] = {}
        with _file_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            self._lock_file = locked(root / LOCK_NAME, lock_timeout_s)
            self._lock_stat = os.fstat(self._lock_file.fileno())
        try:
            with _file_errors(root):
                for leftover in root.glob(f"{UNFINISHED}*"):
                    shutil.rmtree(leftover)
                self._names = {path.name for path in collection_directories(root)}
            for name in sorted(self._names):
                with suppress(IndexUnavailable):
                    self._opened(name)
            if maintenance:
                self._maintenance = Maintenance(self.list)
        except BaseException:
            self.close()
            raise

    def create(self, spec: CollectionSpec) -> Collection:
        """A new collection, or the existing one if it has the same settings.

        Raises:
            CollectionExists, ModelMismatch: it exists with other settings, or filled by another model.
            IndexUnavailable: the files cannot be written.
        """
        with self._using():
            if spec.name in self._names:
                collection = self._opened(spec.name)
                collection.spec.check_same(spec)
                return collection
            with _file_errors(self.root):
                unfinished = self.root / f"{UNFINISHED}{uuid4().hex}"
                unfinished.mkdir()
                try:
                    store = Store.create(unfinished, spec, created=int(time.time()))
                    store.close(IndexUnavailable("the collection is being created"))
                    sync_directory(unfinished)
                    unfinished.rename(self.root / spec.name)
                except BaseException:
                    shutil.rmtree(unfinished, ignore_errors=True)
                    raise
                self._names.add(spec.name)
                sync_directory(self.root)
            return self._opened(spec.name)

    def get(self, name: str) -> Collection:
        """Raises CollectionNotFound, or IndexUnavailable if its files cannot be used."""
        if collection := self._open.get(name):
            return collection
        with self._using():
            if name not in self._names:
                raise CollectionNotFound(f"there is no collection {name!r}")
            return self._opened(name)

    def opened(self, name: str) -> Collection | None:
        """The collection if it is open; waits for nothing."""
        return self._open.get(name)

    def list(self) -> list[Collection]:
        """The collections that are open, by name."""
        with self._lock:
            return [collection for _, collection in sorted(self._open.items())]

    def infos(self) -> dict[str, CollectionInfo | IndexUnavailable]:
        """Every collection, by name: its numbers, or why it cannot be used."""
        infos: dict[str, CollectionInfo | IndexUnavailable] = {**self.unavailable}
        for collection in self.list():
            name = collection.spec.name
            try:
                infos[name] = collection.info()
            except CollectionNotFound:  # deleted in between
                infos.pop(name, None)
            except IndexUnavailable as error:
                infos[name] = error
        return dict(sorted(infos.items()))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty directory on the disk of the collections, gone after the block or at the next start."""
        directory = self.root / f"{UNFINISHED}{uuid4().hex}"
        with _file_errors(self.root):
            directory.mkdir()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def unavailable(self) -> dict[str, IndexUnavailable]:
        """The collections that did not open, by name, and why. Waits for no other call."""
        return dict(sorted(self._unavailable.copy().items()))

    def check(self) -> None:
        """Raise IndexUnavailable if the directory cannot be used. Waits for no other call."""
        if self._closed:
            raise IndexUnavailable("the index is closed")
        with _file_errors(self.root):
            if not os.path.samestat(os.stat(self.root / LOCK_NAME), self._lock_stat):
                raise IndexUnavailable(
                    f"the index directory {self.root.name!r} was replaced while in use; restart to read it"
                )

    def delete(self, name: str) -> None:
        """Remove a collection and its files, readable or not. Raises CollectionNotFound, IndexUnavailable."""
        with self._using():
            if name not in self._names:
                raise CollectionNotFound(f"there is no collection {name!r}")
            if collection := self._open.pop(name, None):
                collection.close(CollectionNotFound(f"collection {name!r} was deleted"))
            with _file_errors(self.root):
                doomed = (self.root / name).rename(self.root / f"{UNFINISHED}{uuid4().hex}")
                self._names.remove(name)
                self._unavailable.pop(name, None)
                sync_directory(self.root)
        shutil.rmtree(doomed, ignore_errors=True)  # what is left goes at the next start

    def close(self) -> None:
        """Close every collection and let another process open the directory."""
        if self._maintenance:
            self._maintenance.stop()
        with self._lock:
            for collection in self._open.values():
                collection.close()
            self._open.clear()
            self._closed = True
            self._lock_file.close()

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise IndexUnavailable("the index is closed")
            yield

    def _opened(self, name: str) -> Collection:
        """The collection, opened if it is not yet; the caller holds the lock."""
        if collection := self._open.get(name):
            return collection
        self._unavailable.pop(name, None)
        try:
            collection = Collection(
                self.root / name,
                self._settings,
                threads=threads_for(self._settings.threads, self._settings.cpus),
                max_metadata_bytes=self._limits.max_metadata_bytes,
            )
        except IndexUnavailable as error:
            self._unavailable[name] = error
            raise
        except Exception as error:  # what is damaged is met with errors of every kind
            reason = f"({type(error).__name__}: {error}): {DAMAGED}"
            if isinstance(error, MemoryError):
                reason = "now: there is not enough memory for it; free some and ask again"
            unavailable = IndexUnavailable(f"collection {name!r} cannot be opened {reason}")
            self._unavailable[name] = unavailable
            raise unavailable from error
        self._open[name] = collection
        return collection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def collection_directories(root: Path) -> list[Path]:
    """Every collection's directory, by name; also of one whose database is gone."""
    entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    return [
        path
        for path in entries
        if path.is_dir() and (re.fullmatch(NAME_PATTERN, path.name) or (path / FILE_NAME).exists())
    ]


def locked(path: Path, timeout_s: float) -> IO[bytes]:
    """The file, held by this process until it is closed; the system lets go of it if the process dies."""
    file = path.open("ab")
    give_up = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= give_up:
                file.close()
                raise IndexUnavailable(
                    f"{path.parent.name!r} is open in another process; a data directory has one writer"
                ) from None
        time.sleep(LOCK_POLL_S)


@contextmanager
def _file_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IndexUnavailable(
            f"the index directory {root.name!r} cannot be used: {error.strerror}"
        ) from error
