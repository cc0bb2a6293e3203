"""Versions of a classifier: pinned, newest, tried on a share of requests, swapped, and broken ones."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from configs.settings import ClassifierSettings, SettingsError, VersionSettings
from deployments.models.sources import resolve
from deployments.text_classifier import TextClassifier
from tests.assets import CACHE, distilbert_directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with two versions that differ in weights and labels, and a broken third."""
    root = tmp_path_factory.mktemp("models") / "news"
    distilbert_directory(root / "1", labels=("world", "sport"), seed=1)
    distilbert_directory(root / "2", labels=("world", "sport", "science"), seed=2)
    return root


def classifier(model: Path, **versions: Any) -> TextClassifier:
    settings = ClassifierSettings(source=str(model), precision="fp32", versions=VersionSettings(**versions))
    source = resolve(settings, CACHE, starter=None)
    return TextClassifier("news", source, settings, CACHE)


async def changed(replica: TextClassifier, **versions: Any) -> None:
    """Reconfigure and wait until the change is made or refused."""
    await replica.reconfigure(versions)
    if replica._versions._swapping is not None:
        await replica._versions._swapping


def test_the_newest_version_serves_unless_one_is_pinned(model: Path) -> None:
    async def run() -> None:
        newest, pinned = classifier(model), classifier(model)
        await newest.reconfigure({})
        await pinned.reconfigure({"version": "1"})
        assert (await newest.info()).version == "2"
        info = await pinned.info()
        assert (info.version, info.labels) == ("1", ("world", "sport"))

    asyncio.run(run())


def test_requests_in_flight_end_on_the_version_they_began_with(model: Path) -> None:
    async def run() -> None:
        replica = classifier(model)
        await replica.reconfigure({"version": "1"})
        swap = asyncio.create_task(changed(replica, version="2"))
        seen: list[str] = []
        while not swap.done() or len(seen) < 20:
            logits, info, _, _ = await replica.classify(["a match"], 50)
            assert logits.shape == (1, len(info.labels))
            seen.append(info.version or "none")
        await swap
        logits, info, _, _ = await replica.classify(["a match"], 50)
        assert (info.version, logits.shape) == ("2", (1, 3))
        assert seen == sorted(seen), "once swapped, never back"

    asyncio.run(run())


def test_a_candidate_answers_its_share(model: Path) -> None:
    async def run() -> None:
        replica = classifier(model)
        await replica.reconfigure({"version": "1", "candidate": "2", "candidate_percent": 30})
        answered = [(await replica.classify(["a"], draw))[1].version for draw in (0, 29.9, 30, 99)]
        assert answered == ["2", "2", "1", "1"]
        info = await replica.info()
        assert info.version == "1"
        assert any("candidate version 2" in note and "30%" in note for note in info.notes)

    asyncio.run(run())


def test_a_broken_version_leaves_the_old_one_serving_and_says_why(model: Path) -> None:
    broken = model / "3"
    shutil.copytree(model / "2", broken)
    (broken / "model.safetensors").write_bytes(b"not weights")

    async def run() -> None:
        replica = classifier(model, version="2")
        await replica.reconfigure({"version": "2"})
        await changed(replica, version="3")
        info = await replica.info()
        assert info.version == "2"
        assert any("version 3 did not load, version 2 still serves" in note for note in info.notes)
        assert (await replica.classify(["a"], 0))[1].version == "2"
        await changed(replica, version="1")
        assert (await replica.info()).notes == ()

    try:
        asyncio.run(run())
    finally:
        shutil.rmtree(broken)


def test_a_version_there_is_not_is_refused_by_name(model: Path) -> None:
    with pytest.raises(SettingsError, match=r"no version '9'; it has 1, 2"):
        classifier(model, version="9")
