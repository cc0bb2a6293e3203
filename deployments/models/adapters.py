"""Adapters: a fine-tuned classifier kept as small changes to a fetched encoder, made whole on demand.

MiniLM-L6 (Wang et al. 2020, arXiv:2002.10957) is a BERT of DistilBERT's shape, so its weights load into
DistilBERT as they are. An adapter directory holds config.json of the resulting model and
adapter.safetensors, where `NAME` replaces a tensor of the base. Two forms add to one instead:
`NAME.left` [out, r] and `NAME.right` [r, in] their product (LoRA's form: Hu et al. 2021,
arXiv:2106.09685); `NAME.codes` uint8[n, columns / 2], two columns each and the first in the low half,
for the rows `NAME.rows` int32[n], (code - 7.5) times the row's step in `NAME.steps` float16[n].
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from configs.settings import SettingsError
from deployments import isolated
from deployments.engines.networks import file_sha256
from deployments.models.directories import ADAPTER_WEIGHTS, read_json
from deployments.models.packages import fetch_starter

WEIGHTS: Final = ADAPTER_WEIGHTS
CONFIG_KEY: Final = "adapter"  # in config.json: what the adapter was made for


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds an adapter, which `materialize` makes an ordinary model of."""
    return (directory / WEIGHTS).is_file()


def materialize(adapter_dir: Path, cache_dir: Path) -> Path:
    """The ordinary Hugging Face directory of an adapter, built once under `cache_dir`/starter.

    The base is fetched if it is absent. Any number of processes may call this at once, and a killed
    one leaves nothing that another would load.

    Raises:
        SettingsError: the adapter is incomplete, or made for another base.
        NotReady: the base cannot be fetched.
    """
    config = read_json(adapter_dir / "config.json")
    made_for = config.pop(CONFIG_KEY, {}).get("base_sha256")
    digest = hashlib.sha256()
    try:
        for name in ("config.json", WEIGHTS):
            digest.update(hashlib.sha256((adapter_dir / name).read_bytes()).digest())
    except OSError as error:
        raise SettingsError(f"the adapter {adapter_dir} cannot be read: {error}") from error
    starter = fetch_starter(cache_dir)
    target = starter / f"{adapter_dir.resolve().parent.name}-{digest.hexdigest()[:16]}"
    if target.is_dir():
        return target
    base = starter / "minilm"
    if made_for != base_sha256(base):
        raise SettingsError(f"the adapter {adapter_dir} was made for another base than {base}")
    scratch = Path(tempfile.mkdtemp(dir=starter, prefix=".adapter-"))
    try:
        isolated.call(_write_weights, adapter_dir, base, scratch)
        (scratch / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        shutil.copy(base / "tokenizer.json", scratch)
        # mkdtemp and safetensors keep what they make to its owner; the server may be another user.
        scratch.chmod(0o755)
        for file in scratch.iterdir():
            file.chmod(0o644)
        os.rename(scratch, target)
    except OSError:
        if not target.is_dir():  # else another process was first, with the same bytes
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def base_sha256(base: Path) -> str:
    """sha256 of the base's weights, 64 hex digits."""
    return file_sha256(base / "model.safetensors").hex()


def _write_weights(adapter_dir: Path, base: Path, directory: Path) -> None:
    """Imports torch."""
    from deployments.models.networks import adapted

    adapted.write(adapter_dir / WEIGHTS, base, directory / "model.safetensors")
