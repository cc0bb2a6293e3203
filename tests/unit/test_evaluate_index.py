"""What the evaluation job prints and draws."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serve_app.jobs.evaluate_index import draw, main, table
from serve_app.jobs.server import Collection

PRESENT = (0xC4, 0x4E, 0x52)
LATENCY = {"p50_ms": 0.2, "p99_ms": 0.4}
FOUND: dict[str, Any] = {
    "count": 1000,
    "queries": 10,
    "k": 10,
    "kind": "hnsw",
    "knob": "ef_search",
    "now": {"effort": 32, "recall": 0.97, "latency": LATENCY},
    "exact": {"p50_ms": 5.0, "p99_ms": 7.0},
    "settings": [
        {"effort": 16, "recall": 0.9, "latency": {"p50_ms": 0.1, "p99_ms": 0.2}},
        {"effort": 32, "recall": 0.97, "latency": LATENCY},
        {"effort": 64, "recall": 1.0, "latency": {"p50_ms": 0.4, "p99_ms": 0.9}},
    ],
}


def colours(picture: Path) -> set[Any]:
    with Image.open(picture) as image:
        return {colour for _, colour in image.getcolors(1 << 20) or []}


def test_the_table_has_a_row_for_each_setting_and_marks_the_present_one() -> None:
    rows = table(FOUND).splitlines()
    assert rows[0] == "| ef_search | recall@10 | p50 ms | p99 ms |"
    assert rows[3] == "| 32 ← | 0.970 | 0.20 | 0.40 |"
    assert rows[-1] == "| exact | 1.000 | 5.00 | 7.00 |"
    assert len(rows) == 6


def test_the_picture_shows_a_point_for_each_setting(tmp_path: Path) -> None:
    draw(FOUND, tmp_path / "recall.png")
    assert {PRESENT, (0x2B, 0x6C, 0xB0)} <= colours(tmp_path / "recall.png")


def test_exact_collections_have_one_row(tmp_path: Path) -> None:
    now = {"effort": None, "recall": 1.0, "latency": LATENCY}
    flat = FOUND | {"kind": "flat", "knob": None, "settings": [], "now": now}
    assert table(flat).splitlines()[2] == "| exact ← | 1.000 | 0.20 | 0.40 |"
    draw(flat, tmp_path / "recall.png")


def test_what_has_no_effort_goes_by_its_kind(tmp_path: Path) -> None:
    now = {"effort": None, "recall": 0.98, "latency": LATENCY}
    found = FOUND | {"kind": "sq8", "knob": None, "settings": [], "now": now}
    assert table(found).splitlines()[2:] == [
        "| sq8 ← | 0.980 | 0.20 | 0.40 |",
        "| exact | 1.000 | 5.00 | 7.00 |",
    ]
    draw(found, tmp_path / "recall.png")
    assert PRESENT in colours(tmp_path / "recall.png")


def test_a_present_setting_that_is_none_of_those_tried_is_shown(tmp_path: Path) -> None:
    found = FOUND | {"now": {"effort": 50, "recall": 0.99, "latency": LATENCY}}
    names = [row.split("|")[1].strip() for row in table(found).splitlines()[2:]]
    assert names == ["16", "32", "50 ←", "64", "exact"]
    draw(found, tmp_path / "recall.png")
    assert PRESENT in colours(tmp_path / "recall.png")


def test_the_table_comes_first_and_the_picture_is_png_whatever_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(Collection, "evaluate", lambda *_: FOUND)
    assert main(["c", "--picture", str(tmp_path / "recall")]) == 0
    with Image.open(tmp_path / "recall") as image:
        assert image.format == "PNG"
    assert "hnsw, 1000 vectors, 10 queries" in capsys.readouterr().out
    assert main(["c", "--picture", str(tmp_path / "no" / "recall.png")]) == 1
    printed = capsys.readouterr()
    assert "| 32 ← |" in printed.out
    assert "No such file" in printed.err


def test_a_server_that_refuses_is_a_sentence(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("serve_app.jobs.server.PATIENCE_S", 0)
    assert main(["c", "--url", "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().err
