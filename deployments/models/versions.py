"""Model directories with versions, `models/<name>/<version>/`: which there are, and which one is meant."""

from pathlib import Path
from typing import Final

from configs.settings import SettingsError

LATEST: Final = "latest"


def published(model: Path) -> list[int]:
    """The versions of a model, oldest first; none for a directory that is itself one model."""
    if not model.is_dir():
        return []
    return sorted(int(entry.name) for entry in model.iterdir() if _is_version(entry.name) and entry.is_dir())


def _is_version(name: str) -> bool:
    """Whether it is a number as Python writes it: the directory of version 2 is not called 002."""
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def choose(model: Path, version: str) -> tuple[Path, str | None]:
    """The directory of `version` (a number or `latest`) and its number.

    A directory that holds no versions is one model: it has no number, and is always `latest`.

    Raises:
        SettingsError: there is no such version.
    """
    numbers = published(model)
    if version == LATEST:
        return (model / str(numbers[-1]), str(numbers[-1])) if numbers else (model, None)
    if _is_version(version) and int(version) in numbers:
        return model / version, version
    known = ", ".join(map(str, numbers)) or "none"
    raise SettingsError(f"{model} has no version {version!r}; it has {known}, and `latest` is the newest")
