"""Snapshots are whole or refused, in a directory and on a real S3 server, and disturb nobody."""

import json
import os
import shutil
import threading
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from configs.settings import IndexSettings
from index.backup import MANIFEST, Manifest, check_free, discard, finish, part_directory, write_part
from index.catalog import Catalog
from index.check import problems
from index.collection import Collection
from index.errors import BadSnapshot, IndexUnavailable, SnapshotExists
from index.items import Item
from index.locations import Location
from index.restore import manifests, restore, restore_all
from index.spec import CollectionSpec
from index.store import FILE_NAME
from tests.waiting import PATIENCE_S

DIMENSIONS = 16
NEVER = threading.Event()


@pytest.fixture(params=["directory", "s3", "fsspec"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "directory":
        return Location(str(tmp_path / "snapshots"), ("monday",))
    if request.param == "fsspec":  # which pyarrow knows no more of than that it is a file system
        return Location(f"fsspec+file://{tmp_path}/snapshots", ("monday",))
    return Location(f"s3://bucket/{uuid4().hex}?{request.getfixturevalue('bucket')}", ("monday",))


@pytest.fixture
def filled(catalog: Catalog) -> Collection:
    collection = catalog.create(CollectionSpec(name="filled", dimensions=DIMENSIONS))
    vectors = np.random.default_rng(3).normal(size=(400, DIMENSIONS))
    collection.upsert([Item(f"id/{n}", v, {"n": n}, b"thumb") for n, v in enumerate(vectors)])
    collection.delete([f"id/{n}" for n in range(0, 400, 7)])
    return collection


def snapshot(catalog: Catalog, name: str, to: Location, shards: int = 1) -> Manifest:
    """What the deployment and the gateway do together; every shard copies the same files here."""
    id = uuid4().hex
    check_free(to, name)
    parts = []
    for shard in range(shards):
        with catalog.scratch() as copy:
            catalog.get(name).copy_to(copy)
            parts.append(write_part(copy, to, part_directory(name, id, shard, shards), NEVER))
    manifest = Manifest(collection=name, id=id, created=1, parts=tuple(parts))
    finish(to, manifest)
    return manifest


def everything(collection: Collection) -> list[tuple[object, ...]]:
    records = collection.page(10_000, None, frozenset({"metadata", "vector", "thumbnail"})).records
    return [
        (r.id, r.metadata, None if r.vector is None else r.vector.tobytes(), r.thumbnail) for r in records
    ]


def test_what_is_restored_is_what_was_there(
    catalog: Catalog, filled: Collection, place: Location, tmp_path: Path
) -> None:
    catalog.create(CollectionSpec(name="empty", dimensions=3, metric="l2", model="clip", fingerprint="f"))
    manifest = snapshot(catalog, "filled", place)
    snapshot(catalog, "empty", place)
    assert manifests(place)[1] == manifest
    assert restore(place, tmp_path / "new" / "index", 0, 1) == ["empty", "filled"]
    queries = np.random.default_rng(4).normal(size=(20, DIMENSIONS))
    with Catalog(tmp_path / "new" / "index") as again:
        assert [c.spec for c in again.list()] == [c.spec for c in catalog.list()]
        assert everything(again.get("filled")) == everything(filled)
        for filter in (None, {"must": [{"key": "n", "range": {"lt": 50}}]}):
            expected = filled.search(queries, 10, filter=filter)
            assert again.get("filled").search(queries, 10, filter=filter) == expected
        again.get("filled").upsert([Item("more", np.ones(DIMENSIONS))])  # new rowids go on after the old
        assert everything(again.get("filled"))[:-1] == everything(filled)
    assert not list((tmp_path / "new").glob(".*"))
    assert not list(catalog.root.glob(".unfinished*"))


def test_segments_come_along_and_are_used(tmp_path: Path) -> None:
    settings = IndexSettings(threads=1, segment_rows=1000, merge_idle_s=1000)
    vectors = np.random.default_rng(3).normal(size=(2700, DIMENSIONS)).astype(np.float32)
    place, new = Location(str(tmp_path / "snapshots")), tmp_path / "new"
    with Catalog(tmp_path / "index", settings, maintenance=False) as catalog:
        collection = catalog.create(CollectionSpec(name="c", dimensions=DIMENSIONS, kind="hnsw"))
        for rows in (range(1600), range(1600, 2700)):
            collection.upsert([Item(str(row), vectors[row]) for row in rows])
            while collection.maintain():
                pass
        collection.delete(["7"])
        before, found = collection.info(), collection.search(vectors[:20], 5)
        manifest = snapshot(catalog, "c", place)
    assert any(name.endswith("index.faiss") for name in manifest.parts[0])
    assert restore(place, new, 0, 1) == ["c"]
    assert list(problems(new)) == []
    with Catalog(new, settings, maintenance=False) as catalog:
        info = catalog.get("c").info()
        assert (info.segments, info.actual_kind) == (before.segments, "hnsw")
        assert catalog.get("c").search(vectors[:20], 5) == found
        assert not catalog.get("c").maintain(), "nothing had to be built again"


def test_a_place_holds_one_snapshot_of_a_collection(
    catalog: Catalog, filled: Collection, place: Location
) -> None:
    snapshot(catalog, "filled", place)
    with pytest.raises(SnapshotExists, match="monday has a snapshot of 'filled' already: give another name"):
        snapshot(catalog, "filled", place)


def test_of_two_snapshots_to_one_place_the_first_to_end_stays(
    catalog: Catalog, filled: Collection, place: Location
) -> None:
    slow = uuid4().hex
    with catalog.scratch() as copy:
        filled.copy_to(copy)
        part = write_part(copy, place, part_directory("filled", slow, 0, 1), NEVER)
    first = snapshot(catalog, "filled", place)
    with pytest.raises(SnapshotExists):
        finish(place, Manifest(collection="filled", id=slow, created=1, parts=(part,)))
    assert manifests(place) == [first]


def test_shards_are_not_filled_from_snapshots_of_two_times(
    catalog: Catalog, filled: Collection, tmp_path: Path
) -> None:
    monday, tuesday = (Location(str(tmp_path / day)) for day in ("monday", "tuesday"))
    for place in (monday, tuesday):
        snapshot(catalog, "filled", place, shards=2)
    new = tmp_path / "new"
    new.mkdir()
    assert restore(monday, new / "shard-0-of-2", 0, 2) == ["filled"]
    with pytest.raises(BadSnapshot, match="shard-0-of-2 was filled from other snapshots than shard-1-of-2"):
        restore(tuesday, new / "shard-1-of-2", 1, 2)
    assert not (new / "shard-1-of-2").exists()
    assert restore(monday, new / "shard-1-of-2", 1, 2) == ["filled"]


def test_a_restore_that_stopped_at_its_last_step_is_done_again(
    catalog: Catalog, filled: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Location(str(tmp_path / "place"))
    snapshot(catalog, "filled", place)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        restore(place, tmp_path / "new", 0, 1)
    monkeypatch.undo()
    assert restore(place, tmp_path / "new", 0, 1) == ["filled"]


def test_a_restore_of_all_shards_that_fails_leaves_none_filled(
    catalog: Catalog, filled: Collection, tmp_path: Path
) -> None:
    good, bad = (Location(str(tmp_path / name)) for name in ("good", "bad"))
    snapshot(catalog, "filled", good, shards=2)
    manifest = snapshot(catalog, "filled", bad, shards=2)
    (tmp_path / "bad" / manifest.directory(1) / FILE_NAME).write_bytes(b"damaged")
    new = tmp_path / "new"
    new.mkdir()
    with pytest.raises(BadSnapshot, match="is damaged"):
        restore_all(bad, new)
    assert restore_all(good, new) == (2, ["filled"])


def test_a_copy_that_was_cut_off_is_refused(
    catalog: Catalog, filled: Collection, place: Location, tmp_path: Path
) -> None:
    with catalog.scratch() as copy:
        filled.copy_to(copy)
        write_part(copy, place, part_directory("filled", "0" * 32, 0, 1), NEVER)
    with pytest.raises(BadSnapshot, match=r"monday/filled has no manifest\.json: the copy was cut off"):
        restore(place, tmp_path / "new", 0, 1)
    assert not (tmp_path / "new").exists()
    snapshot(catalog, "filled", place)  # the remains are no obstacle
    assert restore(place, tmp_path / "new", 0, 1) == ["filled"]


@pytest.mark.parametrize("damage", ["shorter", "other", "gone", "manifest", "newer"])
def test_a_damaged_snapshot_is_refused_and_nothing_is_restored(
    catalog: Catalog, filled: Collection, place: Location, tmp_path: Path, damage: str
) -> None:
    catalog.create(CollectionSpec(name="a", dimensions=2))
    snapshot(catalog, "a", place)
    manifest = snapshot(catalog, "filled", place)
    files = place.open()
    database = f"{manifest.directory(0)}/{FILE_NAME}"
    path = f"filled/{MANIFEST}" if damage in ("manifest", "newer") else database
    with files.open_input_stream(path) as stream:
        content = bytearray(stream.read())
    if damage == "shorter":
        del content[-1:]
    elif damage == "other":
        content[len(content) // 2] ^= 1
    elif damage == "manifest":
        del content[-40:]
    elif damage == "newer":
        content = bytearray(json.dumps({**json.loads(content), "format": 2}).encode())
    if damage == "gone":
        files.delete_file(database)
    else:
        with files.open_output_stream(path) as stream:
            stream.write(bytes(content))
    expected = {"gone": "lacks its file", "manifest": "is damaged", "newer": "of a newer release"}
    with pytest.raises(BadSnapshot, match=expected.get(damage, r"'filled' is damaged: filled/.*items\.db")):
        restore(place, tmp_path / "new" / "index", 0, 1)
    assert not (tmp_path / "new" / "index").exists()


@pytest.mark.parametrize("path", ["../../escape", "/etc/x", "a/../../b", ".hidden", "a//b", ""])
def test_a_manifest_cannot_write_elsewhere(
    catalog: Catalog, filled: Collection, tmp_path: Path, path: str
) -> None:
    place = Location(str(tmp_path / "snapshots"))
    snapshot(catalog, "filled", place)
    file = tmp_path / "snapshots" / "filled" / MANIFEST
    document = json.loads(file.read_text())
    document["parts"][0][path] = document["parts"][0][FILE_NAME]
    file.write_text(json.dumps(document))
    with pytest.raises(BadSnapshot, match="is damaged"):
        restore(place, tmp_path / "new", 0, 1)


def test_another_number_of_shards_is_refused(catalog: Catalog, filled: Collection, tmp_path: Path) -> None:
    place = Location(str(tmp_path / "snapshots"))
    manifest = snapshot(catalog, "filled", place, shards=2)
    assert [manifest.directory(shard).rpartition("/")[2] for shard in (0, 1)] == [
        "shard-0-of-2",
        "shard-1-of-2",
    ]
    for shards in (1, 3):
        with pytest.raises(BadSnapshot, match=r"is of 2 shards and .* has \d: set index\.shards=2"):
            restore(place, tmp_path / "new", 0, shards)
    assert restore(place, tmp_path / "new", 1, 2) == ["filled"]


def test_a_directory_that_was_used_is_left_alone(
    catalog: Catalog, filled: Collection, tmp_path: Path
) -> None:
    place = Location(str(tmp_path / "snapshots"))
    snapshot(catalog, "filled", place)
    filled.delete(["id/1"])
    before = everything(filled)
    assert restore(place, catalog.root, 0, 1) is None
    assert everything(filled) == before
    with Catalog(tmp_path / "used"):  # a collection that was dropped since must not come back
        pass
    assert restore(place, tmp_path / "used", 0, 1) is None
    (tmp_path / "made").mkdir()
    assert restore(place, tmp_path / "made", 0, 1) == ["filled"]


def test_a_restore_that_was_cut_off_starts_anew(catalog: Catalog, filled: Collection, tmp_path: Path) -> None:
    place = Location(str(tmp_path / "snapshots"))
    snapshot(catalog, "filled", place)
    remains = tmp_path / ".restoring-new" / "filled"
    remains.mkdir(parents=True)
    (remains / FILE_NAME).write_bytes(b"half")
    (remains / "items.db-wal").write_bytes(b"of another")
    assert restore(place, tmp_path / "new", 0, 1) == ["filled"]
    with Catalog(tmp_path / "new") as again:
        assert everything(again.get("filled")) == everything(filled)
    assert not remains.exists()


def test_nothing_to_restore_is_told(tmp_path: Path, place: Location) -> None:
    with pytest.raises(BadSnapshot, match="holds no snapshot"):
        restore(place, tmp_path / "new", 0, 1)


def test_a_bucket_that_is_not_there_is_told(
    catalog: Catalog, filled: Collection, bucket: str, tmp_path: Path
) -> None:
    nowhere = Location(f"s3://nobody-s-bucket/x?{bucket}")
    with pytest.raises(IndexUnavailable, match=r"s3://nobody-s-bucket/x: .*NO_SUCH_BUCKET"):
        snapshot(catalog, "filled", nowhere)
    with pytest.raises(IndexUnavailable, match="s3://nobody-s-bucket/x"):
        restore(nowhere, tmp_path / "new", 0, 1)


def test_a_server_that_does_not_answer_is_told(catalog: Catalog, filled: Collection, bucket: str) -> None:
    with pytest.raises(IndexUnavailable, match=r"s3://bucket/x.*connect"):
        snapshot(catalog, "filled", Location("s3://bucket/x?endpoint_override=127.0.0.1:1&scheme=http"))


def test_a_full_disk_is_told_and_nothing_is_left(
    catalog: Catalog, filled: Collection, tmp_path: Path
) -> None:
    """/dev/full stands for the target's file, as the one path on which every write finds the disk full."""
    place = Location(str(tmp_path / "snapshots"))
    directory = part_directory("filled", "0" * 32, 0, 1)
    target = tmp_path / "snapshots" / directory
    target.mkdir(parents=True)
    (target / FILE_NAME).symlink_to("/dev/full")
    with catalog.scratch() as copy:
        filled.copy_to(copy)
        with pytest.raises(IndexUnavailable, match=r"could not be written to .*: .*[Nn]o space left"):
            write_part(copy, place, directory, NEVER)
    assert not target.exists()


def test_a_snapshot_that_is_given_up_leaves_nothing(
    catalog: Catalog, filled: Collection, place: Location
) -> None:
    stop = threading.Event()
    stop.set()
    with catalog.scratch() as copy:
        filled.copy_to(copy)
        with pytest.raises(IndexUnavailable, match="given up"):
            write_part(copy, place, part_directory("filled", "0" * 32, 0, 1), stop)
    with pytest.raises(BadSnapshot, match="holds no snapshot"):
        manifests(place)


def test_one_that_failed_is_not_in_the_way_of_those_beside_it(
    catalog: Catalog, filled: Collection, place: Location, tmp_path: Path
) -> None:
    snapshot(catalog, "filled", place)
    catalog.create(CollectionSpec(name="other", dimensions=2))
    for shard in range(2):
        with catalog.scratch() as copy:
            catalog.get("other").copy_to(copy)
            write_part(copy, place, part_directory("other", "0" * 32, shard, 2), NEVER)
    with pytest.raises(BadSnapshot, match="other has no manifest"):
        manifests(place)
    for _ in range(2):  # the second time of nothing
        discard(place, "other", "0" * 32)
    assert restore(place, tmp_path / "new", 0, 1) == ["filled"]
    with catalog.scratch() as copy:
        filled.copy_to(copy)
        write_part(copy, place, part_directory("filled", "1" * 32, 0, 1), NEVER)
    discard(place, "filled", "1" * 32)  # beside a whole one of the same collection
    (whole,) = manifests(place)
    discard(place, "filled", whole.id)  # whose finishing was told as an error
    assert restore(place, tmp_path / "newer", 0, 1) == ["filled"]


def test_a_full_disk_at_the_last_step_leaves_nothing_in_the_way(
    catalog: Catalog, filled: Collection, tmp_path: Path
) -> None:
    """/dev/full stands for the manifest's file."""
    place, id = Location(str(tmp_path / "snapshots")), "0" * 32
    with catalog.scratch() as copy:
        filled.copy_to(copy)
        part = write_part(copy, place, part_directory("filled", id, 0, 1), NEVER)
    (tmp_path / "snapshots" / "filled" / f"{MANIFEST}.{id}").symlink_to("/dev/full")
    with pytest.raises(IndexUnavailable, match="No space left"):
        finish(place, Manifest(collection="filled", id=id, created=1, parts=(part,)))
    discard(place, "filled", id)
    with pytest.raises(BadSnapshot, match="holds no snapshot"):
        manifests(place)
    snapshot(catalog, "filled", place)


def test_a_part_that_others_cannot_see_makes_no_snapshot(
    catalog: Catalog, filled: Collection, tmp_path: Path
) -> None:
    place = Location(str(tmp_path / "snapshots"))
    manifest = snapshot(catalog, "filled", place, shards=2)
    (tmp_path / "snapshots" / "filled" / MANIFEST).unlink()
    shutil.rmtree(tmp_path / "snapshots" / manifest.directory(1))
    with pytest.raises(IndexUnavailable, match=r"shard-1-of-2/items\.db is not to be seen here"):
        finish(place, manifest)


def test_each_copy_is_one_committed_state_while_writes_go_on(
    catalog: Catalog, filled: Collection, tmp_path: Path
) -> None:
    place, turn, stop = Location(str(tmp_path / "snapshots")), 0, threading.Event()
    pair = [Item("left", np.ones(DIMENSIONS), {"turn": 0}), Item("right", np.ones(DIMENSIONS), {"turn": 0})]
    filled.upsert(pair)
    wrote = threading.Event()

    def write() -> None:
        nonlocal turn
        while not stop.is_set():
            turn += 1
            filled.upsert([Item(id, np.full(DIMENSIONS, turn), {"turn": turn}) for id in ("left", "right")])
            wrote.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            wrote.clear()
            snapshot(catalog, "filled", Location(place.base, (str(number),)))
            assert wrote.wait(PATIENCE_S), "writes waited for the snapshot"
    finally:
        stop.set()
        writer.join()
    for number in range(5):
        restore(Location(place.base, (str(number),)), tmp_path / f"new-{number}", 0, 1)
        with Catalog(tmp_path / f"new-{number}") as again:
            left, right = (again.get("filled").get(id).metadata for id in ("left", "right"))
            assert left == right
            assert again.get("filled").info().count == filled.info().count


def test_snapshots_of_vectors_come_along_and_are_not_missed(
    catalog: Catalog, filled: Collection, tmp_path: Path
) -> None:
    directory = catalog.root / "filled"
    for number, content in ((1, b"old"), (12, b"new")):
        (directory / "ann" / str(number)).mkdir(parents=True)
        (directory / "ann" / str(number) / "index.faiss").write_bytes(content)
    (directory / "ann" / ".unfinished").mkdir()
    with catalog.scratch() as copy:
        filled.copy_to(copy)
        shutil.rmtree(directory / "ann" / "1")  # pruned meanwhile
        part = write_part(copy, Location(str(tmp_path / "to")), "x", NEVER)
    assert sorted(part) == ["ann/1/index.faiss", "ann/12/index.faiss", FILE_NAME]
    os.chmod(directory / "ann" / "12" / "index.faiss", 0o400)
    shutil.rmtree(directory / "ann")
    with catalog.scratch() as copy:
        filled.copy_to(copy)
        assert [path.name for path in copy.iterdir()] == [FILE_NAME]
