"""The real `openai` package against the running server."""

import numpy as np
import openai
import pytest

from tests.photos import data_uri, jpeg
from tests.server import Server


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def test_text_embeddings(client: openai.OpenAI) -> None:
    # The package asks for base64 by itself and decodes it.
    answer = client.embeddings.create(model="clip", input=["a cat", "a rocket"])
    assert [row.index for row in answer.data] == [0, 1]
    vectors = np.array([row.embedding for row in answer.data])
    assert vectors.shape == (2, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    floats = client.embeddings.create(model="clip", input=["a cat"], encoding_format="float")
    assert np.allclose(floats.data[0].embedding, vectors[0], atol=2e-2)  # bf16, in another batch
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_image_embeddings_as_infinity_s_clients_send_them(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(
        model="clip", input=[data_uri(jpeg("chelsea"))], extra_body={"modality": "image"}
    )
    text = client.embeddings.create(model="clip", input=["a cat", "a motorcycle"])
    image = np.array(answer.data[0].embedding)
    cat, motorcycle = (np.array(row.embedding) for row in text.data)
    assert image @ cat > image @ motorcycle


def test_models(client: openai.OpenAI) -> None:
    assert "clip" in [model.id for model in client.models.list()]
    assert client.models.retrieve("clip").id == "clip"


def test_errors_are_the_package_s_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.embeddings.create(model="gpt", input="a")
    with pytest.raises(openai.UnprocessableEntityError) as raised:
        client.embeddings.create(model="clip", input="data:image/jpeg;base64,AAAA")
    assert raised.value.param == "input[0]"
    with pytest.raises(openai.UnprocessableEntityError):
        client.embeddings.create(model="clip", input="a", dimensions=3)
