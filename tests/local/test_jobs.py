"""The job's parts against an application in this process: Parquet with vectors, and the stages of images."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from configs.settings import ClipSettings
from deployments.models.sources import resolve
from index.items import content_id
from serve_app.jobs.server import Collection, Item, Refused
from tests.local.client import LocalClient
from tests.photos import jpeg

pa = pytest.importorskip("pyarrow", reason="the jobs extra is not installed")
pytest.importorskip("pandas", reason="the jobs extra is not installed")

_names = count()


@dataclass(frozen=True)
class LocalCollection(Collection):
    """A collection reached without sockets."""

    client: LocalClient | None = None

    def _request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        assert self.client is not None
        content = b"" if body is None else orjson.dumps(body, default=str)
        headers = {"content-type": "application/json"}
        url = f"/v1/collections/{self.name}{path}"
        answer = self.client.request(method, url, content=content, headers=headers)
        if answer.status == 200:
            parsed: dict[str, Any] = answer.json()
            return parsed
        error = answer.json()["error"]
        raise Refused(answer.status, error["message"], error["param"])


@pytest.fixture
def collection(client: LocalClient) -> Iterator[LocalCollection]:
    """One that is not there yet."""
    name = f"job-{next(_names)}"
    yield LocalCollection("", name, client=client)
    client.delete(f"/v1/collections/{name}")


def written(path: Path, **columns: Any) -> Path:
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path)
    return path


def count_of(collection: LocalCollection) -> int:
    number: int = collection.open({})["count"]
    return number


def test_parquet_becomes_items_once(client: LocalClient, collection: LocalCollection, tmp_path: Path) -> None:
    from serve_app.jobs.build_index import Outcome, index_vectors
    from serve_app.jobs.vectors import Layout

    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((25, 4)).astype(np.float32)
    rows: list[Any] = [row.tolist() for row in vectors]
    rows[3], rows[7], rows[11] = None, [1.0, None, 2.0, 3.0], [1.0, 2.0]
    rows[13] = [float("nan"), 0.0, 0.0, 1.0]
    source = written(
        tmp_path / "a.parquet",
        sku=[f"s{i}" for i in range(25)],
        embedding=pa.array(rows, pa.list_(pa.float32())),
        price=list(range(25)),
        day=[date(2026, 1, 1)] * 25,
    )
    first, again = Outcome(), Outcome()
    index_vectors(str(source), collection, Layout("embedding", "sku"), None, 10, first)
    assert (first.stored, first.there) == (21, 0)
    assert set(first.problems) == {f"row {i} (id s{i})" for i in (3, 7, 11, 13)}
    assert "null" in first.problems["row 3 (id s3)"]
    assert "must be 4 finite numbers; got 2" in first.problems["row 11 (id s11)"]
    assert "NaN" in first.problems["row 13 (id s13)"]
    shown = client.get(f"/v1/collections/{collection.name}/items/s5", params={"include": "vector"}).json()
    assert shown["metadata"] == {"price": 5, "day": "2026-01-01"}
    assert shown["vector"] == pytest.approx((vectors[5] / np.linalg.norm(vectors[5])).tolist(), abs=1e-6)
    index_vectors(str(tmp_path), collection, Layout("embedding", "sku"), None, 10, again)
    assert (again.stored, again.there) == (0, 21)


def test_parquet_without_ids_takes_them_from_the_vectors(collection: LocalCollection, tmp_path: Path) -> None:
    from serve_app.jobs.build_index import Outcome, index_vectors
    from serve_app.jobs.vectors import Layout

    vectors = np.eye(3, dtype=np.float64)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3)
    source = written(tmp_path / "b.parquet", v=column, kept=[1, 2, 3], dropped=[4, 5, 6])
    outcome = Outcome()
    index_vectors(str(source), collection, Layout("v", metadata=("kept",)), None, 500, outcome)
    assert (outcome.stored, outcome.problems) == (3, {})
    ids = [content_id(row.astype(np.float32)) for row in vectors]
    assert collection.missing([*ids, "other"]) == {"other"}


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        (("vec", None), "no column 'vec'; the columns are v, n"),
        (("n", None), "'n' is int64; a column of lists"),
    ],
)
def test_a_table_without_such_columns_is_told(
    collection: LocalCollection, tmp_path: Path, layout: tuple[str, None], told: str
) -> None:
    from serve_app.jobs.build_index import Outcome, index_vectors
    from serve_app.jobs.vectors import Layout

    source = written(tmp_path / "c.parquet", v=[[1.0]], n=[1])
    outcome = Outcome()
    index_vectors(str(source), collection, Layout(*layout), None, 500, outcome)
    assert outcome.stored == 0
    assert told in outcome.problems["c.parquet"]


def test_a_file_that_cannot_be_read_is_left_out_alone(collection: LocalCollection, tmp_path: Path) -> None:
    from serve_app.jobs.build_index import Outcome, index_vectors
    from serve_app.jobs.vectors import Layout

    with pytest.raises(ValueError, match=r"holds no \.parquet files"):
        index_vectors(str(tmp_path), collection, Layout("v", "id"), None, 2, Outcome())
    for name in ("a", "b", "c", "d"):
        rows = [[1.0, 2.0], None if name == "d" else [3.0, 4.0]]
        written(tmp_path / f"{name}.parquet", v=rows, id=[f"{name}{row}" for row in (1, 2)])
    written(tmp_path / "other.parquet", v=["x"], id=["x"])
    written(tmp_path / "named.parquet", w=[[1.0]], id=["y"])
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:200])
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "README.md").write_text("about them")
    (tmp_path / "_temporary").mkdir()
    written(tmp_path / "_temporary" / "e.parquet", v=[[1.0, 2.0]], id=["not yet"])
    outcome = Outcome()
    index_vectors(str(tmp_path), collection, Layout("v", "id"), None, 2, outcome)
    assert outcome.stored == 5
    assert collection.missing(["a1", "a2", "b1", "c1", "c2", "d1", "not yet"]) == {"b1", "not yet"}
    assert sorted(outcome.problems) == [
        "b.parquet",
        "d.parquet: row 1 (id d2)",
        "empty.parquet",
        "named.parquet",
        "other.parquet",
    ]
    assert "cannot be read: " in outcome.problems["b.parquet"]
    assert "no column 'v'" in outcome.problems["named.parquet"]


def test_what_comes_before_the_damage_in_a_file_is_stored(
    collection: LocalCollection, tmp_path: Path
) -> None:
    from pyarrow import parquet

    from serve_app.jobs.build_index import Outcome, index_vectors
    from serve_app.jobs.vectors import Layout

    source = tmp_path / "a.parquet"
    ids = [f"a{row}" for row in range(4)]
    parquet.write_table(pa.table({"v": [[1.0, 2.0]] * 4, "id": ids}), source, row_group_size=2)
    content = bytearray(source.read_bytes())
    damaged = parquet.ParquetFile(source).metadata.row_group(1).column(0)
    start = damaged.dictionary_page_offset or damaged.data_page_offset
    content[start : start + 16] = b"\xff" * 16
    source.write_bytes(content)
    outcome = Outcome()
    index_vectors(str(source), collection, Layout("v", "id"), None, 2, outcome)
    assert outcome.stored == 2
    assert outcome.problems["a.parquet"].startswith("cannot be read from row 2 on: ")


def test_a_column_named_twice_is_read_once_and_no_numbers_are_no_vector(
    collection: LocalCollection, tmp_path: Path
) -> None:
    from serve_app.jobs.build_index import Outcome, index_vectors
    from serve_app.jobs.vectors import Layout

    source = written(
        tmp_path / "e.parquet", v=[[], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], id=["e", "a", "a", "b"]
    )
    outcome = Outcome()
    index_vectors(str(source), collection, Layout("v", "id", ("id", "id")), None, 500, outcome)
    assert (outcome.stored, list(outcome.problems)) == (2, ["row 0 (id e)"])
    assert count_of(collection) == 2


def test_ids_the_server_would_not_have_are_left_out_alone(
    collection: LocalCollection, tmp_path: Path
) -> None:
    from serve_app.jobs.build_index import Outcome, index_vectors
    from serve_app.jobs.vectors import Layout

    source = written(tmp_path / "d.parquet", v=[[1.0, 2.0]] * 4, id=["a", "", "x" * 513, "b"])
    outcome = Outcome()
    index_vectors(str(source), collection, Layout("v", "id"), None, 500, outcome)
    assert outcome.stored == 2
    assert [reason for reason in outcome.problems.values() if "1 to 512 characters" in reason] != []
    assert [len(name) < 100 for name in outcome.problems] == [True, True]
    assert collection.missing(["a", "b", "c"]) == {"c"}


def test_the_sentence_at_the_end_counts_what_the_collection_has(
    client: LocalClient,
    collection: LocalCollection,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from serve_app.jobs import build_index

    monkeypatch.setattr(build_index, "Collection", partial(LocalCollection, client=client))

    def status() -> int:
        return build_index.main([str(tmp_path), collection.name, "--vector-column", "v", "--id-column", "id"])

    nan = float("nan")
    written(tmp_path / "a.parquet", v=[[nan, 1.0]] * 3, id=["a", "a", "a"])
    assert status() == 1
    assert capsys.readouterr().out == "stored 0, there already 0, left out 3\n"
    written(tmp_path / "a.parquet", v=[[nan, 1.0], [1.0, 2.0], [3.0, 4.0]], id=["a", "a", "a"])
    assert status() == 0
    assert capsys.readouterr().out == "stored 1, there already 0, left out 1\n"
    batch = {
        "path": ["a.jpg", "copy of a.jpg"],
        "size": [1, 1],
        "id": ["b", "b"],
        "problem": ["", ""],
        "vector": [np.ones(2, "<f4").tobytes()] * 2,
        "thumbnail": [b"", b""],
        "fingerprint": ["", ""],
    }
    outcome = build_index.Outcome()
    build_index._store_batch(batch, collection, outcome)
    assert (outcome.stored, count_of(collection)) == (1, 2)


def test_what_cannot_be_a_file_name_elsewhere_is_left_out_alone(tmp_path: Path) -> None:
    from serve_app.jobs.images import Folder

    (tmp_path / "a.jpg").write_bytes(b"1")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"22")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / ".#lock").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "b.jpg").write_bytes(b"333")
    problems: dict[str, str] = {}
    assert list(Folder.at(str(tmp_path)).files(problems)) == [("a.jpg", 1)]
    assert list(problems) == ["gone.jpg", r"'caf\udce9.jpg'"]
    with pytest.raises(OSError, match="No such file"):
        list(Folder.at(str(tmp_path / "no")).files({}))


def test_a_folder_that_links_lead_to_again_is_listed_once(tmp_path: Path) -> None:
    from serve_app.jobs.images import Folder

    elsewhere, photos = tmp_path / "elsewhere", tmp_path / "photos"
    for folder in (elsewhere, photos):
        folder.mkdir()
        (folder / "1.jpg").write_bytes(b"1")
    (photos / "linked").symlink_to(elsewhere)
    (photos / "linked again").symlink_to(elsewhere)
    (photos / "above").symlink_to(photos)  # a second such link would double the paths at each level
    problems: dict[str, str] = {}
    assert list(Folder.at(str(photos)).files(problems)) == [("1.jpg", 1), ("linked/1.jpg", 1)]
    assert problems == {}


def test_a_file_larger_than_an_image_may_be_is_not_read(tmp_path: Path) -> None:
    from configs.settings import LimitSettings
    from serve_app.jobs.images import Folder, Read

    class Lacking(Collection):
        def missing(self, ids: Sequence[str]) -> set[str]:
            return set(ids)

    (tmp_path / "a.jpg").write_bytes(b"1")
    most = LimitSettings().max_body_bytes
    with (tmp_path / "film.mp4").open("wb") as film:
        film.truncate(most + 1)
    folder = Folder.at(str(tmp_path))
    columns = dict(zip(("path", "size"), map(np.array, zip(*folder.files({}), strict=True)), strict=True))
    read = Read(folder, Lacking("", "c"))(columns)
    told = f"it has {most + 1} bytes; images of at most {most} are read"
    assert read["problem"] == ["", told]
    assert read["content"].tolist() == [b"1", b""]


def test_what_was_done_before_the_server_refused_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve_app.jobs import build_index

    def refused(*given: Any) -> None:
        given[-1].stored = 3
        given[-1].problems["row 1"] = "is bad"
        raise Refused(507, "no more room")

    monkeypatch.setattr(build_index, "index_vectors", refused)
    assert build_index.main([str(tmp_path), "c", "--vector-column", "v"]) == 1
    told = capsys.readouterr()
    assert "stored 3, there already 0, left out 1" in told.out
    assert "left out: row 1: is bad\nno more room" in told.err
    with pytest.raises(SystemExit):
        build_index.main([str(tmp_path), "c", "--batch", "10001"])
    assert "from 1 to 10000" in capsys.readouterr().err


def test_a_model_that_is_not_the_collections_is_refused(
    client: LocalClient, collection: LocalCollection
) -> None:
    ours = client.get("/v1/models/clip").json()["fingerprint"]
    item = Item("a", "a", np.ones(16, np.float32), {})
    collection.open({})
    with pytest.raises(Refused, match="fingerprint") as refused:
        collection.store([item], "0" * 64)
    assert refused.value.status == 409
    assert count_of(collection) == 0
    assert collection.store([item], ours) == {}
    assert count_of(collection) == 1


def test_images_are_read_asked_for_and_embedded_as_the_server_does(
    client: LocalClient, collection: LocalCollection, model_directories: dict[str, Path], tmp_path: Path
) -> None:
    from serve_app.jobs.images import THERE, Embed, Folder, Read

    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jpg").write_bytes(jpeg("coffee"))
    (tmp_path / "sub" / "b.jpg").write_bytes(jpeg("rocket"))
    (tmp_path / "cut.jpg").write_bytes(jpeg("china")[:4000])
    (tmp_path / "note.txt").write_text("no image")
    (tmp_path / ".hidden").write_text("not listed")
    collection.open({})
    sent = client.post(
        f"/v1/collections/{collection.name}/items?",
        content=json.dumps({"items": [{"id": content_id(jpeg("rocket")), "text": "stands for it"}]}).encode(),
        headers={"content-type": "application/json"},
    )
    assert sent.status == 200
    folder = Folder.at(str(tmp_path))
    files = list(folder.files({}))
    assert [path for path, _ in files] == ["a.jpg", "cut.jpg", "note.txt", "sub/b.jpg"]
    columns = {
        "path": np.array([p for p, _ in files] + ["gone"]),
        "size": np.array([s for _, s in files] + [0]),
    }
    read = Read(folder, collection)(columns)
    assert [problem == THERE for problem in read["problem"]] == [False, False, False, True, False]
    assert read["content"][3] == b""
    assert "cannot be read" in read["problem"][4]
    settings = ClipSettings(source=str(model_directories["clip"]), precision="fp32")
    embed = Embed(resolve(settings, tmp_path, starter=None), settings, tmp_path, 1, thumbnails=False)
    columns = {name: np.array(values, dtype=object) for name, values in read.items()}
    embedded = embed(columns)
    assert "truncated" in embedded["problem"][1]
    assert "not an image of a known format" in embedded["problem"][2]
    ours = client.post(
        "/v1/embeddings", content=jpeg("coffee"), headers={"content-type": "image/jpeg"}
    ).json()
    vector = np.frombuffer(embedded["vector"][0], "<f4")
    assert vector.tolist() == pytest.approx(ours["data"][0]["embedding"], abs=1e-5)
    fingerprint = client.get("/v1/models/clip").json()["fingerprint"]
    assert embedded["fingerprint"] == [fingerprint] * 5


def test_the_job_stores_the_thumbnails_that_the_server_would(
    client: LocalClient,
    collection: LocalCollection,
    model_directories: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from serve_app.jobs.build_index import Outcome, _store_batch
    from serve_app.jobs.images import Embed, Folder, Read

    (tmp_path / "a.jpg").write_bytes(jpeg("coffee"))
    (tmp_path / "copy of a.jpg").write_bytes(jpeg("coffee"))
    (tmp_path / "cut.jpg").write_bytes(jpeg("china")[:4000])
    (tmp_path / "the same.jpg").write_bytes(jpeg("china")[:4000])
    assert collection.open({"thumbnails": True})["thumbnails"]
    folder = Folder.at(str(tmp_path))
    columns = dict(zip(("path", "size"), map(np.array, zip(*folder.files({}), strict=True)), strict=True))
    settings = ClipSettings(source=str(model_directories["clip"]), precision="fp32")
    embed = Embed(resolve(settings, tmp_path, starter=None), settings, tmp_path, 1, thumbnails=True)
    outcome = Outcome()
    decode, decoded = embed._decode, []

    def spy(content: bytes) -> Any:
        decoded.append(content)
        return decode(content)

    monkeypatch.setattr(embed, "_decode", spy)
    _store_batch(embed(Read(folder, collection)(columns)), collection, outcome)
    assert (outcome.stored, list(outcome.problems)) == (1, ["cut.jpg", "the same.jpg"])
    assert decoded == [jpeg("coffee"), jpeg("china")[:4000]], "one picture under two names is done once"
    path = f"/v1/collections/{collection.name}/items"
    ours = client.get(f"{path}/{content_id(jpeg('coffee'))}/thumbnail").content
    client.put(f"{path}/raw", content=jpeg("coffee"), headers={"content-type": "image/jpeg"})
    assert ours == client.get(f"{path}/raw/thumbnail").content
    assert ours.startswith(b"\xff\xd8")


def test_the_watcher_learns_whether_cpus_are_free() -> None:
    from serve_app.jobs.build_index import cpus_wanted

    assert cpus_wanted(3.0, 8.0, 8.0).endswith("8 of 8 are free")
    assert cpus_wanted(3.0, 1.0, 8.0).endswith("1 of 8 are free; waiting for the others")
    assert cpus_wanted(3.0, 2.0, 2.0).endswith("give fewer --workers or --cpus")
