"""A model directory in Hugging Face layout, looked at without loading it."""

import json
from pathlib import Path
from typing import Any, Final

from configs.settings import SettingsError

ADAPTER_WEIGHTS: Final = "adapter.safetensors"
IMAGE_HEAD: Final = "sightline_image_head"  # model_type in config.json


def check_directory(directory: Path) -> Path:
    """The directory itself, if it has config.json and safetensors, or is an adapter. Raises SettingsError."""
    if not directory.is_dir():
        raise SettingsError(f"the model directory {directory} does not exist on this machine")
    if not (directory / "config.json").is_file():
        raise SettingsError(f"the model directory {directory} has no config.json")
    if not (directory / ADAPTER_WEIGHTS).is_file():
        weight_files(directory)
    return directory


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises SettingsError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise SettingsError(f"{path} must hold a JSON object")
    return value


def architecture(directory: Path) -> str:
    """What of config.json can change the output, as text: activations, head counts, the token pooled at."""
    return json.dumps(_without_bookkeeping(read_json(directory / "config.json")), sort_keys=True)


def _without_bookkeeping(config: dict[str, Any]) -> dict[str, Any]:
    """At every depth, for a CLIP model has a configuration of its own for each tower."""
    return {
        key: _without_bookkeeping(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _BOOKKEEPING
    }


_BOOKKEEPING: Final = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model: model.safetensors, or the shards its index names."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        shards = sorted({directory / name for name in read_json(index).get("weight_map", {}).values()})
        if missing := [shard.name for shard in shards if not shard.is_file()]:
            raise SettingsError(f"{directory} lacks {', '.join(missing)}, which its index names")
        return shards
    raise SettingsError(
        f"{directory} has no model.safetensors (nor model.safetensors.index.json); "
        "other weight formats can hold code and are not loaded: save the model as safetensors"
    )


def definition_files(directory: Path) -> list[Path]:
    """What beside the weights defines a model: its configurations and its tokenizer's vocabulary."""
    return sorted(path for path in directory.iterdir() if path.suffix in (".json", ".txt"))


def require_type(directory: Path, model_type: str) -> dict[str, Any]:
    """config.json, checked to be of `model_type`."""
    config = read_json(directory / "config.json")
    if config.get("model_type") != model_type:
        raise SettingsError(
            f"{directory} holds a model of type {config.get('model_type')!r}; accepted here: {model_type!r}"
        )
    return config
