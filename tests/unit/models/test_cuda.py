"""The CUDA engine against the CPU's: graphs, padding, threads, and what cannot be captured."""

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
import torch

from configs.settings import Precision
from deployments.engines.buckets import MAX_ROWS
from deployments.engines.cuda import CudaEngine
from deployments.engines.torch import TorchEngine
from deployments.models.networks.clip import ImageNetwork, TextNetwork
from deployments.models.networks.distilbert import LogitsNetwork
from tests.unit.models import small
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LIMIT = 50


class Counted(torch.nn.Module):
    """Sums of embeddings of ids and positions, masked; counts its calls, which a replay does not make."""

    def __init__(self, syncs_at_rows: int | None = None, short_of_memory: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(100, 64)
        self.positions = torch.nn.Embedding(LIMIT, 64)
        self.linear = torch.nn.Linear(64, 8)
        self.syncs_at_rows = syncs_at_rows
        self.short_of_memory = short_of_memory
        self.calls = 0

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.short_of_memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if len(ids) == self.syncs_at_rows:
            ids.sum().item()  # waits for the device, which no capture allows
        places = self.positions(torch.arange(ids.shape[1], device=ids.device))
        hidden = (self.embedding(ids) + places) * mask.unsqueeze(-1)
        out: torch.Tensor = self.linear(hidden.sum(1))
        return out


def batch(n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(n * 1000 + length)
    return random.integers(0, 100, (n, length)), random.integers(0, 2, (n, length))


SHAPES = [(1, 1), (2, 5), (7, 3), (32, 40), (5, LIMIT), (MAX_ROWS, 9), (MAX_ROWS + 1, 9), (1, 1), (6, 4)]


def reference(arrays: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return TorchEngine(Counted(), precision="fp32", threads=1)(*arrays)


@pytest.mark.parametrize("max_tokens", [LIMIT, None])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.5), ("auto", 0.5)])
def test_results_are_those_of_the_cpu(precision: Precision, tolerance: float, max_tokens: int | None) -> None:
    engine = CudaEngine(Counted(), precision=precision, max_tokens=max_tokens)
    assert engine.precision in ("fp32", "bf16", "fp16")
    for arrays in [batch(*shape) for shape in SHAPES for _ in range(3)]:
        result = engine(*arrays)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, reference(arrays), atol=tolerance)


def towers() -> list[tuple[torch.nn.Module, int | None, list[tuple[np.ndarray, ...]]]]:
    """Each network that serves on a GPU, small, with its greatest length and batches for it."""
    clip = small.clip(layers=3, heads=3, head=16)
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (n, small.SIZE, small.SIZE, 3), dtype=np.uint8) for n in (1, 5, 32)]
    ids = [random.integers(3, small.END, shape) for shape in [(1, 3), (5, 9), (32, small.LIMIT)]]
    for each in ids:
        each[:, -1] = small.END
    masks = [np.ones_like(each) for each in ids]
    masks[1][2, 4:] = 0
    classifier = LogitsNetwork(small.classifier(layers=3, heads=3, head=16))
    return [
        (ImageNetwork(clip, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), None, [(each,) for each in pixels]),
        (TextNetwork(clip), small.LIMIT, [(each,) for each in ids]),
        (classifier, small.LIMIT, [*zip(ids, masks, strict=True)]),
    ]


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("bf16", 0.995)])
def test_the_towers(precision: Precision, least: float, caplog: pytest.LogCaptureFixture) -> None:
    for network, longest, batches in towers():
        cpu = TorchEngine(deepcopy(network), precision="fp32", threads=1)
        engine = CudaEngine(network, precision=precision, max_tokens=longest)
        for arrays in [each for each in batches for _ in range(2 * engine.concurrency)]:
            result, wanted = engine(*arrays), cpu(*arrays)
            norms = np.linalg.norm(result, axis=1) * np.linalg.norm(wanted, axis=1)
            assert ((result * wanted).sum(1) / norms).min() >= least  # not so of NaN
    assert not caplog.records  # a capture that failed is logged


def test_a_shape_seen_before_is_replayed() -> None:
    module = Counted()
    engine = CudaEngine(module, precision="fp32", max_tokens=LIMIT)
    for _ in range(engine.concurrency):
        engine(*batch(5, 9))
    calls = module.calls
    for shape in [(5, 9), (6, 16), (5, 12)]:  # of one bucket
        np.testing.assert_allclose(engine(*batch(*shape)), reference(batch(*shape)), atol=1e-4)
    assert module.calls == calls
    engine(*batch(MAX_ROWS + 1, 9))
    assert module.calls == calls + 1


def test_what_cannot_be_captured_runs_without_a_graph(caplog: pytest.LogCaptureFixture) -> None:
    engine = CudaEngine(Counted(syncs_at_rows=4), precision="fp32", max_tokens=LIMIT)
    for shape in [(1, 3), (4, 3), (2, 3), (4, 3), (3, 3)] * 4:
        np.testing.assert_allclose(engine(*batch(*shape)), reference(batch(*shape)), atol=1e-4)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == engine.concurrency  # once for each lane, not for each call


def test_a_shape_whose_capture_once_had_too_little_memory_gets_its_graph_later() -> None:
    module = Counted(short_of_memory=True)
    engine = CudaEngine(module, precision="fp32", max_tokens=LIMIT)
    with pytest.raises(torch.OutOfMemoryError):  # what runs without a graph lacks it too
        engine(*batch(5, 9))
    module.short_of_memory = False
    for _ in range(2 * engine.concurrency):
        np.testing.assert_allclose(engine(*batch(5, 9)), reference(batch(5, 9)), atol=1e-4)
    calls = module.calls
    engine(*batch(5, 9))
    assert module.calls == calls


def test_the_number_of_graphs_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    module = Counted()
    engine = CudaEngine(module, precision="fp32", max_tokens=LIMIT, max_graphs=2)
    for n in [n for n in [1, 2, 3, 4, 6, 8, 1, 2, 3] for _ in range(engine.concurrency)]:
        np.testing.assert_allclose(engine(*batch(n, 3)), reference(batch(n, 3)), atol=1e-4)
    calls = module.calls
    for _ in range(engine.concurrency):
        engine(*batch(1, 3))
        engine(*batch(2, 3))
    assert module.calls == calls
    engine(*batch(3, 3))
    assert module.calls == calls + 1
    warnings = [record for record in caplog.records if "further shapes" in record.message]
    assert len(warnings) == engine.concurrency  # once for each lane


def test_an_engine_whose_device_faulted_says_that_it_is_lost() -> None:
    """In a process of its own, which can use the device no more."""
    script = """
import numpy as np, torch
from deployments.engines.cuda import CudaEngine
from deployments.errors import ModelLost
engine = CudaEngine(torch.nn.Embedding(10, 4), precision="fp32", max_tokens=8)
engine(np.ones((1, 3), np.int64))
for _ in range(2):
    try:
        engine(np.full((1, 3), 10**6))
    except ModelLost:
        print("lost")
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S)
    assert told.stdout.splitlines().count("lost") == 2, told.stderr


def test_calls_from_many_threads_keep_their_own_results() -> None:
    engine = CudaEngine(Counted(), precision="fp32", max_tokens=LIMIT)
    batches = [batch(n, length) for n in range(1, 9) for length in range(1, 20, 3)] * 5
    wanted = [reference(arrays) for arrays in batches]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda arrays: engine(*arrays), batches))
    for result, expected in zip(results, wanted, strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-4)
