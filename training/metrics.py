"""Accuracy, precision and recall out of a confusion matrix, and a picture of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_CELL_PX: Final = 88
_MOST_PX: Final = 4000  # of the matrix; more labels than fit by name are drawn without
_FONT_PX: Final = 16
_WHITE: Final = np.array([255, 255, 255])
_BLUE: Final = np.array([8, 69, 148])


@dataclass(frozen=True)
class Result:
    """How a classifier did on labelled rows."""

    labels: tuple[str, ...]
    confusion: NDArray[np.int64]  # [true class, predicted class], rows counted

    @property
    def rows(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / max(1, self.rows))

    def told(self, measured_on: str) -> str:
        return f"accuracy {self.accuracy:.1%} on {measured_on}" if self.rows else "nothing was held out"

    def precision(self) -> NDArray[np.float64]:
        """Per class; NaN for a class that was never predicted."""
        return _share(self.confusion, self.confusion.sum(0))

    def recall(self) -> NDArray[np.float64]:
        """Per class; NaN for a class without rows."""
        return _share(self.confusion, self.confusion.sum(1))


def measure(labels: Sequence[str], true: NDArray[np.int64], predicted: NDArray[np.int64]) -> Result:
    """Count pairs of classes, int64[n] each."""
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (true, predicted), 1)
    return Result(tuple(labels), confusion)


def _share(confusion: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
    shares = np.full(len(totals), np.nan)
    np.divide(np.diag(confusion), totals, out=shares, where=totals > 0)
    return shares


def draw(result: Result, path: Path) -> None:
    """A PNG of the matrix: true labels down, predicted ones across, darker for a larger share of its row."""
    font = ImageFont.load_default(_FONT_PX)
    names = [label if len(label) <= 24 else f"{label[:23]}…" for label in result.labels]
    # Pillow's own font has no accents in some builds; a name it cannot draw must not end a training run.
    margin = int(max(font.getlength(name) for name in names)) + 3 * _FONT_PX
    cell = max(_CELL_PX, margin - 2 * _FONT_PX) if len(names) <= 8 else _CELL_PX
    cell = max(1, min(cell, _MOST_PX // len(names)))
    side = cell * len(names)
    image = Image.new("RGB", (margin + side + _FONT_PX, margin + side + _FONT_PX), "white")
    pen = ImageDraw.Draw(image)
    pen.text((margin + side / 2, _FONT_PX), "predicted", "black", font, anchor="mm")
    pen.text((_FONT_PX / 2, margin - _FONT_PX), "true", "black", font, anchor="lm")
    totals = np.maximum(result.confusion.sum(1, keepdims=True), 1)
    shares = result.confusion / totals
    for i, name in enumerate(names):
        middle = margin + cell * (i + 0.5)
        if cell >= _FONT_PX:
            pen.text((margin - _FONT_PX / 2, middle), name, "black", font, anchor="rm")
        if cell >= _CELL_PX:
            pen.text((middle, margin - _FONT_PX), name, "black", font, anchor="mm")
        for j in range(len(names)):
            left, top = margin + cell * j, margin + cell * i
            share = float(shares[i, j])
            red, green, blue = (int(part) for part in _WHITE + share * (_BLUE - _WHITE))
            if cell < _CELL_PX:  # no room for numbers
                pen.rectangle((left, top, left + cell, top + cell), (red, green, blue))
                continue
            pen.rectangle((left, top, left + cell, top + cell), (red, green, blue), "gray")
            ink = "white" if share > 0.5 else "black"
            pen.text((left + cell / 2, top + cell / 2), str(result.confusion[i, j]), ink, font, anchor="mm")
    image.save(path)
