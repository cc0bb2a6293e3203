"""The collections of a directory: create, open, list, delete, and each for itself."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from configs.settings import IndexSettings, LimitSettings
from index.catalog import Catalog
from index.errors import BadItem, CollectionExists, CollectionNotFound, IndexUnavailable, ModelMismatch
from index.items import Item
from index.spec import CollectionSpec
from index.store import FILE_NAME


def spec(name: str, dimensions: int = 2, fingerprint: str | None = None) -> CollectionSpec:
    return CollectionSpec(
        name=name, dimensions=dimensions, model="clip" if fingerprint else None, fingerprint=fingerprint
    )


def names(catalog: Catalog) -> list[str]:
    return [collection.spec.name for collection in catalog.list()]


def test_collections_come_and_go(catalog: Catalog) -> None:
    assert catalog.list() == []
    catalog.create(spec("b"))
    catalog.create(spec("a"))
    assert names(catalog) == ["a", "b"]
    catalog.delete("a")
    assert names(catalog) == ["b"]
    for use in (catalog.get, catalog.delete):
        with pytest.raises(CollectionNotFound, match="'a'"):
            use("a")
    assert sorted(path.name for path in catalog.root.iterdir()) == [".lock", "b"]


@pytest.mark.parametrize("name", ["..", ".", "", "a/../a", "../index/a", "\0", "a" * 300, ".lock"])
def test_names_do_not_lead_out_of_the_directory(catalog: Catalog, name: str) -> None:
    catalog.create(spec("a"))
    for use in (catalog.get, catalog.delete):
        with pytest.raises(CollectionNotFound):
            use(name)


def test_creating_again_is_no_change_unless_the_settings_differ(catalog: Catalog) -> None:
    first = catalog.create(spec("a", fingerprint="f1"))
    first.upsert([Item("x", [1, 0])])
    assert catalog.create(spec("a", fingerprint="f1")) is first
    assert first.info().count == 1
    with pytest.raises(CollectionExists, match="dimensions is 2, not 3"):
        catalog.create(spec("a", 3, fingerprint="f1"))
    with pytest.raises(ModelMismatch):
        catalog.create(spec("a", fingerprint="f2"))


def test_a_deleted_name_is_free_again(catalog: Catalog) -> None:
    old = catalog.create(spec("a"))
    old.upsert([Item("x", [1, 0])])
    catalog.delete("a")
    new = catalog.create(spec("a", 3))
    assert new.info().count == 0
    with pytest.raises(CollectionNotFound):
        old.search([[1, 0]])


def test_everything_is_there_after_reopening(catalog: Catalog) -> None:
    catalog.create(spec("a")).upsert([Item("x", [1, 0])])
    catalog.create(spec("b", 3))
    catalog.close()
    with Catalog(catalog.root) as again:
        assert [(each.name, each.dimensions, each.count) for each in (c.info() for c in again.list())] == [
            ("a", 2, 1),
            ("b", 3, 0),
        ]


def test_remains_of_a_crash_are_cleared_and_strangers_left(catalog: Catalog) -> None:
    catalog.create(spec("a"))
    catalog.close()
    (catalog.root / ".unfinished-1").mkdir()
    (catalog.root / ".unfinished-1" / FILE_NAME).touch()
    (catalog.root / "lost+found").mkdir()
    (catalog.root / "notes.txt").touch()
    with Catalog(catalog.root) as again:
        assert names(again) == ["a"]
        assert again.unavailable == {}
        assert not (catalog.root / ".unfinished-1").exists()
    assert (catalog.root / "lost+found").exists()


def test_a_damaged_collection_does_not_keep_the_others_from_work(catalog: Catalog) -> None:
    for name in ("good", "bad"):
        catalog.create(spec(name)).upsert([Item("x", [1, 0])])
    catalog.close()
    database = catalog.root / "bad" / FILE_NAME
    healthy = database.read_bytes()
    database.write_bytes(b"not a database" * 1000)
    with Catalog(catalog.root) as again:
        assert names(again) == ["good"]
        assert "damaged" in str(again.unavailable["bad"])
        assert list(again.infos()) == ["bad", "good"]
        assert again.infos()["bad"] is again.unavailable["bad"]
        with pytest.raises(IndexUnavailable, match="damaged"):
            again.get("bad")
        with pytest.raises(IndexUnavailable, match="damaged"):
            again.create(spec("bad"))
        database.write_bytes(healthy)
        assert again.get("bad").info().count == 1
        assert again.unavailable == {}
        database.write_bytes(b"not a database" * 1000)
    with Catalog(catalog.root) as again:
        again.delete("bad")
        assert again.create(spec("bad")).info().count == 0


@pytest.mark.parametrize(
    "damage",
    ["UPDATE state SET created = 'x'", "UPDATE vectors SET vector = 'text'", "UPDATE state SET spec = 1"],
)
def test_damage_of_any_kind_is_of_one_collection(catalog: Catalog, damage: str) -> None:
    for name in ("good", "bad"):
        catalog.create(spec(name)).upsert([Item("x", [1, 0])])
    catalog.close()
    with sqlite3.connect(catalog.root / "bad" / FILE_NAME) as connection:
        connection.execute(damage)
    connection.close()
    with Catalog(catalog.root) as again:
        assert names(again) == ["good"]
        assert "damaged" in str(again.unavailable["bad"])


def test_a_collection_whose_database_is_gone_is_told_and_can_be_deleted(catalog: Catalog) -> None:
    catalog.create(spec("a")).upsert([Item("x", [1, 0])])
    catalog.close()
    (catalog.root / "a" / FILE_NAME).unlink()
    (catalog.root / "a" / "ann").mkdir()
    with Catalog(catalog.root) as again:
        assert "its database is gone" in str(again.unavailable["a"])
        with pytest.raises(IndexUnavailable, match="its database is gone"):
            again.get("a")
        with pytest.raises(IndexUnavailable, match="delete the collection"):
            again.create(spec("a"))
        again.delete("a")
        assert again.create(spec("a")).info().count == 0


OPENER = """
import resource, sys
from pathlib import Path
from index.catalog import Catalog
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 20 * 1024 * 1024, resource.RLIM_INFINITY))
with Catalog(Path(sys.argv[1]), maintenance=False) as catalog:
    print(catalog.unavailable["a"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_too_little_memory_is_not_called_damage(catalog: Catalog) -> None:
    count, dimensions = 5000, 2048  # 40 MB
    vectors = np.ones((count, dimensions), np.float32)
    catalog.create(spec("a", dimensions)).upsert([Item(str(n), vector) for n, vector in enumerate(vectors)])
    catalog.close()
    root = Path(__file__).parents[3]
    told = subprocess.run(
        [sys.executable, "-c", OPENER, str(catalog.root)],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        text=True,
        check=True,
    )
    assert "not enough memory" in told.stdout
    assert "damaged" not in told.stdout


def test_a_directory_has_one_writer(catalog: Catalog) -> None:
    with pytest.raises(IndexUnavailable, match="another process"):
        Catalog(catalog.root)
    threading.Timer(0.05, catalog.close).start()
    Catalog(catalog.root, lock_timeout_s=30).close()


def test_one_collection_that_fails_does_not_hide_the_others(catalog: Catalog) -> None:
    for name in ("b", "a", "c", "d"):
        catalog.create(spec(name))
    catalog.get("b").close()
    catalog.get("c").close(CollectionNotFound("deleted while it is being listed"))
    infos = catalog.infos()
    assert list(infos) == ["a", "b", "d"]
    assert isinstance(infos["b"], IndexUnavailable)


def test_the_check_tells_what_happened_to_the_directory(catalog: Catalog) -> None:
    catalog.check()
    moved = catalog.root.rename(catalog.root.with_name("moved"))
    with pytest.raises(IndexUnavailable, match="No such file"):
        catalog.check()
    with Catalog(catalog.root), pytest.raises(IndexUnavailable, match="was replaced"):
        catalog.check()
    shutil.rmtree(catalog.root)
    moved.rename(catalog.root)
    catalog.check()
    catalog.close()
    with pytest.raises(IndexUnavailable, match="closed"):
        catalog.check()


def test_a_closed_catalog_opens_nothing_again(catalog: Catalog) -> None:
    catalog.create(spec("a"))
    catalog.close()
    assert catalog.list() == []
    with pytest.raises(IndexUnavailable, match="closed"):
        catalog.get("a")
    with pytest.raises(IndexUnavailable, match="closed"):
        catalog.create(spec("b"))
    with pytest.raises(IndexUnavailable, match="closed"):
        catalog.delete("a")


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IndexUnavailable, match="cannot be used"):
        Catalog(tmp_path / "file" / "index")


def test_settings_reach_the_collections(tmp_path: Path) -> None:
    limits = LimitSettings(max_metadata_bytes=20)
    with Catalog(tmp_path, IndexSettings(threads=1), limits) as catalog:
        collection = catalog.create(spec("a"))
        with pytest.raises(BadItem, match="at most 20"):
            collection.upsert([Item("x", [1, 0], {"k": "x" * 20})])


def test_many_may_create_the_same_collection_at_once(catalog: Catalog) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(catalog.create, [spec("a")] * 8))
    assert len(made) == 8
    assert len(set(map(id, made))) == 1


WRITER = """
import sys
from pathlib import Path
from index.catalog import Catalog
from index.items import Item
from index.spec import CollectionSpec
collection = Catalog(Path(sys.argv[1])).create(CollectionSpec(name="a", dimensions=2))
for number in range(10**9):
    collection.upsert([Item(str(number), [number, 1])])
    print(number, flush=True)
"""


def test_acknowledged_writes_survive_a_kill(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        text=True,
    ) as writer:
        assert writer.stdout
        for line in writer.stdout:
            if int(line) == 50:
                writer.kill()
                break
        acknowledged = [int(line), *map(int, writer.stdout)]
    with Catalog(tmp_path) as catalog:
        found = {int(record.id) for record in catalog.get("a").page(10**6).records}
    assert set(range(acknowledged[-1] + 1)) <= found
