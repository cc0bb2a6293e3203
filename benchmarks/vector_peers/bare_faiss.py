"""FAISS alone in a process, for scale: no ids, no metadata, no disk, no network."""

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.vector_peers.dataset import CATEGORIES, Dataset, Floats, K
from benchmarks.vector_peers.embedded import Embedded, Search
from benchmarks.vector_peers.system import Context, Setting

EF_SEARCH = (10, 16, 24, 32, 48, 64, 100, 150, 200, 300, 500)
# By kind: the recipe for faiss.index_factory, and the search settings to try.
KINDS: dict[str, tuple[str, list[Setting]]] = {
    "flat": ("Flat", [{}]),
    "hnsw": ("HNSW32,Flat", [{"efSearch": value} for value in EF_SEARCH]),
}
INDEX_FILE = "index.faiss"
CATEGORIES_FILE = "categories.npy"


class BareFaiss(Embedded):
    """Every thread searches for one query at a time, with one OpenMP thread."""

    name = "faiss"
    durability = "none: memory; the restart reads a file that write_index left"

    def __init__(self, context: Context, kind: str) -> None:
        super().__init__(context)
        self.label = f"{self.name} {kind}"
        self.python = Path(sys.executable)
        self.version = faiss.__version__
        self._kind = kind

    def load(self, data: Dataset) -> None:
        self.worker.call(build, self.directory, KINDS[self._kind][0], data)

    def build(self, data: Dataset) -> None:
        """Nothing is left to do: there are no items apart from the index."""

    def settings(self, data: Dataset) -> list[Setting]:
        return KINDS[self._kind][1]

    def searcher(self) -> Callable[[Path, Setting, str | None], Search]:
        return make_search


# What follows runs in the worker.


def build(directory: Path, recipe: str, data: Dataset) -> None:
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    made = faiss.index_factory(data.dimensions, recipe, faiss.METRIC_INNER_PRODUCT)
    vectors = np.ascontiguousarray(data.vectors())
    made.train(vectors)
    made.add(vectors)
    faiss.write_index(made, str(directory / INDEX_FILE))
    np.save(
        directory / CATEGORIES_FILE, np.array([CATEGORIES.index(name) for name in data.categories()], np.int8)
    )


@cache
def index(directory: Path) -> faiss.Index:
    return faiss.read_index(str(directory / INDEX_FILE))


@cache
def members(directory: Path, category: str) -> NDArray[np.uint8]:
    """One bit for each row."""
    return np.packbits(np.load(directory / CATEGORIES_FILE) == CATEGORIES.index(category), bitorder="little")


def make_search(directory: Path, setting: Setting, category: str | None) -> Search:
    searched = index(directory)
    parameters = None
    if setting or category is not None:
        kind: Any = faiss.SearchParameters
        if "efSearch" in setting:
            kind = faiss.SearchParametersHNSW  # type: ignore[attr-defined]
        selector = None
        if category is not None:
            selector = faiss.IDSelectorBitmap(members(directory, category))  # type: ignore[call-arg, arg-type]
        parameters = kind(sel=selector, **setting)

    def search(query: Floats) -> list[int]:
        faiss.omp_set_num_threads(1)  # OpenMP keeps it per calling thread
        _, rows = searched.search(query[None], K, params=parameters)
        found: list[int] = rows[0][rows[0] >= 0].tolist()
        return found

    return search
