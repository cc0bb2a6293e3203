"""Vectors that are laid out like embeddings, queries, and the true neighbours of these.

Uniform noise has neighbours that are hardly nearer than anything else, which no embedding has. These vectors
have what CLIP's image embeddings have: a narrow cone (two random ones have a cosine near 0.5), many clusters
of uneven size and spread, and few directions that matter. A vector is the unit vector along

    cone + basis @ (centre[k] + spread[k] * scale[k] * z) + noise

with cluster k drawn by a power law over 1000; `basis` maps 64 latent dimensions, whose variances fall like
1/i, into the space; `spread` is log-normal per cluster and `scale` per cluster and latent dimension, so
clusters are ellipsoids; z and noise are Gaussian. Queries come from the same mixture and are not members.

Every item has a category that does not depend on its vector: "rare" (1%), "common" (10%) or "other".
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.vector_peers.dataset import (
    CATEGORIES,
    FILTERS,
    QUERIES,
    SHARES,
    TUNING,
    Dataset,
    Floats,
    K,
    Truth,
)

CLUSTERS = 1000
LATENT = 64
CHUNK = 50_000  # rows generated and searched at a time
VERSION = 2  # of this recipe; files of another one are not reused


def prepare(root: Path, count: int, dimensions: int, seed: int) -> Dataset:
    """The data set from under `root`, made first if it is not there."""
    directory = root / f"vectors-v{VERSION}-{count}x{dimensions}-{seed}"
    if not directory.exists():
        root.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=root))
        try:
            _make(unfinished, count, dimensions, seed)
            unfinished.chmod(0o755)
            os.rename(unfinished, directory)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return Dataset(directory, count, dimensions)


class Mixture:
    """The distribution of the vectors; the same for the same seed."""

    def __init__(self, dimensions: int, seed: int) -> None:
        draw = np.random.default_rng([seed, 0])
        decay = (1 / np.sqrt(np.arange(1, LATENT + 1))).astype(np.float32)
        decay /= np.linalg.norm(decay)
        basis, _ = np.linalg.qr(draw.standard_normal((dimensions, LATENT + 1)))
        self._cone = basis[:, LATENT].astype(np.float32)
        self._basis = np.ascontiguousarray(basis[:, :LATENT].T, np.float32) * decay[:, None]
        self._centres = draw.standard_normal((CLUSTERS, LATENT), np.float32) * 0.8
        spread = np.exp(0.3 * draw.standard_normal((CLUSTERS, 1), np.float32))
        self._scales = 0.6 * spread * np.exp(0.4 * draw.standard_normal((CLUSTERS, LATENT), np.float32))
        weights = 1 / np.arange(1, CLUSTERS + 1) ** 0.7
        self._weights = weights / weights.sum()

    def sample(self, count: int, draw: np.random.Generator) -> Floats:
        """`count` unit vectors, float32 [count, d]."""
        cluster = draw.choice(CLUSTERS, count, p=self._weights)
        latent = self._centres[cluster] + self._scales[cluster] * draw.standard_normal(
            (count, LATENT), np.float32
        )
        dimensions = len(self._cone)
        noise = draw.standard_normal((count, dimensions), np.float32) * (0.3 / np.sqrt(dimensions))
        vectors: Floats = self._cone + latent @ self._basis + noise.astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def _make(directory: Path, count: int, dimensions: int, seed: int) -> None:
    mixture = Mixture(dimensions, seed)
    vectors = np.lib.format.open_memmap(
        directory / "vectors.npy", mode="w+", dtype=np.float32, shape=(count, dimensions)
    )
    for number, rows in enumerate(_chunks(count)):
        vectors[rows] = mixture.sample(rows.stop - rows.start, np.random.default_rng([seed, 1, number]))
    vectors.flush()
    categories = np.random.default_rng([seed, 2]).choice(len(CATEGORIES), count, p=SHARES).astype(np.int8)
    np.save(directory / "categories.npy", categories)
    queries = mixture.sample(TUNING + QUERIES, np.random.default_rng([seed, 3]))
    np.save(directory / "queries.npy", queries)
    truth = {
        str(name): nearest(vectors, queries, None if name is None else categories == CATEGORIES.index(name))
        for name in FILTERS
    }
    np.savez(directory / "truth.npz", allow_pickle=False, **truth)
    (directory / "about.json").write_text(json.dumps(describe(vectors, queries, truth["None"])) + "\n")


def nearest(vectors: Floats, queries: Floats, chosen: NDArray[np.bool_] | None = None) -> Truth:
    """Ids of the K rows with the largest inner product among the chosen, by exact search: int64 [q, K]."""
    scores = np.empty((len(queries), 0), np.float32)
    ids = np.empty((len(queries), 0), np.int64)
    for rows in _chunks(len(vectors)):
        members = np.arange(rows.start, rows.stop)
        if chosen is not None:
            members = members[chosen[rows]]
        found, positions = faiss.knn(
            queries, np.ascontiguousarray(vectors[members]), min(K, len(members)), faiss.METRIC_INNER_PRODUCT
        )
        scores, ids = np.hstack([scores, found]), np.hstack([ids, members[positions]])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
    return ids


def describe(vectors: Floats, queries: Floats, truth: Truth) -> dict[str, float]:
    """What the data looks like to a search, in cosines."""
    sample = np.asarray(vectors[: 2 * QUERIES])
    half = len(sample) // 2
    cosines = (queries[: len(truth), None] * vectors[truth]).sum(2)
    spectrum = np.linalg.eigvalsh(np.cov(sample.T))
    return {
        "cosine_of_random_pairs": round(float((sample[:half] * sample[half : 2 * half]).sum(1).mean()), 3),
        "cosine_of_nearest": round(float(cosines[:, 0].mean()), 3),
        "cosine_of_tenth": round(float(cosines[:, -1].mean()), 3),
        "effective_dimensions": round(float(spectrum.sum() ** 2 / (spectrum**2).sum()), 1),
    }


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))
