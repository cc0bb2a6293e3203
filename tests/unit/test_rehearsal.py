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

    def __init__(self, failing: str | None = None) -> None:
        absent = Unavailable(Source("unavailable", "", notes=("no weights",)))
        self.models = {"clip": None, "news": None, "breeds": None, "absent": absent}
        self.asked: Counter[tuple[str, Any]] = Counter()
        self._failing = failing

    async def embed(self, contents: Sequence[Any], timing: object, *, keep: bool) -> None:
        assert not keep  # nobody will ask for it again
        await self._ask("clip", contents)

    async def classify(self, name: str, texts: Sequence[Any], timing: object) -> None:
        await self._ask(name, texts)

    async def classify_images(self, name: str, images: Sequence[Any], timing: object) -> None:
        await self._ask(name, images)

    async def _ask(self, name: str, contents: Sequence[Any]) -> None:
        self.asked.update((name, content) for content in contents)
        await asyncio.sleep(0)
        if name == self._failing:
            raise NotReady("it does not answer")


ALL = {("clip", TEXT): REPEATS, ("clip", IMAGE): REPEATS, ("news", TEXT): REPEATS, ("breeds", IMAGE): REPEATS}


def test_every_model_that_has_weights_is_asked_for_what_it_takes() -> None:
    models = Models()
    asyncio.run(rehearse(cast(Inference, models), []))
    assert models.asked == ALL


def test_a_model_that_fails_keeps_nobody_waiting() -> None:
    models = Models(failing="clip")
    asyncio.run(rehearse(cast(Inference, models), []))
    assert models.asked == ALL


def test_lines_are_laid_before_and_one_that_cannot_be_is_no_error() -> None:
    class Replica:
        deployment_name = "ClipEncoder"

        def __init__(self) -> None:
            self.calls: list[str] = []

        def __getattr__(self, method: str) -> Any:
            async def remote() -> str:
                self.calls.append(method)
                return "/nowhere/line.socket"

            return SimpleNamespace(remote=remote)

    async def main() -> None:
        replica, models = Replica(), Models()
        await rehearse(cast(Inference, models), [Direct(cast(Any, replica))])
        assert replica.calls == ["line"]
        assert models.asked == ALL

    asyncio.run(main())


def test_the_image_is_one() -> None:
    pixels = decode(IMAGE, 224, max_pixels=1)
    assert pixels.shape == (224, 224, 3)
    assert (pixels == 255).all()
