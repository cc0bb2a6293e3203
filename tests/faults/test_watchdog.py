"""A model that hangs makes its replica unhealthy, and Serve replaces it."""

import contextlib
from typing import Any

import requests

from tests.server import SERVE_RUN, running
from tests.waiting import wait_until


def test_a_hung_forward_gets_its_replica_replaced() -> None:
    app = "tests.faults.stalling_app:build_app"
    with running({}, command=[*SERVE_RUN, "CONFIG"], import_path=app) as server:
        first = server.get("/", params={"x": "21"}).json()
        assert first["outputs"] == [42]
        with contextlib.suppress(requests.RequestException):  # nobody answers it
            requests.get(server.url, params={"x": "-1"}, timeout=1)

        def answer() -> Any:
            response = requests.get(server.url, params={"x": "21"}, timeout=2)
            return response.json() if response.status_code == 200 else None

        answered = wait_until(
            answer,
            what="an answer of its successor",
            despite=(requests.RequestException,),
            every_s=0.1,
        )
        assert answered["outputs"] == [42]
        assert answered["pid"] != first["pid"]
