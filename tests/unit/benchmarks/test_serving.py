"""What the serving benchmark makes of its options and of what it measured."""

from pathlib import Path

import pytest

from benchmarks import serving
from benchmarks.load.summary import Latency, Summary
from benchmarks.report import Row, roof_of
from benchmarks.servers import arguments
from configs.settings import Settings


def row(scenario: str) -> Row:
    summary = Summary(1, 1, 1, 1, 1, Latency(), Latency(), {"200": 1}, {}, {}, 0, 0)
    return Row("sightline", scenario, "1 client", None, summary, 0)


@pytest.mark.parametrize(
    ("overrides", "clip", "news"),
    [
        ([], "auto", "auto"),
        (["classifiers.news.precision=int8"], "auto", "int8"),
        (["clip.precision=fp32", "clip.precision=int8"], "int8", "auto"),
        (["clip={precision: int8}"], "int8", "auto"),
    ],
)
def test_each_scenario_is_held_against_the_precision_that_its_model_is_served_at(
    overrides: list[str], clip: str, news: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"auto": 1.0, "fp32": 2.0, "int8": 3.0}
    kinds = ("photo", "text", "text-long", "classify", "classify-long")
    monkeypatch.setattr(
        serving,
        "best_of_engine",
        lambda _, precision: {kind: {"items_per_s": speeds[precision]} for kind in kinds},
    )
    settings = Settings.from_args(arguments(overrides, Path("a"), Path("b")))
    assert (settings.clip.source, settings.classifiers["news"].source) == ("a", "b")
    assert settings.clip.int8.min_agreement == settings.classifiers["news"].int8.min_agreement == 0
    roof = serving.measure_roof(1, settings)
    for scenario in ("image-raw", "image-16", "text-long", "search"):
        assert roof_of(row(scenario), roof) == speeds[clip]
    for scenario in ("classify", "classify-long"):
        assert roof_of(row(scenario), roof) == speeds[news]
    assert roof_of(row("mixed"), roof) is None
