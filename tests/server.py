"""A real Sightline server for tests: its own process, ports, Ray directory and token."""

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml

from tests.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache"
# A plain `serve run`, but for the one thing a test must see to: it listens on loopback only.
LOOPBACK = {"worker_process_setup_hook": "serve_app.workers.listen_on_loopback"}
SERVE_RUN = [sys.executable, "-m", "ray.serve.scripts", "run", "--runtime-env-json", json.dumps(LOOPBACK)]
STOP_TIMEOUT_S = 120.0  # then it is killed; whether it stops in order is for tests of that
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LIBC = ctypes.CDLL(None)
# Settings for tests that are not about them: a machine that is busy with other tests is no overload.
PATIENT = {
    "limits.max_wait_s": PATIENCE_S,
    "limits.request_timeout_s": PATIENCE_S,
    "gateway.health_timeout_s": PATIENCE_S,
}
FLOOD = 400  # single photos at a time, which are too many for the server `strained`


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel hands out: nobody is given it meanwhile."""
    while True:
        port = 20_000 + secrets.randbelow(12_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True)
class Server:
    """A running server; `url` has no trailing slash."""

    url: str
    process: "subprocess.Popen[bytes]"
    directory: Path  # its own: serve_config.yaml, server.log, the token and, unless set otherwise, data/

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    def said_last(self) -> str:
        return "\n" + self.log.read_text(errors="replace")[-8000:]

    def post(self, path: str, **kwargs: Any) -> requests.Response:
        return requests.post(self.url + path, timeout=PATIENCE_S, **kwargs)

    def get(self, path: str, **kwargs: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=PATIENCE_S, **kwargs)

    def put(self, path: str, **kwargs: Any) -> requests.Response:
        return requests.put(self.url + path, timeout=PATIENCE_S, **kwargs)

    def delete(self, path: str, **kwargs: Any) -> requests.Response:
        return requests.delete(self.url + path, timeout=PATIENCE_S, **kwargs)


@contextmanager
def running(
    args: dict[str, Any],
    command: list[str] | None = None,
    env: dict[str, str] | None = None,
    import_path: str = "serve_app.app:build_app",
) -> Iterator[Server]:
    """Serve with the settings `args` until the block ends.

    `command` replaces `sightline serve CONFIG --port PORT`; CONFIG, PORT and CACHE in it are filled in.
    """
    # Ray's sockets live under this directory and their paths may have 107 characters at most.
    private = Path(tempfile.mkdtemp(prefix="sl", dir="/tmp"))
    (private / "token").write_text(secrets.token_hex(32))
    port = free_port()
    config = private / "serve_config.yaml"
    document = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "sightline",
                "route_prefix": "/",
                "import_path": import_path,
                "args": {"cache_dir": str(CACHE), "data_dir": str(private / "data"), **args},
            }
        ],
    }
    config.write_text(yaml.safe_dump(document, sort_keys=False))  # what is read last wins
    template = command or [sys.executable, "-m", "serve_app.cli", "serve", "CONFIG", "--port", "PORT"]
    filled = [_fill(part, CONFIG=config, PORT=port, CACHE=CACHE) for part in template]
    server_log = private / "server.log"
    with server_log.open("wb") as output:
        process = subprocess.Popen(
            filled,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_begin,
            env=environment(private) | (env or {}),
        )
    server = Server(f"http://127.0.0.1:{port}", process, private)
    try:
        wait_until_ready(server)
        yield server
    finally:
        stop(process)
        shutil.rmtree(private, ignore_errors=True)


def replicas(server: Server, deployment: str) -> list[int]:
    """The processes of a deployment on this very server's cluster."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            title = (process / "cmdline").read_bytes().decode(errors="replace")
            variables = (process / "environ").read_bytes().split(b"\0")
            if f":{deployment}" in title and f"RAY_TMPDIR={server.directory}".encode() in variables:
                found.append(int(process.name))
    return found


def environment(directory: Path) -> dict[str, str]:
    """What a process needs to start, or to find, the cluster whose directory this is."""
    return {
        **os.environ,
        "RAY_TMPDIR": str(directory),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(directory / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its node is 127.0.0.1
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }


def _begin() -> None:
    """SIGTERM for this process when its parent dies, even if killed as pytest-xdist kills its workers. And
    SIGINT as from a terminal: what a shell runs in the background inherits that it is ignored.
    """
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _fill(part: str, **values: object) -> str:
    for name, value in values.items():
        part = part.replace(name, str(value))
    return part


def wait_until_ready(server: Server) -> None:
    """Poll readiness; fail with the server's own log when it exits or takes too long."""

    def ready() -> bool:
        assert server.process.poll() is None, f"the server exited:{server.said_last()}"
        return requests.get(f"{server.url}/health/ready", timeout=PATIENCE_S).status_code == 200

    wait_until(
        ready,
        what="a server that is ready",
        despite=(requests.RequestException,),
        shown=server.said_last,
        every_s=0.2,
    )


def stop(process: "subprocess.Popen[bytes]", number: signal.Signals = signal.SIGINT) -> None:
    """Ask the server to stop, by default as a user's Ctrl-C would, and wait for it."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
