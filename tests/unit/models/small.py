"""Small transformers models whose every weight, bias and norm counts.

A new model has no biases, even norms and almost equal attention scores: it would answer alike with half of a
layer wrong.
"""

from typing import Any, Final, TypeVar

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

Net = TypeVar("Net", bound=torch.nn.Module)

END: Final = 99  # CLIP's end token, and the greatest id
LIMIT: Final = 77  # tokens
SIZE: Final = 64  # pixels of a side
_TEXT: Final[dict[str, Any]] = {"vocab_size": END + 1, "max_position_embeddings": LIMIT}


def clip(
    *, layers: int = 2, heads: int = 4, head: int = 8, activation: str = "quick_gelu", end_id: int = END
) -> CLIPModel:
    """`head` is the width of one. `end_id` 2 is what old configurations say, who mean the greatest id."""
    common: dict[str, Any] = {
        "hidden_size": heads * head,
        "intermediate_size": 50,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
    }
    text = CLIPTextConfig(**common, **_TEXT, bos_token_id=1, eos_token_id=end_id, pad_token_id=3)
    vision = CLIPVisionConfig(**common, image_size=SIZE, patch_size=16)
    torch.manual_seed(0)
    return _shaken(CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())))


def classifier(*, layers: int = 2, heads: int = 4, head: int = 8) -> DistilBertForSequenceClassification:
    """Of three labels."""
    sizes: dict[str, Any] = {"dim": heads * head, "hidden_dim": 50, "n_layers": layers, "n_heads": heads}
    config = DistilBertConfig(**_TEXT, **sizes)
    config.num_labels = 3
    torch.manual_seed(0)
    return _shaken(DistilBertForSequenceClassification(config))


def _shaken(model: Net) -> Net:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.eval()
    return model
