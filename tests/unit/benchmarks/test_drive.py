"""A planned run, in its own process, against a server that is right, and against ones that are not."""

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.load.plan import LoadError, Plan, drive
from benchmarks.load.summary import Summary
from benchmarks.payloads import build_photos
from tests.unit.benchmarks.answering import answering, response


def embedding(number: int, status: int = 200) -> bytes:
    body = json.dumps({"data": [{"embedding": [1.0, number]}]}).encode()
    return response(status, body, "Server-Timing: model;dur=3\r\n")


async def driven(first: int, step: int, status: int, photos: Path, **options: float) -> Summary:
    async def answer(number: int) -> bytes:
        return embedding(first + step * number, status)

    async with answering(answer) as server:
        url = f"http://127.0.0.1:{server.port}"
        plan = Plan(url, "text", str(photos), seconds=0.3, warm_up_s=0.1, **options)  # type: ignore[arg-type]
        return await asyncio.to_thread(drive, plan)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_photos(tmp_path_factory.mktemp("photos"))


def test_a_run_of_either_kind_is_summarised(photos: Path) -> None:
    closed = asyncio.run(driven(0, 1, 200, photos, clients=2))
    assert set(closed.statuses) == {"200"}
    assert closed.stages_ms == {"model": 3.0}
    assert closed.items_per_s == closed.answers_per_s > 0
    assert closed.client_cpu_ms > 0
    opened = asyncio.run(driven(0, 1, 200, photos, rate=50))
    assert opened.statuses.keys() == {"200"}
    assert 1 <= opened.requests <= 60


@pytest.mark.parametrize("rate", [0.0, 0.001])
def test_a_plan_in_whose_window_nothing_arrives_is_not_measured(rate: float, photos: Path) -> None:
    with pytest.raises(LoadError, match=r"^text: no arrival in 0\.3 s at 0"):
        asyncio.run(driven(0, 1, 200, photos, rate=rate))


def test_a_server_that_answers_all_requests_alike_is_not_measured(photos: Path) -> None:
    with pytest.raises(LoadError, match="the same answer"):
        asyncio.run(driven(0, 0, 200, photos))


def test_a_server_that_fails_is_not_measured(photos: Path) -> None:
    with pytest.raises(LoadError, match="status 500"):
        asyncio.run(driven(0, 1, 500, photos))
