"""Every block of the README runs as written: shell, Python, settings, and the answers it shows."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.settings import Settings
from tests.photos import jpeg
from tests.server import ROOT, Server

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
TOLERANCE = 0.05  # of scores: bf16 and other CPUs


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("readme")
    (directory / "cat.jpg").write_bytes(jpeg("chelsea"))
    (directory / "coffee.jpg").write_bytes(jpeg("coffee"))
    return directory


def run(command: list[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shell_blocks_give_the_answers_shown(server: Server, photos: Path) -> None:
    shown = 0
    output = ""
    for language, block in BLOCKS:
        if language == "bash":
            script = "set -eo pipefail\n" + block.replace("http://127.0.0.1:8000", server.url)
            output = run(["bash", "-c", script], photos)
            assert '"error"' not in output
        elif language == "json":
            last = output.strip()
            start = max(last.rfind('{"object"'), last.rfind('{"results"'))
            alike(json.loads(last[start:]), json.loads(block))
            shown += 1
    assert shown == 2


def test_python_blocks(server: Server, photos: Path) -> None:
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert blocks
    for block in blocks:
        code = block.replace("http://127.0.0.1:8000", server.url)
        assert run([sys.executable, "-c", code], photos).split() == ["2", "384"]


def test_settings_blocks_hold_settings_that_exist() -> None:
    blocks = [block for language, block in BLOCKS if language == "yaml"]
    assert blocks
    for block in blocks:
        Settings.from_args(yaml.safe_load(block))


def test_files_and_make_targets_named_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"):
        text = document.read_text()
        for path in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text):
            assert (document.parent / path).exists(), f"{document} links to {path}"
        for target in re.findall(r"(?:^(?:\S+=\S+ )*|`)make ([a-z-]+)", text, re.MULTILINE):
            assert target in targets, f"{document} names make {target}"
        for module in re.findall(r"python -m ((?:benchmarks|deployments|serve_app|training)[\w.]+)", text):
            assert (ROOT / (module.replace(".", "/") + ".py")).exists(), f"{document} names {module}"


def alike(actual: Any, shown: Any) -> None:
    """Same shape and words; numbers near; ids and times of any value."""
    if isinstance(shown, dict):
        assert actual.keys() == shown.keys()
        for key in shown.keys() - {"id", "created"} if "created" in shown else shown.keys():
            alike(actual[key], shown[key])
    elif isinstance(shown, list):
        assert len(actual) == len(shown)
        for one, other in zip(actual, shown, strict=True):
            alike(one, other)
    elif isinstance(shown, float):
        assert actual == pytest.approx(shown, abs=TOLERANCE)
    else:
        assert actual == shown
