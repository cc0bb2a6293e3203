"""Converted networks: made once for each model and its makers, and never where torch is unwanted."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs.settings import SettingsError
from deployments import isolated
from deployments.engines import conversion
from deployments.engines.networks import Networks
from deployments.errors import NotReady
from tests import assets
from tests.unit.models.weighted import networks

_WITHOUT_TORCH = """
import sys
from pathlib import Path
from configs.settings import ClassifierSettings, ClipSettings
from deployments.models.loading import load_classifier, load_encoder
from deployments.models.sources import Source

clip, distilbert, cache = map(Path, sys.argv[1:])
encoder = load_encoder(Source("directory", str(clip)), ClipSettings(), cache, threads=1)
load_encoder(Source("starter", ""), ClipSettings(), Path({starters!r}), threads=1)
load_classifier("topics", Source("directory", str(distilbert)), ClassifierSettings(), cache, threads=1)
print(encoder.text.run([encoder.text.pre("a cat")])[0].tolist())
assert not {{"torch", "transformers"}} & set(sys.modules), "a process that only serves has imported torch"
"""


def made_at(cache: Path) -> list[int]:
    return sorted(path.stat().st_mtime_ns for path in (cache / "engines").rglob("*.xml"))


def test_a_process_that_serves_imports_no_torch_even_at_its_first_start(tmp_path: Path) -> None:
    assets.starter()
    clip = assets.clip_directory(tmp_path / "clip")
    distilbert = assets.distilbert_directory(tmp_path / "distilbert")
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", _WITHOUT_TORCH.format(starters=str(assets.CACHE))]
    command += [str(clip), str(distilbert), str(cache)]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    made = made_at(cache)
    assert len(made) == 3  # both towers and the classifier
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.stdout == first.stdout
    assert made_at(cache) == made


def test_many_at_once_convert_once(tmp_path: Path) -> None:
    wanted = networks(tmp_path, "fact")

    def facts(_: int) -> str:
        with conversion.converted(wanted, "fp32", tmp_path) as directory:
            return (directory / conversion.FACTS).read_text()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(facts, range(4))) == {'{"word": "fact"}'}
    assert len(made_at(tmp_path)) == 1


def test_other_makers_convert_again_and_what_nobody_uses_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(word: str) -> Path:
        with conversion.converted(networks(tmp_path, word), "fp32", tmp_path) as directory:
            return directory

    one, old = convert("one"), convert("three")
    os.utime(old, (0, 0))
    assert convert("three") == old  # used again, so it stays
    monkeypatch.setattr(Networks, "makers", lambda _: "f" * 64)
    newer = convert("three")
    assert all(directory.is_dir() for directory in (one, old, newer))
    os.utime(old, (0, 0))
    monkeypatch.setattr(Networks, "makers", lambda _: "e" * 64)
    convert("three")
    assert newer.is_dir()
    assert not old.exists()


def test_a_conversion_cut_short_leaves_nothing_that_would_be_loaded(tmp_path: Path) -> None:
    wanted = networks(tmp_path)
    shelf = tmp_path / "engines" / f"{wanted.sources()[:32]}-fp32"
    (shelf / "unfinished-left").mkdir(parents=True)
    (shelf / "unfinished-left" / "sums.xml").write_text("half")
    with conversion.converted(wanted, "fp32", tmp_path) as directory:
        assert sorted(path.name for path in directory.iterdir()) == [
            "facts.json",
            "sizes.json",
            "sums.bin",
            "sums.xml",
        ]
        assert [path.name for path in shelf.glob("*/")] == [directory.name]
        assert stat.S_IMODE(directory.stat().st_mode) == 0o755


@pytest.mark.parametrize("damaged", ["facts.json", "sizes.json", "sums.bin", "sums.xml"])
def test_what_lost_a_file_or_a_part_of_one_is_converted_again(tmp_path: Path, damaged: str) -> None:
    def convert() -> dict[str, int]:
        with conversion.converted(networks(tmp_path), "fp32", tmp_path) as directory:
            return {file.name: file.stat().st_size for file in directory.iterdir()}

    whole = convert()
    for damage in (Path.unlink, lambda file: os.truncate(file, 3)):
        (file,) = tmp_path.glob(f"engines/*/*/{damaged}")
        damage(file)
        assert convert() == whole


def test_a_cache_that_cannot_be_written_to_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with conversion.converted(networks(tmp_path), "fp32", tmp_path / "file") as directory:
        assert (directory / "sums.xml").is_file()
    assert not directory.exists()
    assert "cannot be kept" in caplog.text


def fail(message: str) -> None:
    raise SettingsError(message)


class TwoArguments(Exception):  # noqa: N818
    """Cannot be unpickled, as pydantic's and others' errors."""

    def __init__(self, what: str, more: str) -> None:
        super().__init__(what)


def fail_oddly() -> None:
    raise TwoArguments("what went wrong", "")


def die() -> None:
    os._exit(3)


def test_an_isolated_call_raises_what_its_function_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(SettingsError, match="no whole model"):
        isolated.call(fail, "no whole model")
    with pytest.raises(NotReady, match="the process of die ended with status 3"):
        isolated.call(die)
    with pytest.raises(RuntimeError, match=r"^TwoArguments: what went wrong$"):
        isolated.call(fail_oddly)
    assert isolated.call(os.getpid) != os.getpid()
