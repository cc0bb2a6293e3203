"""The network that is trained, whose weights are served: a DistilBERT encoder with a fresh or known head."""

import json
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors.torch import load_file
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from configs.settings import SettingsError
from deployments.models.directories import check_directory, require_type, weight_files
from deployments.models.networks.adapted import distilbert_weights
from deployments.models.packages import fetch_starter
from training.head import DROPOUT

STARTER: Final = "starter"  # the value of --base that stands for the fetched MiniLM
HEAD: Final = ("pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias")

Freeze = Literal["nothing", "embeddings", "encoder"]


class Logits(torch.nn.Module):
    """Ids and mask int64[n, length] to logits [n, labels], with gradients; transformers' own forward."""

    def __init__(self, classifier: DistilBertForSequenceClassification) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(input_ids=ids, attention_mask=mask).logits
        return logits.float()


def base_directory(base: str, cache_dir: Path) -> Path:
    """Where the base's weights and tokenizer are. Raises SettingsError, or NotReady for the starter."""
    if base == STARTER:
        return fetch_starter(cache_dir) / "minilm"
    directory = check_directory(Path(base).expanduser())
    require_type(directory, "distilbert")
    return directory


def build(directory: Path, labels: tuple[str, ...], *, seed: int) -> DistilBertForSequenceClassification:
    """The base's encoder and, where it has one for exactly these labels, its head; else a new head.

    Raises:
        SettingsError: the directory lacks weights of the encoder.
    """
    config, weights = _read(directory)
    known_labels = tuple(str(label) for _, label in sorted((config.id2label or {}).items()))
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.seq_classif_dropout = DROPOUT
    torch.manual_seed(seed)
    network = DistilBertForSequenceClassification(config)
    if known_labels != labels:
        weights = {name: tensor for name, tensor in weights.items() if name not in HEAD}
    wanted = network.state_dict()
    weights = {name: tensor for name, tensor in weights.items() if name in wanted}
    if missing := [name for name in wanted if name not in weights and name not in HEAD]:
        raise SettingsError(f"the weights in {directory} lack {len(missing)} tensors, first {missing[0]}")
    network.load_state_dict(weights, strict=False)
    return network


def freeze(network: DistilBertForSequenceClassification, what: Freeze) -> None:
    """Leave parameters as they are in the base. Frozen embeddings halve the optimizer's work."""
    encoder: Any = network.distilbert
    part = {"nothing": None, "embeddings": encoder.embeddings, "encoder": encoder}[what]
    if part is not None:
        part.requires_grad_(False)


def _read(directory: Path) -> tuple[DistilBertConfig, dict[str, torch.Tensor]]:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] == "bert":  # MiniLM, of DistilBERT's shape under BERT's names
        shape = {
            "vocab_size": config["vocab_size"],
            "max_position_embeddings": config["max_position_embeddings"],
            "dim": config["hidden_size"],
            "hidden_dim": config["intermediate_size"],
            "n_layers": config["num_hidden_layers"],
            "n_heads": config["num_attention_heads"],
            "pad_token_id": config["pad_token_id"],
        }
        return DistilBertConfig(**shape), distilbert_weights(directory)
    weights: dict[str, torch.Tensor] = {}
    for file in weight_files(directory):
        weights |= load_file(file)
    # An encoder saved alone has no prefix.
    for name in [name for name in weights if name.startswith(("embeddings.", "transformer."))]:
        weights[f"distilbert.{name}"] = weights.pop(name)
    loaded: DistilBertConfig = DistilBertConfig.from_pretrained(directory, local_files_only=True)
    return loaded, {name: tensor.float() for name, tensor in weights.items()}
