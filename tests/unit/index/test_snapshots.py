"""Snapshots of segments: used after a restart, and rebuilt from the database when anything is wrong."""

import json
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.settings import IndexSettings
from index import ann, snapshots
from index.catalog import Catalog
from index.check import problems
from index.collection import Collection
from index.errors import IndexUnavailable
from index.items import Item
from index.spec import CollectionSpec
from index.store import FILE_NAME
from tests.unit.index.test_kinds import COUNT, DIMENSIONS, clustered

SETTINGS = IndexSettings(threads=1, segment_rows=1000, merge_idle_s=1000)
VECTORS = clustered(COUNT, seed=1)


def fill(root: Path) -> None:
    """Two segments, 400 rows after them, ten deleted and ten replaced in the first."""
    with Catalog(root, SETTINGS, maintenance=False) as catalog:
        collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind="hnsw"))
        for first, last in ((0, 1600), (1600, 2600), (2600, COUNT)):
            collection.upsert([Item(str(row), VECTORS[row]) for row in range(first, last)])
            collection.maintain()
        collection.delete(map(str, range(10)))
        collection.upsert([Item(str(row), -VECTORS[row]) for row in range(10, 20)])


def assert_whole(collection: Collection) -> None:
    """Every item is found by its own vector, and what was deleted or replaced is not."""
    assert collection.info().count == COUNT - 10
    expected = np.concatenate([-VECTORS[10:20], VECTORS[20:]])
    found = collection.search(expected, 1, exact=True)
    assert [hits[0].id for hits in found] == [str(row) for row in range(10, COUNT)]
    assert all(hits[0].score == pytest.approx(1, abs=1e-5) for hits in found)
    old = collection.search(VECTORS[:20], 1)
    assert all(hits[0].score < 0.9999 for hits in old)


def segments(root: Path) -> list[Path]:
    return sorted((root / "c" / "ann").iterdir())


def test_a_restart_uses_the_snapshots_and_adds_what_came_after(tmp_path: Path) -> None:
    fill(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c" / "ann").rglob("*")}
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        info = catalog.get("c").info()
        assert (info.segments, info.actual_kind, info.tombstones) == (2, "hnsw", 20)
        assert info.recall is not None
        assert_whole(catalog.get("c"))
        assert not catalog.get("c").maintain()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "c" / "ann").rglob("*")}


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For copies."""
    root = tmp_path_factory.mktemp("filled")
    fill(root)
    return root


@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink])
@pytest.mark.parametrize("file", ["manifest.json", "vectors.npy", "rowids.npy", "index.faiss"])
@pytest.mark.parametrize("segment", [0, 1])
def test_a_damaged_snapshot_is_rebuilt(
    tmp_path: Path, filled: Path, segment: int, file: str, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    damage(segments(tmp_path)[segment] / file)
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        collection = catalog.get("c")
        assert collection.info().segments == segment  # those before it are still good
        assert_whole(collection)
        while collection.maintain():
            pass
        assert_whole(collection)
        assert collection.info().segments == segment + 1
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        assert catalog.get("c").info().segments == segment + 1
        assert_whole(catalog.get("c"))


@pytest.mark.parametrize("key", ["effort", "recall", "first_row", "bytes"])
def test_a_changed_digit_in_a_manifest_is_damage(tmp_path: Path, key: str) -> None:
    fill(tmp_path)
    manifest = segments(tmp_path)[1] / "manifest.json"
    changed = re.sub(
        rf'("{key}": [^\n]*)\d', r"\1 ", manifest.read_text(), count=1
    )  # the last becomes a space
    assert json.loads(changed) != json.loads(manifest.read_text())
    manifest.write_text(changed)
    assert [problem for problem in problems(tmp_path) if "segment 000002: manifest.json" in problem]
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        assert catalog.get("c").info().segments == 1
        assert_whole(catalog.get("c"))


@contextmanager
def failing(file: Path) -> Iterator[None]:
    """Reading the file is an input/output error, as of a disk with a bad moment."""
    kept = file.rename(file.with_name("kept"))
    file.symlink_to("/proc/self/mem")  # whose first page nothing is mapped to
    yield
    kept.rename(file)


@pytest.mark.skipif(sys.platform != "linux", reason="takes the error from /proc")
def test_a_segment_that_cannot_be_read_now_is_used_once_it_can_be(tmp_path: Path) -> None:
    fill(tmp_path)
    both = segments(tmp_path)
    with failing(both[0] / "manifest.json"):
        assert any("segment 000001: it cannot be read now" in problem for problem in problems(tmp_path))
        with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
            assert catalog.get("c").info().segments == 0
            assert_whole(catalog.get("c"))
    assert segments(tmp_path) == both
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        assert catalog.get("c").info().segments == 2
        assert_whole(catalog.get("c"))


@pytest.mark.skipif(sys.platform != "linux", reason="takes the error from /proc")
def test_a_segment_that_could_not_be_read_goes_once_another_has_its_rows(tmp_path: Path) -> None:
    fill(tmp_path)
    with failing(segments(tmp_path)[0] / "manifest.json"):
        with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
            while catalog.get("c").maintain():
                pass
            assert catalog.get("c").info().segments == 1
        assert [path.name for path in segments(tmp_path)] == ["000001", "000002", "000003"]
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        assert catalog.get("c").info().segments == 1
        assert_whole(catalog.get("c"))
    assert [path.name for path in segments(tmp_path)] == ["000003"]


def test_what_a_crash_left_unfinished_or_undeleted_is_ignored(tmp_path: Path) -> None:
    fill(tmp_path)
    first, second = segments(tmp_path)
    shutil.copytree(first, tmp_path / "kept")
    (tmp_path / "c" / "ann" / ".unfinished").mkdir()
    (tmp_path / "c" / "ann" / ".unfinished" / "vectors.npy").write_bytes(b"half")
    settings = SETTINGS.model_copy(update={"merge_idle_s": 0.001})
    with Catalog(tmp_path, settings, maintenance=False) as catalog:
        while catalog.get("c").maintain():
            pass
        assert catalog.get("c").info().segments == 1
    assert not first.exists()
    assert not second.exists()
    shutil.move(tmp_path / "kept", first)  # as if the crash had come before it was deleted
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        assert catalog.get("c").info().segments == 1
        assert_whole(catalog.get("c"))
    assert len(segments(tmp_path)) == 1


def test_snapshots_of_other_settings_are_not_used(tmp_path: Path) -> None:
    fill(tmp_path)
    manifest = segments(tmp_path)[0] / "manifest.json"
    content = {**json.loads(manifest.read_text()), "metric": "l2"}
    del content["crc32"]
    manifest.write_text(json.dumps({**content, "crc32": snapshots.checksum(content)}))
    assert any("other settings" in problem for problem in problems(tmp_path))
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        assert catalog.get("c").info().segments == 0
        assert_whole(catalog.get("c"))


def test_a_full_disk_while_building_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(snapshots._Writer):
        """Writes as to a disk with room for 100 KB."""

        def write(self, data: bytes) -> int:
            if self.size > 100_000:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(snapshots, "_Writer", FullDisk)
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind="hnsw"))
        collection.upsert([Item(str(row), VECTORS[row]) for row in range(COUNT)])
        with pytest.raises(IndexUnavailable, match="No space left"):
            collection.maintain()
        info = collection.info()
        assert (info.count, info.segments, info.state) == (COUNT, 0, "building")
        assert info.problem is not None
        assert "No space left" in info.problem
        assert list((tmp_path / "c" / "ann").iterdir()) == []
        assert collection.search([VECTORS[7]], 1)[0][0].id == "7"
        monkeypatch.undo()
        assert collection.maintain()
        assert (collection.info().segments, collection.info().problem) == (1, None)


def test_a_build_that_failed_is_no_problem_once_it_is_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(snapshots._Writer):
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots, "_Writer", FullDisk)
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind="hnsw"))
        collection.upsert([Item(str(row), VECTORS[row]) for row in range(1000)])
        with pytest.raises(IndexUnavailable, match="No space left"):
            collection.maintain()
        collection.delete(["7"])
        assert not collection.maintain()
        assert (collection.info().state, collection.info().problem) == ("ready", None)


def test_rows_that_are_all_dead_go_at_any_ratio(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"compact_ratio": 1})
    with Catalog(tmp_path, settings, maintenance=False) as catalog:
        collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind="hnsw"))
        collection.upsert([Item(str(row), VECTORS[row]) for row in range(1000)])
        assert collection.maintain()
        collection.upsert([Item("last", VECTORS[0])])
        collection.delete(["last", *map(str, range(1000))])
        assert collection.maintain()
        info = collection.info()
        assert (info.count, info.tombstones, info.segments) == (0, 0, 0)
        assert segments(tmp_path) == []


def test_the_background_builds_by_itself_and_stops_with_the_catalog(tmp_path: Path) -> None:
    with Catalog(tmp_path, SETTINGS) as catalog:
        collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind="hnsw"))
        collection.upsert([Item(str(row), VECTORS[row]) for row in range(COUNT)])
        while collection.info().state == "building":
            assert collection.search([VECTORS[7]], 1)[0][0].id == "7"
        assert collection.info().actual_kind == "hnsw"


def test_a_collection_made_anew_while_the_old_one_is_built_gets_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = CollectionSpec(name="c", dimensions=DIMENSIONS, kind="hnsw")
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        old = catalog.create(spec)
        old.upsert([Item(str(row), VECTORS[row]) for row in range(1000)])
        mkdir = Path.mkdir

        def made_anew_first(path: Path, *args: Any, **options: Any) -> None:
            if path.name == snapshots.DIRECTORY:  # the old one's rewrite begins
                monkeypatch.undo()
                catalog.delete("c")
                new = catalog.create(spec)
                new.upsert([Item(str(row), -VECTORS[row]) for row in range(1000)])
            mkdir(path, *args, **options)

        monkeypatch.setattr(Path, "mkdir", made_anew_first)
        assert not old.maintain()
        # As if the thread had been stopped just before its last step.
        snapshots.Snapshots(tmp_path / "c", spec, "another", 1).write(
            [(np.arange(1, 1001), VECTORS[:1000])],
            1000,
            None,
            threads=1,
            target_recall=0.95,
            stop=lambda: False,
        )
    assert any("had this name before" in problem for problem in problems(tmp_path))
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        hits = catalog.get("c").search(-VECTORS[:1000], 1)
        assert [found[0].id for found in hits] == [str(row) for row in range(1000)]
        assert catalog.get("c").info().segments == 0
    assert segments(tmp_path) == []


def test_an_older_database_in_its_place_is_not_searched_by_newer_snapshots(tmp_path: Path) -> None:
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind="hnsw"))
        collection.upsert([Item(str(row), VECTORS[row]) for row in range(1000)])
        assert collection.maintain()
    shutil.copytree(tmp_path / "c", tmp_path / ".copy")
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        catalog.get("c").upsert([Item(str(row), VECTORS[row]) for row in range(1000, 2000)])
        assert catalog.get("c").maintain()
    shutil.copy(tmp_path / ".copy" / FILE_NAME, tmp_path / "c")
    assert any("newer than the database" in problem for problem in problems(tmp_path))
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        catalog.get("c").upsert([Item(str(row), -VECTORS[row]) for row in range(1000, 2000)])
    for _ in range(2):
        with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
            hits = catalog.get("c").search(-VECTORS[1000:2000], 1, exact=True)
            assert [found[0].id for found in hits] == [str(row) for row in range(1000, 2000)]
            assert catalog.get("c").info().count == 2000


def test_a_segment_whose_building_was_killed_before_it_had_its_name_is_none(tmp_path: Path) -> None:
    fill(tmp_path)
    first, second = segments(tmp_path)
    second.rename(second.with_name(".unfinished"))  # whole, with its manifest
    assert list(problems(tmp_path)) == []
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        assert segments(tmp_path) == [first]
        while catalog.get("c").maintain():
            pass
        assert catalog.get("c").info().segments == 2
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        assert catalog.get("c").info().segments == 2
        assert_whole(catalog.get("c"))


def test_an_older_release_s_database_is_updated_and_its_segments_made_again(tmp_path: Path) -> None:
    fill(tmp_path)
    with closing(sqlite3.connect(tmp_path / "c" / FILE_NAME)) as connection, connection:
        connection.execute("ALTER TABLE state DROP COLUMN identity")
        connection.execute("DELETE FROM schema_version WHERE name = 'identity'")
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        collection = catalog.get("c")
        while collection.maintain():
            pass
        assert_whole(collection)
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        assert catalog.get("c").info().segments == 1
        assert_whole(catalog.get("c"))


def test_a_deleted_collection_is_not_built_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann, "ADD_ROWS", 10)
    with Catalog(tmp_path, SETTINGS, maintenance=False) as catalog:
        collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind="hnsw"))
        collection.upsert([Item(str(row), VECTORS[row]) for row in range(1000)])
        asked = 0

        def deleted_at_the_third() -> bool:
            nonlocal asked
            asked += 1
            if asked == 3:
                catalog.delete("c")
            return False

        assert not collection.maintain(deleted_at_the_third)
        assert asked == 3
