"""Fine-tuning: epochs of AdamW under bf16 autocast, watched on validation data, resumable, data-parallel."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import DistilBertForSequenceClassification

from training import checkpoint
from training.batches import Encoded, by_length, shuffled, tensors
from training.checkpoint import Epoch, Progress
from training.data import DataError
from training.network import Freeze, Logits, freeze

_EVALUATION_BATCH: Final = 64  # no gradients are kept, so more rows fit than in training
_WARM_UP: Final = 0.06  # share of all steps over which the rate rises (Liu et al. 2019, RoBERTa)
_WEIGHT_DECAY: Final = 0.01  # as BERT was fine-tuned (Devlin et al. 2018)
_MAX_GRADIENT_NORM: Final = 1.0

OnEpoch = Callable[[Epoch], None]


@dataclass(frozen=True)
class Options:
    """How to train. The defaults suit a few thousand sentences."""

    epochs: int = 3
    batch_size: int = 32  # over all workers
    lr: float = 5e-5  # at its peak
    seed: int = 0
    patience: int = 2  # epochs without a smaller validation loss before the run stops
    freeze: Freeze = "nothing"
    label_smoothing: float = 0.0


def fit(
    network: DistilBertForSequenceClassification,
    train: Encoded,
    validation: Encoded,
    options: Options,
    *,
    checkpoint_file: Path | None = None,
    run: str = "",
    resume: bool = False,
    on_epoch: OnEpoch | None = None,
) -> Progress:
    """Train in place and leave the weights of the best epoch in `network`.

    Inside an initialised torch.distributed group every worker takes its share of each batch, and the
    gradients equal those of one worker. Random numbers depend on seed and epoch alone, so a run that was
    killed and resumed ends with the same weights as one that was not.

    Raises:
        DataError: the loss overflowed, or the checkpoint is of another run.
    """
    rank, workers = _place()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(network, device)  # transformers' own annotation refuses a device
    freeze(network, options.freeze)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=options.lr, weight_decay=_WEIGHT_DECAY, fused=True)
    progress = None
    if checkpoint_file and resume:
        progress = checkpoint.load(checkpoint_file, run, network, optimizer)
    progress = progress or Progress()
    model: torch.nn.Module = Logits(network)
    if workers > 1:
        model = DistributedDataParallel(model)

    while not _finished(progress, options):
        number = len(progress.history) + 1
        begun = time.monotonic()
        loss, accuracy = _epoch(model, optimizer, train, number, options, rank, workers)
        if not math.isfinite(loss):
            raise DataError(f"the loss is no longer a number in epoch {number}; try a smaller learning rate")
        watched = evaluate(network, validation) if len(validation) else None
        epoch = Epoch(
            number,
            loss,
            accuracy,
            float(cross_entropy(watched, validation.classes)) if watched is not None else None,
            _accuracy(watched, validation.classes) if watched is not None else None,
            time.monotonic() - begun,
        )
        progress.history.append(epoch)
        if progress.best_epoch() == number:
            progress.best = {name: p.detach().clone() for name, p in trained.items()}
        if checkpoint_file and rank == 0:
            checkpoint.save(checkpoint_file, run, network, optimizer, progress)
        if on_epoch:
            on_epoch(epoch)
    network.load_state_dict(progress.best, strict=False)
    network.train(False)
    return progress


@torch.no_grad()
def evaluate(network: DistilBertForSequenceClassification, part: Encoded) -> torch.Tensor:
    """Logits float32[n, classes] of every row, on the CPU; workers share the rows and each gets them all."""
    rank, workers = _place()
    model, device = Logits(network).train(False), network.device
    logits = torch.zeros(len(part), int(network.config.num_labels or 0))
    batches = list(by_length([len(row) for row in part.tokens], _EVALUATION_BATCH))
    for places in batches[rank::workers]:
        ids, mask = tensors(part, places)
        with _autocast(device):
            logits[places] = model(ids.to(device), mask.to(device)).cpu()
    if workers > 1:
        dist.all_reduce(shared := logits.to(device))
        logits = shared.cpu()
    return logits


def _epoch(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Encoded,
    number: int,
    options: Options,
    rank: int,
    workers: int,
) -> tuple[float, float]:
    """One pass; mean loss and accuracy over its rows, as they were when each batch came."""
    model.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    lengths = [len(row) for row in train.tokens]
    batches = shuffled(lengths, options.batch_size, f"{options.seed}/{number}")
    torch.manual_seed(1_000_003 * options.seed + 1009 * number + rank)  # dropout, apart in every epoch
    sums = torch.zeros(2, dtype=torch.float64)  # loss and right answers
    bar = tqdm(batches, f"epoch {number}/{options.epochs}", unit="batch", disable=True if rank else None)
    for step, batch in enumerate(bar, start=(number - 1) * len(batches)):
        own = batch[rank::workers]
        places = own or batch[:1]  # gradients are shared, so a worker without rows must still take part
        ids, mask = tensors(train, places)
        classes = train.classes[places].to(device)
        with _autocast(device):
            logits = model(ids.to(device), mask.to(device))
        loss = cross_entropy(logits, classes, label_smoothing=options.label_smoothing, reduction="sum")
        loss = loss if own else loss * 0
        # Workers' gradients are averaged, so each divides by the rows of all and counts for all.
        torch.autograd.backward(loss * workers / len(batch))
        torch.nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * _rate(step, options.epochs * len(batches))
        optimizer.step()
        optimizer.zero_grad()
        if own:
            sums += torch.tensor([loss.item(), (logits.argmax(1) == classes).sum().item()])
    if workers > 1:
        dist.all_reduce(sums_on_device := sums.to(device))
        sums = sums_on_device.cpu()
    return sums[0].item() / len(train), sums[1].item() / len(train)


def _finished(progress: Progress, options: Options) -> bool:
    done = len(progress.history)
    return done >= options.epochs or (done > 0 and done - progress.best_epoch() >= options.patience)


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear rise, then a linear fall to zero."""
    rise = max(1, round(_WARM_UP * steps))
    return (step + 1) / rise if step < rise else (steps - step) / (steps - rise)


def _accuracy(logits: torch.Tensor, classes: torch.Tensor) -> float:
    return float((logits.argmax(1) == classes).float().mean())


def _autocast(device: torch.device) -> torch.autocast:
    # Where bf16 is not native, torch emulates it several times slower than fp32.
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.cpu._is_avx512_bf16_supported())
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


def is_first_worker() -> bool:
    """Whether this process is the one that reports and writes."""
    return _place()[0] == 0


def _place() -> tuple[int, int]:
    """This worker's rank and the number of workers."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
