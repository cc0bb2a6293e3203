"""Networks small enough to check by hand; a builder, as `deployments.engines.networks` takes them."""

from pathlib import Path

import torch

from deployments.engines.networks import Built, Networks


class Weighted(torch.nn.Module):
    """Sums of embeddings of ids, weighted: two inputs, dynamic in both axes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(100, 64)
        self.linear = torch.nn.Linear(64, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(ids) * mask.unsqueeze(-1)
        out: torch.Tensor = self.linear(hidden.sum(1)).float()
        return out


def build(directory: Path) -> Built:
    """`sums`; the fact is what the directory's file says."""
    example = torch.ones((2, 5), dtype=torch.int64)
    return Built({"sums": (Weighted(), (example, example))}, {"word": (directory / "word").read_text()})


def networks(directory: Path, word: str = "") -> Networks:
    (directory / "word").write_text(word)
    return Networks(__name__, directory, (directory / "word",))
