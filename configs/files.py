"""`serve_config.yaml` as the command lines read it, with the settings and numbers they are given."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from configs.settings import SettingsError

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class ServeConfig:
    """What Sightline's own commands take from a configuration file of Ray Serve."""

    http_options: Mapping[str, Any]
    args: Mapping[str, Any]  # of the first application; `Settings.from_args` reads them


def read_config(path: Path) -> ServeConfig:
    """Raises SettingsError if there is no such file, or it is not a configuration of Ray Serve."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    match document:
        case {"applications": [{**application}, *_]}:
            http, args = document.get("http_options") or {}, application.get("args") or {}
            if isinstance(http, dict) and isinstance(args, dict):
                return ServeConfig(http, args)
    raise SettingsError(f"{path} must have `applications`, the first with settings under `args`")


def laid_over(args: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, `over` read last: a key of it wins over one in `args`, dotted or nested."""
    return {key: value for key, value in args.items() if key not in over} | dict(over)


def add_set(parser: argparse.ArgumentParser) -> None:
    """`--set KEY=VALUE`, as often as wanted; `parse_overrides` reads what was given."""
    about = "a setting over the file's; repeatable"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=about)


def whole(least: int, most: int = 10**9) -> Callable[[str], int]:
    """An argparse type: a whole number from `least` to `most`."""
    return _number(int, f"a whole number from {least} to {most}", least, most)


def real(least: float, most: float = 10**9) -> Callable[[str], float]:
    """An argparse type: a number from `least` to `most`."""
    return _number(float, f"a number from {least} to {most}", least, most)


def _number(kind: type[N], wanted: str, least: float, most: float) -> Callable[[str], N]:
    def read(text: str) -> N:
        with suppress(ValueError):
            if least <= (value := kind(text)) <= most:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return read


def parse_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` arguments by key, the last of each. Raises SettingsError if one has no `=`."""
    for pair in pairs:
        if "=" not in pair:
            raise SettingsError(f"--set takes KEY=VALUE, for instance clip.source=starter; got {pair!r}")
    return dict(pair.split("=", 1) for pair in pairs)
