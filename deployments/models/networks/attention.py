"""Multi-head attention with the weights of transformers' layers, computed the way engines are quick at.

Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762.
"""

from typing import Final

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

MASKED: Final = torch.finfo(torch.float16).min
"""Added to a score, in whatever precision."""


class Attention(nn.Module):
    """Every token of a row attends to all of them, or one does.

    Queries, keys and values are one matrix product. As three of them single texts take up to 13% longer, 25
    images or 16 texts at once 2% (OpenVINO, two cores). The weights are copies, for serving and not training.
    """

    def __init__(
        self, query: nn.Linear, key: nn.Linear, value: nn.Linear, out: nn.Linear, heads: int
    ) -> None:
        super().__init__()
        self.width, self.heads = query.out_features, heads
        # The factor 1/sqrt(head width) of the scores is part of the query's weights, which saves a step.
        scale = (self.width // heads) ** -0.5
        self.weight = nn.Parameter(torch.cat([query.weight * scale, key.weight, value.weight]).detach())
        self.bias = nn.Parameter(torch.cat([query.bias * scale, key.bias, value.bias]).detach())
        self.out = out

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[n, length, width]; `mask` is added to the scores [n, heads, length, length]."""
        query, key, value = self._by_head(linear(tokens, self.weight, self.bias))
        return self._attended(query, key, value, mask)

    def of_one(self, token: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """What `forward` gives for one token of each row alone, [n, 1, width]; `mask` is of its scores."""
        weight, bias, first = self.weight, self.bias, self.width
        (query,) = self._by_head(linear(token, weight[:first], bias[:first]))
        key, value = self._by_head(linear(tokens, weight[first:], bias[first:]))
        return self._attended(query, key, value, mask)

    def _by_head(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[n, length, k * width] to k of [n, heads, length, width / heads]."""
        n, length, width = tokens.shape
        parts = tokens.view(n, length, width // self.width, self.heads, self.width // self.heads)
        return tuple(parts.permute(2, 0, 3, 1, 4))

    def _attended(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
        projected: torch.Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return projected
