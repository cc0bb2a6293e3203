"""Configuration files: what is read of them, what is refused, and what wins over them."""

from pathlib import Path

import pytest

from configs.files import laid_over, parse_overrides, read_config
from configs.settings import Settings, SettingsError
from tests.server import ROOT


def test_the_local_default_is_read() -> None:
    config = read_config(ROOT / "serve_config.yaml")
    assert config.http_options["port"] == 8000
    assert Settings.from_args(config.args).classifiers["news"].source == "starter"


def test_an_application_without_args_has_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_text("applications: [{import_path: serve_app.app:build_app}]")
    assert Settings.from_args(read_config(path).args) == Settings()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "applications: []",
        "applications: [news]",
        "applications: {args: {}}",
        "applications: [{args: [clip]}]",
        "{applications: [{args: {}}], http_options: 8000}",
    ],
)
def test_what_is_no_configuration_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"serve_config\.yaml must have `applications`"):
        read_config(path)


@pytest.mark.parametrize("content", [None, b"[", b"\xff"])
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "serve_config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"serve_config\.yaml cannot be read"):
        read_config(path)


def test_overrides_are_read_last_however_the_file_spells_the_key() -> None:
    over = parse_overrides(["clip.threads=2", "clip.threads=3"])
    for args in ({"clip": {"threads": 1}}, {"clip.threads": 1}, {"clip.threads": 1, "clip": {"threads": 0}}):
        assert Settings.from_args(laid_over(args, over)).clip.threads == 3


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--set takes KEY=VALUE.*got 'clip'"):
        parse_overrides(["clip.threads=2", "clip"])
