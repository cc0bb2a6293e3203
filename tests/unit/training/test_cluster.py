"""Ray Train and Ray Tune on a cluster of this machine; a process each, as Ray reads its environment once."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server import ROOT
from tests.unit.training.tiny import tiny_job

pytest.importorskip("pandas", reason="the train extra is not installed")
pytest.importorskip("pyarrow", reason="the train extra is not installed")


def run(module: str, *arguments: object) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_TOKEN_PATH"):
        env.pop(name, None)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_workers_publish_one_model(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, rows=120, epochs=2)
    given = ["--csv", job.csv, "--base", job.base, "--output", job.output, "--workers", 2]
    options = ["--epochs", 2, "--batch-size", 8, "--lr", "1e-3", "--seed", 0]
    out = run("training.cluster", *given, *options)
    assert f"saved in {job.output / '1'}" in out
    assert not [entry.name for entry in job.output.iterdir() if entry.name.startswith(".")]
    card = (job.output / "1" / "README.md").read_text()
    assert "--workers 2" in card
    assert "| 2 |" in card
    assert "| good | " in card


def test_a_search_ends_in_a_table(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, rows=120)
    table = tmp_path / "out" / "heads.csv"
    out = run(
        "training.tune",
        *("--csv", job.csv, "--base", job.base, "--table", table),
        *("--trials", 4, "--epochs", 6, "--cpus", 2),
    )
    with table.open(newline="") as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 4
    losses = [float(trial["validation_loss"]) for trial in trials]
    assert losses == sorted(losses)
    assert all(1e-5 <= float(trial["lr"]) <= 1e-1 for trial in trials)
    assert {int(trial["batch_size"]) for trial in trials} <= {32, 64, 128, 256, 512}
    assert any(trial["stopped_early"] == "True" for trial in trials)
    assert any(int(trial["epochs"]) == 6 for trial in trials)
    assert len(out.splitlines()) >= 5
    assert [entry.name for entry in table.parent.iterdir()] == ["heads.csv"]
