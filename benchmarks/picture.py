"""A picture of a serving benchmark: rates beside the roof and the peer, and where a request's time went."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from benchmarks.report import PATH, Roof, Row, breakdown, roof_of

_FONT_PX: Final = 15
_BAR_PX: Final = 18
_NAME_PX: Final = 250
_BARS_PX: Final = 560
_WIDTH: Final = _NAME_PX + _BARS_PX + 170
_COLOURS: Final = {"sightline": "#2b6cb0", "infinity": "#dd8452", "roof": "#c9ced6"}
_STAGES: Final = dict(
    zip(
        PATH,
        ("#8c8c8c", "#937860", "#c44e52", "#ccb974", "#da8bc3", "#2b6cb0", "#55a868", "#4c4c4c"),
        strict=True,
    )
)


def draw(rows: Sequence[Row], roof: Roof | None, path: Path) -> None:
    """Write a PNG. Bars of one load are scaled to the longest of them, for texts are many times faster."""
    done = [row for row in rows if row.summary is not None]
    groups = list(dict.fromkeys((row.scenario, row.load) for row in done))
    spent = {(r.scenario, r.load): parts for r in done if (parts := breakdown(r.measured)) is not None}
    height = 4 * _FONT_PX + sum(_BAR_PX * (len(_bars(done, group, roof)) + 1) for group in groups)
    height += 6 * _FONT_PX + (_BAR_PX + 6) * len(spent)
    image = Image.new("RGB", (_WIDTH, height), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(_FONT_PX)
    pen.text((_FONT_PX, _FONT_PX), "items a second", "black", font)
    y = 3 * _FONT_PX
    for group in groups:
        bars = _bars(done, group, roof)
        longest = max(max(value for _, value in bars), 1e-9)
        pen.text((_FONT_PX, y), " ".join(group), "black", font)
        for name, value in bars:
            right = _NAME_PX + _BARS_PX * value / longest
            pen.rectangle((_NAME_PX, y, right, y + _BAR_PX - 3), _COLOURS[name])
            pen.text((right + 6, y), f"{value:.1f} {name}", "black", font)
            y += _BAR_PX
        y += _BAR_PX
    y += _FONT_PX
    pen.text((_FONT_PX, y), "where one request's time went", "black", font)
    x = float(_NAME_PX)
    for name, colour in _STAGES.items():
        pen.rectangle((x, y, x + _FONT_PX, y + _FONT_PX), colour)
        pen.text((x + _FONT_PX + 4, y), name, "black", font)
        x += font.getlength(name) + 2 * _FONT_PX
    y += 2 * _FONT_PX
    for (scenario, load), parts in spent.items():
        pen.text((_FONT_PX, y), f"{scenario} {load}", "black", font)
        left = float(_NAME_PX)
        total = max(sum(parts.values()), 1e-9)
        for name in PATH:
            right = left + _BARS_PX * max(0.0, parts[name]) / total
            pen.rectangle((left, y, right, y + _BAR_PX), _STAGES[name])
            left = right
        pen.text((left + 6, y), f"{total:.1f} ms", "black", font)
        y += _BAR_PX + 6
    image.save(path)


def _bars(rows: Sequence[Row], group: tuple[str, str], roof: Roof | None) -> list[tuple[str, float]]:
    same = [row for row in rows if (row.scenario, row.load) == group]
    bars = [(row.server, row.measured.items_per_s) for row in same]
    limit = roof_of(same[0], roof)
    return [*bars, ("roof", limit)] if limit else bars
