"""The offline job as a person runs it: a folder of photos into a running server, killed and run again."""

import re
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from tests.assets import CACHE
from tests.photos import WORDS, encoded, jpeg, photos
from tests.programs import said, started
from tests.server import Server
from tests.waiting import wait_until

pytest.importorskip("pandas", reason="the jobs extra is not installed")
pytest.importorskip("pyarrow", reason="the jobs extra is not installed")

CROPS = 250
PATH = "/v1/collections/job"


def start(folder: Path, server: Server) -> AbstractContextManager["subprocess.Popen[str]"]:
    model = ["--model", "starter", "--cache-dir", CACHE]
    return started("serve_app.jobs.build_index", folder, "job", "--url", server.url, *model)


def stored(server: Server) -> int:
    answer = server.get(PATH)
    return int(answer.json()["count"]) if answer.status_code == 200 else 0


def test_a_killed_job_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    for name in WORDS:
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(name))
    rng = np.random.default_rng(0)
    for number in range(CROPS):  # enough that a kill meets work not yet done
        pixels = photos()["chelsea"]
        top, left = rng.integers(0, pixels.shape[0] - 64), rng.integers(0, pixels.shape[1] - 64)
        crop = np.ascontiguousarray(pixels[top : top + 64, left : left + 64])
        (tmp_path / f"zz-{number:03}.png").write_bytes(encoded(crop))
    (tmp_path / "cut.jpg").write_bytes(jpeg("coffee")[:3000])
    (tmp_path / "note.txt").write_text("not an image")
    images = len(WORDS) + CROPS
    with start(tmp_path, server) as killed:

        def begun() -> int:
            assert killed.poll() is None, said(killed)
            return stored(server)

        wait_until(begun, what="stored photos", every_s=0.02)
        killed.kill()
    before = stored(server)
    with start(tmp_path, server) as again:
        out = said(again)
    assert again.returncode == 0
    (done,) = re.findall(r"stored (\d+), there already (\d+), left out 2", out)
    new, there = map(int, done)
    assert new + there == images
    assert 0 < before <= there < images  # a batch that was on its way may have come later
    assert "left out: cut.jpg: the JPEG image is truncated" in out
    assert "left out: note.txt: the data is not an image" in out
    assert stored(server) == images
    hit = server.post(f"{PATH}/search", json={"text": "a rocket", "limit": 1}).json()["results"][0]
    assert hit["metadata"] == {"path": "rocket.jpg", "size": len(jpeg("rocket"))}
    cat = server.post(f"{PATH}/search", json={"text": "a cat", "limit": 1}).json()["results"][0]
    assert cat["metadata"]["path"].startswith(("chelsea", "zz-"))
