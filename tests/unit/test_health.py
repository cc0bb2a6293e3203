"""Readiness: every dependency counts, whatever a model is called."""

import asyncio
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from serve_app.routes import health


async def answers() -> None:
    """As what is well."""


async def fails() -> None:
    raise RuntimeError("the index is down")


@pytest.mark.parametrize(("index", "status"), [(answers, 200), (fails, 503)])
def test_a_model_called_as_a_shard_does_not_stand_for_it(
    index: Any, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = SimpleNamespace(
        settings=SimpleNamespace(gateway=SimpleNamespace(health_timeout_s=10)),
        preprocessor=None,
        index=SimpleNamespace(probes=lambda: {"index": index()}),
        inference=SimpleNamespace(models={"clip": object(), "index": object()}, probe=lambda name: answers()),
        rehearsed=answers,
    )
    monkeypatch.setattr(health, "gateway_of", lambda request: gateway)
    request: Any = None
    answer = asyncio.run(health.ready(request))
    assert answer.status_code == status
    assert (orjson.loads(answer.body)["status"] == "ready") is (status == 200)
