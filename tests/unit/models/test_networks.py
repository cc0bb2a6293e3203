"""The layers that serve against transformers' own, with weights that make every part of them count.

A new transformers model has no biases, even norms and almost equal attention scores; parity of such a model
would hold with half of a layer wrong.
"""

from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from deployments.models.networks.clip import ImageNetwork, TextNetwork
from deployments.models.networks.distilbert import LogitsNetwork
from training.network import Logits

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
END = 99  # the greatest id
SHAPES = [{"layers": 1, "heads": 4, "head": 8}, {"layers": 3, "heads": 3, "head": 16}]


def shaken(model: Any) -> Any:
    """Every weight, bias and norm moved off where it begins."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def clip(layers: int, heads: int, head: int, activation: str, end_id: int = END) -> Any:
    common: dict[str, Any] = {
        "hidden_size": heads * head,
        "intermediate_size": 50,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
    }
    text = CLIPTextConfig(
        **common, vocab_size=END + 1, max_position_embeddings=20, bos_token_id=1, eos_token_id=end_id
    )
    vision = CLIPVisionConfig(**common, image_size=64, patch_size=16)
    return shaken(CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_images(shape: dict[str, int], activation: str) -> None:
    model = clip(**shape, activation=activation)
    network = ImageNetwork(model, MEAN, STD).eval()
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    scaled = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )
    wanted = normalize(model.get_image_features(pixel_values=scaled).pooler_output, dim=-1)
    torch.testing.assert_close(network(pixels), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "end_id", [END, 2]
)  # 2: what old configurations say, and then the greatest id is meant
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_texts(shape: dict[str, int], end_id: int) -> None:
    model = clip(**shape, activation="quick_gelu", end_id=end_id)
    ids = torch.randint(3, END, (4, 12))
    for row, length in enumerate([12, 7, 3, 2]):
        ids[row, length - 1 :] = END
    wanted = normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)
    torch.testing.assert_close(TextNetwork(model).eval()(ids), wanted, atol=1e-5, rtol=0)


def classifier(layers: int, heads: int, head: int) -> Any:
    sizes: dict[str, Any] = {"dim": heads * head, "hidden_dim": 50, "n_layers": layers, "n_heads": heads}
    config = DistilBertConfig(vocab_size=END + 1, **sizes)
    config.num_labels = 3
    return shaken(DistilBertForSequenceClassification(config))


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_logits(shape: dict[str, int]) -> None:
    """What is served is what was trained."""
    trained = classifier(**shape)
    ids = torch.randint(3, 100, (4, 12))
    mask = (torch.arange(12) < torch.tensor([12, 7, 3, 1]).unsqueeze(1)).long()
    wanted = Logits(trained).eval()(ids, mask)
    assert wanted.std() > 0.1
    torch.testing.assert_close(LogitsNetwork(trained).eval()(ids, mask), wanted, atol=1e-4, rtol=1e-5)
