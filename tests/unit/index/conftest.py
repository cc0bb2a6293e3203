"""A catalog on a temporary directory, with real SQLite and FAISS."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from index.catalog import Catalog
from index.collection import Collection
from index.spec import CollectionSpec


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog(tmp_path / "index") as catalog:
        yield catalog


@pytest.fixture
def points(catalog: Catalog) -> Collection:
    """Raw vectors in the plane under l2: the score is minus the squared distance."""
    return catalog.create(CollectionSpec(name="points", dimensions=2, metric="l2"))
