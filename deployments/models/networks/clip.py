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
from deployments.models.networks.attention import MASKED, Attention
from deployments.models.networks.pretrained import load_network
from deployments.models.text import TextTokenizer

# What OpenAI's models were trained with, for directories that do not say.
_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)

_WRONG_END_ID: Final = 2  # in OpenAI's configurations, though their end token is the greatest id

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


class Layer(nn.Module):
    """Attention and a feed-forward network, what goes into each normalised, what comes out added."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        theirs = layer.self_attn
        self.attention = Attention(
            theirs.q_proj, theirs.k_proj, theirs.v_proj, theirs.out_proj, theirs.num_heads
        )
        self.attention_norm, self.forward_norm = layer.layer_norm1, layer.layer_norm2
        self.feed_forward = layer.mlp

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return self._fed(tokens + self.attention(self.attention_norm(tokens), mask))

    def of_one(self, token: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """What `forward` gives for one token of each row alone, see `Attention`."""
        norm = self.attention_norm
        return self._fed(token + self.attention.of_one(norm(token), norm(tokens), mask))

    def _fed(self, tokens: torch.Tensor) -> torch.Tensor:
        fed: torch.Tensor = tokens + self.feed_forward(self.forward_norm(tokens))
        return fed


class Layers(nn.Module):
    """A tower's layers, and the one token of each row that is read of them.

    In the last layer only keys and values, two twelfths of its work, are made for every token, and the rest
    for the one that is read: 25 images are 7% quicker for it, 16 texts 5% (OpenVINO, two cores).
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        *before, last = (Layer(layer) for layer in encoder.layers)
        self.before, self.last = nn.ModuleList(before), last

    def forward(
        self, tokens: torch.Tensor, read: torch.Tensor | int, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[n, length, width] to [n, width]: of token `read` of all rows, or, int64[n], of each row.

        `mask` [1, 1, length, length] is added to the scores.
        """
        for layer in self.before:
            tokens = layer(tokens, mask)
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        masked = None if mask is None else mask[0, 0, read].view(-1, 1, 1, mask.shape[-1])
        return self.last.of_one(tokens[rows, read][:, None], tokens, masked)[:, 0]


class ImageNetwork(nn.Module):
    """uint8[n, size, size, 3] to unit vectors [n, dimensions], read from the class token, the first."""

    def __init__(self, clip: CLIPModel, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        tower: Any = clip.vision_model
        self.embeddings = nn.Sequential(Normalise(mean, std), tower.embeddings, tower.pre_layrnorm)
        self.layers = Layers(tower.encoder)
        self.head = nn.Sequential(tower.post_layernorm, clip.visual_projection)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return normalize(self.head(self.layers(self.embeddings(pixels), 0)).float(), dim=-1)


class TextNetwork(nn.Module):
    """int64[n, length] to unit vectors [n, dimensions], read from the end token."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        tower: Any = clip.text_model
        self.embeddings = tower.embeddings
        self.layers = Layers(tower.encoder)
        self.head = nn.Sequential(tower.final_layer_norm, clip.text_projection)
        self.end_id: int = tower.eos_token_id
        config: Any = clip.config
        longest = config.text_config.max_position_embeddings
        # Only told that attention is causal, OpenVINO makes the mask anew in each layer, and cannot fuse what
        # is around it: with transformers' layers 699 texts/s instead of 763 (batches of 16, two cores).
        # CUDA's attention kernels read rows of a multiple of 8 as they are, and pad others in each layer.
        wide = -(-longest // 8) * 8
        self.register_buffer("causal", torch.full((1, 1, longest, wide), MASKED).triu(1))
        self.causal: torch.Tensor

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        is_end = ids if self.end_id == _WRONG_END_ID else (ids == self.end_id).int()
        length = ids.shape[1]
        token = self.layers(self.embeddings(ids), is_end.argmax(-1), self.causal[:, :, :length, :length])
        return normalize(self.head(token).float(), dim=-1)


def build(directory: Path) -> Built:
    """`image` and `text`. Raises SettingsError for a directory that is no whole CLIP model."""
    clip = load_network(CLIPModel, directory)
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
            "embedded": len(clip.text_model.embeddings.token_embedding.weight),
        },
    )


def _preprocessing(
    directory: Path, size: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Mean and deviation, and a note for each step this server does otherwise than the directory asks."""
    config = _image_processor(directory)
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
    # What its pixels are where white is 1 here, and mean and deviation are of such.
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    scale = 1 if math.isclose(255 * factor, 1, rel_tol=1e-6) else 255 * factor
    mean, deviation = config.get("image_mean", _MEAN), config.get("image_std", _STD)
    if config.get("do_normalize", True) is False:
        mean, deviation = (0, 0, 0), (1, 1, 1)
    return tuple(m / scale for m in mean), tuple(d / scale for d in deviation), tuple(notes)


def _image_processor(directory: Path) -> dict[str, Any]:
    """The directory's settings of it, in the order in which transformers looks; empty if it has none."""
    both = directory / "processor_config.json"
    nested = read_json(both).get("image_processor") if both.is_file() else None
    if isinstance(nested, dict):
        return nested
    path = directory / "preprocessor_config.json"
    return read_json(path) if path.is_file() else {}
