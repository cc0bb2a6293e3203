"""LanceDB's open source library, which has no server: embedded in a process of its own."""

from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.vector_peers.dataset import Dataset, Floats, K
from benchmarks.vector_peers.embedded import Embedded, Search
from benchmarks.vector_peers.system import Context, Setting

# By kind: numbers of partitions to search, and how many times K candidates to compare by their full vectors.
INDEXES = {
    "IVF_HNSW_SQ": ((1, 2, 4, 8), (1, 2, 3, 5, 10)),
    "IVF_PQ": ((1, 2, 4, 8, 16, 32), (5, 10, 20, 50)),
}
WRITE_ROWS = 10_000


class LanceDb(Embedded):
    """IVF_PQ is what create_index makes by default; IVF_HNSW_SQ was the faster of the two at this recall."""

    name = "lancedb"
    durability = "files written without fsync"

    def __init__(self, context: Context, kind: str) -> None:
        super().__init__(context)
        self.label = f"{self.name} {kind}"
        self._kind = kind
        self.python = context.peers_python
        self.version = context.client.call(installed_version, "lancedb")

    def load(self, data: Dataset) -> None:
        self.worker.call(create_table, self.directory, data)

    def build(self, data: Dataset) -> None:
        self.worker.call(create_indexes, self.directory, self._kind)

    def settings(self, data: Dataset) -> list[Setting]:
        probes, refine = INDEXES[self._kind]
        return [{"nprobes": p, "refine_factor": r} for p in probes for r in refine]

    def searcher(self) -> Callable[[Path, Setting, str | None], Search]:
        return make_search


# What follows runs in the worker.


@cache
def table(directory: Path) -> Any:
    import lancedb

    return lancedb.connect(directory / "data").open_table("items")


def create_table(directory: Path, data: Dataset) -> None:
    import lancedb
    import pyarrow as pa

    schema = pa.schema(
        {"id": pa.int64(), "vector": pa.list_(pa.float32(), data.dimensions), "category": pa.string()}
    )

    def batches() -> Iterator[Any]:
        for ids, vectors, categories in data.batches(WRITE_ROWS):
            rows = pa.FixedSizeListArray.from_arrays(vectors.ravel(), data.dimensions)
            yield pa.RecordBatch.from_arrays([pa.array(ids), rows, pa.array(categories)], schema=schema)

    lancedb.connect(directory / "data").create_table("items", batches(), schema=schema)


def create_indexes(directory: Path, kind: str) -> None:
    table(directory).create_index("cosine", vector_column_name="vector", index_type=kind)
    table(directory).create_scalar_index("category", index_type="BITMAP")


def make_search(directory: Path, setting: Setting, category: str | None) -> Search:
    opened = table(directory)

    def search(query: Floats) -> list[int]:
        builder = opened.search(np.asarray(query), vector_column_name="vector").distance_type("cosine")
        builder = builder.select(["id", "category", "_distance"]).limit(K)
        builder = builder.nprobes(setting["nprobes"]).refine_factor(setting["refine_factor"])
        if category is not None:
            builder = builder.where(f"category = '{category}'", prefilter=True)
        ids: list[int] = builder.to_arrow()["id"].to_pylist()
        return ids

    return search
