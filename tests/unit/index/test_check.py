"""The check of a data directory finds what was damaged, and nothing in a sound one."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from index.catalog import Catalog
from index.check import index_problems, problems
from index.errors import IndexUnavailable
from index.items import Item
from index.shards import shard_directory
from index.spec import CollectionSpec
from index.store import FILE_NAME
from serve_app import cli
from tests.unit.index.test_snapshots import fill, flip, segments


def test_a_sound_directory_has_no_problems_and_is_left_as_it_is(tmp_path: Path) -> None:
    fill(tmp_path)
    assert list(problems(tmp_path)) == []
    assert len(segments(tmp_path)) == 2


def test_damaged_segments_are_named(tmp_path: Path) -> None:
    fill(tmp_path)
    flip(segments(tmp_path)[1] / "vectors.npy")
    assert list(problems(tmp_path)) == [
        "c: segment 000002: vectors.npy does not have the checksum it was written with"
    ]
    assert len(segments(tmp_path)) == 2


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("DELETE FROM vectors WHERE rowid = 500", "items and vectors do not fit"),
        ("UPDATE vectors SET vector = zeroblob(128) WHERE rowid = 500", "1 vectors are not"),
        ("UPDATE items SET metadata = '{' WHERE rowid IN (500, 501)", "metadata of 2 items is not JSON"),
        ("UPDATE vectors SET vector = x'00' WHERE rowid = 500", "is not 32 numbers long"),
    ],
)
def test_damaged_rows_are_found(tmp_path: Path, damage: str, told: str) -> None:
    fill(tmp_path)
    with sqlite3.connect(tmp_path / "c" / FILE_NAME) as connection:
        connection.execute(damage)
    connection.close()
    assert any(told in problem for problem in problems(tmp_path))


def test_entries_of_indexed_keys_that_are_not_the_items_own_are_found(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create(CollectionSpec(name="c", dimensions=2, indexed_keys=("word",)))
        collection.upsert([Item(str(n), [1, n], {"word": f"word{n}", "n": n}) for n in range(9)])
    assert list(problems(tmp_path)) == []
    with sqlite3.connect(tmp_path / "c" / FILE_NAME) as connection:
        connection.execute("UPDATE keys SET value = 'word6' WHERE value = 'word7'")
    connection.close()
    assert list(problems(tmp_path)) == [
        "c: database: 2 entries of the indexed keys are wrong, and so are filters by these"
    ]


def test_what_nothing_can_be_made_of_is_a_problem_too(tmp_path: Path) -> None:
    fill(tmp_path)
    with sqlite3.connect(tmp_path / "c" / FILE_NAME) as connection:
        connection.execute("UPDATE state SET spec = x'ff'")
    connection.close()
    assert "damaged" in "".join(problems(tmp_path))


def test_a_damaged_database_is_found(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / "c" / FILE_NAME
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(20_000))
    assert list(problems(tmp_path))


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    with Catalog(tmp_path), pytest.raises(IndexUnavailable, match="open in another process"):
        list(problems(tmp_path))


def test_the_command_checks_every_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(tmp_path)]) == 2
    for shard in range(2):
        (tmp_path / "index" / f"shard-{shard}-of-2").mkdir(parents=True)
        fill(tmp_path / "index" / f"shard-{shard}-of-2")
    assert cli.main(["check", str(tmp_path)]) == 0
    assert "as it was written" in capsys.readouterr().out
    flip(segments(tmp_path / "index" / "shard-1-of-2")[0] / "rowids.npy")
    assert cli.main(["check", str(tmp_path)]) == 1
    assert "rowids.npy does not have the checksum" in capsys.readouterr().out


@pytest.fixture
def two_shards(tmp_path: Path) -> Path:
    """A data directory whose two shards hold the collections `c` and `d`."""
    for shard in range(2):
        with Catalog(shard_directory(tmp_path / "index", shard, 2), maintenance=False) as catalog:
            for name in "cd":
                catalog.create(CollectionSpec(name=name, dimensions=2)).upsert([Item(f"{shard}", [1, 1])])
    return tmp_path


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("shard-1-of-2/c/items.db", "shard-1-of-2: c: collection 'c' cannot be used: its database is gone"),
        ("shard-1-of-2/c", "shard-1-of-2: c is missing; other shards hold it"),
        ("shard-0-of-2", "shard-0-of-2 is missing"),
    ],
)
def test_what_is_gone_is_told(
    two_shards: Path, gone: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", str(two_shards)]) == 0
    path = two_shards / "index" / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert cli.main(["check", str(two_shards)]) == 1
    assert [line.startswith(told) for line in capsys.readouterr().out.splitlines()] == [False, True, False]


def test_shards_that_hold_different_collections_of_one_name_are_told(two_shards: Path) -> None:
    with Catalog(shard_directory(two_shards / "index", 1, 2), maintenance=False) as catalog:
        catalog.delete("c")
        catalog.create(CollectionSpec(name="c", dimensions=2, metric="l2"))
    assert list(index_problems(two_shards / "index")) == [
        "c: shard-1-of-2 and shard-0-of-2 hold different collections of this name "
        "(metric is 'l2', not 'cosine'): delete it and make it again"
    ]


def test_a_database_of_an_older_release_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    fill(tmp_path)
    database = tmp_path / "c" / FILE_NAME
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("ALTER TABLE state DROP COLUMN identity")
        connection.execute("DELETE FROM schema_version WHERE name = 'identity'")
    for _ in range(2):
        (problem,) = problems(tmp_path)
        assert "schema version 2, now 3" in problem
    with Catalog(tmp_path) as catalog:
        assert catalog.unavailable == {}


def test_keys_that_another_version_of_sqlite_entered_are_left_to_the_next_start(tmp_path: Path) -> None:
    with Catalog(tmp_path) as catalog:
        collection = catalog.create(CollectionSpec(name="c", dimensions=2, indexed_keys=("n",)))
        collection.upsert([Item("a", [1, 1], {"n": 1.5})])
    with closing(sqlite3.connect(tmp_path / "c" / FILE_NAME)) as connection, connection:
        connection.execute("UPDATE keys SET value = value + 1")
        connection.execute("PRAGMA user_version = 1")
    for _ in range(2):  # it did not enter them anew
        assert list(problems(tmp_path)) == []
        with closing(sqlite3.connect(tmp_path / "c" / FILE_NAME)) as connection:
            assert connection.execute("SELECT value FROM keys").fetchall() == [(2.5,)]


def test_vectors_of_a_segment_that_are_not_the_database_s_are_found(tmp_path: Path) -> None:
    fill(tmp_path)
    with sqlite3.connect(tmp_path / "c" / FILE_NAME) as connection:
        connection.execute(
            "UPDATE vectors SET vector = (SELECT vector FROM vectors WHERE rowid = 700)"
            " WHERE rowid IN (500, 501, 2000)"
        )
    connection.close()
    found = list(problems(tmp_path))
    assert [problem.partition(";")[0] for problem in found] == [
        "c: segment 000001: 2 vectors are not the database's",
        "c: segment 000002: 1 vectors are not the database's",
    ]
