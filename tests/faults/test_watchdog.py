"""A model that hangs makes its replica unhealthy, and Serve replaces it."""

import contextlib
import time

import requests

from tests.server import SERVE_RUN, running

REPLACED_WITHIN_S = 60.0


def test_a_hung_forward_gets_its_replica_replaced() -> None:
    app = "tests.faults.stalling_app:build_app"
    with running({}, command=[*SERVE_RUN, "CONFIG"], import_path=app) as server:
        first = server.get("/", params={"x": "21"}).json()
        assert first["outputs"] == [42]
        with contextlib.suppress(requests.RequestException):  # nobody answers it
            requests.get(server.url, params={"x": "-1"}, timeout=1)
        deadline = time.monotonic() + REPLACED_WITHIN_S
        while time.monotonic() < deadline:
            try:
                answer = requests.get(server.url, params={"x": "21"}, timeout=2)
            except requests.RequestException:
                continue
            if answer.status_code == 200:
                break
            time.sleep(0.1)
        assert answer.json()["outputs"] == [42]
        assert answer.json()["pid"] != first["pid"]
