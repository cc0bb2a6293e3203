"""Progress of a run on disk: one safetensors file an epoch, replaced whole, so a kill leaves the last one."""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from training.data import DataError


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training part gave. Losses are mean cross entropies in nats."""

    number: int  # from 1
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    seconds: float


@dataclass
class Progress:
    """Where a run stands: its epochs so far, and the weights of the best of them."""

    history: list[Epoch] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def best_epoch(self) -> int:
        """Number of the epoch with the smallest validation loss; the last one without validation."""
        losses = [epoch.validation_loss for epoch in self.history]
        known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
        return losses.index(min(known)) + 1 if known else len(losses)


def save(
    path: Path, run: str, network: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write the trained tensors, the optimizer's and the best epoch's; random numbers follow from the epoch.

    `run` names the data and options, and only a run of the same name can go on from here.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            tensors[f"network.{name}"] = parameter.detach()
            for key, value in optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best.items()}
    history = json.dumps([asdict(epoch) for epoch in progress.history])
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    # The best epoch is often this one, and safetensors refuses tensors that share memory.
    save_file({n: t.cpu().clone() for n, t in tensors.items()}, scratch, {"run": run, "history": history})
    with scratch.open("rb") as written:
        os.fsync(written.fileno())
    scratch.replace(path)


def load(path: Path, run: str, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Take up the run where it stopped; None if no epoch of it was finished.

    Raises:
        DataError: the checkpoint is of a run with other data or options.
    """
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        if about.get("run") != run:
            raise DataError(
                f"{path} is of a run with other data or options; run it as before, or without --resume"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a mapping
    parameters = dict(network.named_parameters())
    progress = Progress([Epoch(**epoch) for epoch in json.loads(about["history"])])
    with torch.no_grad():
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "best":
                progress.best[rest] = tensor
            elif kind == "network":
                parameters[rest].copy_(tensor)
            else:
                key, _, parameter = rest.partition(".")
                # Fused, Adam counts its steps where the parameters are.
                optimizer.state[parameters[parameter]][key] = tensor.to(parameters[parameter].device)
    return progress
