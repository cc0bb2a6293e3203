"""From a source to a loaded, compiled and warmed-up model."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from configs.settings import ClassifierSettings, ClipSettings, SettingsError
from deployments.errors import SightlineError
from deployments.models import adapters, clip, distilbert, starter
from deployments.models.sources import Source
from deployments.models.towers import Classifier, Encoder
from deployments.models.versions import LATEST, choose

# torch's errors of a GPU, which say nothing of the model.
_GPU: Final = re.compile("OutOfMemoryError|AcceleratorError|CUDA|CUBLAS|CUDNN|cuBLAS|cuDNN")


def load_encoder(source: Source, settings: ClipSettings, cache_dir: Path, threads: int) -> Encoder:
    """Load the image and text encoder, fetching its weights first if need be; takes seconds.

    Raises:
        SettingsError: the directory holds no whole CLIP model.
        NotReady: the weights could not be fetched.
    """
    directory = source.fetch(cache_dir)
    with _of(directory):
        if source.kind == "starter":
            return starter.load(directory, settings, cache_dir, threads, source.notes)
        return clip.load(directory, settings, cache_dir, threads, str(source), source.notes)


def load_classifier(
    name: str,
    source: Source,
    settings: ClassifierSettings,
    cache_dir: Path,
    threads: int,
    version: str = LATEST,
) -> Classifier:
    """Load one text classifier, fetching its weights first if need be; takes seconds.

    Raises:
        SettingsError: there is no such version, or it is no whole DistilBERT classifier.
        NotReady: the weights could not be fetched, or the source is unavailable.
    """
    directory, number = choose(source.fetch(cache_dir), version)
    with _of(directory):
        if adapters.is_adapter(directory):
            directory = adapters.materialize(directory, cache_dir)
        loaded = distilbert.load(name, directory, settings, cache_dir, threads, str(source), source.notes)
    return replace(loaded, info=replace(loaded.info, version=number))


@contextmanager
def _of(directory: Path) -> Iterator[None]:
    """Libraries meet a damaged file with errors of every kind, few of which name it."""
    try:
        yield
    except (SettingsError, SightlineError, OSError, MemoryError, ImportError):
        raise
    except Exception as error:
        if _GPU.search(f"{type(error).__name__}: {error}"):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise SettingsError(f"the model in {directory} cannot be loaded: {reason}") from error
