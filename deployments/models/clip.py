"""CLIP from any directory in Hugging Face layout: both towers into one space.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
arXiv:2103.00020.
"""

import json
import math
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import CLIPModel

from configs.settings import ClipSettings
from deployments.engines.choose import compile_module
from deployments.models import images
from deployments.models.base import ModelInfo
from deployments.models.directories import architecture, read_json, require_type, weight_files
from deployments.models.pretrained import load_network
from deployments.models.text import TextTokenizer
from deployments.models.towers import Encoder, ImageTower, TextTower, fingerprint

# What OpenAI's models were trained with, for directories without preprocessor_config.json.
_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)

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

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        pooled = self.tower(input_ids=ids).pooler_output
        return normalize(self.projection(pooled).float(), dim=-1)


def load(
    directory: Path, settings: ClipSettings, threads: int, source: str, notes: tuple[str, ...]
) -> Encoder:
    """Load, compile and warm up. Raises SettingsError for a directory that is no whole CLIP model."""
    require_type(directory, "clip")
    weights = weight_files(directory)
    clip = load_network(CLIPModel, directory, attn_implementation="sdpa")
    config: Any = clip.config
    size: int = config.vision_config.image_size
    mean, std, odd = _preprocessing(directory, size)
    tokenizer = TextTokenizer.from_directory(directory, config.text_config.max_position_embeddings)
    logit_scale = math.exp(clip.logit_scale.item())
    # The first end token is the pool, so that padding with end tokens, as CLIP's tokenizer does, is safe.
    # Ids are only ever read up to it: any id in the vocabulary would do.
    pad_id = int(tokenizer.encode("")[-1])

    image_network, text_network = ImageNetwork(clip, mean, std), TextNetwork(clip)
    del clip  # each network frees its own weights once compiled
    image = ImageTower(
        compile_module(
            image_network,
            [torch.zeros(2, size, size, 3, dtype=torch.uint8)],
            engine=settings.engine,
            precision=settings.precision,
            threads=threads,
        ),
        size,
    )
    del image_network
    text = TextTower(
        compile_module(
            text_network,
            [torch.full((2, 7), pad_id)],
            engine=settings.engine,
            precision=settings.precision,
            threads=threads,
        ),
        tokenizer,
        pad_id=pad_id,
        masked=False,
    )
    del text_network
    image.warm_up()
    text.warm_up()
    info = ModelInfo(
        id=settings.name,
        task="embedding",
        source=source,
        fingerprint=fingerprint(
            weights,
            json.dumps([images.PREPROCESSING, size, mean, std]),
            tokenizer.definition(),
            architecture(directory),
        ),
        engine=image.engine.name,
        precision=image.engine.precision,
        dimensions=config.projection_dim,
        image_size=size,
        logit_scale=logit_scale,
        label_template="a photo of a {label}",  # the paper's, section 3.1.4
        max_tokens=tokenizer.max_tokens,
        notes=notes + odd,
    )
    return Encoder(info, image, text)


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
