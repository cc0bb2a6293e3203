"""A Ray cluster to train on: one that is there, or one of our own on this machine that ends with the block.

Ray reads its environment when it is imported, so nothing here imports it before that is set.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# The caller's own values win.
_OWN_CLUSTER: Final = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its node is 127.0.0.1, as on a Mac
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Asks every five minutes whether a cloud will take the machine away; this one stays.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # How soon a lost worker, or the end, is noticed; at Ray's 2 s a short run waits longer than it works.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}


@contextmanager
def connected(address: str | None, cpus: int | None = None) -> Iterator[None]:
    """Within the block `ray` is connected to `address`, or to a new cluster of `cpus` here if it is None.

    A new cluster has its own directory and token and listens on loopback; both go away with it.
    """
    if address:
        import ray

        ray.init(address, log_to_driver=True)
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Ray's sockets live under this directory, and their paths may have 107 characters at most.
    private = Path(tempfile.mkdtemp(prefix="sl-"))
    (private / "token").write_text(secrets.token_hex(32), encoding="utf-8")
    before = dict(os.environ)
    for name, value in _OWN_CLUSTER.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_TMPDIR", str(private))
    os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(private / "token"))
    try:
        import ray

        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,  # workers' chatter; what they raise comes back with the result
            runtime_env={"worker_process_setup_hook": "deployments.ray_cluster.stay_home"},
        )
        try:
            yield
        finally:
            ray.shutdown()
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(private, ignore_errors=True)


def stay_home() -> None:
    """Run in every worker of a cluster of our own (Ray's `worker_process_setup_hook`).

    Ray Train's helpers look for "the" cluster of the machine among its processes
    (`ray/train/v2/_internal/state/util.py`), where there may be others; here they find their own.
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    # Gradients between workers of one machine stay on it.
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
