"""A classifier head on the image tower: a linear probe or small MLP over an encoder's embeddings.

A directory of one holds config.json (`model_type`, `labels`, `encoder_fingerprint`) and
model.safetensors (`layers.N.weight` [out, in] and `layers.N.bias` [out], ReLU between layers).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from configs.settings import SettingsError
from deployments.models.base import ModelInfo, Vectors
from deployments.models.directories import IMAGE_HEAD, require_type, weight_files
from deployments.models.towers import fingerprint


@dataclass(frozen=True)
class ImageHead:
    """A loaded head. It is a few small matrices, so numpy runs it where it is called."""

    info: ModelInfo
    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]

    def logits(self, vectors: Vectors) -> NDArray[np.float32]:
        """float32[n, dimensions] of the encoder the head was trained on, to float32[n, labels]."""
        activations = vectors
        for place, (weight, bias) in enumerate(self.layers):
            activations = activations @ weight.T + bias
            if place < len(self.layers) - 1:
                activations = np.maximum(activations, 0)
        return activations


def load(name: str, directory: Path, source: str, version: str | None) -> ImageHead:
    """Raises SettingsError for a directory that is no whole head."""
    config = require_type(directory, IMAGE_HEAD)
    weights = weight_files(directory)
    try:
        tensors: dict[str, Any] = load_file(weights[0])
        layers = tuple(
            (
                tensors[f"layers.{i}.weight"].astype(np.float32),
                tensors[f"layers.{i}.bias"].astype(np.float32),
            )
            for i in range(len(tensors) // 2)
        )
        labels = tuple(map(str, config["labels"]))
        encoder_fingerprint = str(config["encoder_fingerprint"])
        widths = [layers[0][0].shape[1], *(len(bias) for _, bias in layers)]
        if widths[-1] != len(labels) or any(w.shape != (o, i) for (w, _), i, o in _pairs(layers, widths)):
            raise ValueError(f"layer widths {widths} do not fit together or to {len(labels)} labels")
    except Exception as error:  # damaged files raise whatever their bytes lead the parser to
        raise SettingsError(f"{directory} holds no whole image head: {error!r}") from error
    info = ModelInfo(
        id=name,
        task="image-classification",
        source=source,
        fingerprint=fingerprint(weights, repr(labels), encoder_fingerprint),
        engine="numpy",
        precision="fp32",
        dimensions=widths[0],
        labels=labels,
        version=version,
        encoder_fingerprint=encoder_fingerprint,
    )
    return ImageHead(info, layers)


def _pairs(layers: Any, widths: list[int]) -> Any:
    return zip(layers, widths[:-1], widths[1:], strict=True)
