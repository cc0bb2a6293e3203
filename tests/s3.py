"""A real S3 server (moto's) for tests, on loopback and a free port."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import requests

from tests.server import free_port
from tests.waiting import PATIENCE_S, wait_until

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server(*buckets: str) -> Iterator[str]:
    """The query that leads a URI such as `s3://bucket/path` to the server: `endpoint_override=…`."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, "the S3 server ended"
        return requests.get(f"{url}/moto-api/", timeout=PATIENCE_S).ok

    try:
        wait_until(answers, what="the S3 server", despite=(requests.ConnectionError,))
        for bucket in buckets:
            assert requests.put(f"{url}/{bucket}", timeout=PATIENCE_S).status_code == 200
        yield f"endpoint_override=127.0.0.1:{port}&scheme=http"
    finally:
        process.terminate()
        process.wait()
