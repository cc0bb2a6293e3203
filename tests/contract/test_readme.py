"""Every block of the README runs as written: shell, Python, settings, and the answers it shows.

Those without a language are commands that nobody wants a test to run: they name what exists.
"""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from configs.files import parse_overrides
from configs.settings import Settings
from tests.photos import jpeg
from tests.server import ROOT, Server
from tests.waiting import PATIENCE_S

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
TOLERANCE = 0.05  # of scores: bf16 and other CPUs


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("readme")
    (directory / "cat.jpg").write_bytes(jpeg("chelsea"))
    (directory / "coffee.jpg").write_bytes(jpeg("coffee"))
    return directory


def run(command: list[str], directory: Path) -> str:
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
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
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"):
        text = document.read_text()
        for path in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text):
            assert (document.parent / path).exists(), f"{document} links to {path}"
        for target in re.findall(r"(?:^(?:\S+=\S+ )*|`)make ([a-z-]+)", text, re.MULTILINE):
            assert target in TARGETS, f"{document} names make {target}"
        for module in re.findall(r"python -m ((?:benchmarks|deployments|serve_app|training)[\w.]+)", text):
            assert file_of(module).exists(), f"{document} names {module}"


def test_commands_that_are_not_run_name_what_exists(server: Server) -> None:
    shown = [block for language, block in BLOCKS if not language and "─▶" not in block]  # a picture
    commands = [line for block in shown for line in re.split(r"(?<!\\)\n| && ", block) if line]
    assert len(commands) > 10
    for command in commands:
        check_command(shlex.split(command, comments=True), server)
    for setting in re.findall(r"--set ([^\s`\"]+)", README):
        Settings.from_args(parse_overrides([setting]))


def check_command(words: list[str], server: Server) -> None:
    match words:
        case ["make", target]:
            assert target in TARGETS, words
        case ["python", "-m", module, *given]:
            check_options(file_of(module).read_text(), given)
        case ["sightline", command, *given]:
            program = file_of("serve_app.cli").read_text()
            assert f'add_parser("{command}"' in program, words
            check_options(program, given)
        case ["serve", "run", app, *settings]:
            assert (ROOT / app).exists() or file_of(app.partition(":")[0]).exists(), words
            Settings.from_args(parse_overrides(settings))
        case ["pip", "install", "-e", project]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert project.strip(".[]") in extras, words
        case ["curl", *given]:
            path = urlsplit(next(word for word in given if word.startswith("http"))).path
            routes = server.get("/openapi.json").json()["paths"]
            assert any(re.fullmatch(re.sub("{.*?}", "[^/]+", route), path) for route in routes), words
        case _:
            raise AssertionError(f"nothing is known of {words}")


def check_options(program: str, given: list[str]) -> None:
    program += file_of("configs.files").read_text()  # where several take an option from
    for option in given:
        assert not option.startswith("--") or f'"{option}"' in program, given


def file_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


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
