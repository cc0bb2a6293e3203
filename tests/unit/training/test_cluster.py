"""Ray Train and Ray Tune on a cluster of this machine; a process each, as Ray reads its environment once."""

import csv
import os
import signal
import subprocess
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from tests.programs import said, started
from tests.unit.training.tiny import tiny_job
from tests.waiting import wait_until

pytest.importorskip("pandas", reason="the train extra is not installed")
pytest.importorskip("pyarrow", reason="the train extra is not installed")


# One after the other: what is stopped early depends on the order in which trials report.
SEARCH = ("--set", "training.search.local_cpus=2", "--set", "training.search.trials_at_once=1")


def start(module: str, *arguments: object) -> AbstractContextManager["subprocess.Popen[str]"]:
    return started(module, *arguments, OMP_NUM_THREADS="1")


def output_of(process: "subprocess.Popen[str]") -> str:
    out = said(process)
    assert process.returncode == 0, out
    return out


def descendants(pid: int) -> dict[int, str]:
    """Process ids and command lines of everything that `pid` started, and that those started."""
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            stat = (entry / "stat").read_text()
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            lines[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: lines[child] for child in found - {pid}}


def test_two_workers_publish_one_model_though_one_is_killed(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, rows=300)
    config = tmp_path / "serve_config.yaml"
    config.write_text("applications: [{args: {training: {workers: 2, restarts: 0}}}]")
    given = ["--csv", job.csv, "--base", job.base, "--output", job.output]
    given += ["--config", config, "--set", "training.restarts=1"]
    checkpoint = job.output / ".checkpoint" / "checkpoint.safetensors"
    with start("training.cluster", *given, "--epochs", 4, "--batch-size", 4, "--patience", 4) as process:

        def begun() -> bool:
            assert process.poll() is None, output_of(process)
            return checkpoint.exists()

        wait_until(begun, what="a checkpoint", every_s=0.01)  # before the run is over
        workers = [pid for pid, line in descendants(process.pid).items() if "RayTrainWorker" in line]
        assert len(workers) == 2
        for worker in workers:  # which asked for no GPU
            assert b"CUDA_VISIBLE_DEVICES=\0" in (Path("/proc") / str(worker) / "environ").read_bytes()
        os.kill(workers[0], signal.SIGKILL)
        assert f"saved in {job.output / '1'}" in output_of(process)
    assert not [entry.name for entry in job.output.iterdir() if entry.name.startswith(".")]
    card = (job.output / "1" / "README.md").read_text()
    assert "--set training.restarts=1" in card
    assert [line[:5] for line in card.splitlines() if line[:3] in {f"| {n}" for n in range(1, 10)}] == [
        f"| {n} |" for n in range(1, 5)
    ]


def test_a_search_ends_in_a_table(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, rows=120)
    table = tmp_path / "out" / "heads.csv"
    given = ["--csv", job.csv, "--base", job.base, "--table", table]
    with start("training.tune", *given, "--trials", 4, "--epochs", 6, *SEARCH) as process:
        out = output_of(process)
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
