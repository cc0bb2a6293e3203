"""Loading a network from a model directory: safetensors only, nothing missing, no chatter."""

from pathlib import Path
from typing import Any, TypeVar

import torch

from configs.settings import SettingsError

Net = TypeVar("Net", bound=torch.nn.Module)


def load_network(cls: type[Net], directory: Path, **arguments: Any) -> Net:
    """`cls.from_pretrained` in fp32 from safetensors, refusing a directory that lacks weights.

    transformers fills missing weights with random numbers and only warns.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    net, report = cls.from_pretrained(  # type: ignore[attr-defined]
        directory,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        **arguments,
    )
    missing = sorted(report["missing_keys"]) + [str(key) for key in report["mismatched_keys"]]
    if missing:
        raise SettingsError(f"the weights in {directory} lack {len(missing)} tensors, first {missing[0]}")
    loaded: Net = net.eval()
    return loaded
