"""The text classifier deployment: texts to logits, one deployment per configured classifier."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.settings import ClassifierSettings
from deployments.models.base import ModelInfo
from deployments.models.loading import load_classifier
from deployments.models.sources import Source
from deployments.served_model import ServedModel
from deployments.threads import threads_for
from deployments.timing import StageTimes


class TextClassifier:
    """Owns one loaded DistilBERT; ready once it has been warmed up."""

    def __init__(self, name: str, source: Source, settings: ClassifierSettings, cache_dir: Path) -> None:
        threads = threads_for(settings.threads, settings.scale.cpus)
        classifier = load_classifier(name, source, settings, cache_dir, threads)
        self._info = classifier.info
        self._text = ServedModel(name, classifier.text, settings.batch)

    async def classify(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], int, StageTimes]:
        """n texts to logits float32[n, labels] and the tokens they took. Raises BadInput."""
        served = await self._text(texts)
        return np.stack(served.outputs), served.length, served.times

    async def info(self) -> ModelInfo:
        """What is loaded; raises when it cannot answer requests."""
        self.check_health()
        return self._info

    def check_health(self) -> None:
        self._text.check()
