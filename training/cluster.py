"""Fine-tune on a Ray cluster: `python -m training.cluster --workers 2 --csv … --output …`.

The same run as `python -m training.text`, its batches shared between workers by Ray Train. CSV, base,
output and cache must be on storage that every node sees under the same path.
"""

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs.settings import SettingsError
from deployments.errors import SightlineError
from training.checkpoint import Epoch
from training.data import DataError
from training.job import Job, prepare
from training.network import STARTER
from training.ray_cluster import connected
from training.text import job_of, parser
from training.train import checkpoint_of, train


@dataclass(frozen=True)
class Scale:
    """What Ray Train's ScalingConfig and FailureConfig are made of."""

    workers: int = 1
    cpus_per_worker: float = 1
    gpu: bool = False  # one GPU for each worker
    restarts: int = 1  # of the whole group after a worker is lost; it goes on from the last epoch


def train_on_cluster(job: Job, scale: Scale, storage: Path, *, one_machine: bool = False) -> Path:
    """Train on the cluster `ray` is connected to; the published directory.

    `storage` is where Ray Train keeps its own records. With `one_machine` workers listen on loopback only.
    Raises as `training.train.learn` does before
    anything is started, and `ray.train.TrainingFailedError` if workers fail more often than `restarts`.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    job = _absolute(job)
    prepare(job)  # bad data is told here, before workers are asked for
    if not job.resume:
        checkpoint_of(job).unlink(missing_ok=True)
    # A group that is started anew goes on where the lost one stopped.
    job = replace(job, resume=True)
    backend = "nccl" if scale.gpu else "gloo"
    if one_machine:
        from training.loopback import LoopbackTorchConfig

        torch_config: TorchConfig = LoopbackTorchConfig(backend=backend)
    else:
        torch_config = TorchConfig(backend=backend)
    loop: Any = _worker  # annotated by Ray as if it could return nothing
    trainer = TorchTrainer(
        loop,
        train_loop_config={"job": job},
        torch_config=torch_config,
        scaling_config=ScalingConfig(
            num_workers=scale.workers,
            use_gpu=scale.gpu,
            resources_per_worker={"CPU": scale.cpus_per_worker, **({"GPU": 1} if scale.gpu else {})},
        ),
        run_config=RunConfig(
            name=job.output.name,
            storage_path=str(storage.resolve()),
            failure_config=FailureConfig(max_failures=scale.restarts),
        ),
    )
    result: Any = trainer.fit()
    return Path(result.return_value)


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
    default = Scale()
    out = parser("python -m training.cluster", __doc__)
    out.add_argument("--address", help="a running cluster; without it one is started on this machine")
    out.add_argument("--workers", type=int, default=default.workers)
    out.add_argument("--cpus-per-worker", type=float, default=default.cpus_per_worker)
    out.add_argument("--gpu", action="store_true", help="one GPU for each worker")
    out.add_argument("--restarts", type=int, default=default.restarts, help="after losing a worker")
    out.add_argument("--storage", type=Path, help="Ray Train's records (default: in OUTPUT, till the end)")
    given = out.parse_args(arguments)
    job = job_of(given, shlex.join(["python", "-m", "training.cluster", *arguments]))
    scale = Scale(given.workers, given.cpus_per_worker, given.gpu, given.restarts)
    # Ray Train's controller takes part of a CPU of its own.
    cpus = max(1, round(scale.workers * scale.cpus_per_worker)) + 1
    own_storage = job.output / ".ray"
    try:
        with connected(given.address, cpus):
            published = train_on_cluster(
                job, scale, given.storage or own_storage, one_machine=given.address is None
            )
    except (DataError, SettingsError, SightlineError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    shutil.rmtree(own_storage, ignore_errors=True)
    sys.stdout.write(f"saved in {published}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
