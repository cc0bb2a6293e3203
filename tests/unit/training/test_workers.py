"""Data-parallel training: several workers take the steps that one would."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import multiprocessing

from tests.unit.training.tiny import tiny_job
from training import loop, train
from training.job import Job
from training.network import build

WORKERS = 3


def learn(rank: int, workers: int, directory: Path, job: Job) -> None:
    """Fit without what differs between one worker and several: dropout, and rounding to bf16."""
    if workers > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"file://{directory}/meeting", rank=rank, world_size=workers)

    def without_dropout(*arguments: Any, **named: Any) -> Any:
        network = build(*arguments, **named)
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return network

    def exact(device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_autocast", exact)
        patch.setattr("training.train.build", without_dropout)
        learned = train.learn(job)
    weights = {name: tensor.contiguous() for name, tensor in learned.network.state_dict().items()}
    history = [torch.tensor([e.train_loss, e.validation_loss or 0]) for e in learned.progress.history]
    if loop.is_first_worker():
        save_file({**weights, "history": torch.stack(history)}, directory / f"{workers}.safetensors")
    if workers > 1:
        dist.destroy_process_group()


def test_workers_share_batches_and_agree_with_one(tmp_path: Path) -> None:
    # 97 rows in batches of 8: the last batch has fewer rows than there are workers.
    job = tiny_job(tmp_path, rows=121, epochs=2)
    jobs = {n: replace(job, output=tmp_path / f"{n}") for n in (1, WORKERS)}
    processes: Any = multiprocessing
    processes.start_processes(learn, (WORKERS, tmp_path, jobs[WORKERS]), nprocs=WORKERS, start_method="spawn")
    learn(0, 1, tmp_path, jobs[1])  # here, which saves importing torch once more
    one, several = (load_file(tmp_path / f"{workers}.safetensors") for workers in jobs)
    torch.testing.assert_close(several.pop("history"), one.pop("history"), atol=1e-5, rtol=1e-4)
    for name, tensor in one.items():
        torch.testing.assert_close(several[name], tensor, atol=2e-4, rtol=1e-3, msg=name)
