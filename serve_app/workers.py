"""What every process of a one-machine cluster does first, before Serve is imported there."""

import sys
from typing import Any

from ray._common import tls_utils


def set_up() -> None:
    """Run in every worker (Ray's `worker_process_setup_hook`)."""
    go_without_pandas()
    listen_on_loopback()


def go_without_pandas() -> None:
    """In this process importing it raises ImportError from now on.

    Where pandas is installed, as by the extras `train` and `jobs`, Ray 2.60 imports it in every process of
    Serve (`ray/serve/_private/utils.py`), to encode data frames should there be any. Nobody else here needs
    it, and it costs each process a quarter of a second and 66 MB, half of them shared: 190 MB over all.
    """
    sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]


def listen_on_loopback() -> None:
    """Serve's replicas listen for each other on loopback only.

    Ray 2.60 binds a replica's inter-deployment gRPC server to every interface
    (`ray/serve/_private/replica.py`, `add_port_to_grpc_server(self._server, "[::]:0")`) and has no
    setting for it. It asks for the cluster's token, but on a laptop nothing outside should reach it.
    """
    bind: Any = tls_utils.add_port_to_grpc_server

    def bind_to_loopback(server: Any, address: str) -> Any:
        return bind(server, address.replace("[::]:", "127.0.0.1:"))

    tls_utils.add_port_to_grpc_server = bind_to_loopback
