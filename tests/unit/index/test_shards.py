"""Where items go is fixed for ever, spreads evenly, and a directory keeps its number of shards."""

from collections import Counter
from pathlib import Path

import pytest

from index.catalog import Catalog
from index.errors import IndexUnavailable
from index.shards import check_shard_count, shard_directory, shard_of
from index.spec import CollectionSpec


def test_the_hash_is_part_of_the_format_on_disk() -> None:
    ids = ["a", "b", "photo/1.jpg", "日本", "x" * 512]
    assert [shard_of(id, 3) for id in ids] == [2, 2, 1, 0, 0]
    assert [shard_of(id, 7) for id in ids] == [2, 5, 6, 2, 1]
    assert {shard_of(id, 1) for id in ids} == {0}
    assert 0 <= shard_of("\ud800", 3) < 3  # no id, which its shard will say


def test_ids_spread_evenly() -> None:
    counts = Counter(shard_of(f"item-{n}", 4) for n in range(4000))
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(900 < count < 1100 for count in counts.values())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "index"


def fill(root: Path, shard: int, shards: int, name: str = "a") -> None:
    with Catalog(shard_directory(root, shard, shards)) as catalog:
        catalog.create(CollectionSpec(name=name, dimensions=2))


def test_any_number_suits_an_empty_directory(root: Path) -> None:
    check_shard_count(root, 3)
    with Catalog(shard_directory(root, 0, 1)):
        pass
    check_shard_count(root, 3)


@pytest.mark.parametrize(("written", "asked"), [(1, 3), (3, 1), (3, 2)])
def test_another_number_of_shards_is_refused(root: Path, written: int, asked: int) -> None:
    fill(root, 0, written)
    check_shard_count(root, written)
    with pytest.raises(IndexUnavailable, match=f"set index.shards={written}") as caught:
        check_shard_count(root, asked)
    assert f"index.shards={asked} would not find its items" in str(caught.value)


def test_a_collection_may_be_called_like_a_shard(root: Path) -> None:
    fill(root, 0, 1, name="shard-0-of-3")
    check_shard_count(root, 1)
    with pytest.raises(IndexUnavailable):
        check_shard_count(root, 3)
