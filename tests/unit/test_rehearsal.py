"""The gateway's first requests: every model is asked, and one that fails keeps nobody waiting."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from deployments.errors import NotReady
from deployments.models.images import decode
from deployments.models.sources import Source
from serve_app.direct import Direct
from serve_app.inference import Inference, Unavailable
from serve_app.rehearsal import IMAGE, REPEATS, TEXT, rehearse


class Models:
    """Stands where the gateway's `Inference` does and counts what is asked of it."""

    encoder_name = "clip"
    heads = frozenset({"breeds"})

    def __init__(self, failing: str | None = None, hanging: str | None = None) -> None:
        absent = Unavailable(Source("unavailable", "", notes=("no weights",)))
        self.models = {"clip": None, "news": None, "breeds": None, "absent": absent}
        self.asked: Counter[tuple[str, Any]] = Counter()
        self._failing = failing
        self._hanging = hanging

    async def probe(self, name: str) -> None:
        if name == self._failing:
            raise NotReady("it does not answer")

    async def compute(self, timing: object, contents: Sequence[Any]) -> None:
        await self._ask("clip", contents)

    async def classify(self, name: str, texts: Sequence[Any], timing: object) -> None:
        await self._ask(name, texts)

    async def _ask(self, name: str, contents: Sequence[Any]) -> None:
        self.asked.update((name, content) for content in contents)
        if name == self._hanging:
            await asyncio.Event().wait()


LIMIT_S = 0.05
ALL = {("clip", TEXT): REPEATS, ("clip", IMAGE): REPEATS, ("news", TEXT): REPEATS}


def rehearsed(models: Models, *lines: Direct) -> Counter[tuple[str, Any]]:
    asyncio.run(rehearse(cast(Inference, models), lines, LIMIT_S))
    return models.asked


def test_every_model_that_makes_something_is_asked_for_what_it_takes() -> None:
    assert rehearsed(Models()) == ALL


def test_a_model_that_fails_or_hangs_keeps_nobody_waiting() -> None:
    news = {("news", TEXT): REPEATS}
    assert rehearsed(Models(failing="clip")) == news
    assert rehearsed(Models(hanging="clip")) == {("clip", TEXT): 1, **news}


def test_a_line_is_laid_and_one_that_cannot_be_is_no_error() -> None:
    class Replica:
        deployment_name = "ClipEncoder"

        def __init__(self) -> None:
            self.calls: list[str] = []

        def __getattr__(self, method: str) -> Any:
            async def remote() -> str:
                self.calls.append(method)
                return "/nowhere/line.socket"

            return SimpleNamespace(remote=remote)

    replica = Replica()
    assert rehearsed(Models(), Direct(cast(Any, replica))) == ALL
    assert replica.calls == ["line"]


def test_the_image_is_one() -> None:
    pixels = decode(IMAGE, 224, max_pixels=1)
    assert pixels.shape == (224, 224, 3)
    assert (pixels == 255).all()
