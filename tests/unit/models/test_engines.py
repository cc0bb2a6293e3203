"""Engines: dynamic shapes, precision, threads, and no word to anybody."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pytest
import torch

from deployments.engines.choose import compile_module


class Weighted(torch.nn.Module):
    """Sums of embeddings of ids, weighted: two inputs, dynamic in both axes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(100, 64)
        self.linear = torch.nn.Linear(64, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(ids) * mask.unsqueeze(-1)
        out: torch.Tensor = self.linear(hidden.sum(1)).float()
        return out


def inputs(n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(n * 1000 + length)
    return random.integers(0, 100, (n, length)), random.integers(0, 2, (n, length))


EXAMPLE = [torch.ones((2, 5), dtype=torch.int64)] * 2


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.3)])
@torch.inference_mode()
def test_any_batch_and_length(
    engine: Literal["openvino", "torch"], precision: Literal["fp32", "bf16"], tolerance: float
) -> None:
    compiled = compile_module(Weighted(), EXAMPLE, engine=engine, precision=precision, threads=2)
    assert compiled.precision == precision
    compiled(*inputs(1, 4))
    for shape in [(1, 1), (2, 5), (7, 3), (32, 40), (1, 1)]:
        arrays = inputs(*shape)
        wanted = Weighted()(*map(torch.from_numpy, arrays)).numpy()
        result = compiled(*arrays)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, wanted, atol=tolerance)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_calls_from_many_threads_keep_their_own_results(engine: Literal["openvino", "torch"]) -> None:
    compiled = compile_module(Weighted(), EXAMPLE, engine=engine, precision="fp32", threads=2)
    batches = [inputs(n, length) for n in range(1, 9) for length in range(1, 9)]
    wanted = [compiled(*batch) for batch in batches]
    kept = [array.copy() for array in wanted]
    with ThreadPoolExecutor(8) as pool:
        for result, expected in zip(pool.map(lambda b: compiled(*b), batches * 5), kept * 5, strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    for array, copy in zip(wanted, kept, strict=True):  # no later call wrote into an earlier result
        np.testing.assert_array_equal(array, copy)


def test_auto_is_what_this_machine_runs_natively() -> None:
    compiled = compile_module(Weighted(), EXAMPLE, engine="auto", precision="auto", threads=1)
    if torch.cuda.is_available():
        assert compiled.name == "torch-cuda"
        assert compiled.precision in ("bf16", "fp16")
    else:
        assert compiled.name == "openvino"
        assert compiled.precision in ("bf16", "fp32")


def test_openvino_opens_no_connection() -> None:
    """Importing openvino and converting would both report to an analytics host."""
    program = """
import socket, subprocess, sys, multiprocessing
def refuse(*arguments, **options): raise SystemExit(f"connects: {arguments}")
socket.socket.connect = socket.getaddrinfo = refuse
multiprocessing.Process.start = refuse
import torch
from deployments.engines.choose import compile_module
compile_module(torch.nn.Linear(3, 2), [torch.ones(1, 3)], engine="openvino", precision="fp32", threads=1)
assert not any(name.startswith("openvino_telemetry.") for name in sys.modules), "telemetry was loaded"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
