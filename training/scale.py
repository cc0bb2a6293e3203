"""How commands that use a Ray cluster are told its scale: by the settings, some of which have flags."""

import argparse
from pathlib import Path
from typing import Any

from configs.files import add_set, laid_over, parse_overrides, read_config
from configs.settings import Settings, TrainingSettings

_GROUP = "training."


def add_scale(parser: argparse.ArgumentParser) -> None:
    """The arguments that every such command has."""
    parser.add_argument("--address", help="a running cluster; without it one is started on this machine")
    parser.add_argument("--config", type=Path, help="settings, as serve_config.yaml holds them")
    add_set(parser)
    add_flag(parser, "--storage", "storage_dir", type=Path)


def add_flag(parser: argparse.ArgumentParser, flag: str, key: str, **how: Any) -> None:
    """A flag that stands for `--set training.KEY=…` and wins over it."""
    about = f"the setting {_GROUP}{key}" + (f"={how['const']}" if "const" in how else "")
    parser.add_argument(flag, dest=_GROUP + key, help=about, **how)


def scale_of(given: argparse.Namespace) -> TrainingSettings:
    """Flags over `--set`, over the file's settings, over the defaults.

    Raises:
        SettingsError: the file cannot be read, a key does not exist, or a value is bad.
    """
    args = read_config(given.config).args if given.config else {}
    flags = {key: value for key, value in vars(given).items() if key.startswith(_GROUP) and value is not None}
    return Settings.from_args(laid_over(laid_over(args, parse_overrides(given.set)), flags)).training
