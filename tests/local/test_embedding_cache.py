"""What is asked for again is answered by the gateway: the same answer, and no replica is asked."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.settings import Settings
from deployments.errors import NotReady
from deployments.models.base import ModelInfo
from deployments.timing import StageTimes
from serve_app import inference
from serve_app.app import build_app
from serve_app.inference import Inference
from serve_app.middleware import Timing
from tests.local.client import Answer, LocalClient
from tests.photos import data_uri, jpeg

DEFAULT = Settings().embedding_cache.model_dump()


@pytest.fixture(autouse=True)
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a request takes, the encoder is not asked who it is."""
    monkeypatch.setattr(inference, "CACHE_TRUSTED_S", 3600.0)


@pytest.fixture(scope="module")
def caching(app_args: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> LocalClient:
    data = str(tmp_path_factory.mktemp("data"))
    args = {**app_args, "data_dir": data, "classifiers": {}, "embedding_cache": DEFAULT}
    return LocalClient.serving(build_app(args), "caching")


def cached(answer: Answer) -> dict[str, int]:
    """What the answer says about the cache: contents by result."""
    assert answer.status == 200, answer.content
    _, found, counts = answer.headers["server-timing"].partition('cache;desc="')
    if not found:
        return {}
    return {name: int(n) for name, n in (part.split("=") for part in counts.split('"')[0].split())}


def test_the_second_answer_is_the_first_and_no_replica_is_asked(caching: LocalClient) -> None:
    body = {"input": ["a striped cat", data_uri(jpeg("chelsea")), "a cup"]}
    first = caching.post("/v1/embeddings", json_body=body)
    assert cached(first) == {"miss": 3}
    second = caching.post("/v1/embeddings", json_body=body)
    assert cached(second) == {"hit": 3}
    assert "calls;dur=0.00" in second.headers["server-timing"]
    assert second.json()["data"] == first.json()["data"]
    assert second.json()["usage"] == first.json()["usage"]
    assert first.json()["usage"]["prompt_tokens"] > 0


def test_whatever_route_a_content_came_by_it_is_known(caching: LocalClient) -> None:
    jpeg_body = {"content-type": "image/jpeg"}
    caching.post("/v1/embeddings", content=jpeg("coffee"), headers=jpeg_body)
    params = {"model": "clip", "labels": "cup,dog"}
    asked: Any = {"content": jpeg("coffee"), "headers": jpeg_body, "params": params}
    assert cached(caching.post("/v1/classify", **asked)) == {"hit": 1, "miss": 2}
    first = caching.post("/v1/classify", **asked)
    assert cached(first) == {"hit": 3}
    assert first.json()["data"] == caching.post("/v1/classify", **asked).json()["data"]
    reranking = {"query": "a new query", "documents": [data_uri(jpeg("coffee")), "a new document"]}
    assert cached(caching.post("/v1/rerank", json_body=reranking)) == {"hit": 1, "miss": 2}


def test_what_is_stored_does_not_push_out_what_is_searched_for(caching: LocalClient) -> None:
    path = "/v1/collections/searched"
    assert caching.put(path, json_body={}).status == 200
    items = {"items": [{"id": "a", "text": "stored once"}, {"id": "b", "text": "searched again"}]}
    search = {"text": "searched again", "limit": 1}
    assert cached(caching.post(f"{path}/items", json_body=items)) == {"miss": 2}
    for expected in ({"miss": 1}, {"hit": 1}):
        answer = caching.post(f"{path}/search", json_body=search)
        assert cached(answer) == expected
        assert answer.json()["results"][0]["id"] == "b"
    assert cached(caching.post(f"{path}/items", json_body=items)) == {"miss": 1, "hit": 1}


def test_an_image_s_thumbnail_is_made_though_its_embedding_is_known(caching: LocalClient) -> None:
    headers = {"content-type": "image/jpeg"}
    caching.post("/v1/embeddings", content=jpeg("rocket"), headers=headers)
    caching.put("/v1/collections/small", json_body={"thumbnails": True})
    path = "/v1/collections/small/items/rocket"
    assert caching.put(path, content=jpeg("rocket"), headers=headers).status == 200
    assert caching.get(f"{path}/thumbnail").content[:2] == b"\xff\xd8"


def test_a_bad_image_is_bad_every_time(caching: LocalClient) -> None:
    body = {"input": ["fine", data_uri(jpeg("chelsea")), data_uri(jpeg("coffee")[:2000])]}
    for _ in range(2):
        answer = caching.post("/v1/embeddings", json_body=body)
        assert (answer.status, answer.json()["error"]["param"]) == (422, "input[2]")


def test_requests_at_the_same_time_are_computed_once(caching: LocalClient) -> None:
    body = {"input": [data_uri(jpeg("motorcycle"))]}
    pending = [caching.submit("POST", "/v1/embeddings", body) for _ in range(6)]
    answers = [request.result() for request in pending]
    assert sum(cached(answer).get("miss", 0) for answer in answers) == 1
    assert len({json.dumps(answer.json()["data"]) for answer in answers}) == 1


def test_it_can_be_turned_off(client: LocalClient) -> None:
    for _ in range(2):
        answer = client.post("/v1/embeddings", json_body={"input": "once and again"})
        assert cached(answer) == {}
        assert "calls;dur=0.00" not in answer.headers["server-timing"]


class Encoder:
    """In place of the encoder's handle: `info.remote()` and `embed_texts.remote(texts)` can be awaited.

    Its vectors tell which version of it made them, and have a length of their own.
    """

    deployment_name = "encoder"

    def __init__(self) -> None:
        self.version = 1
        self.calls = 0
        self.info = Method(self._info)
        self.embed_texts = Method(self._embed)

    async def _info(self) -> ModelInfo:
        return ModelInfo("clip", "embedding", "", str(self.version), "torch-cpu", "fp32", 2 + self.version)

    async def _embed(self, texts: Sequence[str]) -> Any:
        self.calls += 1
        version = self.version
        vectors = np.full((len(texts), 2 + version), version, np.float32)
        return vectors, str(version), [1] * len(texts), StageTimes()


class Method:
    def __init__(self, work: Any) -> None:
        self.remote = work


def test_a_replaced_encoder_s_embeddings_are_not_given_any_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def run() -> None:
        encoder: Any = Encoder()
        gateway = Inference(Settings(data_dir=tmp_path), None, encoder, {}, {}, {})

        async def versions(*texts: str) -> list[float]:
            embedded = await gateway.embed(texts, Timing())
            assert embedded.vectors.shape == (len(texts), 2 + int(embedded.fingerprint))
            return [float(row[0]) for row in embedded.vectors]

        assert await versions("a", "b") == [1, 1]
        assert await versions("b", "a") == [1, 1]
        assert encoder.calls == 1
        encoder.version = 2
        assert await versions("a") == [1], "nothing has been heard of it yet"
        # One request with what was known and what was not: all of it is by the one that is there now.
        assert await versions("a", "new") == [2, 2]
        assert await versions("b") == [2]
        # Answers from the cache alone: it is asked who it is when it has not been heard of for a while.
        encoder.version = 3
        monkeypatch.setattr(inference, "CACHE_TRUSTED_S", 0.0)
        assert await versions("a") == [3]

    asyncio.run(run())


def test_an_encoder_that_changes_all_the_time_is_an_error(tmp_path: Path) -> None:
    class Restless(Encoder):
        async def _embed(self, texts: Sequence[str]) -> Any:
            self.version += 1
            return await super()._embed(texts)

    async def run() -> None:
        encoder: Any = Restless()
        # Two calls a request, which do not travel together, so that two versions answer them.
        args = {"data_dir": str(tmp_path), "gateway.texts_per_call": inference.JOINED_TEXTS}
        gateway = Inference(Settings.from_args(args), None, encoder, {}, {}, {})
        with pytest.raises(NotReady, match="again and again"):
            await gateway.embed([f"text {n}" for n in range(2 * inference.JOINED_TEXTS)], Timing())

    asyncio.run(run())
