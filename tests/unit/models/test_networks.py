"""The layers that serve against transformers' own."""

from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from deployments.models.networks.clip import ImageNetwork, TextNetwork
from deployments.models.networks.distilbert import LogitsNetwork
from tests.unit.models import small
from training.network import Logits

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
SHAPES = [{"layers": 1, "heads": 4, "head": 8}, {"layers": 3, "heads": 3, "head": 16}]


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_images(shape: dict[str, Any], activation: str) -> None:
    model: Any = small.clip(**shape, activation=activation)
    pixels = torch.randint(0, 256, (3, small.SIZE, small.SIZE, 3), dtype=torch.uint8)
    scaled = ((pixels / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    wanted = normalize(model.get_image_features(pixel_values=scaled).pooler_output, dim=-1)
    found = ImageNetwork(model, MEAN, STD).eval()(pixels)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("end_id", [small.END, 2])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_texts(shape: dict[str, Any], end_id: int) -> None:
    model: Any = small.clip(**shape, end_id=end_id)
    ids = torch.randint(3, small.END, (4, 12))
    for row, length in enumerate([12, 7, 3, 2]):
        ids[row, length - 1 :] = small.END
    wanted = normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)
    torch.testing.assert_close(TextNetwork(model).eval()(ids), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_logits(shape: dict[str, Any]) -> None:
    """What is served is what was trained."""
    trained = small.classifier(**shape)
    ids = torch.randint(3, 100, (4, 12))
    mask = (torch.arange(12) < torch.tensor([12, 7, 3, 1]).unsqueeze(1)).long()
    wanted = Logits(trained).eval()(ids, mask)
    assert wanted.std() > 0.1
    torch.testing.assert_close(LogitsNetwork(trained).eval()(ids, mask), wanted, atol=1e-4, rtol=1e-5)
