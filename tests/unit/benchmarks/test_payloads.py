"""What a server is loaded with: real, and every request another."""

import base64
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.payloads import HEIGHT, PHOTOS, WIDTH, Photos, build_photos, text
from benchmarks.scenarios import MIXES, NAMES, SCENARIOS, parts, requests, takes_peer
from deployments.models.images import decode


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    return Photos(build_photos(tmp_path_factory.mktemp("photos")))


def test_photos_differ_in_their_bytes_and_decode(photos: Photos) -> None:
    jpegs = [photos.jpeg(number) for number in (0, 1, PHOTOS)]
    assert len(set(jpegs)) == 3
    first, second, stamped = (decode(jpeg, 224, WIDTH * HEIGHT) for jpeg in jpegs)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, stamped)  # the comment is all that differs


def test_a_data_uri_is_the_same_jpeg(photos: Photos) -> None:
    assert base64.b64decode(photos.data_uri(7).split(b",")[1], validate=True) == photos.jpeg(7)


@pytest.mark.parametrize("name", NAMES)
def test_requests_are_whole_and_none_comes_twice(name: str, photos: Photos) -> None:
    made = list(itertools.islice(requests(name, photos, "127.0.0.1:1", seed=3), 60))
    assert {kind for kind, _ in made} == set(parts(name))
    bodies = [request.partition(b"\r\n\r\n")[2] for _, request in made]
    assert len(set(bodies)) == len(bodies)
    for (kind, request), body in zip(made, bodies, strict=True):
        assert f"content-length: {len(body)}\r\n".encode() in request
        if SCENARIOS[kind].content_type == "application/json":
            assert len(json.loads(body).get("input", [""])) == SCENARIOS[kind].items


def test_a_text_has_as_many_words_as_asked_and_is_its_numbers_own() -> None:
    assert len(text(1, 9).split()) == 9
    assert text(1, 9) == text(1, 9) != text(2, 9)


def test_the_peer_gets_only_what_it_can_do() -> None:
    assert not takes_peer("image-raw")
    assert takes_peer("image-uri")
    assert [name for name in MIXES if takes_peer(name)] == ["mixed-infer"]


def test_the_engine_is_measured_without_ray() -> None:
    """In a process of its own: this one may have imported Ray for other tests."""
    import subprocess
    import sys

    code = "import sys, benchmarks.roof; sys.exit('ray' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
