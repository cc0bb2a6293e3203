"""Measure a collection of a running server: recall against exact search, latency, a table and a picture.

    python -m serve_app.jobs.evaluate_index COLLECTION --url http://127.0.0.1:8000 --picture recall.png

The API key, where the server wants one, is taken from SIGHTLINE_API_KEY.
"""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont

from configs.files import whole
from serve_app.jobs.server import KEY_VARIABLE, Collection, Refused

SIZE: Final = (720, 440)
MARGIN: Final = (80, 40, 30, 60)  # left, top, right, bottom
FONT_PX: Final = 14


def table(found: Mapping[str, Any]) -> str:
    """One row for each setting, Markdown; an arrow at the one that answers searches."""
    knob = found["knob"] or "setting"
    lines = [f"| {knob} | recall@{found['k']} | p50 ms | p99 ms |", "| --- | --- | --- | --- |"]
    for setting in _settings(found):
        now = " ←" if setting["effort"] == found["now"]["effort"] else ""
        lines.append(_row(f"{_name(setting, found)}{now}", setting["recall"], setting["latency"]))
    if _approximate(found):
        lines.append(_row("exact", 1, found["exact"]))
    return "\n".join(lines)


def _settings(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Upwards by effort; the present one is always among them."""
    others = [setting for setting in found["settings"] if setting["effort"] != found["now"]["effort"]]
    return sorted([*others, found["now"]], key=lambda setting: setting["effort"] or 0)


def _name(setting: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Its effort; of what has none, sq8 for instance, the kind."""
    return str(setting["effort"] or (found["kind"] if _approximate(found) else "exact"))


def _approximate(found: Mapping[str, Any]) -> bool:
    return bool(found["kind"] != "flat")


def _row(name: str, recall: float, latency: Mapping[str, float]) -> str:
    return f"| {name} | {recall:.3f} | {latency['p50_ms']:.2f} | {latency['p99_ms']:.2f} |"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Recall over p50 latency (logarithmic), a point for each setting, as PNG."""
    settings = _settings(found)
    points = [(s["latency"]["p50_ms"], s["recall"], _name(s, found)) for s in settings]
    points.append((found["exact"]["p50_ms"], 1.0, "exact"))
    lowest = min(0.9, math.floor(20 * min(recall for _, recall, _ in points)) / 20)
    logs = [math.log10(max(ms, 1e-3)) for ms, _, _ in points]
    first, last = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
    left, top, right, bottom = MARGIN
    width, height = SIZE[0] - left - right, SIZE[1] - top - bottom

    def at(ms: float, recall: float) -> tuple[float, float]:
        x = (math.log10(max(ms, 1e-3)) - first) / (last - first)
        return left + width * x, top + height * (1 - recall) / (1 - lowest)

    image = Image.new("RGB", SIZE, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(FONT_PX)
    title = f"{found['kind']}, {found['count']} vectors: recall@{found['k']} over latency of one query"
    pen.text((left, FONT_PX / 2), title, "black", font)
    for power in range(first, last + 1):
        x, _ = at(10.0**power, 1)
        pen.line((x, top, x, top + height), "#dddddd")
        pen.text((x, top + height + 6), f"{10.0**power:g} ms", "black", font, anchor="ma")
    for step in range(6):
        recall = lowest + (1 - lowest) * step / 5
        _, y = at(10.0**first, recall)
        pen.line((left, y, left + width, y), "#dddddd")
        pen.text((left - 8, y), f"{recall:.3f}", "black", font, anchor="rm")
    line = [at(ms, recall) for ms, recall, _ in points]
    pen.line(line[:-1], "#2b6cb0", 2)
    present = [setting["effort"] == found["now"]["effort"] for setting in settings]
    for (x, y), (_, _, name), now in zip(line, points, [*present, False], strict=True):
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), "#c44e52" if now else "#2b6cb0")
        pen.text((x + 6, y + 4), name, "black", font)
    pen.text((left + width / 2, SIZE[1] - FONT_PX * 1.5), "p50 latency", "black", font, anchor="ma")
    image.save(path, "PNG")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and, where asked, write the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.jobs.evaluate_index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("collection")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--queries", type=whole(1), default=200, help="made from as many stored vectors")
    parser.add_argument("--k", type=whole(1), default=10, help="neighbours that each query asks for")
    parser.add_argument("--picture", type=Path, metavar="PNG")
    given = parser.parse_args(arguments)
    try:
        collection = Collection(given.url.rstrip("/"), given.collection, os.environ.get(KEY_VARIABLE))
        found = collection.evaluate(given.queries, given.k)
        sys.stdout.write(f"{found['kind']}, {found['count']} vectors, {found['queries']} queries\n\n")
        sys.stdout.write(f"{table(found)}\n")
        if given.picture:
            draw(found, given.picture)
    except (Refused, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
