"""Results as a file of JSON lines, a table and a picture; of equal scenarios the latest counts."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from benchmarks.vector_peers.measure import TARGET_RECALL, Record

MiB = 1024 * 1024
FONT_PX = 15
BAR_PX = 22
PANEL_PX = (560, 40)  # width, and height beside the bars
LABEL_PX, VALUE_PX = 180, 150
OURS = "sightline"
COLOURS = {True: (31, 119, 180), False: (170, 170, 170)}  # ours, theirs
NAME_CHARS = 36


class Results:
    """The latest record of every scenario of every system, for one data set."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = {_key(record): record for record in records}
        self.labels = sorted({record["label"] for record in records}, key=_ours_first)

    def value(
        self, label: str, scenario: str, field: str, filter: str | None = None, clients: int | None = None
    ) -> float | None:
        record = self._records.get((label, scenario, filter, clients))
        return None if record is None else float(record[field])

    @property
    def clients(self) -> list[int]:
        return sorted({clients for _, _, _, clients in self._records if clients is not None})


class Row(NamedTuple):
    """A measurement, and by label its value, None where it was not taken."""

    title: str
    digits: int
    more_is_better: bool
    drawn: bool
    value: Callable[[str], float | None]
    recall: Callable[[str], float | None] = lambda label: None  # it was measured at

    def missed(self, label: str) -> bool:
        """Whether it was measured at less than the target's recall."""
        recall = self.recall(label)
        return recall is not None and recall < TARGET_RECALL


def read(path: Path, **chosen: int) -> Results:
    """The records whose fields equal `chosen`."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return Results([r for r in records if all(r[field] == value for field, value in chosen.items())])


def rows(results: Results) -> Iterator[Row]:
    def plain(scenario: str, field: str, unit: float = 1) -> Callable[[str], float | None]:
        def value(label: str) -> float | None:
            found = results.value(label, scenario, field)
            return None if found is None else found / unit

        return value

    def search(field: str, filter: str | None, clients: int) -> Callable[[str], float | None]:
        return lambda label: results.value(label, "search", field, filter, clients)

    yield Row("load, vectors/s", 0, True, False, plain("load", "vectors_per_s"))
    yield Row("index build after the load, s", 1, False, False, plain("load", "build_s"))
    yield Row("load and build, vectors/s", 0, True, True, plain("load", "searchable_vectors_per_s"))
    for filter, words in ((None, "search"), ("common", "filter of 10%"), ("rare", "filter of 1%")):
        for clients in results.clients:
            who = f"{words}, {clients} client{'s' * (clients > 1)}"
            recall = search("recall", filter, clients)
            yield Row(f"{who}: recall@10", 3, True, False, recall)
            yield Row(f"{who}: answers/s", 0, True, True, search("throughput_per_s", filter, clients), recall)
            yield Row(f"{who}: p50 ms", 1, False, clients == 1, search("p50_ms", filter, clients), recall)
            yield Row(f"{who}: p99 ms", 1, False, False, search("p99_ms", filter, clients))
    yield Row("memory (PSS), MiB", 0, False, True, plain("memory", "total_bytes", MiB))
    yield Row("  anonymous", 0, False, False, plain("memory", "anonymous_bytes", MiB))
    yield Row("  mapped files", 0, False, False, plain("memory", "file_bytes", MiB))
    yield Row("  shared memory", 0, False, False, plain("memory", "shared_bytes", MiB))
    yield Row("disk, MiB", 0, False, True, plain("disk", "bytes", MiB))
    yield Row("clean stop, s", 1, False, False, plain("restart", "stop_s"))
    yield Row("start to first right answer, s", 1, False, True, plain("restart", "start_s"))


def table(results: Results) -> Iterator[str]:
    width = max(map(len, results.labels)) + 2
    yield " " * NAME_CHARS + "".join(f"{label:>{width}}" for label in results.labels)
    for row in rows(results):
        cells = (_shown(row.value(label), row.digits) for label in results.labels)
        yield f"{row.title:{NAME_CHARS}}" + "".join(f"{cell:>{width}}" for cell in cells)


def draw(results: Results, heading: str, path: Path) -> None:
    """A PNG with a panel of bars for each row that is `drawn`, two panels side by side.

    Bars are empty where the recall is below the target, and the heading, which names that, says so.
    """
    panels = [row for row in rows(results) if row.drawn]
    if any(row.missed(label) for row in panels for label in results.labels):
        heading += ", but for empty bars"
    width, height = PANEL_PX[0], PANEL_PX[1] + BAR_PX * len(results.labels)
    image = Image.new("RGB", (2 * width, 2 * FONT_PX + height * -(-len(panels) // 2)), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(FONT_PX)
    pen.text((FONT_PX, FONT_PX), heading, "black", font, anchor="lm")
    for number, row in enumerate(panels):
        left, top = width * (number % 2), 2 * FONT_PX + height * (number // 2)
        better = "more is better" if row.more_is_better else "less is better"
        pen.text((left + FONT_PX, top + FONT_PX), f"{row.title} ({better})", "black", font, anchor="lm")
        values = [row.value(label) for label in results.labels]
        longest = max((value for value in values if value), default=1)
        for line, (label, value) in enumerate(zip(results.labels, values, strict=True)):
            start, middle = left + LABEL_PX, top + 2 * FONT_PX + BAR_PX * line + BAR_PX // 2
            pen.text((start - 6, middle), label, "black", font, anchor="rm")
            end = start + (width - LABEL_PX - VALUE_PX) * (value or 0) / longest
            colour, shown = COLOURS[label.startswith(OURS)], _shown(value, row.digits)
            if missed := row.missed(label):
                shown += f", recall {row.recall(label):g}"
            pen.rectangle((start, middle - 8, end, middle + 8), None if missed else colour, colour)
            pen.text((end + 6, middle), shown, "black", font, anchor="lm")
    image.save(path)


def _ours_first(label: str) -> tuple[bool, str]:
    return not label.startswith(OURS), label


def _key(record: Record) -> tuple[str, str, str | None, int | None]:
    return record["label"], record["scenario"], record.get("filter"), record.get("clients")


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
