"""Keeps a one-machine cluster off the network: Serve's replicas listen for each other on loopback only."""

from typing import Any

from ray._common import tls_utils


def listen_on_loopback() -> None:
    """Run in every worker before Serve is imported there (Ray's `worker_process_setup_hook`).

    Ray 2.60 binds a replica's inter-deployment gRPC server to every interface
    (`ray/serve/_private/replica.py`, `add_port_to_grpc_server(self._server, "[::]:0")`) and has no
    setting for it. It asks for the cluster's token, but on a laptop nothing outside should reach it.
    """
    bind: Any = tls_utils.add_port_to_grpc_server

    def bind_to_loopback(server: Any, address: str) -> Any:
        return bind(server, address.replace("[::]:", "127.0.0.1:"))

    tls_utils.add_port_to_grpc_server = bind_to_loopback
