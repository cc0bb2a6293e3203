"""MobileNetV2 with torchvision's state-dict names, so that its published weights load unchanged.

Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv:1801.04381.
"""

from typing import Final

import torch
from torch import nn

# Table 2 of the paper: expansion, output channels, repeats, first stride.
_BLOCKS: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_FIRST: Final = 32
_LAST: Final = 1280


class MobileNetV2(nn.Module):
    """Normalised pixels float[n, 3, 224, 224] to ImageNet logits [n, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, _FIRST, kernel=3, stride=2)]
        channels = _FIRST
        for expansion, out, repeats, first_stride in _BLOCKS:
            for repeat in range(repeats):
                layers.append(InvertedResidual(channels, out, 1 if repeat else first_stride, expansion))
                channels = out
        layers.append(_convolution(channels, _LAST, kernel=1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(_LAST, 1000))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(pixels).mean((2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; the input is added where the shapes agree."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.residual = stride == 1 and channels == out
        self.conv = nn.Sequential(
            *([_convolution(channels, hidden, kernel=1)] if expansion != 1 else []),
            _convolution(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return x + y if self.residual else y


def _convolution(channels: int, out: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(),
    )
