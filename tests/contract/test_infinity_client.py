"""infinity's own client package against the running server."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from infinity_client import Client
from infinity_client.api.default import classify, embeddings, embeddings_image, health, models, rerank
from infinity_client.models import (
    ClassifyInput,
    ImageEmbeddingInput,
    OpenAIEmbeddingInputImage,
    OpenAIEmbeddingInputImageModality,
    OpenAIEmbeddingInputText,
    RerankInput,
)

from tests.photos import data_uri, jpeg
from tests.server import Server


@pytest.fixture(params=["", "/v1"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(base_url=server.url + request.param, raise_on_unexpected_status=True) as opened:
        yield opened


def test_texts_with_and_without_a_model(client: Client) -> None:
    for body in (
        OpenAIEmbeddingInputText(input_=["a cat", "a rocket"], model="clip"),
        OpenAIEmbeddingInputText(input_=["a cat", "a rocket"]),
    ):
        answer: Any = embeddings.sync(client=client, body=body)
        assert np.array([row.embedding for row in answer.data]).shape == (2, 384)
        assert answer.usage.total_tokens > 0


def test_images_by_either_route(client: Client) -> None:
    photo = data_uri(jpeg("chelsea"))
    modality = OpenAIEmbeddingInputImageModality.IMAGE
    body = OpenAIEmbeddingInputImage(input_=[photo], modality=modality, model="clip")
    new: Any = embeddings.sync(client=client, body=body)
    old: Any = embeddings_image.sync(client=client, body=ImageEmbeddingInput(input_=[photo], model="clip"))
    assert np.allclose(new.data[0].embedding, old.data[0].embedding, atol=1e-5)


def test_classify(client: Client) -> None:
    answer: Any = classify.sync(client=client, body=ClassifyInput(input_=["Cup final won"], model="news"))
    assert answer.data[0][0].label == "sport"


def test_rerank(client: Client) -> None:
    documents = ["a motorcycle", "a kitten"]
    body = RerankInput(query="a cat", documents=documents, model="clip", return_documents=True)
    answer: Any = rerank.sync(client=client, body=body)
    assert (answer.results[0].index, answer.results[0].document) == (1, "a kitten")


def test_models_and_health(client: Client) -> None:
    answer: Any = models.sync(client=client)
    listed = {model.id: model for model in answer.data}
    assert listed["clip"].stats["queue_fraction"] <= 1
    found: Any = health.sync(client=client)
    assert found["unix"] > 1.7e9
