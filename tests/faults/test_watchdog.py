"""A model that hangs makes its replica unhealthy, and Serve replaces it."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import requests

from tests.server import SERVE_RUN, running
from tests.waiting import wait_until


def test_a_hung_forward_gets_its_replica_replaced() -> None:
    app = "tests.faults.stalling_app:build_app"
    with running({}, command=[*SERVE_RUN, "CONFIG"], import_path=app) as server:
        first = server.get("/", params={"x": "21"}).json()
        assert first["outputs"] == [42]

        def hang() -> None:
            with suppress(requests.RequestException):  # nobody answers it
                server.get("/", params={"x": "-1"})

        def answered() -> Any:
            response = requests.get(server.url, params={"x": "21"}, timeout=5)
            if response.status_code != 200 or response.json()["pid"] == first["pid"]:
                return None
            return response.json()

        with ThreadPoolExecutor(1) as pool:
            pool.submit(hang)
            answer = wait_until(
                answered,
                what="an answer of its successor",
                despite=(requests.RequestException,),
                every_s=0.1,
            )
        assert answer["outputs"] == [42]
