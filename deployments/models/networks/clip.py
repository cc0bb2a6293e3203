"""CLIP's two towers, each with its projection into the common space.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
arXiv:2103.00020.
"""

import math
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import CLIPModel

from deployments.engines.networks import Built
from deployments.models.directories import read_json
from deployments.models.networks.pretrained import load_network
from deployments.models.text import TextTokenizer

# What OpenAI's models were trained with, for directories without preprocessor_config.json.
_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)

_MASKED: Final = torch.finfo(torch.float16).min  # added to a score, in whatever precision

_BICUBIC: Final = 3  # Pillow's number, which preprocessor_config.json stores


class Normalise(nn.Module):
    """uint8[n, h, w, 3] to channels first, 0 to 1, less the mean, over the deviation."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std


class ImageNetwork(nn.Module):
    """uint8[n, size, size, 3] to unit vectors [n, dimensions]."""

    def __init__(self, clip: CLIPModel, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.tower = clip.vision_model
        self.projection = clip.visual_projection

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pooled = self.tower(pixel_values=self.normalise(pixels)).pooler_output
        return normalize(self.projection(pooled).float(), dim=-1)


class TextNetwork(nn.Module):
    """int64[n, length] to unit vectors [n, dimensions]; pooling at the end token is transformers' own."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.tower = clip.text_model
        self.projection = clip.text_projection
        config: Any = clip.config
        longest = config.text_config.max_position_embeddings
        # Only told that attention is causal, OpenVINO makes the mask anew in each layer, and cannot fuse what
        # is around it: 941 nodes instead of 547, 699 texts/s instead of 763 (batches of 16, two cores).
        self.register_buffer("causal", torch.full((1, 1, longest, longest), _MASKED).triu(1))
        self.causal: torch.Tensor

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        mask = self.causal[:, :, :length, :length]
        pooled = self.tower(input_ids=ids, attention_mask=mask).pooler_output
        return normalize(self.projection(pooled).float(), dim=-1)


def build(directory: Path) -> Built:
    """`image` and `text`. Raises SettingsError for a directory that is no whole CLIP model."""
    clip = load_network(CLIPModel, directory, attn_implementation="sdpa")
    config: Any = clip.config
    size: int = config.vision_config.image_size
    mean, std, notes = _preprocessing(directory, size)
    tokenizer = TextTokenizer.from_directory(directory, config.text_config.max_position_embeddings)
    return Built(
        {
            "image": (ImageNetwork(clip, mean, std), (torch.zeros(2, size, size, 3, dtype=torch.uint8),)),
            "text": (TextNetwork(clip), (torch.ones((2, 7), dtype=torch.int64),)),
        },
        {
            "image_size": size,
            "mean": mean,
            "std": std,
            "notes": notes,
            "dimensions": config.projection_dim,
            "logit_scale": math.exp(clip.logit_scale.item()),
            "tokenizer": tokenizer.definition(),
            "max_tokens": tokenizer.max_tokens,
        },
    )


def _preprocessing(
    directory: Path, size: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Mean and deviation, and a note for each step this server does otherwise than the directory asks."""
    path = directory / "preprocessor_config.json"
    config: dict[str, Any] = read_json(path) if path.is_file() else {}
    wanted = config.get("size", size)
    shortest = wanted.get("shortest_edge", wanted.get("height")) if isinstance(wanted, dict) else wanted
    notes = []
    if shortest != size:
        notes.append(
            f"its preprocessing resizes to {shortest}; the server resizes to {size} as its image tower takes"
        )
    if config.get("resample", _BICUBIC) != _BICUBIC:
        notes.append(
            f"its preprocessing resamples by Pillow filter {config['resample']}; the server by bicubic"
        )
    if config.get("do_center_crop", True) is False:
        notes.append("its preprocessing does not crop; the server takes the centre square")
    return tuple(config.get("image_mean", _MEAN)), tuple(config.get("image_std", _STD)), tuple(notes)
