"""Fine-tune on a Ray cluster: `python -m training.cluster --workers 2 --csv … --output …`.

The same run as `python -m training.text`, its batches shared between workers by Ray Train. CSV, base,
output and cache must be on storage that every node sees under the same path.
"""

import math
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.settings import SettingsError, TrainingSettings
from deployments.errors import SightlineError
from deployments.ray_cluster import connected
from training.checkpoint import Epoch
from training.data import DataError
from training.job import Job, prepare
from training.network import STARTER
from training.scale import add_flag, add_scale, scale_of
from training.text import job_of, parser
from training.train import checkpoint_of, train

if TYPE_CHECKING:
    from ray.train import ScalingConfig


def train_on_cluster(job: Job, scale: TrainingSettings, storage: Path, *, one_machine: bool = False) -> Path:
    """Train on the cluster `ray` is connected to; the published directory.

    `storage` is where Ray Train keeps its own records. With `one_machine` workers listen on loopback only.
    Raises as `training.train.learn` does before
    anything is started, and `ray.train.TrainingFailedError` if workers fail more often than `restarts`.
    """
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    job = _absolute(job)
    prepare(job)  # bad data is told here, before workers are asked for
    if not job.resume:
        checkpoint_of(job).unlink(missing_ok=True)
    # A group that is started anew goes on where the lost one stopped.
    job = replace(job, resume=True)
    backend = "nccl" if scale.gpus_per_worker else "gloo"
    if one_machine:
        from training.loopback import LoopbackTorchConfig

        torch_config: TorchConfig = LoopbackTorchConfig(backend=backend)
    else:
        torch_config = TorchConfig(backend=backend)
    # Ray hides GPUs only from who was given others.
    environment = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    hidden: dict[str, Any] = {} if scale.gpus_per_worker else {"worker_runtime_env": environment}
    loop: Any = _worker  # annotated by Ray as if it could return nothing
    trainer = TorchTrainer(
        loop,
        train_loop_config={"job": job},
        torch_config=torch_config,
        scaling_config=scaling_of(scale),
        run_config=RunConfig(
            name=job.output.name,
            storage_path=str(storage.resolve()),
            failure_config=FailureConfig(max_failures=scale.restarts),
            **hidden,
        ),
    )
    result: Any = trainer.fit()
    return Path(result.return_value)


def scaling_of(scale: TrainingSettings) -> "ScalingConfig":
    """What Ray Train asks the cluster for."""
    from ray.train import ScalingConfig

    resources = {"CPU": scale.cpus_per_worker, "GPU": float(scale.gpus_per_worker)}
    return ScalingConfig(
        num_workers=scale.workers, use_gpu=scale.gpus_per_worker > 0, resources_per_worker=resources
    )


def _worker(config: dict[str, Any]) -> str | None:
    """What every worker runs; Ray Train takes the first worker's answer."""
    import ray.train

    job: Job = config["job"]

    def report(epoch: Epoch) -> None:
        ray.train.report(asdict(epoch))

    published = train(job, report)
    return str(published) if published else None


def _absolute(job: Job) -> Job:
    """Workers run in a directory of their own."""
    parts = [part.resolve() if isinstance(part, Path) else part for part in (job.validation, job.test)]
    return replace(
        job,
        csv=job.csv.resolve(),
        base=job.base if job.base == STARTER else str(Path(job.base).expanduser().resolve()),
        output=job.output.resolve(),
        cache_dir=job.cache_dir.resolve(),
        validation=parts[0],
        test=parts[1],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train on `--address`, or on a cluster of this machine that is started for it and stopped after."""
    arguments = sys.argv[1:] if arguments is None else arguments
    out = parser("python -m training.cluster", __doc__)
    add_scale(out)
    add_flag(out, "--workers", "workers", type=int)
    add_flag(out, "--cpus-per-worker", "cpus_per_worker", type=float)
    add_flag(out, "--gpu", "gpus_per_worker", action="store_const", const=1)
    add_flag(out, "--restarts", "restarts", type=int)
    given = out.parse_args(arguments)
    job = job_of(given, shlex.join(["python", "-m", "training.cluster", *arguments]))
    own_storage = job.output / ".ray"
    try:
        scale = scale_of(given)
        # Ray Train's controller takes part of a CPU of its own.
        cpus = math.ceil(scale.workers * scale.cpus_per_worker) + 1
        storage = scale.storage_dir or own_storage
        with connected(given.address, cpus):
            published = train_on_cluster(job, scale, storage, one_machine=given.address is None)
    except (DataError, SettingsError, SightlineError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    shutil.rmtree(own_storage, ignore_errors=True)
    sys.stdout.write(f"saved in {published}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
