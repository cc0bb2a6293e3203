"""The offline job as a person runs it: a folder of photos into a running server, killed and run again."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.assets import CACHE
from tests.photos import WORDS, encoded, jpeg, photos
from tests.programs import started
from tests.server import Server
from tests.waiting import PATIENCE_S, wait_until

pytest.importorskip("pandas", reason="the jobs extra is not installed")
pytest.importorskip("pyarrow", reason="the jobs extra is not installed")

CROPS = 250
PATH = "/v1/collections/job"


def start(folder: Path, server: Server) -> "subprocess.Popen[str]":
    model = ["--model", "starter", "--cache-dir", CACHE]
    return started("serve_app.jobs.build_index", folder, "job", "--url", server.url, *model)


def stored(server: Server) -> int:
    answer = server.get(PATH)
    return int(answer.json()["count"]) if answer.status_code == 200 else 0


def test_a_killed_job_goes_on_and_a_finished_one_has_nothing_to_do(server: Server, tmp_path: Path) -> None:
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
    first = start(tmp_path, server)

    def begun() -> int:
        assert first.poll() is None, first.communicate()[0]
        return stored(server)

    try:
        wait_until(begun, what="stored photos", every_s=0.02)
    finally:
        first.kill()
        first.communicate(timeout=PATIENCE_S)
    before = stored(server)
    assert 0 < before < images
    out, _ = start(tmp_path, server).communicate(timeout=PATIENCE_S)
    assert f"stored {images - before}, there already {before}, left out 2" in out
    assert "left out: cut.jpg: the JPEG image is truncated" in out
    assert "left out: note.txt: the data is not an image" in out
    assert stored(server) == images
    hit = server.post(f"{PATH}/search", json={"text": "a rocket", "limit": 1}).json()["results"][0]
    assert hit["metadata"] == {"path": "rocket.jpg", "size": len(jpeg("rocket"))}
    cat = server.post(f"{PATH}/search", json={"text": "a cat", "limit": 1}).json()["results"][0]
    assert cat["metadata"]["path"].startswith(("chelsea", "zz-"))
    again = start(tmp_path, server)
    out, _ = again.communicate(timeout=PATIENCE_S)
    assert f"stored 0, there already {images}, left out 2" in out
    assert again.returncode == 0
