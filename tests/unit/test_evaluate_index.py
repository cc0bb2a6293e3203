"""What the evaluation job prints and draws."""

from pathlib import Path
from typing import Any

from PIL import Image

from serve_app.jobs.evaluate_index import draw, main, table

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


def test_the_table_has_a_row_for_each_setting_and_marks_the_present_one() -> None:
    rows = table(FOUND).splitlines()
    assert rows[0] == "| ef_search | recall@10 | p50 ms | p99 ms |"
    assert rows[3] == "| 32 ← | 0.970 | 0.20 | 0.40 |"
    assert rows[-1] == "| exact | 1.000 | 5.00 | 7.00 |"
    assert len(rows) == 6


def test_the_picture_shows_a_point_for_each_setting(tmp_path: Path) -> None:
    draw(FOUND, tmp_path / "recall.png")
    with Image.open(tmp_path / "recall.png") as image:
        colours = {colour for _, colour in image.getcolors(1 << 20) or []}
    assert (0xC4, 0x4E, 0x52) in colours  # the present setting
    assert (0x2B, 0x6C, 0xB0) in colours


def test_exact_collections_have_one_row(tmp_path: Path) -> None:
    flat = FOUND | {"knob": None, "settings": [], "now": {"effort": None, "recall": 1.0, "latency": LATENCY}}
    assert table(flat).splitlines()[2] == "| exact ← | 1.000 | 0.20 | 0.40 |"
    draw(flat, tmp_path / "recall.png")


def test_a_server_that_refuses_is_a_sentence(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("serve_app.jobs.server.PATIENCE_S", 0)
    assert main(["c", "--url", "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().err
