"""API keys: where they come from, and what passes."""

import hashlib
from pathlib import Path

import pytest

from configs.settings import AuthSettings, SettingsError
from serve_app.auth import key_digests

ENV = "SIGHTLINE_TEST_KEYS"


def test_no_keys_configured_means_open() -> None:
    assert key_digests(AuthSettings(keys_env=ENV)) == ()


def test_keys_come_from_environment_and_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# team keys\nthird\n\n fourth \n  # more\n")
    monkeypatch.setenv(ENV, "first, second,")
    expected = tuple(hashlib.sha256(key).digest() for key in (b"first", b"second", b"third", b"fourth"))
    assert key_digests(AuthSettings(keys_env=ENV, keys_file=file)) == expected


@pytest.mark.parametrize("value", ["", " ", " , "])
def test_a_variable_that_is_set_but_holds_no_key_never_means_open(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV, value)
    with pytest.raises(SettingsError, match="holds no key"):
        key_digests(AuthSettings(keys_env=ENV))


def test_a_configured_file_that_gives_no_key_never_means_open(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        key_digests(AuthSettings(keys_env=ENV, keys_file=tmp_path / "missing"))
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(SettingsError, match="holds no key"):
        key_digests(AuthSettings(keys_env=ENV, keys_file=tmp_path / "empty"))
