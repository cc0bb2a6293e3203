"""The model card: what a model was trained on, how well it does, and how to make it again."""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from platform import python_version

from training.checkpoint import Epoch
from training.metrics import Result

_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")


def render(
    title: str,
    *,
    about: str,
    facts: Mapping[str, object],
    measured_on: str,
    result: Result,
    history: Sequence[Epoch],
    left_out: Sequence[str],
    command: str,
) -> str:
    """Markdown. `result` is of the weights that lie beside the card."""
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    classes = zip(
        result.labels, result.precision(), result.recall(), result.confusion.sum(1).tolist(), strict=True
    )
    lines = [
        f"# {title}",
        "",
        about,
        "",
        f"**Accuracy {result.accuracy:.1%}** on {measured_on}: {result.rows} rows never trained on."
        if result.rows
        else "Nothing was held out, so nothing is known of its accuracy.",
        "",
        *_table(
            ("label", "precision", "recall", "rows"),
            [(label, _percent(p), _percent(r), str(rows)) for label, p, r, rows in classes],
        ),
        "",
        "![confusion matrix](confusion.png)",
        "",
        "## Training",
        "",
        *[f"- {name}: {value}" for name, value in facts.items()],
        *[f"- {line}" for line in left_out],
        f"- libraries: Python {python_version()}, {libraries}",
        "",
        *_table(
            ("epoch", "train loss", "train accuracy", "validation loss", "validation accuracy"),
            [
                (
                    str(e.number),
                    f"{e.train_loss:.3f}",
                    _percent(e.train_accuracy),
                    "" if e.validation_loss is None else f"{e.validation_loss:.3f}",
                    "" if e.validation_accuracy is None else _percent(e.validation_accuracy),
                )
                for e in history
            ],
        ),
        "",
        "Made by:",
        "",
        f"    {command}",
        "",
    ]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return [f"| {' | '.join(row)} |" for row in escaped]


def _percent(share: float) -> str:
    return "n/a" if math.isnan(share) else f"{share:.1%}"
