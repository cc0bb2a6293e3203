"""The peer: infinity (infinity-emb 0.0.78, torch on CPU) in a virtual environment of its own.

`make bench-peers` sets the environment up; the same model directories and requests of the same kinds as ours.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import requests

from benchmarks.models import build_models
from tests.server import free_port, stop

VERSION: Final = "0.0.78"
START_TIMEOUT_S: Final = 180.0
ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "DO_NOT_TRACK": "1",
}


class PeerMissingError(RuntimeError):
    """Its virtual environment has not been set up."""


@dataclass(frozen=True)
class Infinity:
    url: str
    process: "subprocess.Popen[bytes]"
    mark: str  # in the environment of all of its processes


@contextmanager
def running(cache_dir: Path) -> Iterator[Infinity]:
    """Serve both models on a free port of loopback until the block ends. Raises PeerMissingError."""
    program = cache_dir.absolute() / "peers" / "infinity" / "bin" / "infinity_emb"
    if not program.is_file():
        raise PeerMissingError(f"{program} is not there; `make bench-peers` sets it up")
    clip, news = (directory.absolute() for directory in build_models(cache_dir))
    port = free_port()
    mark = f"infinity-{os.getpid()}-{port}"
    command = [str(program), "v2", "--model-id", str(clip), "--served-model-name", "clip"]
    command += ["--model-id", str(news), "--served-model-name", "news"]
    command += ["--engine", "torch", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--batch-size", "32", "--no-model-warmup", "--url-prefix", "/v1"]
    with tempfile.TemporaryDirectory(prefix="inf") as home:
        log = Path(home) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=home,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | ENVIRONMENT | {"BENCH_MARK": mark},
            )
        try:
            _wait(process, f"http://127.0.0.1:{port}", log)
            yield Infinity(f"http://127.0.0.1:{port}", process, mark)
        finally:
            stop(process, signal.SIGTERM)


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise AssertionError(f"infinity did not become ready:\n{log.read_text(errors='replace')[-4000:]}")
