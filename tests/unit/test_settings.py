"""Settings: defaults, dotted keys, strict keys with a hint, immutability."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from configs.settings import Settings, SettingsError
from tests.server import ROOT


def test_defaults_are_the_documented_limits() -> None:
    limits = Settings().limits
    assert limits.max_body_bytes == 32 * 1024 * 1024
    assert (limits.max_images, limits.max_texts, limits.max_image_pixels) == (64, 2048, 64_000_000)


def test_nested_and_dotted_keys_mean_the_same() -> None:
    nested = Settings.from_args({"clip": {"source": "starter", "batch": {"max_items": 8}}})
    dotted = Settings.from_args({"clip.source": "starter", "clip.batch.max_items": "8"})
    mixed = Settings.from_args({"clip": {"source": "starter"}, "clip.batch.max_items": 8})
    assert nested == dotted == mixed
    assert nested.clip.batch.max_items == 8


def test_groups_are_merged_at_every_depth_in_any_order() -> None:
    dotted, nested = {"clip.scale.cpus": 2}, {"clip": {"scale": {"gpus": 1}}}
    for args in ({**dotted, **nested}, {**nested, **dotted}):
        scale = Settings.from_args(args).clip.scale
        assert (scale.cpus, scale.gpus) == (2, 1)


@pytest.mark.parametrize("key", ["clip.hub_timeout_s", "clip.scale.cpus", "limits.request_timeout_s"])
def test_no_time_and_no_share_is_infinite(key: str) -> None:
    with pytest.raises(SettingsError, match=key):
        Settings.from_args({key: "inf"})


def test_command_line_strings_become_their_types() -> None:
    settings = Settings.from_args(
        {
            "classifiers": "{news: {source: /models/news}}",
            "fetch_urls.enabled": "true",
            "fetch_urls.allowed_networks": "[10.0.0.0/8]",
            "clip.threads": "none",
            "limits.request_timeout_s": "2.5",
        }
    )
    assert settings.classifiers["news"].source == "/models/news"
    assert settings.fetch_urls.enabled
    assert str(settings.fetch_urls.allowed_networks[0]) == "10.0.0.0/8"
    assert settings.clip.threads is None
    assert settings.limits.request_timeout_s == 2.5


@pytest.mark.parametrize(
    ("args", "unknown", "meant"),
    [
        ({"clipp": {}}, "clipp", "clip"),
        ({"limits": {"max_image": 3}}, "limits.max_image", "max_images"),
        ({"clip.batch.max_item": 3}, "clip.batch.max_item", "max_items"),
        ({"classifiers": {"news": {"sorce": "x"}}}, "classifiers.news.sorce", "source"),
        ({"gateway": {"scale": {"replica": 2}}}, "gateway.scale.replica", "replicas"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    args: dict[str, object], unknown: str, meant: str
) -> None:
    with pytest.raises(SettingsError, match=f"unknown setting '{unknown}'; did you mean '{meant}'"):
        Settings.from_args(args)


def test_a_key_like_no_other_is_refused_with_all_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'zzz'; known: .*clip.*limits"):
        Settings.from_args({"zzz": 1})


@pytest.mark.parametrize(
    "args",
    [
        {"limits.max_images": "many"},
        {"limits.max_images": 0},
        {"index.shards": 0},
        {"clip.precision": "fp4"},
        {"clip.precision": "int8", "clip.engine": "torch"},
        {"clip.int8.min_cosine": 2},
        {"clip.name": "No Spaces"},
        {"clip": {"scale": {"replicas": 3, "max_replicas": 2}}},
        {"clip": {"name": "a"}, "classifiers": {"a": {}}},
        {"limits.max_inflight_bytes": 1024},
        {"index.cpus": ".inf"},
        {"clip.scale.upscale_delay_s": ".inf"},
        {"fetch_urls.ca_file": "/nowhere.pem"},
        {"fetch_urls.ca_file": __file__},
        {"clip": 3},
        {"clip": 3, "clip.source": "starter"},
    ],
)
def test_a_bad_value_is_refused_by_name(args: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(args)).split(".")[0]):
        Settings.from_args(args)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().limits.max_images = 3  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted({ROOT / "serve_config.yaml", *ROOT.glob("configs/*.yaml")}))
def test_every_configuration_file_holds_settings_that_exist(path: Path) -> None:
    for application in yaml.safe_load(path.read_text())["applications"]:
        Settings.from_args(application["args"])
