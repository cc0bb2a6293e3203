"""Adapters put to their base, and the base under DistilBERT's names. See `deployments.models.adapters`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

from configs.settings import SettingsError

_LAYER_NAMES: Final = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


def write(adapter: Path, minilm: Path, target: Path) -> None:
    """The adapted weights as a safetensors file. Raises SettingsError if a change does not fit the base."""
    save_file(merge(distilbert_weights(minilm), load_file(adapter)), target, {"format": "pt"})


def merge(base: Mapping[str, torch.Tensor], adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapted weights, float32. Raises SettingsError if a change does not fit the base."""
    merged = {name: tensor.float() for name, tensor in base.items()}
    for name, tensor in adapter.items():
        target, _, kind = name.rpartition(".")
        try:
            if kind == "left":
                merged[target] = merged[target] + tensor.float() @ adapter[f"{target}.right"].float()
            elif kind == "codes":
                rows, steps = adapter[f"{target}.rows"].long(), adapter[f"{target}.steps"].float()
                levels = torch.stack((tensor & 15, tensor >> 4), -1).flatten(1).float() - 7.5
                merged[target] = merged[target].clone()
                merged[target][rows] += levels * steps[:, None]
            elif kind not in ("right", "rows", "steps"):
                merged[name] = tensor.float()
        except (KeyError, IndexError, RuntimeError) as error:
            raise SettingsError(f"the adapter's {name} does not fit the base: {error}") from error
    return {name: tensor.contiguous() for name, tensor in merged.items()}


def distilbert_weights(minilm: Path) -> dict[str, torch.Tensor]:
    """MiniLM's encoder under DistilBERT's names, float32, without a head.

    DistilBERT has no token types: every token is of type 0, so that row moves into the positions. It has
    no pooler either. The output equals BERT's to 2e-5.
    """
    weights = {n.removeprefix("bert."): t for n, t in load_file(minilm / "model.safetensors").items()}
    embeddings = "distilbert.embeddings"
    out = {
        f"{embeddings}.word_embeddings.weight": weights["embeddings.word_embeddings.weight"],
        f"{embeddings}.position_embeddings.weight": weights["embeddings.position_embeddings.weight"]
        + weights["embeddings.token_type_embeddings.weight"][0],
    }
    for part in ("weight", "bias"):
        out[f"{embeddings}.LayerNorm.{part}"] = weights[f"embeddings.LayerNorm.{part}"]
        layer = 0
        while f"encoder.layer.{layer}.output.dense.weight" in weights:
            for theirs, ours in _LAYER_NAMES.items():
                name = f"distilbert.transformer.layer.{layer}.{ours}.{part}"
                out[name] = weights[f"encoder.layer.{layer}.{theirs}.{part}"]
            layer += 1
    return {name: tensor.float() for name, tensor in out.items()}
