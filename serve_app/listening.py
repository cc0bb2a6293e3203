"""Where a server on one machine listens: a single gateway itself, several behind Serve's proxy."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.settings import ScaleSettings, SettingsError


@dataclass(frozen=True)
class Listening:
    """Where requests arrive, the HTTP options of Serve's proxy, and the environment Ray must start with."""

    url: str
    proxy: dict[str, Any]
    environment: dict[str, str]


def listening(http_options: Mapping[str, Any], gateway: ScaleSettings) -> Listening:
    """How to listen as `http_options` say.

    Serve's proxy costs more than everything the gateway does: without it 16 clients got 599 searches/s
    instead of 195, and one got its answer in 2.2 ms instead of 9.2 (two cores, busy with other work
    too). So a single gateway listens itself (Serve's direct ingress) and answers itself (`Ingress`; Serve
    does where it is to limit a request's time), and the proxy, which Serve does not go without, is given
    a port nobody uses. Several gateways cannot share a port.

    Raises:
        SettingsError: the port cannot be listened on.
    """
    host = http_options["host"]
    port = _free_port(host, http_options["port"])
    url = f"http://{host}:{port}"
    if gateway.autoscales or gateway.replicas > 1:
        proxy = {**http_options, "port": port}
        return Listening(url, proxy, {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"})
    environment = {
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 1),  # exclusive
        # A gateway that was lost is followed by one on the same port, at once; no balancer is in between.
        "RAY_SERVE_PORT_QUARANTINE_S": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }
    if not http_options.get("request_timeout_s"):
        environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "serve_app.ingress.middlewares"
    return Listening(url, {**http_options, "port": _free_port(host, 0)}, environment)


def _free_port(host: str, port: int) -> int:
    """`port`, or any for 0, if it can be listened on now; SettingsError if not."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SettingsError(f"port {port} of {host} cannot be listened on: {reason}") from None
        free: int = probe.getsockname()[1]
        return free
