"""Errors: each crosses a process boundary whole, and each has a status."""

import asyncio
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from ray.exceptions import RayTaskError
from starlette.testclient import TestClient

from deployments import errors as model_errors
from deployments.errors import Overloaded
from index import errors as index_errors
from serve_app.errors import TABLE, install
from serve_app.remote import together


def _subclasses(base: type[Any]) -> list[type[Any]]:
    return [base, *(s for child in base.__subclasses__() for s in _subclasses(child))]


ALL = _subclasses(model_errors.SightlineError) + _subclasses(index_errors.VectorIndexError)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("index", [None, 3])
def test_an_error_survives_pickling(kind: type[Any], index: int | None) -> None:
    error = pickle.loads(pickle.dumps(kind("what was wrong", index)))
    assert type(error) is kind
    assert (str(error), error.message, error.index) == ("what was wrong", "what was wrong", index)
    assert error.at(7).index == 7
    assert type(error.at(7)) is kind


@pytest.mark.parametrize("kind", ALL)
def test_every_error_a_deployment_raises_has_a_status(kind: type[Any]) -> None:
    if kind not in (model_errors.SightlineError, index_errors.VectorIndexError):
        assert any(base in TABLE for base in kind.__mro__)


def test_cause_of_takes_the_wrapper_of_a_remote_call_off() -> None:
    raised = model_errors.BadInput("no image", 2)
    wrap: Any = RayTaskError
    wrapped = wrap("work", "traceback text", raised).as_instanceof_cause()
    assert isinstance(wrapped, model_errors.BadInput)
    assert model_errors.cause_of(wrapped) is raised
    assert model_errors.cause_of(raised) is raised


@pytest.mark.usefixtures("no_collections")
def test_an_answered_error_keeps_nothing_of_its_request() -> None:
    app = FastAPI()
    install(app, retry_after_s=1)
    kept = []

    async def refuse(content: object) -> None:
        try:
            raise model_errors.BadInput("no image")
        except model_errors.BadInput as error:
            raise error.at(0) from None

    @app.get("/")
    async def route() -> None:
        content = np.zeros(3)
        kept.append(weakref.ref(content))
        await together(refuse(content), refuse(content))

    answer = TestClient(app).get("/")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input[0]")
    assert kept[0]() is None


def test_an_error_of_one_of_several_calls_leaves_no_cancellation_behind() -> None:
    async def fails() -> None:
        raise Overloaded("too much")

    async def scenario() -> None:
        with pytest.raises(Overloaded):
            await together(fails(), asyncio.sleep(60))
        await asyncio.sleep(60)

    async def in_time() -> None:
        async with asyncio.timeout(0.05):
            await scenario()

    with pytest.raises(TimeoutError):
        asyncio.run(in_time())
