"""Keeps training on one machine off the network: workers meet in a file, not on a port of every interface.

torch's TCP store, where Ray Train lets workers meet, has no address to listen on and asks for no token
(`torch/distributed/rendezvous.py`; `ray/train/torch/config.py`, Ray 2.60).
"""

import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)


class _LoopbackBackend(_TorchBackend):
    """Joins the workers of one group; a group that is started anew meets in a file of its own."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        shared = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
        self._meeting = shared / f"meeting-{uuid.uuid4().hex}"
        worker_group.execute(_set_torch_distributed_env_vars)
        joined = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=len(worker_group),
                init_method=f"file://{self._meeting}",
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joined)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        super().on_shutdown(worker_group, backend_config)
        self._meeting.unlink(missing_ok=True)


class LoopbackTorchConfig(TorchConfig):
    """A TorchConfig for a cluster of one machine."""

    @property
    def backend_cls(self) -> Any:
        return _LoopbackBackend
