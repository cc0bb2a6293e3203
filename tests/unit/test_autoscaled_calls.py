"""Serve tells by the calls to a model how many replicas it needs: enough get in, and none hides another."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from configs.settings import Settings
from deployments.models.base import ModelInfo
from deployments.timing import StageTimes
from serve_app.inference import Inference
from serve_app.middleware import Timing

INFO = ModelInfo("news", "text-classification", "", "f", "torch-cpu", "fp32", labels=("a", "b"))
TARGET, REPLICAS = 3, 5


class Model:
    """In place of the handles of an encoder and a classifier, so slow that every call meets the others."""

    deployment_name = "model"

    def __init__(self) -> None:
        self.out = self.most = 0
        self.sizes: list[int] = []
        self.go = asyncio.Event()

    def __getattr__(self, method: str) -> Any:
        return type("Method", (), {"remote": staticmethod(getattr(self, f"_{method}"))})

    async def _embed_texts(self, texts: Sequence[str]) -> Any:
        await self._work(len(texts))
        return np.ones((len(texts), 2), np.float32), "f", [1] * len(texts), StageTimes()

    async def _embed_encoded(self, images: Sequence[bytes], thumbnails: bool) -> Any:
        await self._work(len(images))
        return np.ones((len(images), 2), np.float32), "f", [0] * len(images), StageTimes(), []

    async def _classify(self, texts: Sequence[str], draw: float) -> Any:
        await self._work(len(texts))
        return np.ones((len(texts), 2), np.float32), INFO, [1] * len(texts), StageTimes()

    async def _work(self, size: int) -> None:
        self.sizes.append(size)
        self.out += 1
        self.most = max(self.most, self.out)
        await self.go.wait()
        self.out -= 1


async def all_out(model: Model, inference: Inference, requests: Sequence[Sequence[Any]], name: str) -> None:
    """Send the requests, and let the model answer once none of them can get further."""

    async def ask(contents: Sequence[Any]) -> None:
        if name == "news":
            await inference.classify(name, contents, Timing())
        else:
            await inference.compute(Timing(), contents)

    tasks = [asyncio.create_task(ask(contents)) for contents in requests]
    for _ in range(100):
        await asyncio.sleep(0)
    model.go.set()
    await asyncio.gather(*tasks)


def calls(
    requests: Sequence[Sequence[Any]], name: str, *, grows: bool, target: int = TARGET, **settings: Any
) -> Model:
    async def main() -> Model:
        model = Model()
        handle: Any = model
        scale: dict[str, Any] = {"target_ongoing_requests": target}
        scale |= {"max_replicas": REPLICAS} if grows else {"replicas": 2}
        classifiers = {"news": {"source": "x", "scale": scale}}
        args = Settings.from_args({"clip": {"scale": scale}, "classifiers": classifiers, **settings})
        inference = Inference(args, None, handle, {"news": handle}, {}, {})
        await all_out(model, inference, requests, name)
        return model

    return asyncio.run(main())


@pytest.mark.parametrize(("name", "content"), [("clip", "a text"), ("clip", b"an image"), ("news", "a text")])
def test_single_requests_are_a_call_each(name: str, content: Any) -> None:
    model = calls([[content]] * 40, name, grows=True)
    assert (model.most, set(model.sizes)) == (40, {1})


@pytest.mark.parametrize(("name", "content"), [("clip", "a text"), ("clip", b"an image"), ("news", "a text")])
def test_one_large_request_is_enough_for_every_replica(name: str, content: Any) -> None:
    model = calls([[content] * 2000], name, grows=True)
    assert model.most == 2 * 8 * REPLICAS  # what it is with replicas of a fixed number, in smaller calls
    assert model.most >= TARGET * REPLICAS
    assert max(model.sizes) == (1 if isinstance(content, bytes) else 8)
    assert sum(model.sizes) == 2000


def test_a_high_target_is_reached_by_every_replica() -> None:
    model = calls([["a text"] * 2000], "news", grows=True, target=40)
    assert model.most == 40 * REPLICAS


def test_a_pool_that_is_not_there_does_not_count() -> None:
    pool: dict[str, Any] = {"preprocessor": {"scale": {"max_replicas": REPLICAS}}}
    model = calls([[b"an image"] * 40], "clip", grows=False, **pool)
    assert (model.most, max(model.sizes)) == (4, 8)


def test_where_replicas_are_fixed_texts_travel_together() -> None:
    model = calls([["a text"]] * 40, "news", grows=False)
    assert (model.most, sum(model.sizes)) == (4, 40)
    model = calls([["a text"] * 400], "news", grows=False)
    assert (model.most, max(model.sizes)) == (4, 64)


@pytest.mark.parametrize("name", ["clip", "news"])
def test_what_waits_for_its_turn_behind_the_rest_of_its_request_waits_in_a_queue(name: str) -> None:
    async def main() -> None:
        model, timing = Model(), Timing()
        handle: Any = model
        args = Settings.from_args({"classifiers": {"news": {"source": "x"}}, "gateway.texts_per_call": 8})
        inference = Inference(args, None, handle, {"news": handle}, {}, {})
        texts = [f"text {n}" for n in range(64)]
        asked = (
            inference.classify("news", texts, timing) if name == "news" else inference.compute(timing, texts)
        )
        task = asyncio.create_task(asked)
        await asyncio.sleep(0.03)
        assert len(model.sizes) == model.out < 8
        model.go.set()
        await task
        assert timing.total.queue >= 30

    asyncio.run(main())
