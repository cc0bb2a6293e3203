"""Sightline as users start it, with the benchmark's models and something to search."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import requests

from benchmarks.load.plan import ROOT
from benchmarks.models import ANY_AGREEMENT, build_models
from benchmarks.scenarios import COLLECTION
from tests.server import running

CACHE: Final = ROOT / ".cache"
PHOTOS: Final = CACHE / "bench" / "photos"
STORED: Final = 2000  # items of the collection that is searched


@dataclass(frozen=True)
class Target:
    """A server under load: its name in the tables, and how to find its processes."""

    name: str
    url: str
    mark: tuple[str, str]  # environment variable and value


def arguments(overrides: Sequence[str], clip: Path, news: Path) -> dict[str, Any]:
    """Settings of the server, for Settings.from_args: these models, but for what `KEY=VALUE` says."""
    # Dotted keys, to which an override of a whole group (clip={precision: int8}) adds.
    models: dict[str, Any] = {
        "clip.source": str(clip),
        "clip.int8": ANY_AGREEMENT,
        "classifiers.news.source": str(news),
        "classifiers.news.int8": ANY_AGREEMENT,
    }
    return models | dict(override.split("=", 1) for override in overrides)


@contextmanager
def sightline(overrides: Sequence[str] = ()) -> Iterator[Target]:
    """`sightline serve` with the benchmark's models until the block ends."""
    with running(arguments(overrides, *build_models(CACHE))) as server:
        yield Target("sightline", server.url, ("RAY_TMPDIR", str(server.directory)))


def fill_collection(url: str, items: int = STORED) -> None:
    """A collection of random unit vectors, of the dimensions the served encoder makes."""
    models = requests.get(f"{url}/v1/models", timeout=60).json()["data"]
    dimensions = next(model["dimensions"] for model in models if model["id"] == "clip")
    collection = f"{url}/v1/collections/{COLLECTION}"
    requests.put(collection, json={}, timeout=60).raise_for_status()
    vectors = np.random.default_rng(0).standard_normal((items, dimensions), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for start in range(0, items, 500):
        batch = [
            {"id": f"item-{start + i}", "vector": vector.tolist(), "metadata": {"n": start + i}}
            for i, vector in enumerate(vectors[start : start + 500])
        ]
        requests.post(f"{collection}/items", json={"items": batch}, timeout=60).raise_for_status()
