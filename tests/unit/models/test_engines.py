"""Engines: dynamic shapes, precision, threads, and no word to anybody."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from deployments.engines import openvino
from deployments.engines.choose import compile_networks
from deployments.engines.openvino import native_precision
from deployments.engines.protocol import Engine
from tests.unit.models.weighted import Weighted, networks


def inputs(n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(n * 1000 + length)
    return random.integers(0, 100, (n, length)), random.integers(0, 2, (n, length))


def compiled_sums(directory: Path, engine: Any, precision: Any, threads: int = 2) -> Engine:
    return compile_networks(
        networks(directory), engine=engine, precision=precision, threads=threads, cache_dir=directory
    ).engines["sums"]


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.3)])
@torch.inference_mode()
def test_any_batch_and_length(
    engine: Literal["openvino", "torch"], precision: Literal["fp32", "bf16"], tolerance: float, tmp_path: Path
) -> None:
    compiled = compiled_sums(tmp_path, engine, precision)
    assert compiled.precision == (native_precision(precision) if engine == "openvino" else precision)
    compiled(*inputs(1, 4))
    for shape in [(1, 1), (2, 5), (7, 3), (32, 40), (1, 1)]:
        arrays = inputs(*shape)
        wanted = Weighted()(*map(torch.from_numpy, arrays)).numpy()
        result = compiled(*arrays)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, wanted, atol=tolerance)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_calls_from_many_threads_keep_their_own_results(
    engine: Literal["openvino", "torch"], tmp_path: Path
) -> None:
    compiled = compiled_sums(tmp_path, engine, "fp32")
    batches = [inputs(n, length) for n in range(1, 9) for length in range(1, 9)]
    wanted = [compiled(*batch) for batch in batches]
    kept = [array.copy() for array in wanted]
    with ThreadPoolExecutor(8) as pool:
        for result, expected in zip(pool.map(lambda b: compiled(*b), batches * 5), kept * 5, strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    for array, copy in zip(wanted, kept, strict=True):  # no later call wrote into an earlier result
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_openvino_names_the_precision_that_runs(
    precision: Literal["auto", "fp32", "bf16"], tmp_path: Path
) -> None:
    """Asked for bf16 on a CPU without it, OpenVINO itself keeps silent."""
    engine: Any = compiled_sums(tmp_path, "openvino", precision)
    runs = engine._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    assert {"f32": "fp32", "bf16": "bf16"}[runs] == engine.precision


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_replaced_where_it_is_not_native(
    native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_computes_bf16", lambda: native)
    compiled = compile_networks(
        networks(tmp_path), engine="openvino", precision="bf16", threads=1, cache_dir=tmp_path
    )
    assert compiled.engines["sums"].precision == ("bf16" if native else "fp32")
    assert any("fp32 runs in its place" in note for note in compiled.notes) is not native
    (shelf,) = (tmp_path / "engines").iterdir()
    assert shelf.name.endswith("-fp16" if native else "-fp32")


def test_a_gpu_that_was_asked_for_and_is_not_used_is_told(tmp_path: Path) -> None:
    for gpus in (0, 0.5):
        compiled = compile_networks(
            networks(tmp_path), engine="openvino", precision="fp32", threads=1, cache_dir=tmp_path, gpus=gpus
        )
        assert any("scale.gpus" in note for note in compiled.notes) is bool(gpus)


@pytest.mark.parametrize(
    ("features", "noted"), [({"fma", "avx2"}, True), ({"avx2", "avx_vnni"}, False), ({"asimddp"}, False)]
)
def test_int8_is_noted_where_it_is_no_faster(
    features: set[str], noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_cpu_features", lambda: features)
    assert any("no faster than fp32" in note for note in openvino.notes("int8")) is noted
    assert openvino.notes("fp32") == openvino.notes("auto") == ()


def test_the_features_of_this_cpu_are_known() -> None:
    assert {"avx2", "asimd"} & openvino._cpu_features()


def test_auto_is_what_this_machine_runs_natively(tmp_path: Path) -> None:
    compiled = compiled_sums(tmp_path, "auto", "auto", threads=1)
    if torch.cuda.is_available():
        assert compiled.name == "torch-cuda"
        assert compiled.precision in ("bf16", "fp16")
    else:
        assert compiled.name == "openvino"
        assert compiled.precision in ("bf16", "fp32")


def test_weights_are_given_back_through_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    engine: Any = compiled_sums(tmp_path / "link", "openvino", "fp32")
    assert str(engine._weights).startswith(str((tmp_path / "real").resolve()))


@torch.inference_mode()
def test_results_stay_after_the_weights_are_given_back(tmp_path: Path) -> None:
    compiled = compiled_sums(tmp_path, "openvino", "fp32")
    arrays = inputs(3, 4)
    before = compiled(*arrays)
    compiled.warmed_up()
    np.testing.assert_array_equal(compiled(*arrays), before)
    other = inputs(9, 11)  # a shape that kernels are made for only now
    wanted = Weighted()(*map(torch.from_numpy, other)).numpy()
    np.testing.assert_allclose(compiled(*other), wanted, atol=1e-4)


def test_openvino_opens_no_connection(tmp_path: Path) -> None:
    """Importing openvino and converting would both report to an analytics host."""
    program = f"""
import pathlib, socket, sys, multiprocessing
def refuse(*arguments, **options): raise SystemExit(f"connects: {{arguments}}")
socket.socket.connect = socket.getaddrinfo = refuse
multiprocessing.Process.start = refuse
import torch  # so that the conversion happens in this process
from deployments.engines.choose import compile_networks
from tests.unit.models.weighted import networks
directory = pathlib.Path({str(tmp_path)!r})
compile_networks(networks(directory), engine="openvino", precision="fp32", threads=1, cache_dir=directory)
assert not any(name.startswith("openvino_telemetry.") for name in sys.modules), "telemetry was loaded"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
