"""The gateway's first requests: every model is asked, and one that fails keeps nobody waiting."""

import asyncio
from base64 import b64decode
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.errors import NotReady
from deployments.models.images import decode
from deployments.models.sources import Source
from serve_app.direct import Direct
from serve_app.inference import Inference, Unavailable
from serve_app.rehearsal import REPEATS, image, rehearse
from tests.waiting import PATIENCE_S

KEY = "known to the rehearsal"
CLIP = {("/v1/embeddings", "clip", "text"): REPEATS, ("/v1/embeddings", None, "image"): REPEATS}
NEWS = {("/v1/classify", "news", "text"): REPEATS}
OTHERS = {**NEWS, ("/v1/classify", "breeds", "image"): REPEATS}


class Server:
    """An application with the routes of the gateway's, which keeps what it is asked."""

    def __init__(
        self, unready: str | None = None, refusing: str | None = None, hanging: str | None = None
    ) -> None:
        self.contents: list[str | bytes] = []
        self.most_at_once = self._out = 0
        self._asked: Counter[tuple[str, str | None, str]] = Counter()
        self._unready, self._refusing, self._hanging = unready, refusing, hanging
        self._limit_s = 3 if hanging else PATIENCE_S

    def rehearsed(self, *lines: Direct) -> Counter[tuple[str, str | None, str]]:
        """What was asked when the rehearsal is over: path, model if named, and what the content is."""
        absent = Unavailable(Source("unavailable", "", notes=("no weights",)))
        inference = SimpleNamespace(
            encoder_name="clip",
            heads={"breeds"},
            models={"clip": None, "news": None, "breeds": None, "absent": absent},
            probe=self._probe,
        )
        paths = ("/v1/embeddings", "/v1/classify")
        app = Starlette(routes=[Route(path, self._answer, methods=["POST"]) for path in paths])
        asyncio.run(rehearse(app, cast(Inference, inference), lines, KEY, self._limit_s))
        return self._asked

    async def _probe(self, name: str) -> None:
        if name == self._unready:
            raise NotReady("it does not answer")

    async def _answer(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        content: Any = await request.body()
        model = None
        if request.headers["content-type"] == "application/json":
            asked = orjson.loads(content)
            model, (content,) = asked["model"], asked["input"]
            if content.startswith("data:image/gif;base64,"):
                content = b64decode(content.partition(",")[2])
        self._out += 1
        self.most_at_once = max(self.most_at_once, self._out)
        await asyncio.sleep(0.001)
        self._out -= 1
        self._asked[request.url.path, model, "image" if isinstance(content, bytes) else "text"] += 1
        self.contents.append(content)
        if model and model == self._hanging:
            await asyncio.Event().wait()
        return Response(status_code=503 if model and model == self._refusing else 200)


def test_every_model_that_makes_something_is_asked_for_what_it_takes() -> None:
    server = Server()
    assert server.rehearsed() == CLIP | OTHERS
    assert server.most_at_once == 1
    # Else the embedding cache would answer; `news` may be sent the same texts.
    assert len(set(server.contents)) == 3 * REPEATS


def test_a_model_that_fails_or_hangs_keeps_nobody_waiting() -> None:
    once = {("/v1/embeddings", "clip", "text"): 1}
    assert Server(unready="clip").rehearsed() == NEWS  # of which the image head takes its vectors
    assert Server(unready="breeds").rehearsed() == CLIP | NEWS
    assert Server(refusing="clip").rehearsed() == once | OTHERS
    assert Server(hanging="clip").rehearsed() == once | OTHERS


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
    server = Server()
    assert server.rehearsed(Direct(cast(Any, replica))) == CLIP | OTHERS
    assert replica.calls == ["line"]


def test_the_images_are_images_and_differ() -> None:
    colours = [decode(image(number), 224, max_pixels=1) for number in range(REPEATS)]
    for number, pixels in enumerate(colours):
        assert pixels.shape == (224, 224, 3)
        assert (pixels == (0, 0, number)).all()
