"""A Serve application with one real model queue whose model hangs when told to."""

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from configs.settings import BatchSettings
from deployments.models.base import Model
from deployments.served_model import ServedModel


class Doubling(Model[float, float, float]):
    """Twice its input; hangs for good at a negative one."""

    def pre(self, item: float) -> float:
        return item

    def forward(self, batch: Sequence[float]) -> NDArray[Any]:
        if min(batch) < 0:
            threading.Event().wait()
        return 2 * np.array(batch)

    def post(self, rows: NDArray[Any]) -> Sequence[float]:
        return [float(row) for row in rows]


@serve.deployment(health_check_period_s=0.5, graceful_shutdown_timeout_s=1)
class Stalling:
    def __init__(self) -> None:
        self._model = ServedModel("doubling", Doubling(), BatchSettings(stall_timeout_s=0.5))

    async def __call__(self, request: Request) -> Response:
        if "x" not in request.query_params:
            return JSONResponse({"pid": os.getpid()})
        served = await self._model([float(request.query_params["x"])])
        return JSONResponse({"pid": os.getpid(), "outputs": served.outputs})

    def check_health(self) -> None:
        self._model.check()


def build_app(args: dict[str, Any]) -> Application:
    return Stalling.bind()  # type: ignore[attr-defined,no-any-return]
