"""What indexed metadata keys cost a write and save a filter: one store for each number of keys, same items.

Without an index a filter reads the metadata of every item, up to a microsecond for each condition. With one
it reads a stretch of the key table, so its time goes with the items it finds. A write pays for every key with
an entry in that table, in the order of its values. One JSON line for each measurement.

    python -m benchmarks.filters --items 1000000
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import IndexUnavailable
from index.filters import compile_filter
from index.items import metadata_text
from index.spec import CollectionSpec
from index.store import Row, Store

DIMENSIONS = 8  # vectors are not what is measured
KEYS = ("share", "price", "tags", "author.name")
KEY_COUNTS = (0, 1, 4)
REPEATS = 3  # the fastest counts: the others met something else on the machine
TIMEOUT_S = 600.0


def match(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "match": {"value": value}}


FILTERS: dict[str, dict[str, Any]] = {
    "match 1%": {"must": [match("share", "1%")]},
    "match 10%": {"must": [match("share", "10%")]},
    "match 50%": {"must": [match("share", "50%")]},
    "match any of 3, 61%": {"must": [{"key": "share", "match": {"any": ["1%", "10%", "50%"]}}]},
    "range 1%": {"must": [{"key": "price", "range": {"lt": 1}}]},
    "range 50%": {"must": [{"key": "price", "range": {"lt": 50}}]},
    "match in arrays 20%": {"must": [match("tags", "t3")]},
    "nested match 0.1%": {"must": [match("author.name", "author 7")]},
    "match 1% and never indexed": {"must": [match("share", "1%"), match("stock", True)]},
    "match 10% and range 50%": {"must": [match("share", "10%"), {"key": "price", "range": {"lt": 50}}]},
    "all but 10%": {"must_not": [match("share", "10%")]},
    "never indexed": {"must": [match("stock", True)]},
}


def rows(count: int, seed: int) -> Iterator[Row]:
    draw = random.Random(seed)
    vector = np.ones(DIMENSIONS, "<f4").tobytes()
    for number in range(count):
        metadata = {
            "title": f"the title of item {number}",
            "share": draw.choices(("1%", "10%", "50%", "the rest"), (1, 10, 50, 39))[0],
            "price": round(draw.uniform(0, 100), 2),
            "tags": [f"t{draw.randrange(10)}", f"t{draw.randrange(10)}"],
            "author": {"name": f"author {draw.randrange(1000)}"},
            "stock": draw.random() < 0.5,
        }
        yield Row(f"item {number}", metadata_text(metadata, 2**16), vector, None)


def batches(count: int, size: int, seed: int) -> Iterator[list[Row]]:
    stream = rows(count, seed)
    while batch := [row for row, _ in zip(stream, range(size), strict=False)]:
        yield batch


def write_s(store: Store, count: int, batch: int, seed: int) -> float:
    """Seconds in the store, a transaction a batch."""
    spent = 0.0
    for batch_rows in batches(count, batch, seed):
        start = time.perf_counter()
        with store.transaction() as writer:
            writer.put(batch_rows)
        store.limit_wal()
        spent += time.perf_counter() - start
    return spent


def measure(directory: Path, keys: tuple[str, ...], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    spec = CollectionSpec(name="benchmark", dimensions=DIMENSIONS, indexed_keys=keys)
    store = Store.create(directory, spec, created=0)
    try:
        spent = write_s(store, options.items, options.batch, seed=0)
        yield {"scenario": "insert", "items_per_s": round(options.items / spent)}
        replaced = min(options.items, options.replaced)
        spent = write_s(store, replaced, options.batch, seed=0)
        yield {"scenario": "replace", "items_per_s": round(replaced / spent)}
        yield {"scenario": "size", "bytes_per_item": round(store.bytes_on_disk() / options.items)}
        for name, filter in FILTERS.items():
            times = []
            for _ in range(REPEATS):
                with store.snapshot() as reader:
                    start = time.perf_counter()
                    found = reader.matching(compile_filter(filter, spec.indexed_keys), TIMEOUT_S)
                    times.append(time.perf_counter() - start)
            yield {"scenario": name, "ms": round(1e3 * min(times), 1), "found": len(found)}
    finally:
        store.close(IndexUnavailable("the benchmark is over"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes and filters with 0, 1 and 4 indexed metadata keys")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--replaced", type=int, default=50_000, help="items written a second time")
    parser.add_argument("--batch", type=int, default=1000, help="items a transaction")
    options = parser.parse_args()
    for count in KEY_COUNTS:
        with tempfile.TemporaryDirectory() as directory:
            for result in measure(Path(directory), KEYS[:count], options):
                print(
                    json.dumps({"benchmark": "filters", **vars(options), "indexed_keys": count, **result}),
                    flush=True,
                )


if __name__ == "__main__":
    main()
