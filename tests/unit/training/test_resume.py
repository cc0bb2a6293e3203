"""A training process that is killed, and what the next one makes of what it left."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file

from tests.server import ROOT
from tests.unit.training.tiny import tiny_job
from tests.waiting import PATIENCE_S

EPOCHS = 4


KILLED = """
import os, signal
from training import checkpoint, text

def save(*args, saving=checkpoint.save):
    saving(*args)
    os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save = save
text.main()
"""


@contextmanager
def started(
    job_directory: Path, output: Path, *more: str, program: tuple[str, ...] = ("-m", "training.text")
) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, *program, "--csv", str(job_directory / "data.csv")]
    command += ["--base", str(job_directory / "base"), "--output", str(output), "--epochs", str(EPOCHS)]
    command += ["--batch-size", "4", "--lr", "1e-3", "--patience", str(EPOCHS), *more]
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": ""}
    with subprocess.Popen(command, cwd=job_directory, env=env, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    tiny_job(tmp_path)
    checkpoint = tmp_path / "killed" / ".checkpoint" / "checkpoint.safetensors"
    with started(tmp_path, tmp_path / "whole") as whole:
        with started(tmp_path, tmp_path / "killed", program=("-c", KILLED)) as killed:
            assert killed.wait(PATIENCE_S) == -signal.SIGKILL
        assert checkpoint.exists()
        assert not (tmp_path / "killed" / "1").exists()
        with started(tmp_path, tmp_path / "killed", "--resume") as resumed_run:
            assert resumed_run.wait(PATIENCE_S) == 0
        assert whole.wait(PATIENCE_S) == 0
    expected = load_file(tmp_path / "whole" / "1" / "model.safetensors")
    resumed = load_file(tmp_path / "killed" / "1" / "model.safetensors")
    assert expected.keys() == resumed.keys()
    for name, tensor in expected.items():
        assert tensor.equal(resumed[name]), name
    assert not checkpoint.parent.exists()
