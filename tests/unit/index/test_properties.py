"""A collection against a dictionary, under any sequence of operations."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from configs.settings import IndexSettings
from index.catalog import Catalog
from index.collection import Collection
from index.items import Include, Item, Vectors
from index.spec import CollectionSpec, Metric

IDS = st.sampled_from(["a", "b", "c", "é", "x'--", "\0"])
VECTORS = st.tuples(st.integers(-4, 4), st.integers(-4, 4)).filter(any)
GROUPS = st.integers(0, 2)
ENTRIES = st.tuples(IDS, VECTORS, GROUPS)
PLACES = st.floats(0, 1, exclude_max=True)
ALL: Include = frozenset({"metadata", "vector"})


class CollectionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.catalog = open_catalog(Path(self.directory.name))
        self.model: dict[str, tuple[Vectors, int]] = {}
        self.metric: Metric = "cosine"

    def teardown(self) -> None:
        self.catalog.close()
        self.directory.cleanup()

    @property
    def collection(self) -> Collection:
        return self.catalog.get("c")

    @initialize(metric=st.sampled_from(["cosine", "dot", "l2"]))
    def create(self, metric: Metric) -> None:
        self.metric = metric
        self.catalog.create(CollectionSpec(name="c", dimensions=2, metric=metric))

    @rule(entries=st.lists(ENTRIES, max_size=5))
    def upsert(self, entries: list[tuple[str, tuple[int, int], int]]) -> None:
        self.collection.upsert([Item(id, vector, {"group": group}) for id, vector, group in entries])
        for id, (vector, group) in {id: (vector, group) for id, vector, group in entries}.items():
            stored = np.array(vector, np.float32)
            if self.metric == "cosine":
                stored = (stored / np.linalg.norm(stored.astype(np.float64))).astype(np.float32)
            self.model.pop(id, None)  # moves to the end, as paging does
            self.model[id] = stored, group

    @rule(ids=st.lists(IDS, max_size=3))
    def delete(self, ids: list[str]) -> None:
        assert self.collection.delete(ids) == len(set(ids) & self.model.keys())
        for id in ids:
            self.model.pop(id, None)

    @rule(group=GROUPS)
    def delete_where(self, group: int) -> None:
        doomed = [id for id, (_, its) in self.model.items() if its == group]
        assert self.collection.delete_where(filter_on(group)) == len(doomed)
        for id in doomed:
            del self.model[id]

    @rule()
    def reopen(self) -> None:
        self.catalog.close()
        self.catalog = open_catalog(self.catalog.root)

    @rule()
    def maintain(self) -> None:
        while self.collection.maintain():
            pass
        info = self.collection.info()
        assert info.tombstones <= 0.4 * (info.count + info.tombstones)
        assert info.problem is None

    @rule(file=PLACES, place=PLACES)
    def damage_a_snapshot_and_reopen(self, file: float, place: float) -> None:
        self.catalog.close()
        if files := sorted(self.catalog.root.glob("c/ann/*/*")):
            damage(files[int(file * len(files))], place)
        self.catalog = open_catalog(self.catalog.root)

    @rule(query=VECTORS, limit=st.integers(1, 8), group=st.none() | GROUPS, exclude=st.none() | IDS)
    def search(self, query: tuple[int, int], limit: int, group: int | None, exclude: str | None) -> None:
        (hits,) = self.collection.search(
            [query], limit, filter=filter_on(group), include=ALL, exclude=[exclude]
        )
        wanted = {
            id: self.score(query, vector)
            for id, (vector, its) in self.model.items()
            if group in (None, its) and id != exclude
        }
        assert len(hits) == len({hit.id for hit in hits}) == min(limit, len(wanted))
        best = sorted(wanted.values(), reverse=True)[:limit]
        assert np.allclose([hit.score for hit in hits], best, atol=1e-5)
        for hit in hits:
            vector, its = self.model[hit.id]
            assert np.isclose(hit.score, wanted[hit.id], atol=1e-5)
            assert hit.metadata == {"group": its}
            assert hit.vector is not None
            assert np.array_equal(hit.vector, vector)

    def score(self, query: tuple[int, int], vector: Vectors) -> float:
        wide, target = np.array(query, np.float64), vector.astype(np.float64)
        if self.metric == "l2":
            return -float(((wide - target) ** 2).sum())
        return float(wide @ target / (np.linalg.norm(wide) if self.metric == "cosine" else 1))

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        if "c" not in [collection.spec.name for collection in self.catalog.list()]:
            return
        records = self.collection.page(100, include=ALL).records
        assert [(record.id, record.metadata) for record in records] == [
            (id, {"group": group}) for id, (_, group) in self.model.items()
        ]
        info = self.collection.info()
        assert info.count == len(self.model)


def open_catalog(root: Path) -> Catalog:
    """With segments of a few rows, written when the test asks for it."""
    settings = IndexSettings(compact_ratio=0.4, threads=1, segment_rows=4, merge_idle_s=0.001)
    return Catalog(root, settings, maintenance=False)


def damage(file: Path, place: float) -> None:
    """Change one byte, or cut the file off there."""
    content = bytearray(file.read_bytes())
    at = int(place * len(content))
    content[at] ^= 0x55
    file.write_bytes(content if at % 2 else content[:at])


def filter_on(group: int | None) -> dict[str, Any]:
    return {} if group is None else {"must": [{"key": "group", "match": {"value": group}}]}


CollectionMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25)
TestCollection = CollectionMachine.TestCase
