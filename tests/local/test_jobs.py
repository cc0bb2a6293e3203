"""The job's parts against an application in this process: Parquet with vectors, and the stages of images."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
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
    from serve_app.jobs.build_index import index_vectors
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
    first = index_vectors(str(source), collection, Layout("embedding", "sku"), None, 10)
    assert (first.stored, first.there) == (21, 0)
    assert set(first.problems) == {f"row {i} (id s{i})" for i in (3, 7, 11, 13)}
    assert "null" in first.problems["row 3 (id s3)"]
    assert "must be 4 finite numbers; got 2" in first.problems["row 11 (id s11)"]
    assert "NaN" in first.problems["row 13 (id s13)"]
    shown = client.get(f"/v1/collections/{collection.name}/items/s5", params={"include": "vector"}).json()
    assert shown["metadata"] == {"price": 5, "day": "2026-01-01"}
    assert shown["vector"] == pytest.approx((vectors[5] / np.linalg.norm(vectors[5])).tolist(), abs=1e-6)
    again = index_vectors(str(tmp_path), collection, Layout("embedding", "sku"), None, 10)
    assert (again.stored, again.there) == (0, 21)


def test_parquet_without_ids_takes_them_from_the_vectors(collection: LocalCollection, tmp_path: Path) -> None:
    from serve_app.jobs.build_index import index_vectors
    from serve_app.jobs.vectors import Layout

    vectors = np.eye(3, dtype=np.float64)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3)
    source = written(tmp_path / "b.parquet", v=column, kept=[1, 2, 3], dropped=[4, 5, 6])
    outcome = index_vectors(str(source), collection, Layout("v", metadata=("kept",)), None, 500)
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
    from serve_app.jobs.build_index import index_vectors
    from serve_app.jobs.vectors import BadTable, Layout

    source = written(tmp_path / "c.parquet", v=[[1.0]], n=[1])
    with pytest.raises(BadTable, match=told):
        index_vectors(str(source), collection, Layout(*layout), None, 500)


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
    files = list(folder.files())
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
    embed = Embed(resolve(settings, tmp_path, starter=None), settings, tmp_path, 1)
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


def test_the_watcher_learns_whether_cpus_are_free() -> None:
    from serve_app.jobs.build_index import cpus_wanted

    assert cpus_wanted(3.0, 8.0, 8.0).endswith("8 of 8 are free")
    assert cpus_wanted(3.0, 1.0, 8.0).endswith("1 of 8 are free; waiting for the others")
    assert cpus_wanted(3.0, 2.0, 2.0).endswith("give fewer --workers or --cpus")
