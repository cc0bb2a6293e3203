"""A training process that is killed, and what the next one makes of what it left."""

import signal
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

from safetensors.torch import load_file

from tests.programs import said, started
from tests.unit.training.tiny import tiny_job

EPOCHS = 4


def start(
    directory: Path, output: Path, *more: str, module: str = "training.text"
) -> AbstractContextManager["subprocess.Popen[str]"]:
    given = ["--csv", directory / "data.csv", "--base", directory / "base", "--output", output]
    options = ["--epochs", EPOCHS, "--batch-size", 4, "--lr", "1e-3", "--patience", EPOCHS, *more]
    return started(module, *given, *options, OMP_NUM_THREADS="1", PATH="")


def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    tiny_job(tmp_path)
    checkpoint = tmp_path / "killed" / ".checkpoint" / "checkpoint.safetensors"
    with start(tmp_path, tmp_path / "whole") as whole:
        with start(tmp_path, tmp_path / "killed", module="tests.unit.training.killed_run") as killed:
            out = said(killed)
        assert killed.returncode == -signal.SIGKILL, out
        assert checkpoint.exists()
        assert not (tmp_path / "killed" / "1").exists()
        with start(tmp_path, tmp_path / "killed", "--resume") as resumed_run:
            out = said(resumed_run)
        assert resumed_run.returncode == 0, out
        out = said(whole)
    assert whole.returncode == 0, out
    expected = load_file(tmp_path / "whole" / "1" / "model.safetensors")
    resumed = load_file(tmp_path / "killed" / "1" / "model.safetensors")
    assert expected.keys() == resumed.keys()
    for name, tensor in expected.items():
        assert tensor.equal(resumed[name]), name
    assert not checkpoint.parent.exists()
