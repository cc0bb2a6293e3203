"""A fine-tuned network as small changes to its base: singular vectors of each matrix's change, in fp16.

The best approximation of a given rank (Eckart and Young 1936); of LoRA's form, without its constraint
while training.
"""

from collections.abc import Mapping

import torch


def low_rank(
    base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], rank: int
) -> dict[str, torch.Tensor]:
    """What `deployments.models.adapters.merge` takes.

    A matrix of the base becomes `.left` [out, rank] and `.right` [rank, in]; a vector, and whatever the
    base has not (the head), is kept whole; what did not change is left out.
    """
    adapter: dict[str, torch.Tensor] = {}
    for name, tensor in tuned.items():
        if name in base and torch.equal(tensor, base[name]):
            continue
        if name in base and tensor.ndim == 2:
            left, strengths, right = torch.linalg.svd(tensor - base[name], full_matrices=False)
            # Split evenly, both factors stay far from fp16's smallest numbers.
            root = strengths[:rank].sqrt()
            adapter[f"{name}.left"] = (left[:, :rank] * root).half().contiguous()
            adapter[f"{name}.right"] = (root[:, None] * right[:rank]).half().contiguous()
        else:
            adapter[name] = tensor.half()
    return adapter
